from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path

import pytest

import runner_tasks
from torchdfa import runner
from torchdfa.errors import UsageError
from torchdfa.runner import Outcome, Task


def squares(n: int) -> list[Task]:
    return [Task(f"square {k}", runner_tasks.square, (k,)) for k in range(n)]


def by_name(outcomes: list[Outcome]) -> dict[str, Outcome]:
    assert len({o.name for o in outcomes}) == len(outcomes)
    return {o.name: o for o in outcomes}


def test_one_worker_is_this_process_and_keeps_the_order():
    found = list(runner.run(squares(3)))
    assert found == [Outcome(f"square {k}", "done", k * k) for k in range(3)]


@pytest.mark.slow
def test_processes_do_all_with_their_threads():
    tasks = [*squares(3), Task("fail", runner_tasks.fail), Task("threads", runner_tasks.threads)]
    tasks.append(Task("bug", runner_tasks.bug))
    found = by_name(list(runner.run(tasks, workers=2, threads=1)))
    assert [found[f"square {k}"].value for k in range(3)] == [0, 1, 4]
    assert found["threads"].value == 1
    assert (found["fail"].status, found["fail"].message) == ("failed", "the disk is full")
    assert (found["bug"].status, found["bug"].message) == ("failed", "ZeroDivisionError: a bug")


def test_a_failure_does_not_stop_the_others():
    found = list(runner.run([Task("fail", runner_tasks.fail), *squares(1)]))
    assert [(o.name, o.status) for o in found] == [("fail", "failed"), ("square 0", "done")]


def test_a_bug_in_this_process_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        list(runner.run([Task("bug", runner_tasks.bug)]))


@pytest.mark.slow
def test_a_killed_worker_loses_no_task(tmp_path: Path):
    tasks = [Task("die", runner_tasks.die, (tmp_path, 2)), *squares(4)]
    found = by_name(list(runner.run(tasks, workers=2, threads=1)))
    assert found["die"] == Outcome("die", "done", "alive")
    assert [found[f"square {k}"].value for k in range(4)] == [0, 1, 4, 9]
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.slow
def test_a_task_that_kills_its_worker_each_time_is_given_up_alone(tmp_path: Path):
    tasks = [
        Task("die", runner_tasks.die_beside, (tmp_path, "good")),
        Task("good", runner_tasks.outlive, (tmp_path, "good")),
    ]
    found = by_name(list(runner.run(tasks, workers=2, threads=1)))
    assert found["die"].status == "failed"
    assert f"died {runner.TRIES} times" in found["die"].message
    assert len(list(tmp_path.glob("die.*"))) == runner.TRIES
    assert found["good"] == Outcome("good", "done", 1)


def test_after_the_deadline_the_running_task_stops_and_no_other_begins(tmp_path: Path):
    tasks = [Task(name, runner_tasks.work, (tmp_path, name)) for name in ("a", "b")]
    began = time.monotonic()
    found = list(runner.run(tasks, hours=0.5 / 3600))
    assert time.monotonic() - began < 10
    assert [o.status for o in found] == ["stopped", "left"]
    assert "stopped at step" in found[0].message
    assert found[1].message == "not begun: the time was over"
    assert {path.name for path in tmp_path.iterdir()} == {"a"}


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_signal_stops_all_cleanly(tmp_path: Path, workers: int):
    def send_when_begun() -> None:
        while len(list(tmp_path.iterdir())) < workers:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    sender = threading.Thread(target=send_when_begun)
    sender.start()
    tasks = [Task(str(k), runner_tasks.work, (tmp_path, str(k))) for k in range(4)]
    found = by_name(list(runner.run(tasks, workers=workers, threads=1)))
    sender.join()
    assert sorted(o.status for o in found.values()) == ["left"] * (4 - workers) + ["stopped"] * workers
    assert sum("stopped at step" in o.message for o in found.values()) == workers
    assert len(list(tmp_path.iterdir())) == workers


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_workers_save_whoever_else_hears_the_signal(tmp_path: Path, signum: int):
    """A terminal and a batch system send it to the parent and all workers, of which one is idle."""
    code = f"import runner_tasks; runner_tasks.two_at_work_and_one_idle({str(tmp_path)!r})"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, sys.path))}
    program = subprocess.Popen(
        [sys.executable, "-c", code], env=environment, start_new_session=True, text=True, stdout=subprocess.PIPE
    )
    while len(list(tmp_path.iterdir())) < 3:
        assert program.poll() is None
        time.sleep(0.05)
    time.sleep(1)
    os.killpg(program.pid, signum)
    out, _ = program.communicate(timeout=60)
    assert json.loads(out) == {"quick": "done", "a": "stopped", "b": "stopped"}
    assert {path.name for path in tmp_path.iterdir()} == {"a", "a.saved", "b", "b.saved", "quick"}


