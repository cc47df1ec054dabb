"""How work on videos stops: everything done is saved, and the same command goes on."""

from __future__ import annotations

from pathlib import Path

from torchdfa.train.stop import Stopped


class TrackingStopped(Stopped):
    """Stopped at a signal or at the end of the time; ``sentence`` says where and how to go on."""

    def __init__(self, signum: int, folder: Path, sentence: str) -> None:
        Exception.__init__(self, sentence)
        self.signum, self.folder, self.step = signum, folder, 0
