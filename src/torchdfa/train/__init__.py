"""The training program: `train` a network with a rule, `load_model` what came out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torchdfa.train.config import TrainConfig

if TYPE_CHECKING:
    from torchdfa.train.export import load_model
    from torchdfa.train.program import resume, train

__all__ = ["TrainConfig", "load_model", "resume", "train"]
_HOMES = {"load_model": "export", "resume": "program", "train": "program"}


def __getattr__(name: str) -> Any:
    """Import on first use: each name needs other libraries of the "train" extra, and some take a second."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
