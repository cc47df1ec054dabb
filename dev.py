"""Set up torchdfa from a clean checkout and run it: `python3 dev.py demo`, `python3 dev.py test`.

Standard library only. Everything is installed into .venv beside this file, at the exact versions of
requirements/*.txt; a stamp inside .venv makes later calls quick.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent
MINIMUM = (3, 10)
USAGE = """usage: python3 dev.py demo [arguments for torchdfa train]
       python3 dev.py test [arguments for pytest]
       python3 dev.py lowest [arguments for pytest]

demo    set up .venv and train a small network on handwritten digits with three learning rules
test    set up .venv and run every check: formatting, types, docs, tests
lowest  set up .venv-lowest with the oldest supported version of every dependency and run the tests"""


class SetupError(Exception):
    """One sentence: what is wrong and the way out."""


def main(arguments: list[str]) -> int:
    """Run one command; returns the exit code (2 for a wrong command, 1 for a failure)."""
    commands = {"demo": demo, "test": test, "lowest": lowest}
    if not arguments or arguments[0] not in commands:
        asked = arguments in (["-h"], ["--help"])
        print(USAGE, file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
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
    """Train with the defaults of `torchdfa train`, into runs/demo or the next free runs/demo-<n>."""
    python = set_up(ROOT / ".venv", "run")
    folders = (f"runs/demo-{n}" if n > 1 else "runs/demo" for n in itertools.count(1))
    given = {argument.partition("=")[0] for argument in arguments}
    out = [] if given & {"--out", "--resume"} else ["--out", first_free(folders)]
    training = subprocess.Popen([python, "-m", "torchdfa", "train", *out, *arguments], cwd=ROOT)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the training itself, which saves and stops
    code = training.wait()
    print(f"dev.py: the program 'torchdfa' is {Path(python).with_name('torchdfa').relative_to(ROOT)}")
    return code


def first_free(folders: Iterator[str]) -> str:
    """The first folder that does not exist: finished runs are never overwritten."""
    return next(folder for folder in folders if not (ROOT / folder).exists())


def test(arguments: list[str]) -> int:
    """Run every check, also after one failed, the tests last; returns 1 if any failed."""
    python = set_up(ROOT / ".venv", "dev")
    return run_all(
        python,
        {
            "ruff check": ["ruff", "check", "."],
            "ruff format": ["ruff", "format", "--check", "."],
            "mypy": ["mypy"],
            "docs": ["sphinx", "-W", "--keep-going", "-q", "-b", "html", "docs", "docs/_build/html"],
            "pytest": pytest_command(arguments),
        },
    )


def lowest(arguments: list[str]) -> int:
    """Run the tests with the lower bounds of pyproject.toml; returns 1 if they failed."""
    return run_all(set_up(ROOT / ".venv-lowest", "lowest"), {"pytest": pytest_command(arguments)})


def run_all(python: str, checks: dict[str, list[str]]) -> int:
    """Run modules one after the other; returns 1 if any failed, after naming those that did."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # one thread for each of the test processes
    failed = []
    for name, command in checks.items():
        print(f"\n== {name}", flush=True)
        start = time.monotonic()
        code = subprocess.call([python, "-m", *command], cwd=ROOT, env=environment)
        print(f"== {name}: {'FAILED' if code else 'ok'}, {time.monotonic() - start:.0f} s", flush=True)
        if code:
            failed.append(name)
    print(f"\ndev.py: failed: {', '.join(failed)}" if failed else "\ndev.py: every check passed")
    return 1 if failed else 0


def pytest_command(arguments: list[str]) -> list[str]:
    """pytest with a process for every core this process may use, up to 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return ["pytest", "-n", str(min(cores, 8)), *arguments]


def set_up(venv: Path, pins: str) -> str:
    """Make `venv` with requirements/{pins}.txt and torchdfa, unless it has them; returns its Python."""
    if sys.version_info < MINIMUM:
        found = ".".join(map(str, sys.version_info[:3]))
        raise SetupError(f"Python 3.10 or newer is needed, this is {found}; run it with a newer python3")
    python = venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    usable = works(python)
    # what "dev" installs includes what "run" does
    if usable and digest() in {read(stamp(venv, pins)), read(stamp(venv, "dev"))}:
        return str(python)
    if not usable:
        make_venv(venv)
    print(f"dev.py: installing the pinned packages into {venv.name} (minutes the first time)", flush=True)
    stamp(venv, pins).unlink(missing_ok=True)
    install(python, "-r", str(ROOT / "requirements" / f"{pins}.txt"))
    install(python, "--no-deps", "--no-build-isolation", "-e", str(ROOT))
    stamp(venv, pins).write_text(digest())
    return str(python)


def works(python: Path) -> bool:
    """Whether this Python starts, has pip and is new enough."""
    probe = f"import sys, pip; sys.exit(sys.version_info < {MINIMUM})"
    if not python.exists():
        return False
    return subprocess.run([str(python), "-c", probe], check=False, capture_output=True).returncode == 0


def make_venv(folder: Path) -> None:
    """Create a virtual environment with pip, replacing a broken one."""
    try:
        import ensurepip  # noqa: F401  (Debian takes it out of venv)
        import venv
    except ImportError:
        raise SetupError(
            f"{sys.executable} has no venv module; install it (Debian and Ubuntu: apt install python3-venv) "
            "and run this again"
        ) from None
    if folder.is_dir():
        shutil.rmtree(folder)
    venv.create(folder, with_pip=True)


def install(python: Path, *arguments: str) -> None:
    """pip install, quietly."""
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
    if subprocess.call(command, cwd=ROOT) != 0:
        raise SetupError(
            "pip could not install the pinned packages (its message stands above); check the network, or "
            "point pip at an index within reach, and run this again"
        )


def digest() -> str:
    """Fingerprint of everything that decides what the environments hold."""
    files = [ROOT / "pyproject.toml", *sorted((ROOT / "requirements").glob("*.txt"))]
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()


def stamp(venv: Path, pins: str) -> Path:
    """File whose text is the fingerprint of what was installed last."""
    return venv / f"torchdfa-{pins}.sha256"


def read(path: Path) -> str | None:
    """Text of a file, None where there is none."""
    return path.read_text() if path.exists() else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
