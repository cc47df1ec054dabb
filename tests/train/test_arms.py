from __future__ import annotations

import json
from statistics import stdev

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fake_runs import write_run
from torchdfa.errors import UsageError
from torchdfa.train import runs
from torchdfa.train.arms import arms, differing


def read(*folders):
    return arms([runs.read(folder) for folder in folders])


def test_seeds_of_one_recipe_are_one_arm_with_mean_and_std(tmp_path):
    folders = [write_run(tmp_path / str(s), top1=90 + s, seed=s) for s in (0, 1, 4)]
    (arm,) = read(*folders)
    assert arm.seeds == [0, 1, 4]
    assert arm.mean("top1") == pytest.approx((90 + 91 + 94) / 3)
    assert arm.std("top1") == pytest.approx(stdev([90, 91, 94]))
    assert arm.mean("balanced_accuracy") == pytest.approx((89 + 90 + 93) / 3)
    assert arm.curve("test_top1")[-1] == pytest.approx((5, arm.mean("top1"), arm.std("top1")))
    assert (arm.label, arm.finished, arm.epochs) == ("CBDFA product", True, (5, 5))


def test_one_run_has_no_spread(tmp_path):
    (arm,) = read(write_run(tmp_path / "a"))
    assert arm.std("top1") is None
    assert {spread for _, _, spread in arm.curve("train_loss")} == {0.0}


def test_the_same_folder_twice_counts_once(tmp_path):
    folder = write_run(tmp_path / "a")
    (arm,) = read(folder, tmp_path / ".." / tmp_path.name / "a")
    assert len(arm.runs) == 1


def test_other_recipes_are_other_arms_named_by_what_differs(tmp_path):
    found = read(
        write_run(tmp_path / "a", lr=0.01),
        write_run(tmp_path / "b", lr=0.002),
        write_run(tmp_path / "c", rule="bp"),
    )
    assert [arm.label for arm in found] == ["CBDFA product (lr 0.01)", "CBDFA product (lr 0.002)", "BP"]


def test_rules_without_feedback_ignore_its_settings(tmp_path):
    found = read(
        write_run(tmp_path / "a", rule="bp", init="random", seed=0),
        write_run(tmp_path / "b", rule="bp", init="product", seed=1),
    )
    assert [arm.seeds for arm in found] == [[0, 1]]


def test_how_a_run_is_carried_out_makes_no_other_arm(tmp_path):
    found = read(
        write_run(tmp_path / "a", threads=1, data_dir="/x", seed=0), write_run(tmp_path / "b", compile=True, seed=1)
    )
    assert len(found) == 1


def test_several_processes_are_another_arm(tmp_path):
    write_run(tmp_path / "one", rule="bp")
    write_run(tmp_path / "two", rule="bp")
    config = json.loads((tmp_path / "two" / "config.json").read_text())
    config["resolved"]["world_size"] = 2
    (tmp_path / "two" / "config.json").write_text(json.dumps(config))
    found = read(tmp_path / "one", tmp_path / "two")
    assert [arm.label for arm in found] == ["BP (processes 1)", "BP (processes 2)"]


def test_unfinished_runs_stand_alone(tmp_path):
    found = read(
        write_run(tmp_path / "a", seed=0),
        write_run(tmp_path / "b", seed=1, done=3),
        write_run(tmp_path / "c", seed=2, done=0),
    )
    assert [(arm.finished, arm.epochs, arm.label) for arm in found] == [
        (True, (5, 5), "CBDFA product"),
        (False, (3, 5), "CBDFA product"),
        (False, (0, 5), "CBDFA product"),
    ]
    last = json.loads((tmp_path / "b" / "metrics.jsonl").read_text().splitlines()[-1])
    assert found[1].mean("top1") == last["test_top1"]
    assert found[2].mean("top1") is None


def test_differing():
    assert differing([{"a": 1, "b": 2}, {"a": 1, "b": 3, "c": 4}]) == {"b": [2, 3], "c": [None, 4]}
    assert differing([{"a": 1}]) == {}
    assert differing([]) == {}


def damage(folder, file, change):
    path = folder / file
    if file.endswith("l"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        change(lines[-1])
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


DAMAGE = {
    "result": ("result.json", lambda v: v.update(top1="98"), "'top1' must be a number, but is '98'"),
    "no result": ("result.json", lambda v: v.pop("top1"), "'top1' must be a number, but is None"),
    "too much": ("result.json", lambda v: v.update(top1=101), r"'top1' must lie in 0\.\.100"),
    "nan": ("result.json", lambda v: v.update(seconds=float("nan")), "'seconds' must lie in 0"),
    "huge": ("result.json", lambda v: v.update(seconds=10**400), "'seconds' must lie in 0"),
    "negative": ("result.json", lambda v: v.update(feedback_bytes=-1), "'feedback_bytes' must lie in 0"),
    "epoch": ("metrics.jsonl", lambda v: v.pop("test_loss"), "'test_loss' must be a number"),
    "no settings": ("config.json", lambda v: v.pop("config"), "config.json: a run's settings must be a JSON object"),
    "unknown setting": ("config.json", lambda v: v["config"].update(colour=1), "'colour'"),
    "rule": ("config.json", lambda v: v["config"].update(rule="magic"), "--rule must be one of"),
    "no data": ("config.json", lambda v: v.pop("data"), "lacks resolved settings, data or machine"),
    "no images": ("config.json", lambda v: v["data"].update(test_images=0), r"'test_images' must lie in 1\.\."),
    "lr": ("config.json", lambda v: v["resolved"].update(lr=[1]), r"'lr' must be a number, but is \[1\]"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_named_with_its_folder(tmp_path, what):
    file, change, match = DAMAGE[what]
    folder = write_run(tmp_path / "some run")
    damage(folder, file, change)
    with pytest.raises(UsageError, match=match) as caught:
        [arm.mean(key) for arm in read(folder) for key in ("top1", "seconds", "feedback_bytes")]
    assert "some run" in str(caught.value)
    assert "\n" not in str(caught.value)


anything = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.lists(st.integers())


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["config.json", "result.json", "metrics.jsonl"]),
    st.sampled_from(["config", "resolved", "data", "machine", "top1", "top5", "seconds", "test_loss", "train_top1"]),
    anything,
)
def test_any_value_gives_arms_or_a_usage_error(tmp_path, file, key, value):
    folder = tmp_path / "run"
    if not folder.exists():
        write_run(folder)
    kept = (folder / file).read_bytes()
    damage(folder, file, lambda v: v.update({key: value}))
    try:
        for arm in read(folder):
            assert 0 <= arm.mean("top1") <= 100
            arm.mean("top5"), arm.mean("seconds"), arm.curve("test_loss")
    except UsageError as error:
        assert "run" in str(error)
    finally:
        (folder / file).write_bytes(kept)
