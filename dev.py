"""Set up torchdfa from a clean checkout and run it: `python3 dev.py demo`, `python3 dev.py test`.

Standard library only. Everything is installed into .venv beside this file, at the exact versions of
requirements/*.txt; a stamp inside .venv makes later calls quick.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
PYTHON = BIN / ("python.exe" if os.name == "nt" else "python")
MINIMUM = (3, 10)
USAGE = """usage: python3 dev.py demo [arguments for torchdfa train]
       python3 dev.py test [arguments for pytest]

demo  set up .venv and train a small network on handwritten digits with three learning rules
test  set up .venv and run every check: formatting, types, docs, tests"""


class SetupError(Exception):
    """One sentence: what is wrong and the way out."""


def main(arguments: list[str]) -> int:
    """Run one command; returns the exit code (2 for a wrong command, 1 for a failure)."""
    commands = {"demo": demo, "test": test}
    if not arguments or arguments[0] not in commands:
        print(USAGE, file=sys.stdout if arguments in (["-h"], ["--help"]) else sys.stderr)
        return 0 if arguments in (["-h"], ["--help"]) else 2
    try:
        return commands[arguments[0]](arguments[1:])
    except SetupError as error:
        print(f"dev.py: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"dev.py: {error}; check the space left and the permissions in {ROOT}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("dev.py: interrupted; run the same command again to go on", file=sys.stderr)
        return 130


def demo(arguments: list[str]) -> int:
    """Train with the defaults of `torchdfa train`."""
    set_up("run")
    training = subprocess.Popen([str(PYTHON), "-m", "torchdfa", "train", *arguments], cwd=ROOT)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the training itself, which saves and stops
    return training.wait()


def test(arguments: list[str]) -> int:
    """Run every check, also after one failed, the tests last; returns 1 if any failed."""
    set_up("dev")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # one thread for each of the test processes
    failed = []
    for name, command in checks(arguments).items():
        print(f"\n== {name}", flush=True)
        start = time.monotonic()
        code = subprocess.call([str(PYTHON), "-m", *command], cwd=ROOT, env=environment)
        print(f"== {name}: {'FAILED' if code else 'ok'}, {time.monotonic() - start:.0f} s", flush=True)
        if code:
            failed.append(name)
    print(f"\ndev.py: failed: {', '.join(failed)}" if failed else "\ndev.py: every check passed")
    return 1 if failed else 0


def checks(pytest_arguments: list[str]) -> dict[str, list[str]]:
    """Modules to run with their arguments, in order."""
    return {
        "ruff check": ["ruff", "check", "."],
        "ruff format": ["ruff", "format", "--check", "."],
        "mypy": ["mypy"],
        "docs": ["sphinx", "-W", "--keep-going", "-q", "-b", "html", "docs", "docs/_build/html"],
        "pytest": ["pytest", "-n", str(min(cores(), 8)), *pytest_arguments],
    }


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_up(name: str) -> None:
    """Make .venv with the pins of requirements/{name}.txt and torchdfa, unless that is done already."""
    if sys.version_info < MINIMUM:
        found = ".".join(map(str, sys.version_info[:3]))
        raise SetupError(f"Python 3.10 or newer is needed, this is {found}; run it with a newer python3")
    wanted = digest()
    # "dev" holds everything that "run" does
    if works() and any(read(stamp(done)) == wanted for done in {name, "dev"}):
        return
    if not works():
        make_venv()
    print("dev.py: installing the pinned packages into .venv (minutes the first time)", flush=True)
    stamp(name).unlink(missing_ok=True)
    install("-r", str(ROOT / "requirements" / f"{name}.txt"))
    install("--no-deps", "--no-build-isolation", "-e", str(ROOT))
    stamp(name).write_text(wanted)


def works() -> bool:
    """Whether .venv holds a Python that starts and is new enough."""
    if not PYTHON.exists():
        return False
    probe = f"import sys, pip; sys.exit(sys.version_info < {MINIMUM})"
    return (
        subprocess.call([str(PYTHON), "-c", probe], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) == 0
    )


def make_venv() -> None:
    """Create .venv, replacing a broken one."""
    try:
        import ensurepip
        import venv
    except ImportError:
        raise SetupError(
            f"{sys.executable} has no venv module; install it (Debian and Ubuntu: apt install python3-venv) "
            "and run this again"
        ) from None
    if VENV.is_dir():
        shutil.rmtree(VENV)
    venv.create(VENV, with_pip=bool(ensurepip.version()))


def install(*arguments: str) -> None:
    """pip install into .venv."""
    command = [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
    if subprocess.call(command, cwd=ROOT) != 0:
        raise SetupError(
            "pip could not install the pinned packages (its message stands above); check the network, or point "
            "pip at an index within reach, and run this again"
        )


def digest() -> str:
    """Fingerprint of everything that decides what .venv must hold."""
    files = [ROOT / "pyproject.toml", *sorted((ROOT / "requirements").glob("*.txt"))]
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()


def stamp(name: str) -> Path:
    """File whose text is the fingerprint of what was installed last."""
    return VENV / f"torchdfa-{name}.sha256"


def read(path: Path) -> str | None:
    """Text of a file, None where there is none."""
    return path.read_text() if path.exists() else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
