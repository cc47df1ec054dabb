from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from torchdfa.errors import UsageError
from torchdfa.track import figures, reporting, results
from torchdfa.track.results import Results
from torchdfa.track.sequences import OTB
from torchdfa.train import runs
from track.folders import make, table

NAMES = ("Dog", "Girl", "Bolt", "Deer")


@pytest.fixture
def data(tmp_path):
    for name in NAMES:
        make(tmp_path / "otb", name, 1, 5, 5)
    return OTB(tmp_path / "otb", missing="skip")


def write(root, tracker, data, *, off=0.0, names=NAMES, config=None):
    boxes = {name: data[name].boxes + np.array([off, 0, 0, 0]) for name in names}
    folder = results.write(root, Results(tracker, boxes))
    if config is not None:
        runs.write_json(folder / runs.CONFIG, {"format": runs.FORMAT, **config})
    return folder


@pytest.fixture
def unfinished(data, tmp_path):
    """Seed 1 of bp has one of the four sequences, on which both seeds do better than on the others."""
    root = tmp_path / "r"
    folder = write(root, "bp-b32-s0", data, off=1.0)
    results.write_one(folder, "Dog", data["Dog"].boxes)
    write(root, "bp-b32-s1", data, names=("Dog",))
    write(root, "bdfa-b32-s0", data, off=1.0)
    return reporting.score_all([root], data, missing="skip")


def test_seeds_are_averaged_over_the_sequences_that_all_of_them_have(unfinished, tmp_path):
    bp, bdfa = reporting.arms(unfinished)
    assert bp.mean_and_std("auc") == (20 / 21, 0.0), "Dog alone, in both seeds"
    assert (list(bp.by_sequence()), bp.left_out) == (["Dog"], 3)
    assert (len(bdfa.by_sequence()), bdfa.left_out) == (4, 0)
    text = reporting.text(unfinished)
    assert "| bp-b32 | 2 | 1 | 0.952 ± 0.000 |" in text
    assert "Over the sequences that all seeds have; left out: 3 of bp-b32." in text
    rows = table(figures.figure6(unfinished, tmp_path)[1])
    (row,) = (r for r in rows if (r["rule"], r["plot"], r["threshold"]) == ("bp", "success", "0.5"))
    assert (float(row["mean"]), float(row["std"]), row["sequences"]) == (1.0, 0.0, "1")


def test_seeds_without_a_common_sequence_are_refused(data, tmp_path):
    write(tmp_path / "r", "bp-b32-s0", data, names=("Dog",))
    write(tmp_path / "r", "bp-b32-s1", data, names=("Girl",))
    with pytest.raises(UsageError, match="seeds of bp-b32 have no sequence in common"):
        reporting.text(reporting.score_all([tmp_path / "r"], data, missing="skip"))


def test_conditions_are_not_mixed_in_one_table_or_plot(data, tmp_path):
    write(tmp_path / "a", "bp-b32-s0", data, config={"frames": None, "forced": False})
    write(tmp_path / "b", "bdfa-b32-s0", data, config={"frames": None, "forced": True})
    scores = reporting.score_all([tmp_path / "a", tmp_path / "b"], data)
    for use in (reporting.text, *(lambda s, plot=plot: plot(s, tmp_path / "p")
                                  for plot in (figures.one_pass, figures.figure6))):  # fmt: skip
        with pytest.raises(UsageError, match=r"bp-b32-s0 on OTB-100; bdfa-b32-s0 on OTB-100, cand.*apart"):
            use(scores)
    assert not (tmp_path / "p").exists()


