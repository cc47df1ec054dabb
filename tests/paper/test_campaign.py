from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from small_recipes import tiny, tiny_recipes
from small_runs import small
from torchdfa import runner
from torchdfa.errors import RunError, UsageError
from torchdfa.paper import campaign, results, work
from torchdfa.paper.campaign import Campaign
from torchdfa.train import checkpoint, program, runs

ASIDE: dict[str, Any] = {"data_dir": None, "download": False, "device": "cpu", "precision": "fp32", "threads": 1}
WHEN = ("seconds", "images_per_second")


@pytest.fixture
def recipes(monkeypatch):
    """The recipes are three tiny ones."""
    monkeypatch.setattr(campaign, "recipes", lambda protocol: tiny_recipes())


def run(folder: Path, *patterns: str, seeds: int = 1, workers: int = 1, hours: float | None = None, **more: Any) -> int:
    plan = Campaign("short", patterns or ("*",), seeds, folder, more.pop("keep", False), ASIDE)
    return campaign.run(plan, workers=workers, hours=hours, scheduler=more.pop("scheduler", None))


def figures(path: Path) -> list[dict[str, Any]]:
    """Curves without what the clock says."""
    lines = json.loads(path.read_text())["epochs"]
    return [{key: value for key, value in line.items() if key not in WHEN} for line in lines]


