"""Shared fixtures: one thread, a chosen device and dtype, the real data where it lies, folders for runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

# Two test processes run side by side; more threads than cores stall on each other's barriers.
torch.set_num_threads(1)


@pytest.fixture
def device() -> torch.device:
    """Device under test: TORCHDFA_TEST_DEVICE, "cpu" where it is not set."""
    return torch.device(os.environ.get("TORCHDFA_TEST_DEVICE", "cpu"))


@pytest.fixture
def dtype() -> torch.dtype:
    """Dtype under test: TORCHDFA_TEST_DTYPE, "float32" where it is not set."""
    return getattr(torch, os.environ.get("TORCHDFA_TEST_DTYPE", "float32"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets: TORCHDFA_TEST_DATA, or ../shared/data beside the repository."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    path = Path(os.environ.get("TORCHDFA_TEST_DATA", beside))
    if not path.is_dir():
        pytest.skip(f"no real data at {path}; TORCHDFA_TEST_DATA can name a folder that holds it")
    return path


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A path for a run folder that does not exist yet."""
    return tmp_path / "run"
