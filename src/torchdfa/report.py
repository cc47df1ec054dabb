"""What each layer of a converted model learns from, and what its feedback costs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from torchdfa.convert import Conversion, get_conversion, require_whole
from torchdfa.feedback import Feedback
from torchdfa.graph import is_layer


@dataclass(frozen=True)
class Row:
    """One layer, or the ``"(n before)"`` the head together, and the feedback that its error comes from."""

    layer: str
    rule: str
    error_from: str
    feedback_shape: tuple[int, ...] | None = None
    store: str | None = None
    logical_bytes: int = 0
    actual_bytes: int = 0
    scale: float | None = None  # root mean square of the feedback's elements


@dataclass(frozen=True)
class Report:
    """The rows of ``report``; printing it gives a table."""

    settings: dict[str, Any]
    rows: tuple[Row, ...]

    @property
    def feedback_bytes(self) -> int:
        """Bytes of feedback that a device must keep."""
        return sum(row.logical_bytes for row in self.rows)

    @property
    def actual_bytes(self) -> int:
        """Bytes of feedback in memory now, unpacked copies included."""
        return sum(row.actual_bytes for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able form."""
        return {"settings": self.settings, "rows": [asdict(row) for row in self.rows]}

    def __str__(self) -> str:
        head = ("layer", "rule", "error from", "feedback", "store", "bytes", "in memory", "element rms")
        cells = [head, *(_cells(row) for row in self.rows)]
        widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in cells]
        settings = ", ".join(f"{k}={v}" for k, v in self.settings.items())
        total = f"feedback: {self.feedback_bytes:,} bytes ({self.actual_bytes:,} in memory)"
        return "\n".join([settings, lines[0], "-" * max(map(len, lines)), *lines[1:], total])


def _cells(row: Row) -> tuple[str, ...]:
    if row.feedback_shape is None:
        return row.layer, row.rule, row.error_from, "-", "-", "-", "-", "-"
    shape = "x".join(map(str, row.feedback_shape))
    sizes = f"{row.logical_bytes:,}", f"{row.actual_bytes:,}"
    return row.layer, row.rule, row.error_from, shape, row.store or "-", *sizes, f"{row.scale:.4g}"


def report(model: nn.Module) -> Report:
    """Say for each layer of a converted model which rule it learns by and where its error comes from."""
    owner, conversion = get_conversion(model)
    require_whole(owner, conversion)
    s = conversion.settings
    settings: dict[str, Any] = {"rule": s.rule.name}
    if s.rule.has_feedback:
        settings |= {"init": s.init, "scale": s.scale, "boundary": s.boundary, "seed": s.seed}
        if s.init == "random":
            settings["distribution"] = s.distribution
        if s.store == "seed":
            settings["store"] = s.store
    layers = [name for name, module in owner.named_modules() if is_layer(module)]
    return Report(settings, tuple(_rows(owner, conversion, layers)))


def _rows(owner: nn.Module, conversion: Conversion, layers: list[str]) -> list[Row]:
    plan, rule = conversion.plan, conversion.settings.rule
    held = {name.rpartition(".")[0] for name in conversion.frozen}
    # Those that were thawed since learn by back-propagation.
    frozen = {n for n in layers if n in held and not any(p.requires_grad for p in owner.get_submodule(n).parameters())}
    if not rule.has_feedback:
        return [Row(n, "frozen" if n in frozen else "bp", "none" if n in frozen else "live weights") for n in layers]
    known = {name for chain in plan.chains for name in chain}
    before = [name for name in layers if name not in known]
    return [
        *_rows_before(owner, conversion, before),
        *(r for n in layers if n in known for r in _layer(owner, conversion, n)),
    ]


def _rows_before(owner: nn.Module, conversion: Conversion, before: list[str]) -> list[Row]:
    """One row for each place where feedback lands for the layers before the head."""
    label = f"({len(before)} before)"
    first = [n for n in conversion.plan.cuts if all(n == c[0] for c in conversion.plan.chains if n in c)]
    if not first:
        return [Row(label, "bp", "live weights")] if before else []
    return [_row(owner, label, "bp", f"feedback at the input of {n}, then live weights", n) for n in first]


def _layer(owner: nn.Module, conversion: Conversion, name: str) -> list[Row]:
    """The rows of a layer in a chain, one for each layer that it feeds."""
    plan, rule = conversion.plan, conversion.settings.rule
    if name in plan.outputs:
        return [Row(name, "bp", "the loss")]
    rows: dict[str, Row] = {}
    for chain in (c for c in plan.chains if name in c):
        following = chain[chain.index(name) + 1 :]
        cut = next((n for n in following if n in plan.cuts), None)
        if cut is None:
            rows["live weights"] = Row(name, "bp", "live weights")
        elif cut == following[0]:
            rows[cut] = _row(owner, name, rule.name, f"feedback at the input of {cut}", cut)
        else:
            rows[cut] = Row(name, "bp", f"feedback at the input of {cut}, then live weights")
    return list(rows.values())


def _row(owner: nn.Module, layer: str, rule: str, source: str, cut: str) -> Row:
    feedback = owner.get_submodule(cut).feedback
    assert isinstance(feedback, Feedback)
    return Row(
        layer,
        rule,
        source,
        feedback.shape,
        feedback.store,
        feedback.logical_bytes,
        feedback.actual_bytes,
        feedback.rms(),
    )
