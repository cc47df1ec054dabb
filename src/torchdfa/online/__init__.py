"""Learning from a stream: ``OnlineHead``, a classifier on feature vectors that any of the rules trains."""

from __future__ import annotations

from torchdfa.online.head import OnlineHead
from torchdfa.online.memory import Memory
from torchdfa.online.prequential import Record, evaluate

__all__ = ["Memory", "OnlineHead", "Record", "evaluate"]
