"""The benchmark's 100 targets: names and their variants, sets, frame ranges, attributes (otb.csv).

Sets and attributes are those of the official scores of the benchmark's authors; Car4 and CarDark, which those leave
without attributes, have them from the authors' list of sequences.
"""

from __future__ import annotations

import csv
import difflib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from torchdfa.errors import UsageError

ATTRIBUTES = {
    "IV": "illumination variation",
    "SV": "scale variation",
    "OCC": "occlusion",
    "DEF": "deformation",
    "MB": "motion blur",
    "FM": "fast motion",
    "IPR": "in-plane rotation",
    "OPR": "out-of-plane rotation",
    "OV": "out of view",
    "BC": "background clutter",
    "LR": "low resolution",
}
VERSIONS = ("OTB-2013", "OTB-50", "OTB-100")
_ALIASES = {"human4": "Human4-2"}  # its only target that has ground truth


@dataclass(frozen=True)
class Target:
    """One target. ``first`` and ``last`` number the image files that count, None where all do."""

    name: str
    versions: tuple[str, ...]
    attributes: tuple[str, ...]
    first: int | None
    last: int | None

    @property
    def folder(self) -> str:
        return self.name.rpartition("-")[0] or self.name

    @property
    def ground_truth(self) -> str:
        """Name of its file: two targets share the folder of Jogging and of Skating2, and Human4 counts its second."""
        number = self.name.rpartition("-")[2] if "-" in self.name else ""
        return f"groundtruth_rect.{number}.txt" if number else "groundtruth_rect.txt"


@cache
def targets() -> dict[str, Target]:
    """All 100 by name, in the authors' order."""
    text = files("torchdfa.track").joinpath("otb.csv").read_text(encoding="utf-8")
    return {row["name"]: _target(row) for row in csv.DictReader(text.splitlines())}


def _target(row: dict[str, str]) -> Target:
    versions = tuple({"13": "OTB-2013", "50": "OTB-50"}[s] for s in row["sets"].split())
    first, last = (int(row[key]) if row[key] else None for key in ("first", "last"))
    return Target(row["name"], (*versions, "OTB-100"), tuple(row["attributes"].split()), first, last)


def names(version: str) -> list[str]:
    """Names of the targets of a set; OTB-2013 has 51, OTB-50 has 50, OTB-100 has 100."""
    if version not in VERSIONS:
        raise UsageError(f"the set {version!r} must be one of {', '.join(VERSIONS)}")
    return [name for name, target in targets().items() if version in target.versions]


def fold(name: str) -> str:
    """What name variants have in common: Jogging-1, jogging_1, Jogging.1 and Jogging1 are one."""
    return "".join(c for c in name.casefold() if c.isalnum())


@cache
def _folded() -> dict[str, str]:
    return {fold(name): name for name in targets()} | _ALIASES


def known(name: str) -> str | None:
    """The name of this table for any variant of it, None where it has none."""
    return _folded().get(fold(name))


def find(name: str) -> Target | None:
    """The target of any variant of its name, None where the table has none."""
    return targets().get(known(name) or "")


def canonical(name: str) -> str:
    """As ``known``; UsageError with the nearest names where there is none."""
    found = known(name)
    if found is None:
        near = difflib.get_close_matches(fold(name), _folded(), n=3, cutoff=0.5)
        hint = f"; the nearest are {', '.join(_folded()[n] for n in near)}" if near else ""
        raise UsageError(f"OTB has no sequence {name!r}{hint}")
    return found