def test_nothing_to_do_needs_no_worker():
    assert list(runner.run([], scheduler="tcp://127.0.0.1:1")) == []


@pytest.mark.parametrize(
    "wrong, sentence",
    [
        ({"workers": 0}, "--workers must be at least 1; got 0"),
        ({"threads": 0}, "--threads must be at least 1; got 0"),
        ({"hours": 0}, "--hours must be a positive number; got 0"),
        ({"hours": float("nan")}, "--hours must be a positive number; got nan"),
        ({"scheduler": "nonsense"}, "--scheduler must be host:port, such as tcp://host:8786; got 'nonsense'"),
        ({"scheduler": "tcp://host:port"}, "--scheduler must be host:port"),
        ({"scheduler": "host:65536"}, "--scheduler must be host:port"),
    ],
)
def test_wrong_arguments(wrong: dict, sentence: str):
    with pytest.raises(UsageError, match=sentence):
        runner.run(squares(1), **wrong)


def test_two_tasks_of_one_name():
    with pytest.raises(UsageError, match="two tasks are named 'square 0'"):
        runner.run([*squares(1), *squares(1)])


@pytest.mark.parametrize("address", ["host:1", "tcp://10.0.0.1:8786", "tls://[::1]:8786/", None])
def test_addresses_of_schedulers(address: str | None):
    runner.check(1, None, scheduler=address)


@pytest.fixture
def cluster():
    """A Dask scheduler without workers."""
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=0, dashboard_address=None, host="127.0.0.1") as found:
        yield found


@pytest.mark.slow
def test_a_scheduler_without_workers_is_told_and_keeps_the_time(cluster, caplog):
    (found,) = runner.run(squares(1), scheduler=cluster.scheduler_address, hours=1 / 3600)
    assert "the scheduler has no workers yet" in caplog.text
    assert (found.status, found.message[:39]) == ("failed", "not begun: the scheduler has no workers")


@pytest.mark.slow
def test_a_signal_ends_the_wait_for_a_scheduler(cluster):
    signals = [signal.SIGTERM]

    def send_one() -> None:
        if signals:
            os.kill(os.getpid(), signals.pop())

    found = list(runner.run(squares(2), scheduler=cluster.scheduler_address, watch=send_one))
    assert [outcome.status for outcome in found] == ["left", "left"]


@pytest.mark.slow
def test_a_scheduler_that_is_lost_is_a_failure(cluster):
    (found,) = runner.run(squares(1), scheduler=cluster.scheduler_address, watch=cluster.close)
    assert (found.status, found.message[:22]) == ("failed", "the scheduler was lost")


def test_workers_that_do_not_answer_after_their_time_are_given_up(monkeypatch):
    class Deaf:
        def submit(self, task: Task, deadline: float | None) -> Future[Outcome]:
            return Future()

        def lost(self, deadline: float) -> str:
            return "no answer" if runner.over(deadline + runner.SECONDS_OF_GRACE) else ""

        def close(self) -> None:
            pass

    monkeypatch.setattr(runner, "SECONDS_OF_GRACE", 0.1)
    monkeypatch.setattr(runner, "_Cluster", lambda address: Deaf())
    found = list(runner.run(squares(2), scheduler="host:1", hours=0.1 / 3600))
    assert found == [Outcome(f"square {k}", "failed", message="no answer") for k in range(2)]