def test_whole_results_can_be_scored_as_a_run_over_the_first_frames(data, tmp_path):
    """Frame k of the result lies k pixels off, so that each frame has an overlap of its own."""
    boxes = {name: data[name].boxes + np.arange(5)[:, None] * [1.0, 0, 0, 0] for name in NAMES}
    times = {name: np.arange(1.0, 6.0) for name in NAMES}
    whole = results.write(tmp_path / "r", Results("bp-b32-s0", boxes, times))
    runs.write_json(whole / runs.CONFIG, {"format": runs.FORMAT, "frames": None})
    cut = results.write(
        tmp_path / "r", Results("bp-b32-s1", *({n: v[:3] for n, v in x.items()} for x in (boxes, times)))
    )
    runs.write_json(cut / runs.CONFIG, {"format": runs.FORMAT, "frames": 3})
    of_whole, of_cut = reporting.score_all([tmp_path / "r"], data, frames=3)
    assert of_whole.to_dict() == of_cut.to_dict()
    assert of_whole.version == "OTB-100, first 3 frames"
    assert of_whole.seconds == 4 * (1 + 2 + 3)
    assert of_whole.mean_overlap == pytest.approx((1 + 1 / 2 + 1 / 5) / 3), "boxes 3 wide, 0, 1 and 2 pixels off"
    shorter = reporting.score_all([tmp_path / "r"], data, frames=2)
    assert [s.mean_overlap for s in shorter] == pytest.approx([(1 + 1 / 2) / 2] * 2)
    with pytest.raises(UsageError, match="bp-b32-s1 has the first 3 frames of each sequence; --frames 4 is more"):
        reporting.score_all([tmp_path / "r"], data, frames=4)
    with pytest.raises(UsageError, match="--frames must be at least 2"):
        reporting.score_all([tmp_path / "r"], data, frames=1)


def test_first_frames_of_results_of_another_length_are_refused(data, tmp_path):
    folder = write(tmp_path / "r", "bp-b32-s0", data)
    results.write_one(folder, "Dog", np.concatenate([data["Dog"].boxes] * 2))
    with pytest.raises(UsageError, match="bp-b32-s0's result of Dog"):
        reporting.score_all([tmp_path / "r"], data, frames=3)


def test_a_report_says_where_weights_differ(data, tmp_path):
    same, other = ({"weights": {"sha256": letter * 64}} for letter in "ab")
    for seed, config in enumerate((same, other)):
        for rule in ("bp", "bdfa"):
            write(tmp_path / "r", f"{rule}-b32-s{seed}", data, off=seed, config=config)
    write(tmp_path / "r", "dfa-b32-s0", data, config=same)
    text = reporting.text(reporting.score_all([tmp_path / "r"], data, missing="skip"))
    aaaa, bbbb = "a" * 8, "b" * 8
    assert f"Weights differ: {bbbb} of bdfa-b32-s1, bp-b32-s1; {aaaa} of the other 3." in text
    assert "- bdfa-b32 - bp-b32: " in text, "both rules had both weights, seed by seed"
    assert "- dfa-b32 - bp-b32 (other weights): " in text
    write(tmp_path / "r", "bp-b16-s0", data)
    assert "; not known of bp-b16-s0; " in reporting.text(reporting.score_all([tmp_path / "r"], data, missing="skip"))


def test_weights_that_agree_are_not_spoken_of(data, tmp_path):
    for rule in ("bp", "bdfa"):
        write(tmp_path / "r", f"{rule}-b32-s0", data, config={"weights": {"sha256": "c" * 64}})
    assert "eights" not in reporting.text(reporting.score_all([tmp_path / "r"], data, missing="skip"))


def test_rules_are_compared_with_bp_of_the_same_preset(data, tmp_path):
    for rule in ("bp", "bdfa", "bdfa-random", "bp-paper", "bdfa-paper", "bdfa-match-paper"):
        write(tmp_path / "r", f"{rule}-b32-s0", data)
    write(tmp_path / "r", "dfa-paper-b8-s0", data)
    found = reporting.arms(reporting.score_all([tmp_path / "r"], data))
    assert set(reporting.pairs(found)) == {
        "bdfa-b32 - bp-b32", "bdfa-random-b32 - bp-b32", "bdfa-paper-b32 - bp-paper-b32",
        "bdfa-match-paper-b32 - bp-paper-b32",
    }  # fmt: skip
    assert found[0].name == "bp-b32"


