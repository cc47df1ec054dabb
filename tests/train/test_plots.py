from __future__ import annotations

import json
from contextlib import contextmanager

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.text import Text
from PIL import Image

from fake_runs import write_run
from torchdfa.errors import RunError
from torchdfa.train import plots, runs

CLASSES_3 = ("$a$ very long name of a class that goes on and on", "dog", "bee")


@pytest.fixture
def figures(monkeypatch):
    """The figures that were drawn, as matplotlib has them, each with `written`: all its (text, box in pixels)."""
    kept, original, draw = [], plots.drawn, Text.draw

    @contextmanager
    def keep(*args, **kwargs):
        with original(*args, **kwargs) as figure:
            figure.written = {}
            kept.append(figure)
            yield figure

    def note(text, renderer):
        if text.get_visible() and text.get_text():  # drawn again after the layout: the last place counts
            kept[-1].written[id(text)] = text.get_text(), text.get_window_extent(renderer).extents
        return draw(text, renderer)

    monkeypatch.setattr(plots, "drawn", keep)
    monkeypatch.setattr(Text, "draw", note)
    return kept


def assert_legible(figure):
    """No text lies on another or beyond the edge of the picture."""
    names, boxes = (list(column) for column in zip(*figure.written.values(), strict=True))
    boxes = np.array(boxes)
    beyond = (boxes[:, :2] < -1).any(axis=1) | (boxes[:, 2:] > figure.bbox.extents[2:] + 1).any(axis=1)
    assert [names[i] for i in np.flatnonzero(beyond)] == []
    # Width and height of what each pair shares.
    shared = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:]) - np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    meet = np.triu((shared > 1.5).all(axis=2), 1)
    assert [(names[i], names[j]) for i, j in np.argwhere(meet)] == []


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def read(*folders):
    return [runs.read(folder) for folder in folders]


def test_curves_show_what_the_run_recorded(tmp_path, figures):
    folder = write_run(tmp_path / "a", rule="bp", epochs=4)
    plots.curves(read(folder), tmp_path / "c.png")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    accuracy, loss = figures[0].axes
    drawn = {(axes, line.get_linestyle()): line for axes in (accuracy, loss) for line in axes.lines}
    kinds = ((accuracy, "-", "test_top1"), (accuracy, "--", "train_top1"))
    for axes, style, key in (*kinds, (loss, "-", "test_loss"), (loss, "--", "train_loss")):
        line = drawn[axes, style]
        assert line.get_xydata().tolist() == [[k + 1, values[key]] for k, values in enumerate(lines)]
    assert legend(figures[0]) == ["BP", "solid: test", "dashed: training, as it goes"]
    assert_legible(figures[0])


def test_each_rule_has_its_own_colour_in_every_picture(tmp_path, figures):
    arms = [("bp", "random"), ("frozen", "random")]
    arms += [(rule, init) for rule in ("fa", "dfa", "bdfa") for init in ("random", "product")]
    folders = [write_run(tmp_path / f"{rule} {init}", rule=rule, init=init) for rule, init in arms]
    plots.curves(read(*folders), tmp_path / "all.png")
    plots.curves(read(folders[-1]), tmp_path / "one.png")
    colours = [line.get_color() for line in figures[0].axes[0].lines if line.get_linestyle() == "-"]
    assert len(set(colours)) == len(arms)
    assert figures[1].axes[0].lines[0].get_color() == colours[-1] == "#009e73"
    assert_legible(figures[0])


def test_seeds_are_a_mean_in_a_band(tmp_path, figures):
    folders = [write_run(tmp_path / str(s), top1=80.0 + 2 * s, seed=s) for s in (0, 1)]
    plots.curves(read(*folders), tmp_path / "c.png")
    (band, *_), axes = figures[0].axes[0].collections[::-1], figures[0].axes[0]
    solid = next(line for line in axes.lines if line.get_linestyle() == "-")
    assert solid.get_ydata()[-1] == pytest.approx(81.0)
    last = [y for x, y in band.get_paths()[0].vertices if x == 5]
    assert (min(last), max(last)) == pytest.approx((81 - 2**0.5, 81 + 2**0.5))
    assert legend(figures[0])[0] == "CBDFA product, mean ± std of 2 seeds"


def test_arms_of_one_rule_differ_by_marker_and_name(tmp_path, figures):
    plots.curves(read(write_run(tmp_path / "a", lr=0.1), write_run(tmp_path / "b", lr=0.2)), tmp_path / "c.png")
    first, second = (line for line in figures[0].axes[0].lines if line.get_linestyle() == "-")
    assert (first.get_marker(), second.get_marker()) == ("o", "s")
    assert legend(figures[0])[:2] == ["CBDFA product (lr 0.1)", "CBDFA product (lr 0.2)"]


def test_unfinished_runs_are_named_and_empty_ones_left_out(tmp_path, figures):
    stopped, empty = write_run(tmp_path / "a", done=2), write_run(tmp_path / "b", done=0, rule="bp")
    plots.curves(read(stopped, empty), tmp_path / "c.png")
    assert legend(figures[0])[0] == "CBDFA product, stopped after 2 of 5 epochs"
    assert len(figures[0].axes[0].lines) == 2
    plots.curves(read(empty), tmp_path / "none.png")
    assert legend(figures[1]) == ["solid: test", "dashed: training, as it goes"]


def test_one_epoch_is_still_visible(tmp_path, figures):
    plots.curves(read(write_run(tmp_path / "a", epochs=1)), tmp_path / "c.png")
    assert [line.get_marker() for line in figures[0].axes[0].lines] == ["o", "o"]


