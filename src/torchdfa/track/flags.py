"""Flags that the commands of tracking share, and how their texts are read."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from torchdfa.errors import UsageError

Flag = typer.Option

Rule = Annotated[str, Flag(help="bp, fa, dfa, bdfa, frozen; several with commas")]
Weights = Annotated[Path | None, Flag(help="MDNet's weights: .safetensors, PyMDNet's .pth or VGG-M's .mat")]
Preset = Annotated[str, Flag(help="pymdnet or paper")]
Feedback = Annotated[str, Flag(help="product (Eqs. 7, 9) or random")]
FeedbackScale = Annotated[str, Flag(help="unit, match, he or a number")]
Moment = Annotated[str, Flag(help="when feedback is taken: start or after_first_frame")]
Option = Annotated[list[str] | None, Flag("--option", help="name=value of any other setting, such as candidates=128")]
Device = Annotated[str, Flag(help="auto, cpu or cuda")]
Precision = Annotated[str, Flag(help="auto, fp32 or bf16")]
Out = Annotated[Path, Flag(help="folder of what is written")]
Protocol = Annotated[str, Flag(help="otb, got10k, pysot or pytracking")]
Set = Annotated[str, Flag("--set", help="OTB-2013, OTB-50 or OTB-100")]
Missing = Annotated[str, Flag(help="error, or skip sequences that are missing")]
Truncate = Annotated[bool, Flag("--truncate", help="where lengths differ, use as much as both have")]
FirstFrames = Annotated[int | None, Flag("--frames", help="score only so many first frames of each sequence")]
Data = Annotated[Path, Flag(help="folder of OTB's sequences, or a .json file of ground truth")]
Sequences = Annotated[str | None, Flag(help="names with commas; by default all of the set")]
Results = Annotated[list[Path], typer.Argument(help="folders of results: a tracker's, or of several trackers")]


def names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def numbers(flag: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in names(text))
    except ValueError:
        raise UsageError(f"{flag} must be whole numbers with commas; got {text!r}") from None


_WORDS = {"True": True, "False": False, "None": None}


def number_or_text(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


def settings(given: list[str] | None, flags: Iterable[str]) -> dict[str, Any]:
    """Settings from "name=value", as JSON or Python write them; UsageError for those that have ``flags``."""
    found: dict[str, Any] = {}
    for text in given or []:
        name, sign, value = text.partition("=")
        name = name.strip()
        if not sign or not name:
            raise UsageError(f"--option must be name=value; got {text!r}")
        if name in flags:
            raise UsageError(f"--option {text}: {name} has a flag of its own, see --help; pass that")
        if name in found:
            raise UsageError(f"--option {name} is given twice")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = _WORDS.get(value.strip(), value)
    return found


def note(sentence: str) -> None:
    print(f"torchdfa: {sentence}", file=sys.stderr)
