"""The embedder: features on a device, labels one by one; memory known before, the same after save and load."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from torchdfa.errors import UsageError
from torchdfa.online import OnlineHead, evaluate, streams
from torchdfa.train import datasets

FEATURES = 512


@pytest.fixture(scope="module")
def stream() -> tuple[np.ndarray, np.ndarray]:
    """Features of the digits by a frozen extractor that never saw them: random convolutions."""
    torch.manual_seed(0)
    extractor = nn.Sequential(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()).eval()
    data = datasets.load("digits")
    with torch.inference_mode():
        features = extractor(data.train_x.float() / 255)
    return features.numpy(), data.train_y.numpy()


def test_labels_come_one_by_one(stream: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    x, y = stream
    head = OnlineHead(features=FEATURES, classes=10, rule="bdfa", learning_rate=0.003)
    stated = head.memory()
    assert stated.weights == 4 * (512 * 512 + 512 + 512 * 10 + 10)
    assert stated.feedback_stored == 644
    record = evaluate(head, streams.samples(x, y, range(800)), window=200)
    assert record.windowed > 80
    assert record.windowed > record.points[0][1]
    assert head.memory() == stated

    head.save(tmp_path / "head.safetensors")
    again = OnlineHead.load(tmp_path / "head.safetensors")
    assert np.array_equal(again.predict_proba(x[800:]), head.predict_proba(x[800:]))
    size = (tmp_path / "head.safetensors").stat().st_size
    for one in (head, again):
        one.partial_fit(x[800:900], y[800:900])
    assert np.array_equal(again.predict_proba(x[900:]), head.predict_proba(x[900:]))
    head.save(tmp_path / "head.safetensors")
    assert (tmp_path / "head.safetensors").stat().st_size == size
    assert size == pytest.approx(stated.weights + 3 * 8 * FEATURES + stated.feedback_stored, rel=0.01)


def test_bad_samples_leave_no_mark(stream: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = stream
    head = OnlineHead(features=FEATURES, classes=10, learning_rate=0.003).partial_fit(x[:300], y[:300])
    before = head.predict_proba(x[300:400])
    for bad, label in ((np.full((1, FEATURES), np.nan), 0), (x[:1, :500], 0), (x[:1], 10), (x[:0], [])):
        with pytest.raises(ValueError, match=r"NaN|500 features|label 10|0 sample") as raised:
            head.partial_fit(bad, np.ravel(label))
        assert "\n" not in str(raised.value) or not isinstance(raised.value, UsageError)
    assert np.array_equal(head.predict_proba(x[300:400]), before)


def test_a_device_that_pipes_its_samples(stream: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    """Another program writes lines; the head learns as they come, with no label known beforehand."""
    x, y = stream
    lines = "".join(
        f"{label},{','.join(f'{v:.4g}' for v in row)}\n" for row, label in zip(x[:300], y[:300], strict=True)
    )
    command = [sys.executable, "-m", "torchdfa", "online", "-", "--lr", "0.003"]
    done = subprocess.run(command, cwd=tmp_path, input=lines, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "300 samples" in done.stdout
    head = OnlineHead.load(tmp_path / "runs" / "online" / "head.safetensors")
    assert head.updates_ == 300
    assert head.score(x[300:], y[300:].astype(str)) > 0.6
