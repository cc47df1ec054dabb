"""How many bytes a head takes, from its sizes alone: before the first update, and the same after a million."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from torchdfa.bits import packed_width
from torchdfa.errors import UsageError
from torchdfa.online import parameters
from torchdfa.ops.sign_mm import CHUNK_BYTES

if TYPE_CHECKING:
    from torchdfa.online.head import OnlineHead


@dataclass(frozen=True)
class Memory:
    """Bytes of a head. ``feedback`` is what is held, ``feedback_stored`` what of it must be kept (signs as bits).

    ``activations`` lives during an update only: inputs, outputs and errors of its rows, and the scaling of inputs.
    ``gradients`` is 0: no gradient is ever kept. A training loop of PyTorch's would keep as many bytes as ``weights``.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    feedback: int
    feedback_stored: int
    scaler: int
    replay: int

    @property
    def total(self) -> int:
        return sum(value for name, value in self.to_dict().items() if name != "feedback_stored")

    def to_dict(self) -> dict[str, int]:
        """A JSON-able form."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [(f.name, getattr(self, f.name)) for f in fields(self) if f.name != "feedback_stored"]
        notes = {"feedback": f"  ({self.feedback_stored:,} in a file)", "activations": "  (during an update)"}
        rows = [f"{name:<12}{value:>14,}{notes.get(name, '')}" for name, value in (*lines, ("total", self.total))]
        return "\n".join(["bytes of", *rows])


def memory_of(head: OnlineHead) -> Memory:
    """Raises UsageError where neither the first batch nor the parameters ``features`` and ``classes`` say the sizes."""
    if hasattr(head, "network_"):
        widths = head.network_.widths
    elif head.features is None or head.classes is None:
        raise UsageError("memory() before the first batch needs the sizes: OnlineHead(features=..., classes=...)")
    else:
        parameters.check(head)
        widths = parameters.widths(head, head.features, len(parameters.labels(head.classes)))
    return of_sizes(head, widths)


def of_sizes(head: OnlineHead, widths: tuple[int, ...]) -> Memory:
    """Of a head with these units in its input, hidden layers and output."""
    item = np.dtype(head.dtype).itemsize
    layers = [item * (below * above + above) for below, above in pairwise(widths)]
    trained = layers[-1:] if head.rule == "frozen" else layers
    shapes = _feedback_shapes(head, widths)
    rows = (head.batch_size or 1) + (head.replay_rows if head.replay else 0)
    return Memory(
        weights=sum(layers),
        gradients=0,
        optimizer=sum(trained) if head.momentum else 0,
        activations=rows * (item * (widths[0] + 2 * sum(widths[1:])) + 4 * 8 * widths[0]) + _unpacking(head, shapes),
        feedback=sum(_held(head, shape, item) for shape in shapes),
        feedback_stored=sum(_stored(head, shape, item) for shape in shapes),
        scaler=2 * 3 * 8 * widths[0],  # mean, squares and scale, and those that take their place
        replay=head.replay * widths[-1] * widths[0] * item + (8 * widths[-1] if head.replay else 0),
    )


def _feedback_shapes(head: OnlineHead, widths: tuple[int, ...]) -> list[tuple[int, int]]:
    if head.rule == "fa":
        return [(above, below) for below, above in pairwise(widths[1:])]
    return [(widths[-1], width) for width in widths[1:-1]] if head.rule in ("dfa", "bdfa") else []


def _stored(head: OnlineHead, shape: tuple[int, int], item: int) -> int:
    rows, width = shape
    return rows * packed_width(width) + 4 if head.rule == "bdfa" else rows * width * item


def _held(head: OnlineHead, shape: tuple[int, int], item: int) -> int:
    unpacked = shape[0] * shape[1] * item if head.rule == "bdfa" and head.keep_signs else 0
    return _stored(head, shape, item) + unpacked


def _unpacking(head: OnlineHead, shapes: list[tuple[int, int]]) -> int:
    """What ``sign_mm`` takes for a moment where no copy is held: two bytes and a float32 for each sign of a block."""
    if head.rule != "bdfa" or head.keep_signs:
        return 0
    return max(min(6 * rows * width, CHUNK_BYTES) for rows, width in shapes)