def test_every_run_leaves_its_result_and_nothing_else(tmp_path, recipes, capsys):
    assert run(tmp_path, seeds=2) == 0
    names = sorted(path.name for path in (tmp_path / "short").iterdir())
    assert names == [f"tiny.{arm}.s{seed}.json" for arm in ("bdfa", "bp", "frozen") for seed in (0, 1)]
    assert not list((tmp_path / "working" / "short").iterdir())
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[")]
    assert lines[0].startswith("[1/6] short/tiny.bp.s0: top-1 ")
    assert lines[3].startswith("[4/6] short/tiny.bp.s1: top-1 ")  # all recipes of a seed before the next seed


def test_a_result_equals_the_training_alone(tmp_path, recipes):
    run(tmp_path, "tiny/bdfa")
    alone = program.train(small(epochs=2, lr=0.01, log_alignment=0), tmp_path / "alone", quiet=True)
    found = results.read(tmp_path / "short" / "tiny.bdfa.s0.json")
    assert found.run.result["top1"] == alone.result["top1"]
    assert found.run.result["right"] == alone.result["right"]
    assert [line["train_loss"] for line in found.run.epochs] == [line["train_loss"] for line in alone.epochs]


def test_the_speed_counts_the_images_of_the_last_batch_too(tmp_path):
    run = program.train(small(epochs=2, rule="bp", subset=130, batch_size=100), tmp_path / "run", quiet=True)
    assert run.result["images_per_second"] == pytest.approx(2 * 130 / run.result["seconds"], abs=0.01)


def test_what_is_finished_is_not_run_again(tmp_path, recipes, capsys):
    run(tmp_path, "tiny/bp")
    before = (tmp_path / "short" / "tiny.bp.s0.json").stat()
    assert run(tmp_path, "tiny/bp") == 0
    assert (tmp_path / "short" / "tiny.bp.s0.json").stat() == before
    assert "nothing to do: every run of tiny/bp is finished" in capsys.readouterr().out


def test_a_run_goes_on_where_its_time_ended(tmp_path, recipes, monkeypatch):
    recipe = tiny("long", epochs=6)
    monkeypatch.setattr(campaign, "recipes", lambda protocol: {"long": recipe})
    whole = tmp_path / "whole"
    run(whole, "long")
    cut = tmp_path / "cut"
    for _ in range(20):  # stops of 50 ms each, at any step
        task = work.task(recipe, "short", 0, cut, quiet=True, **ASIDE)
        outcome = runner.perform(task, time.time() + 0.05)
        if outcome.status == "done":
            break
        assert "stopped at step" in outcome.message
    run(cut, "long")
    assert figures(cut / "short" / "long.s0.json") == figures(whole / "short" / "long.s0.json")


def test_a_budget_too_small_for_one_epoch_says_so_and_keeps_the_checkpoint(tmp_path, recipes):
    with pytest.raises(RunError, match="--hours 1e-08 ended before one epoch of any run"):
        run(tmp_path, "tiny/bp", hours=1e-8)
    assert run(tmp_path, "tiny/bp") == 0


def test_a_budget_of_epochs_without_a_test_is_no_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(
        campaign, "recipes", lambda protocol: {"long": tiny("long", rule="bp", epochs=1_000_000, test_every=1_000_000)}
    )
    assert run(tmp_path, hours=4 / 3600) == 0
    working = work.working_folder(tmp_path, "short", "long", 0)
    assert checkpoint.load(working / runs.CHECKPOINT)["epoch"] > 0
    assert not runs.read(working).epochs


def test_the_run_folder_is_kept_on_request(tmp_path, recipes):
    run(tmp_path, "tiny/bp", keep=True)
    assert (tmp_path / "working" / "short" / "tiny.bp.s0" / "model.safetensors").exists()


def test_a_run_that_diverges_has_that_as_its_result(tmp_path, monkeypatch, capsys):
    wild = tiny("wild", lr=1e6, epochs=3)
    monkeypatch.setattr(campaign, "recipes", lambda protocol: {"wild": wild})
    assert run(tmp_path) == 0
    found = results.read(tmp_path / "short" / "wild.s0.json")
    assert found.run.result is None
    assert found.diverged.startswith("training diverged by step")
    assert "training diverged" in capsys.readouterr().out
    assert run(tmp_path) == 0  # and is not tried again


def test_a_recipe_that_changed_is_refused_before_training(tmp_path, recipes, monkeypatch):
    run(tmp_path, "tiny/bp")
    changed = tiny_recipes() | {"tiny/bp": tiny("tiny/bp", rule="bp", lr=0.02)}
    monkeypatch.setattr(campaign, "recipes", lambda protocol: changed)
    with pytest.raises(UsageError, match=r"tiny.bp.s0.json was made by another tiny/bp \(lr 0.01 there, 0.02 now\)"):
        run(tmp_path, "tiny/frozen")


def test_files_that_are_in_the_way_are_named_with_a_way_out(tmp_path, recipes, capsys):
    (tmp_path / "short").mkdir()
    (tmp_path / "short" / "tiny.bp.s0.json").write_text('{"format": 1')
    working = work.working_folder(tmp_path, "short", "tiny/frozen", 0)
    working.mkdir(parents=True)
    (working / "notes.txt").write_text("mine")
    assert run(tmp_path, "tiny/bp", "tiny/frozen") == 1
    said = capsys.readouterr().out
    assert "tiny.bp.s0.json is damaged: it is not valid JSON; move " in said
    assert "away, and the same command trains it again" in said
    assert "holds files that are not a run's (notes.txt); move " in said
    assert "--out" not in said
    assert (working / "notes.txt").read_text() == "mine"


def test_a_run_begun_with_another_recipe_is_not_continued(tmp_path, recipes, monkeypatch, capsys):
    long = {"rule": "bp", "epochs": 1_000_000, "test_every": 1_000_000}
    task = work.task(tiny("tiny/bp", **long), "short", 0, tmp_path, quiet=True, **ASIDE)
    assert runner.perform(task, time.time() + 0.1).status == "stopped"
    monkeypatch.setattr(campaign, "recipes", lambda protocol: {"tiny/bp": tiny("tiny/bp", lr=0.02, **long)})
    assert run(tmp_path) == 1
    assert "was made by another tiny/bp" in capsys.readouterr().out


def test_the_same_run_asked_for_twice_at_once(tmp_path, recipes, capsys):
    folder = work.working_folder(tmp_path, "short", "tiny/bp", 0)
    folder.mkdir(parents=True)
    with runs.hold(folder):
        assert run(tmp_path, "tiny/bp") == 1
    assert "is in use by another process that trains there" in capsys.readouterr().out
    assert run(tmp_path, "tiny/bp") == 0


@pytest.mark.slow
def test_processes_give_the_results_of_one(tmp_path, recipes):
    assert run(tmp_path / "one") == 0
    assert run(tmp_path / "two", workers=2) == 0
    for path in (tmp_path / "one" / "short").iterdir():
        assert figures(path) == figures(tmp_path / "two" / "short" / path.name)


@pytest.mark.slow
def test_a_cluster_that_loses_a_worker_loses_and_doubles_nothing(tmp_path, monkeypatch):
    """Two Dask workers, one killed in the middle of a run, which is taken up again from its checkpoint."""
    distributed = pytest.importorskip("distributed")
    slow = {name: tiny(name, epochs=40, rule=rule) for name, rule in (("a", "bp"), ("b", "bdfa"))}
    monkeypatch.setattr(campaign, "recipes", lambda protocol: slow)
    cluster = distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, host="127.0.0.1"
    )
    killed: list[int] = []

    def kill_one_at_work() -> None:
        metrics = work.working_folder(tmp_path, "short", "a", 0) / runs.METRICS
        while not metrics.exists() or len(runs.read_lines(metrics)) < 3:
            time.sleep(0.05)
        with distributed.Client(cluster.scheduler_address, set_as_default=False) as client:
            busy = next(w for w, tasks in client.processing().items() if tasks)
            pid = client.run(_pid, workers=[busy])[busy]
        killed.append(pid)
        _kill(pid)

    with cluster:
        killer = threading.Thread(target=kill_one_at_work)
        killer.start()
        assert run(tmp_path, scheduler=cluster.scheduler_address) == 0
        killer.join()
    assert len(killed) == 1
    for name in slow:
        found = results.read(tmp_path / "short" / f"{name}.s0.json")
        assert [line["epoch"] for line in found.run.epochs] == list(range(1, 41))
    assert len(list((tmp_path / "short").iterdir())) == 2


