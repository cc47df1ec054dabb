"""Pictures of runs: curves, confusion matrix, worst photos; the same bytes each time, in colours all can tell."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.font_manager import get_font_names
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from torch import Tensor
from torch.nn import functional

from torchdfa.train import runs
from torchdfa.train.arms import Arm, arms
from torchdfa.train.export import predictions
from torchdfa.train.metrics import metrics

# Okabe & Ito (2008), told apart with any colour vision; one colour for each rule and initial feedback.
_COLOURS = {
    "bp": "#000000",
    "frozen": "#8c8c8c",
    "fa random": "#cc79a7",
    "fa product": "#56b4e9",
    "dfa random": "#e69f00",
    "dfa product": "#0072b2",
    "bdfa random": "#d55e00",
    "bdfa product": "#009e73",
}
_MARKERS = "osD^vPX*"  # for further arms of the same colour
# Names of classes may be in scripts that matplotlib's own font lacks; these are used where they are installed.
_OTHER_SCRIPTS = {"Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "Microsoft YaHei", "PingFang HK"}
_METADATA = {"Software": None}  # or the picture would hold matplotlib's version


@contextmanager
def drawn(path: Path, size: tuple[float, float], dpi: int = 130) -> Iterator[Figure]:
    """Yield an empty figure of `size` inches and write it as PNG; RunError where `path` cannot be written."""
    with matplotlib.style.context("default"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a class in a script without a font gets boxes
        matplotlib.rcParams["text.parse_math"] = False  # a $ in a name is a $
        matplotlib.rcParams["font.family"] = ["DejaVu Sans", *sorted({*get_font_names()} & _OTHER_SCRIPTS)]
        figure = Figure(figsize=size, dpi=dpi, layout="constrained")
        yield figure
        content = io.BytesIO()
        figure.savefig(content, format="png", metadata=_METADATA)
    runs.write(path, content.getvalue())


def curves(found: Sequence[runs.Run], path: Path) -> None:
    """Accuracy and loss over the epochs, test solid and training dashed, one colour a rule (cf. Figures 4 and 5).

    Runs of one recipe over several seeds are one line, their mean, in a band of one standard deviation.
    """
    shown = [arm for arm in arms(found) if arm.epochs[0]]
    with drawn(path, (10, 4.4 + 0.22 * ((len(shown) + 3) // 2))) as figure:
        accuracy, loss = figure.subplots(1, 2)
        for arm, marker in zip(shown, markers(shown), strict=True):
            for axes, key in ((accuracy, "top1"), (loss, "loss")):
                line(axes, arm, f"train_{key}", marker, "--")
                line(axes, arm, f"test_{key}", marker, "-")
        figure.suptitle(", ".join(dict.fromkeys(f"{arm.settings['data']}, {arm.settings['model']}" for arm in shown)))
        dress(accuracy, "top-1 accuracy (%)")
        dress(loss, "cross-entropy (nats)")
        if any(value > 0 for line in loss.lines for value in line.get_ydata()):
            _log_scale(loss)
        legend(figure, shown)


def confusion(counts: Sequence[Sequence[int]], classes: Sequence[str], path: Path) -> None:
    """Rows are the true classes, columns what they were taken for; colour is the share of the row.

    Up to 20 classes each cell shows its count, up to 120 each row and column its name.
    """
    k = len(classes)
    shares = [[100 * n / max(1, sum(row)) for n in row] for row in counts]
    side = 3.4 + max(0.42 * k, 2.2) if k <= 20 else 4 + 0.16 * k if k <= 120 else 10.0
    with drawn(path, (side + 0.8, side + (1.0 if k > 20 else 0.0)), dpi=120) as figure:
        axes = figure.subplots()
        # The square root makes rare confusions visible beside the diagonal.
        image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 100))
        figure.colorbar(image, shrink=0.6, aspect=30, label="% of the true class", ticks=[0, 1, 5, 20, 50, 100])
        if k <= 20:
            _cell_counts(axes, counts, shares)
        _class_ticks(axes, classes)
        axes.set(xlabel="taken for", ylabel="true class", title=_confusion_title(counts, classes))


def worst(
    images: Tensor,
    labels: Tensor,
    logits: Tensor,
    classes: Sequence[str],
    path: Path,
    *,
    names: Sequence[str] | None = None,
    count: int = 25,
) -> None:
    """The `count` images (N, C, H, W, uint8) with the highest cross-entropy, with both classes and the file's name."""
    losses = functional.cross_entropy(logits.double(), labels, reduction="none")
    order = losses.argsort(descending=True, stable=True)[:count].tolist()
    found = predictions(logits, classes)
    columns = min(5, len(order))
    rows = -(-len(order) // columns)
    with drawn(path, (2.3 * columns, 0.5 + 2.75 * rows), dpi=100) as figure:
        figure.suptitle(_fit(f"the {len(order)} of {len(labels)} test images with the highest loss", 24 * columns))
        bare = {"xticks": [], "yticks": [], "frame_on": False}
        for axes, i in zip(figure.subplots(rows, columns, squeeze=False, subplot_kw=bare).flat, order, strict=False):
            _photo(axes, images[i])
            lines = [f"is {_fit(classes[int(labels[i])], 24)}"]
            lines.append(f"taken for {_fit(found[i].label, 12)} ({100 * found[i].probability:.0f} %)")
            lines += [_fit(names[i], 26, end=True)] if names else []
            axes.set_title("\n".join(lines), fontsize=8, loc="left")


def of_test_set(
    folder: Path,
    images: Tensor,
    labels: Tensor,
    logits: Tensor,
    classes: Sequence[str],
    names: Sequence[str] | None = None,
) -> None:
    """Write confusion.png and worst.png of a run's test images into its folder."""
    counts = metrics(logits, labels, classes)["confusion"]
    confusion(counts, classes, folder / "confusion.png")
    worst(images.cpu(), labels.cpu(), logits.cpu(), classes, folder / "worst.png", names=names)


def _colour(arm: Arm) -> str:
    return _COLOURS.get(" ".join(str(arm.rule[key]) for key in ("rule", "init") if key in arm.rule), "#332288")


def markers(shown: Sequence[Arm]) -> list[str]:
    """Arms of one colour differ by their marker."""
    return [_MARKERS[[_colour(a) for a in shown[:k]].count(_colour(arm)) % 8] for k, arm in enumerate(shown)]


def line(axes: Axes, arm: Arm, key: str, marker: str, style: str) -> None:
    """A figure of an arm over the epochs, in a band of one standard deviation where there are several runs."""
    points, colour = arm.curve(key), _colour(arm)
    epochs, middle = [epoch for epoch, _, _ in points], [m for _, m, _ in points]
    marked = style == "-" or len(points) == 1  # few marks, or many lines run into one another
    axes.plot(
        epochs, middle, style, color=colour, linewidth=1.6, alpha=0.9 if style == "-" else 0.6,
        marker=marker if marked else None, markersize=4, markevery=max(1, len(points) // 6),
    )  # fmt: skip
    if len(arm.runs) > 1:
        low, high = [m - s for _, m, s in points], [m + s for _, m, s in points]
        axes.fill_between(epochs, low, high, color=colour, alpha=0.15, linewidth=0)


def dress(axes: Axes, label: str) -> None:
    """Axes of a figure over the epochs."""
    axes.set(xlabel="epoch", ylabel=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)


def _log_scale(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def legend(figure: Figure, shown: Sequence[Arm]) -> None:
    """One entry an arm below the axes, and what solid and dashed lines are."""
    handles = []
    for arm, marker in zip(shown, markers(shown), strict=True):
        done, wanted = arm.epochs
        n = f", mean ± std of {len(arm.runs)} seeds" if len(arm.runs) > 1 else ""
        stopped = "" if arm.finished else f", stopped after {done} of {wanted} epochs"
        handles.append(Line2D([], [], color=_colour(arm), marker=marker, label=f"{arm.label}{n}{stopped}"))
    handles.append(Line2D([], [], color="#555555", label="solid: test"))
    handles.append(Line2D([], [], color="#555555", linestyle="--", label="dashed: training, as it goes"))
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)


def _cell_counts(axes: Axes, counts: Sequence[Sequence[int]], shares: Sequence[Sequence[float]]) -> None:
    for i, row in enumerate(counts):
        for j, n in enumerate(row):
            if n:
                shade = "white" if shares[i][j] > 30 else "black"
                axes.text(j, i, str(n), ha="center", va="center", color=shade, fontsize=8)


def _confusion_title(counts: Sequence[Sequence[int]], classes: Sequence[str]) -> str:
    k = len(classes)
    title = f"{sum(counts[i][i] for i in range(k))} of {sum(map(sum, counts))} test images right"
    wrong = sorted((-counts[i][j], i, j) for i in range(k) for j in range(k) if i != j and counts[i][j])
    if k <= 20 or not wrong:
        return title
    pairs = (f"{_fit(classes[i], 18)} as {_fit(classes[j], 18)} ({-n})" for n, i, j in wrong[:3])
    return "\n".join([f"{title}; most often wrong:", *pairs])


def _class_ticks(axes: Axes, classes: Sequence[str]) -> None:
    k = len(classes)
    if k > 120:  # no room for names: every tenth number
        return
    names = [_fit(name, 18) for name in classes]
    size = 9 if k <= 20 else 6
    axes.set_xticks(range(k), names, rotation=90 if max(map(len, names)) > 3 else 0, fontsize=size)
    axes.set_yticks(range(k), names, fontsize=size)


def _photo(axes: Axes, image: Tensor) -> None:
    pixels = image.permute(1, 2, 0).numpy()
    axes.imshow(pixels if pixels.shape[2] == 3 else pixels[..., 0], cmap="gray", vmin=0, vmax=255)


def _fit(text: str, width: int, *, end: bool = False) -> str:
    """`text` on one line of `width` characters, without its end, or, with `end`, without its start."""
    text = "".join(c if c.isprintable() else "?" for c in text)
    if len(text) <= width:
        return text
    return f"…{text[1 - width :]}" if end else f"{text[: width - 1]}…"
