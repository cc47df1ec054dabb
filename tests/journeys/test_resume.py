"""A run survives whatever stops it: kill -9 at any moment, signals to the command; and two processes train one run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from small_runs import SMALL, figures, flags, small, weights
from torchdfa.train import checkpoint, program, runs

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals and fork")

# Trains one run through many deaths. Each child is forked from a parent that has imported everything and computed
# nothing, and kills itself (SIGKILL) at a random event: before, in the middle of or after any write, or at a step.
KILLED = """
import os, random, signal, sys, json
from pathlib import Path
from torchdfa.train import checkpoint, plots, program, runs
from torchdfa.train.config import TrainConfig
from torchdfa.train.loop import Trainer

settings, folder, deaths, seed = json.loads(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
plots.curves = plots.of_test_set = lambda *_: None
random.seed(seed)

def dying(after):
    left = [after]
    def event():
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    def around(function):
        def call(*arguments, **named):
            event()
            found = function(*arguments, **named)
            event()
            return found
        return call
    open_ = Path.open
    class Torn:
        def __init__(self, file): self.file = file
        def __enter__(self): return self
        def __exit__(self, *_): self.file.close()
        def __getattr__(self, name): return getattr(self.file, name)
        def write(self, data):
            half = len(data) // 2
            self.file.write(data[:half]); self.file.flush()
            event()
            self.file.write(data[half:])
    def opening(path, mode="r", **named):
        file = open_(path, mode, **named)
        return file if "r" in mode else Torn(file)
    Path.open = opening
    os.fsync, Path.replace, Trainer.step = around(os.fsync), around(Path.replace), around(Trainer.step)

killed = 0
while True:
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if killed < deaths:
            dying(random.randrange(1, 60))
        if (folder / "checkpoint.pt").exists():
            program.resume(folder)
        else:
            program.train(TrainConfig(**settings), folder)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        killed += 1
    elif status == 0:
        break
    else:
        sys.exit(f"a child failed with status {status} after {killed} deaths")
    if (folder / "checkpoint.pt").exists():
        checkpoint.load(folder / "checkpoint.pt")
    if (folder / "config.json").exists():
        runs.read(folder)
print(killed)
"""


@pytest.mark.parametrize("seed", [0, 1])
def test_kill_9_at_random_moments(tmp_path: Path, seed: int) -> None:
    """Up to 12 deaths in a run of 28 steps and some 40 writes; its weights are those of a run without any."""
    arguments = [json.dumps(SMALL), str(tmp_path / "killed"), "12", str(seed)]
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 5
    program.train(small(), tmp_path / "whole")
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")
    assert figures(tmp_path / "killed") == figures(tmp_path / "whole")
    assert not [path for path in (tmp_path / "killed").iterdir() if path.name.endswith("tmp")]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "torchdfa", *arguments]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_command(tmp_path: Path, signum: int) -> None:
    """As Ctrl-C or a job scheduler sends it, at no chosen moment."""
    settings = {"epochs": 200, "schedule": "constant", "subset": 500, "augment": False}
    child = subprocess.Popen(
        command("train", *flags(**settings, out=tmp_path / "run")), stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )
    wait_for(tmp_path / "run" / "metrics.jsonl", child)
    child.send_signal(signum)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 128 + signum
    assert "continue with 'torchdfa train --resume" in err
    assert "Traceback" not in err
    state = checkpoint.load(tmp_path / "run" / "checkpoint.pt")
    assert 0 < state["epoch"] < 200
    assert len(runs.read(tmp_path / "run").epochs) == state["epoch"]


def wait_for(path: Path, child: subprocess.Popen[str]) -> None:
    """Until a child process has written the first line of a file."""
    deadline = time.monotonic() + 120
    while not (path.exists() and path.stat().st_size):
        assert child.poll() is None, child.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_train_one_run(tmp_path: Path) -> None:
    """torchrun, gloo: one folder, written by one process; the network is that which one process trains.

    An MLP, since batch norm normalises each process's half of a batch by itself.
    """
    config = {"model": "mlp", "epochs": 2, "augment": False, "rule": "bdfa", "subset": 192}
    out, err = torchrun(tmp_path, "train", *flags(**config, out=tmp_path / "two")).communicate(timeout=250)
    assert out.count("epoch 2/2") == 1, err
    program.train(small(**config), tmp_path / "one")
    two, one = runs.read(tmp_path / "two"), runs.read(tmp_path / "one")
    assert two.config["resolved"]["world_size"] == 2
    assert [line["step"] for line in two.epochs] == [line["step"] for line in one.epochs]
    for a, b in zip(two.epochs, one.epochs, strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-4)
        assert a["test_loss"] == pytest.approx(b["test_loss"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_stop_at_the_same_step_and_go_on_bit_for_bit(tmp_path: Path) -> None:
    """SIGTERM to torchrun, which hands it on; epochs shorter than the distance between two checks."""
    config = {"epochs": 20, "rule": "bdfa", "subset": 192, "lr": 0.001}
    stopped = torchrun(tmp_path, "train", *flags(**config, out=tmp_path / "parts"))
    wait_for(tmp_path / "parts" / "metrics.jsonl", stopped)
    stopped.terminate()
    _, err = stopped.communicate(timeout=120)
    assert "continue with 'torchdfa train --resume" in err
    assert 0 < checkpoint.load(tmp_path / "parts" / "checkpoint.pt")["epoch"] < 20
    for name, arguments in (("parts", ["--resume", "parts"]), ("whole", flags(**config, out="whole"))):
        _, err = torchrun(tmp_path, "train", *arguments).communicate(timeout=250)
        assert runs.read(tmp_path / name).result is not None, err
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    assert figures(tmp_path / "parts") == figures(tmp_path / "whole")


def torchrun(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.Popen(
        [*launcher, "-m", "torchdfa", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
