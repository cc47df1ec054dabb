"""Tables as CSV that a spreadsheet cannot mistake for formulas."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def to_csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> bytes:
    """UTF-8 CSV. Texts that a spreadsheet would run as a formula get a ' in front; None is an empty cell."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)  # RFC 4180: with lines ended by \r\n, a lone \r in a cell is quoted too
    writer.writerows([cell(value) for value in row] for row in (header, *rows))
    # Names of files may hold bytes that are no UTF-8; they are written as escapes rather than refused.
    return text.getvalue().encode("utf-8", "backslashreplace")


def cell(value: Any) -> Any:
    """`value` as a cell that is shown and never run."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