def test_a_loss_of_zero_does_not_stop_the_picture(tmp_path):
    folder = write_run(tmp_path / "a")
    lines = [json.loads(line) | {"train_loss": 0.0, "test_loss": 0.0} for line in open_lines(folder)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    plots.curves(read(folder), tmp_path / "c.png")
    with Image.open(tmp_path / "c.png") as picture:
        assert picture.size[0] > 1000


def open_lines(folder):
    return (folder / "metrics.jsonl").read_text().splitlines()


@pytest.mark.parametrize("k", [2, 7, 20, 21, 40, 70, 100, 130])
def test_confusion_is_legible_from_2_to_100_classes(tmp_path, figures, k):
    counts = np.random.default_rng(0).integers(0, 3, (k, k)) + 40 * np.eye(k, dtype=int)
    names = [f"number_{i}_of_a_long_kind_of_name" for i in range(k)]
    plots.confusion(counts.tolist(), names, tmp_path / "c.png")
    axes = figures[0].axes[0]
    total, right = int(counts.sum()), int(counts.trace())
    assert axes.get_title().startswith(f"{right} of {total} test images right")
    shares = 100 * counts / counts.sum(axis=1, keepdims=True)
    assert np.allclose(axes.images[0].get_array(), shares)
    cells = {(round(t.get_position()[1]), round(t.get_position()[0])): t.get_text() for t in axes.texts}
    assert cells == ({(i, j): str(counts[i, j]) for i in range(k) for j in range(k) if counts[i, j]} if k <= 20 else {})
    if k <= 120:
        assert [label.get_text() for label in axes.get_yticklabels()] == [f"{name[:17]}…" for name in names]
    assert_legible(figures[0])


def test_confusion_names_the_worst_pairs_where_cells_are_too_small(tmp_path, figures):
    counts = [[5 if i == j else 0 for j in range(30)] for i in range(30)]
    counts[3][7] = 4
    plots.confusion(counts, [f"c{i}" for i in range(30)], tmp_path / "c.png")
    assert figures[0].axes[0].get_title() == "150 of 154 test images right; most often wrong:\nc3 as c7 (4)"


def test_a_class_without_test_images_is_an_empty_row(tmp_path):
    plots.confusion([[3, 0], [0, 0]], ("a", "b"), tmp_path / "c.png")
    assert (tmp_path / "c.png").is_file()


@pytest.mark.parametrize("n, channels", [(1, 3), (3, 1), (25, 3), (40, 3)])
def test_worst_shows_the_highest_losses_first(tmp_path, figures, n, channels):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, channels, 16, 16), dtype=torch.uint8, generator=generator)
    labels, logits = torch.arange(n) % 3, torch.randn(n, 3, generator=generator)
    names = [f"some/folder/with/a/long/name/IMG_{i:03d}.jpg" for i in range(n)]
    plots.worst(images, labels, logits, CLASSES_3, tmp_path / "w.png", names=names)
    losses = [float(logits[i].logsumexp(0) - logits[i, labels[i]]) for i in range(n)]
    order = sorted(range(n), key=lambda i: -losses[i])[:25]
    shown = [axes for axes in figures[0].axes if axes.images]
    assert len(shown) == min(n, 25)
    for axes, i in zip(shown, order, strict=True):
        pixels = images[i].permute(1, 2, 0).numpy()
        assert np.array_equal(axes.images[0].get_array().reshape(pixels.shape), pixels)
        is_line, taken_line, name_line = axes.get_title(loc="left").split("\n")
        assert CLASSES_3[labels[i]].startswith(is_line.removeprefix("is ").rstrip("…"))
        probability = 100 * float(logits[i].double().softmax(0).max())
        assert taken_line.endswith(f"({probability:.0f} %)")
        assert name_line.endswith(f"IMG_{i:03d}.jpg")
    assert_legible(figures[0])


def test_of_test_set_writes_both_pictures(tmp_path):
    images = torch.zeros(6, 1, 8, 8, dtype=torch.uint8)
    plots.of_test_set(tmp_path, images, torch.arange(6) % 2, torch.randn(6, 2), ("a", "b"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["confusion.png", "worst.png"]


def test_pictures_are_the_same_bytes_each_time_whatever_the_users_style(tmp_path):
    folder = write_run(tmp_path / "a")
    plots.curves(read(folder), tmp_path / "a.png")
    with matplotlib.rc_context({"font.size": 20, "lines.linewidth": 9, "savefig.dpi": 40, "text.usetex": False}):
        plots.curves(read(folder), tmp_path / "b.png")
        assert matplotlib.rcParams["font.size"] == 20
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_scripts_without_a_font_and_odd_names_do_not_stop_a_picture(tmp_path, figures):
    names = ("猫", "a\nb\x00", "$\\frac$", "\udce9", "بط")
    plots.confusion([[int(i == j) for j in range(5)] for i in range(5)], names, tmp_path / "c.png")
    labels = [label.get_text() for label in figures[0].axes[0].get_yticklabels()]
    assert labels == ["猫", "a?b?", "$\\frac$", "?", "بط"]


def test_a_failed_picture_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "c.png"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), plots.drawn(path, (2, 2)):
        raise ZeroDivisionError
    assert path.read_bytes() == b"old"
    with pytest.raises(RunError, match="gone"), plots.drawn(tmp_path / "gone" / "c.png", (2, 2)):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["c.png"]
