"""Where a command may leave a file."""

from __future__ import annotations

from pathlib import Path

from torchdfa.errors import UsageError
from torchdfa.train import runs


def usable(path: Path, suffix: str) -> Path:
    """`path`, its folder made where it was missing; UsageError where nothing with `suffix` should go there."""
    if path.suffix != suffix or path.is_dir():
        raise UsageError(f"--out must name a {suffix} file; got {path}")
    if (path.parent / runs.CONFIG).exists():
        raise UsageError(f"--out {path} lies in a run folder, whose files have checksums; take another place")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {path}: the folder cannot be made ({error.strerror})") from None
    return path