def _pid() -> int:
    import os

    return os.getpid()


def _kill(pid: int) -> None:
    import os
    import signal

    os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
def test_an_unreachable_scheduler(tmp_path, recipes, monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr(runner, "SECONDS_TO_CONNECT", 1)
    with pytest.raises(UsageError, match=r"--scheduler tcp://127\.0\.0\.1:9 cannot be reached"):
        run(tmp_path, scheduler="tcp://127.0.0.1:9")


@pytest.mark.parametrize(
    "wrong, sentence", [({"seeds": 0}, "--seeds must be at least 1"), ({"workers": 0}, "--workers must be")]
)
def test_wrong_numbers(tmp_path, recipes, wrong, sentence):
    with pytest.raises(UsageError, match=sentence):
        run(tmp_path, **wrong)


def test_a_results_folder_that_cannot_be_made(tmp_path, recipes):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"--results .*file/short cannot be written: .*; take another folder"):
        run(tmp_path / "file")


def test_a_run_of_the_training_program_can_be_added(tmp_path, recipes):
    config = tiny_recipes()["tiny/bdfa"].config(4, device="cpu", precision="fp32", threads=1)
    program.train(config, tmp_path / "run", quiet=True)
    path = campaign.add(tmp_path / "run", "short", tmp_path / "results")
    assert path.endswith("short/tiny.bdfa.s4.json")
    with pytest.raises(UsageError, match="exists already"):
        campaign.add(tmp_path / "run", "short", tmp_path / "results")
    config = runs.read_json(tmp_path / "run" / runs.CONFIG)
    config["resolved"]["world_size"] = 2
    runs.write_json(tmp_path / "run" / runs.CONFIG, config)
    with pytest.raises(UsageError, match="was trained by several processes"):
        campaign.add(tmp_path / "run", "short", tmp_path / "results")
    program.train(small(epochs=1, lr=0.5), tmp_path / "other", quiet=True)
    with pytest.raises(UsageError, match="has the settings of no recipe of --protocol short"):
        campaign.add(tmp_path / "other", "short", tmp_path / "results")
