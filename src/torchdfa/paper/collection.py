"""All results of a protocol: those that come with the package, and the user's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from torchdfa.paper import near_duplicates, results
from torchdfa.paper.recipes import Protocol, Recipe, protocol_named, recipes
from torchdfa.paper.results import Result
from torchdfa.paper.summary import Summary, figure


@dataclass(frozen=True)
class Collection:
    """Results by the recipe that owns them."""

    protocol: Protocol
    recipes: dict[str, Recipe]
    _shipped: dict[str, list[Result]]
    _own: dict[str, list[Result]]
    notes: tuple[str, ...] = field(default=())
    folder: Path | None = None  # of the user's results

    @property
    def has_own(self) -> bool:
        return bool(self._own)

    def shipped(self, recipe: Recipe) -> Summary | None:
        """What the results that come with the package say; None where there are none."""
        return _summary(self._shipped.get(recipe.source, []))

    def own(self, recipe: Recipe) -> Summary | None:
        """What the user's results say; None where there are none."""
        return _summary(self._own.get(recipe.source, []))

    def all(self, recipe: Recipe) -> Summary | None:
        """Both together; of a seed that was run twice, the user's run counts."""
        own = self._own.get(recipe.source, [])
        seeds = {result.seed for result in own}
        return _summary([*own, *(r for r in self._shipped.get(recipe.source, []) if r.seed not in seeds)])

    def every(self) -> list[Result]:
        """All results, in the order of the recipes."""
        summaries = [self.all(recipe) for recipe in self.recipes.values() if recipe.same_as is None]
        return [result for summary in summaries if summary for result in summary.results]

    def missing(self, wanted: Sequence[Recipe]) -> tuple[str, ...]:
        """Names of the recipes without any result."""
        return tuple(recipe.name for recipe in wanted if self.all(recipe) is None)

    def without_duplicates(self, recipe: Recipe) -> tuple[str, str, str]:
        """Top-1 on all test images, on those without a near copy in the training set, and on the others."""
        mask, _ = self._near_copies(str(recipe.settings["data"]))
        summary = self.all(recipe)
        if mask is None or summary is None:
            return "–", "–", "–"
        kept = [right for r in summary.results if (right := r.right) is not None]
        rights = [right for right in kept if len(right) == len(mask)]
        if not rights:
            return "–", "–", "–"
        parts = (np.ones_like(mask), ~mask, mask)
        cells = [figure([100 * float(right[part].mean()) for right in rights]) for part in parts]
        return tuple("–" if value is None else str(value) for value in cells)  # type: ignore[return-value]

    @property
    def duplicate_note(self) -> str:
        counts = []
        for data in ("cifar10", "cifar100"):
            mask, whose = self._near_copies(data)
            counts += (
                [] if mask is None else [f"{int(mask.sum())} of the {len(mask):,} test images of {data} ({whose})"]
            )
        return f"Near copies: {', '.join(counts) or 'not looked for yet'}."

    def _near_copies(self, data: str) -> tuple[NDArray[np.bool_] | None, str]:
        """Which test images have a near copy, by the list among the user's results before the one of the package."""
        own = near_duplicates.read(data, self.folder) if self.folder else None
        if own is not None:
            return own, f"the list in {self.folder}"
        return near_duplicates.read(data), "found by hash and thumbnail"


def _summary(found: list[Result]) -> Summary | None:
    return Summary(tuple(found)) if found else None


def collect(protocol: str, folder: Path | None) -> Collection:
    """Read the results that come with the package and those in `folder`; UsageError where a recipe has changed."""
    found = protocol_named(protocol)
    available = recipes(found)
    ours, notes = results.read_folder(results.shipped(), protocol)
    yours, own_notes = results.read_folder(folder, protocol) if folder else ([], [])
    return Collection(
        found, available, results.matching(ours, available), results.matching(yours, available),
        (*notes, *own_notes, *_other_images([*ours, *yours])), folder,
    )  # fmt: skip


def _other_images(found: list[Result]) -> list[str]:
    """One note where runs of one recipe had different images: pixels and labels, before any augmentation."""
    images: dict[str, set[str]] = {}
    for result in found:
        images.setdefault(result.recipe, set()).add(str(result.run.config["data"].get("sha256")))
    mixed = [recipe for recipe, checksums in images.items() if len(checksums) > 1]
    if not mixed:
        return []
    more = f" and {len(mixed) - 1} more recipes" if len(mixed) > 1 else ""
    return [
        f"runs of {mixed[0]}{more} had images of different checksums (sha256 in the result files; those that come with "
        "the package hold some JPEG decodes): where they are taken together, the data differ slightly or altogether"
    ]