def test_every_rule_of_figure_6_has_a_colour_of_its_own(data, tmp_path, monkeypatch):
    for rule in ("bp", "bdfa", "bdfa-random", "bdfa-after"):
        write(tmp_path / "r", f"{rule}-b32-s0", data)
        write(tmp_path / "r", f"{rule}-b8-s0", data)
    drawn: dict[str, set[str]] = {}
    plot = figures.Axes.plot

    def seen(self, *args, **options):
        drawn.setdefault(options["label"].partition(" ")[0], set()).add(options["color"])
        return plot(self, *args, **options)

    monkeypatch.setattr(figures.Axes, "plot", seen)
    figures.figure6(reporting.score_all([tmp_path / "r"], data), tmp_path)
    assert all(len(colours) == 1 for colours in drawn.values()), "at every batch size the same"
    assert len(set.union(*drawn.values())) == 4


@pytest.mark.parametrize("layout", results.LAYOUTS)
def test_converted_results_stay_of_their_condition(data, tmp_path, layout):
    folder = write(tmp_path / "a", "bp-b32-s0", data, config={"frames": 5, "forced": True})
    results.convert(folder, tmp_path / "b", layout)
    (score,) = reporting.score_all([tmp_path / "b"], data)
    assert "first 5 frames" in score.version
    assert "forced" in score.version
    assert score.auc == 20 / 21


def test_results_are_not_converted_onto_themselves(data, tmp_path):
    folder = write(tmp_path / "a", "bp-b32-s0", data)
    before = {p: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(UsageError, match="another --out"):
        results.convert(folder, tmp_path / "a", "otb")
    assert {p: p.read_bytes() for p in folder.iterdir()} == before


def test_chosen_sequences_are_counted_of_the_whole_set(data, tmp_path):
    write(tmp_path / "r", "bp-b32-s0", data)
    chosen = OTB(data.root, "OTB-2013", sequences=["Bolt"])
    (score,) = reporting.score_all([tmp_path / "r"], chosen)
    assert "| 1 of 51 | otb |" in reporting.text([score])


def test_a_report_says_how_many_frames_counted(data, tmp_path):
    folder = write(tmp_path / "r", "bp-b32-s0", data)
    results.write_one(folder, "Dog", data["Dog"].boxes[:3])
    text = reporting.text(reporting.score_all([tmp_path / "r"], data, truncate=True))
    assert "Truncated: of bp-b32-s0's Dog 3 of 5 frames counted." in text


def test_the_title_of_a_forced_beginning_fits_its_picture(data, tmp_path, monkeypatch):
    write(tmp_path / "r", "bp-b32-s0", data, config={"frames": 150, "forced": True})
    (score,) = reporting.score_all([tmp_path / "r"], data)
    extents = []
    savefig = Figure.savefig

    def measured(self, *args, **options):
        savefig(self, *args, **options)
        box = self.axes[0].title.get_window_extent()
        extents.append((box.x0, box.x1, self.bbox.width))

    monkeypatch.setattr(Figure, "savefig", measured)
    figures.one_pass([score], tmp_path / "p")
    assert len(extents) == 2
    assert all(0 <= left < right <= width for left, right, width in extents)


@pytest.mark.parametrize("frames", ["all", 0, -3, 1.5, True, [150]])
def test_a_damaged_condition_is_named(data, tmp_path, frames):
    write(tmp_path / "r", "bp-b32-s0", data, config={"frames": frames})
    with pytest.raises(UsageError, match=r"bp-b32-s0/config\.json is damaged: frames"):
        reporting.score_all([tmp_path / "r"], data)


def test_results_nested_too_deep_are_named(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "Dog.json").write_text("[" * 100_000)
    with pytest.raises(UsageError, match=r"Dog\.json is damaged"):
        results.read(tmp_path / "x")
