"""Counter-based random numbers: element ``i`` of a stream depends on its key and ``i`` alone.

SplitMix64 (Steele, Lea & Flood, 2014) in wrapping int64 arithmetic, so feedback is the same on every
device, rank and torch version, and appending rows leaves the rows before them unchanged.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

DISTRIBUTIONS = ("normal", "uniform", "sign")


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


def stream_key(seed: int, name: str) -> int:
    """The key of the stream that belongs to ``name`` under ``seed``, an int64."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


def _shift_right(words: Tensor, by: int) -> Tensor:
    return (words >> by) & (2 ** (64 - by) - 1)  # int64 shifts are arithmetic; the mask makes it logical


def _words(key: int, start: int, count: int) -> Tensor:
    return _mix(torch.arange(start, start + count, dtype=torch.int64), key)


def _mix(index: Tensor, key: int) -> Tensor:
    x = (index + 1) * _GOLDEN + key
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def _draw(words: Tensor, distribution: str) -> Tensor:
    # The same word decides all three, so the signs of "normal" and "uniform" are those of "sign".
    if distribution == "sign":
        return torch.where(words < 0, 1.0, -1.0)
    fraction = (_shift_right(words, 12).double() + 0.5) * 2.0**-52
    if distribution == "normal":
        return (torch.erfinv(2 * fraction - 1) * math.sqrt(2)).float()
    return ((2 * fraction - 1) * math.sqrt(3)).float()


def random_matrix(rows: int, columns: int, distribution: str, key: int, block: int = 2**22) -> Tensor:
    """A float32 CPU matrix (rows, columns) of unit-variance elements, drawn a block at a time.

    ``distribution``: "normal" is N(0, 1), "uniform" is U(-sqrt 3, sqrt 3), "sign" is +1 or -1.
    """
    out = torch.empty(rows * columns)
    for start in range(0, out.numel(), block):
        part = out[start : start + block]
        part.copy_(_draw(_words(key, start, part.numel()), distribution))
    return out.view(rows, columns)


def random_columns(
    rows: range, columns: range, width: int, distribution: str, key: int, device: torch.device
) -> Tensor:
    """Those rows and columns of ``random_matrix(..., width, distribution, key)``, drawn on ``device``."""
    first = torch.arange(rows.start, rows.stop, dtype=torch.int64, device=device).unsqueeze(1) * width
    index = first + torch.arange(columns.start, columns.stop, dtype=torch.int64, device=device)
    return _draw(_mix(index, key), distribution)
