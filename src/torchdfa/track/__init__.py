"""Visual tracking as online learning (paper section 4.2): MDNet with any rule in its head, and the OTB evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchdfa.track.bootstrap import compare
    from torchdfa.track.options import TrackerConfig, preset
    from torchdfa.track.pretrain_options import PretrainConfig
    from torchdfa.track.pretraining import pretrain
    from torchdfa.track.results import Results
    from torchdfa.track.scoring import Scores, evaluate
    from torchdfa.track.sequences import OTB, Sequence
    from torchdfa.track.tracker import Tracker

_HOMES = {
    "OTB": "sequences", "PretrainConfig": "pretrain_options", "Results": "results", "Scores": "scoring",
    "Sequence": "sequences", "Tracker": "tracker", "TrackerConfig": "options", "compare": "bootstrap",
    "evaluate": "scoring", "preset": "options", "pretrain": "pretraining",
}  # fmt: skip
__all__ = [
    "Tracker", "TrackerConfig", "preset", "OTB", "Sequence", "Results", "Scores", "evaluate", "compare",
    "PretrainConfig", "pretrain",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import on first use: `torchdfa --help` needs none of it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
