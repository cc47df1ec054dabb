"""Compile a C source of this package at its first use, once for each user: no compiler is needed before, or ever."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Generic, TypeVar

VARIABLE = "TORCHDFA_KERNEL"  # auto, off, or the name of one path of sign_mm
# No -march: instruction sets belong to single functions, so that what is built runs on any processor of its kind.
_FLAGS = ("-x", "c", "-", "-O3", "-std=gnu11", "-fno-strict-aliasing", "-shared", "-fPIC")
# What may be missing is given up in turn: OpenMP, then the instructions that an old assembler does not know.
_ATTEMPTS = (("-fopenmp",), (), ("-fopenmp", "-DTORCHDFA_PLAIN"), ("-DTORCHDFA_PLAIN",))
_TIMEOUT = 120  # seconds
_LOGGER = logging.getLogger("torchdfa")

T = TypeVar("T")


class NoKernelError(Exception):
    """Why there is no compiled kernel, in words that can follow "because"."""


def library(*sources: str, flags: tuple[str, ...] = ()) -> Path:
    """The shared library made of the package's files ``sources`` as one text, compiled unless the cache holds it.

    It is called after the last of them and a hash of text, compiler and flags, so another version never meets it.
    ``NoKernelError`` where it cannot be made.
    """
    if sys.platform != "linux":
        raise NoKernelError(f"it is built on Linux alone, and this is {sys.platform}")
    text = b"\n".join(files("torchdfa.ops").joinpath(source).read_bytes() for source in sources)
    compiler = _compiler()
    command = [*compiler, *_FLAGS, *flags]
    parts = (text, _version(compiler), " ".join(command).encode(), platform.machine().encode())
    key = hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
    path = _cache() / f"{Path(sources[-1]).stem}-{key}.so"
    if not path.exists():
        _compile(text, command, path)
    return path


def _compiler() -> list[str]:
    try:
        named = shlex.split(os.environ.get("CC", ""))
    except ValueError as error:
        raise NoKernelError(f"CC={os.environ['CC']!r} cannot be read ({error})") from None
    found = [[path, *named[1:]] for name in (named[:1] or ("cc", "gcc", "clang")) if (path := shutil.which(name))]
    if not found:
        wanted = f"CC={named[0]!r} names none" if named else "neither cc, gcc nor clang is there"
        raise NoKernelError(f"no C compiler was found ({wanted})")
    return found[0]


def _version(compiler: list[str]) -> bytes:
    return _run([*compiler, "--version"]).stdout


def _cache() -> Path:
    """A folder of this user's that nobody else can write to, since what lies there is run."""
    named = os.environ.get("TORCHDFA_CACHE")
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = Path(named) if named else base / "torchdfa"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except (OSError, RuntimeError, ValueError) as error:
        raise NoKernelError(f"its cache folder cannot be made ({error}); TORCHDFA_CACHE can name another") from None
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise NoKernelError(f"others can write to its cache folder {folder}; TORCHDFA_CACHE can name another")
    return folder


def _compile(text: bytes, command: list[str], path: Path) -> None:
    """Into a folder beside ``path``, then renamed: processes that start together do not disturb each other."""
    try:
        with tempfile.TemporaryDirectory(prefix="build-", dir=path.parent) as folder:
            built = Path(folder) / path.name
            for attempt in _ATTEMPTS:
                done = _run([*command, *attempt, "-o", str(built)], text)
                if done.returncode == 0:
                    break
            if done.returncode != 0 or not built.exists():
                reason = done.stderr.decode(errors="replace").strip().split("\n")[0]
                raise NoKernelError(f"{command[0]} could not compile it ({reason})")
            with built.open("rb") as file:
                os.fsync(file.fileno())
            built.replace(path)
    except OSError as error:
        raise NoKernelError(f"{path.parent} cannot be written ({error.strerror or error})") from None


def _run(command: list[str], text: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(command, input=text, check=False, capture_output=True, timeout=_TIMEOUT)
    except (OSError, subprocess.SubprocessError) as error:
        raise NoKernelError(f"{command[0]} could not be run ({error})") from None


def open_library(path: Path) -> ctypes.CDLL:
    """NoKernelError where what `library` made cannot be loaded."""
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise NoKernelError(f"{path} cannot be loaded ({error}); delete it to have it built anew") from None


def one_openmp() -> bool:
    """Whether torch and what was built share one OpenMP runtime; two of them would each start a pool of threads."""
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return len({Path(p).resolve() for p in re.findall(r"\S*/lib(?:gomp|omp|iomp5)[-.]\S*", maps)}) == 1


class Loader(Generic[T]):
    """Loads at most once, whichever thread asks first; holds the kernel or the reason why there is none.

    Where ``make`` raises ``NoKernelError``, or TORCHDFA_KERNEL=off, the logger says that reason after ``without``.
    """

    def __init__(self, make: Callable[[], T], without: str) -> None:
        self._lock = threading.Lock()
        self._make, self._without = make, without
        self._state: T | str | None = None

    def __call__(self) -> T | str:
        if self._state is not None:
            return self._state
        with self._lock:
            if self._state is None:
                self._state = self._load()
            return self._state

    def _load(self) -> T | str:
        if os.environ.get(VARIABLE) == "off":
            _LOGGER.info("%s, because %s=off", self._without, VARIABLE)
            return f"{VARIABLE}=off"
        try:
            return self._make()
        except NoKernelError as error:
            _LOGGER.warning("%s, because %s", self._without, error)
            return str(error)
