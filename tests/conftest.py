"""What all tests share: one thread each, and the real data where it lies."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

# Two test processes run side by side; more threads than cores stall on each other's barriers.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets: TORCHDFA_TEST_DATA, or ../shared/data beside the repository."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    path = Path(os.environ.get("TORCHDFA_TEST_DATA", beside))
    if not path.is_dir():
        pytest.skip(f"no real data at {path}; TORCHDFA_TEST_DATA can name a folder that holds it")
    return path
