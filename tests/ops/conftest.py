"""Libraries that are looked for anew, and machines that cannot have one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from torchdfa.ops.build import Loader


@pytest.fixture
def forget(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Lets a module forget, until the test ends, what it loaded in this process."""
    return lambda module: monkeypatch.setattr(module, "load", Loader(module._load, "in plain torch"))


@pytest.fixture(
    params=[("TORCHDFA_KERNEL", "off", "TORCHDFA_KERNEL=off"), ("CC", "no-such-compiler", "no C compiler was found")],
    ids=["off", "no compiler"],
)
def reason(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Why there is no library: this machine is made one without."""
    setting, value, said = request.param
    monkeypatch.setenv("TORCHDFA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(setting, value)
    return said
