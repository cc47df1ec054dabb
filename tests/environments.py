"""What is installed here, for the tests that take packages away."""

from __future__ import annotations

from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement


def torch_needs() -> set[str]:
    """Import names of torch and of everything torch requires on this platform."""
    names, pending, seen = set(), ["torch"], set()
    while pending:
        name = pending.pop()
        if name in seen:
            continue
        seen.add(name)
        found = distribution(name)
        names |= {Path(str(file)).parts[0].removesuffix(".py") for file in found.files or []}
        needs = [Requirement(text) for text in found.requires or []]
        pending += [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    return {name for name in names if name.isidentifier() and name != "__pycache__"}
