"""The one with a cluster: the workers of a Dask scheduler share the runs, and one of them is lost."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from torchdfa.cli import main
from track.small import QUICK, write_sequences

SEQUENCES = ("Dog", "Girl", "Walking")
FLAGS = ["--missing", "skip", "--batch", "8", "--frames", "3", "--threads", "1", "--precision", "fp32"]


def boxes(results: Path) -> dict[str, str]:
    return {str(path.relative_to(results)): path.read_text() for path in results.glob("*/*.txt")}


@pytest.mark.slow
def test_trackers_on_a_cluster_that_loses_a_worker(tmp_path, monkeypatch, capsys):
    distributed = pytest.importorskip("distributed")
    monkeypatch.chdir(tmp_path)
    write_sequences(Path("otb"), SEQUENCES, 3)
    command = ["otb", "run", "otb", *FLAGS, *(f"--option={name}={value}" for name, value in QUICK.items())]
    assert main([*command, "--out", "alone"]) == 0
    cluster = distributed.LocalCluster(2, threads_per_worker=1, dashboard_address=None, host="127.0.0.1")

    def kill_one_at_work() -> None:
        with distributed.Client(cluster.scheduler_address, set_as_default=False) as client:
            while not (busy := [worker for worker, tasks in client.processing().items() if tasks]):
                time.sleep(0.02)
            os.kill(client.run(os.getpid, workers=busy[:1])[busy[0]], signal.SIGKILL)

    capsys.readouterr()
    with cluster:
        killer = threading.Thread(target=kill_one_at_work)
        killer.start()
        assert main([*command, "--out", "shared", "--scheduler", cluster.scheduler_address]) == 0
        killer.join()
    assert "6 done; results: shared/OTB-100" in capsys.readouterr().out
    found = boxes(Path("shared/OTB-100"))
    assert len(found) == 6
    assert found == boxes(Path("alone/OTB-100"))
