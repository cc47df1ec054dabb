"""The CIFAR pickle reader: reads both spellings, refuses everything else, and runs nothing."""

from __future__ import annotations

import copyreg
import os
import pickle
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchdfa.errors import UsageError
from torchdfa.train.unpickle import MAX_OPCODES, loads

ROWS = 3


def text(value: str) -> bytes:
    return b"U" + bytes([len(value)]) + value.encode("latin-1")


def python2_array(rows: np.ndarray[Any, Any], module: str = "numpy.core.multiarray") -> bytes:
    """A uint8 array (below 256 rows and columns) as Python 2's pickle wrote it, protocol 2."""
    height, width = rows.shape
    return b"".join(
        [
            b"c" + module.encode() + b"\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text("b") + b"\x87R",
            b"(K\x01K" + bytes([height]) + b"K" + bytes([width]) + b"\x86cnumpy\ndtype\n" + text("u1"),
            b"K\x00K\x01\x87R(K\x03" + text("|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89",
            b"T" + struct.pack("<i", rows.size) + rows.tobytes() + b"tb",
        ]
    )


def python2_pickle(rows: np.ndarray[Any, Any], labels: list[int], module: str = "numpy.core.multiarray") -> bytes:
    numbers = b"".join(b"K" + bytes([label]) for label in labels)
    entries = text("data") + python2_array(rows, module) + text("labels") + b"](" + numbers + b"e"
    return b"\x80\x02}q\x00(" + entries + b"u."


def example() -> tuple[np.ndarray[Any, Any], list[int]]:
    return np.arange(ROWS * 5, dtype=np.uint8).reshape(ROWS, 5), [7, 0, 9]


def good() -> bytes:
    return python2_pickle(*example())


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_python_2_files_read_as_pickle_itself_reads_them(module: str) -> None:
    rows, labels = example()
    content = python2_pickle(rows, labels, module)
    found = loads(content, "file")
    assert list(found) == ["data", "labels"]
    assert found["data"].dtype == np.uint8
    assert np.array_equal(found["data"], rows)
    assert found["labels"] == labels
    if module == "numpy._core.multiarray":  # the name that the installed numpy has without a warning
        expected = pickle.loads(content, encoding="latin1")
        assert np.array_equal(expected["data"], found["data"])
        assert expected["labels"] == found["labels"]


@pytest.mark.parametrize("protocol", [3, 4])
@pytest.mark.parametrize("order", ["C", "F"])
def test_files_that_numpy_2_saved_again_read_too(protocol: int, order: Any) -> None:
    rows, labels = example()
    entry = {b"data": np.asarray(rows, order=order), b"labels": labels, "names": ["a", "é"], "more": (1, None, True)}
    found = loads(pickle.dumps(entry, protocol), "file")
    assert np.array_equal(found["data"], rows)
    assert (found["labels"], found["names"], found["more"]) == (labels, ["a", "é"], (1, None, True))


class Bomb:
    """Creates the canary when an unpickler obeys."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.canary),)


def bombs(canary: Path) -> dict[str, bytes]:
    path = str(canary).encode()
    system = b"cposix\nmkdir\n"
    mkdir = b"(X" + struct.pack("<I", len(path)) + path
    return {
        "reduce": pickle.dumps({"data": Bomb(canary)}, 2),
        "reduce, stack global": pickle.dumps({"data": Bomb(canary)}, 4),
        "reduce, as a dict key": b"\x80\x02}" + system + mkdir + b"tRK\x01s.",
        "reduce inside an array's state": good().replace(b"cnumpy\ndtype\n", system + mkdir + b"tRcnumpy\ndtype\n"),
        "reduce inside a dtype's arguments": good().replace(text("u1"), system + mkdir + b"tR" + text("u1")),
        "obj": b"\x80\x02(" + system + mkdir[1:] + b"o.",
        "inst": b"\x80\x02" + mkdir + b"iposix\nmkdir\n.",
        "eval": b"\x80\x02cbuiltins\neval\n(X"
        + struct.pack("<I", len(path) + 26)
        + b"__import__('os').mkdir('"
        + path
        + b"')tR.",
        "getattr": b"\x80\x02cbuiltins\ngetattr\n(cposix\nsys\nX\x05\x00\x00\x00mkdirtR" + mkdir + b"tR.",
        "python 2 spelling of builtins": b"\x80\x02c__builtin__\neval\n(U\x01xtR.",
    }


LIVE = ["reduce", "reduce, stack global", "reduce, as a dict key", "obj", "inst", "eval"]


@pytest.mark.parametrize("name", LIVE)
def test_the_bombs_are_live_in_pythons_own_pickle(name: str, tmp_path: Path) -> None:
    pickle.loads(bombs(tmp_path / "canary")[name])
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize("name", list(bombs(Path("/canary"))))
def test_bombs_are_refused_and_their_canary_stays_absent(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^file is not a CIFAR file: it .*; nothing in it was run"):
        loads(bombs(tmp_path / "canary")[name], "file")
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    "content, reason",
    [
        (pickle.dumps(copyreg.__newobj__, 2), "asks for 'copy_?reg.__newobj__'"),
        (b"\x80\x02ccopyreg\n_reconstructor\n.", "asks for 'copyreg._reconstructor'"),
        (b"\x80\x02c_codecs\nencode\n.", "asks for '_codecs.encode'"),
        (b"\x80\x02cnumpy\nfromfile\n.", "asks for 'numpy.fromfile'"),
        (b"\x80\x02cnumpy\nd\\type\n.", r"asks for 'numpy\.d.+type'"),
        (b"\x80\x02cnumpy" + b"x" * 1000 + b"\ndtype\n.", "asks for 'numpyxxx"),
        (b"\x80\x02cnumpy\n\xe9\n.", "truncated or damaged"),
        (b"\x80\x02cnumpy._core.multiarray\n_reconstruct.__globals__\n.", "asks for 'numpy._core"),
        (b"\x80\x04\x8c\x05numpy\x8c\x04load\x93.", "asks for 'numpy.load'"),
        (b"\x80\x02cnumpy\ndtype\n(U\x01OK\x00K\x01tR.", "other than a uint8 array"),
        (b"\x80\x02cnumpy\ndtype\n(U\x02f8K\x00K\x01tR.", "other than a uint8 array"),
        (b"\x80\x02cnumpy\nndarray\n(K\x05tR.", "other than a uint8 array"),
        (b"\x80\x02cnumpy\nndarray\n)\x81.", "opcode NEWOBJ"),
        (b"\x80\x02\x82\x01.", "opcode EXT1"),
        (b"\x80\x02Pname\n.", "opcode PERSID"),
        (b"\x80\x02U\x01xQ.", "opcode BINPERSID"),
        (b"\x80\x02cnumpy\ndtype\n}b.", "a dict where a tuple belongs"),
        (b"\x80\x02cnumpy\ndtype\n)b.", "other than a uint8 array"),
        (pickle.dumps(np.zeros((2, 2)), 4), "other than a uint8 array"),
        (pickle.dumps(np.array([None, {}]), 4), "other than a uint8 array"),
        (pickle.dumps(np.zeros(2, np.uint8), 5), "pickle protocol 5"),
        (b"\xff", "opcode b'\\\\xff'"),
        (b"", "ends too early"),
        (good()[:-1], "ends too early"),
        (good() + b"x", "does not end where its content ends"),
        (b"\x80\x02K\x01K\x02.", "does not end where its content ends"),
        (b"\x80\x02h\x05.", "truncated or damaged"),
        (b"\x80\x02u.", "truncated or damaged"),
        (b"\x80\x02](K\x01u.", "a list where a dict belongs"),
        (b"\x80\x02}(K\x01u.", "truncated or damaged"),
        (b"\x80\x02}K\x01K\x02s.", "a int where a str belongs"),
    ],
)
def test_what_such_a_file_never_holds_is_refused(content: bytes, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        loads(content, "file")


def test_nested_tuples_as_a_key_do_not_hash_for_ever() -> None:
    doubled = b"q\x00h\x00\x86" * 100  # t = (t, t), a hundred times: 2**100 steps for hash()
    with pytest.raises(UsageError, match="a tuple where a str belongs"):
        loads(b"\x80\x02})" + doubled + b"K\x01s.", "file")


def test_absurd_sizes_are_refused_before_memory_is_reserved() -> None:
    shape = good().replace(b"K\x03K\x05\x86", b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86")
    string = b"\x80\x02T\xff\xff\xff\x7fabc."
    memo = b"\x80\x02]r\xff\xff\xff\x7f."
    tracemalloc.start()
    for content, reason in [(shape, "another number of bytes"), (string, "truncated")]:
        with pytest.raises(UsageError, match=reason):
            loads(content, "file")
    assert loads(memo, "file") == []
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_a_flood_of_opcodes_ends() -> None:
    with pytest.raises(UsageError, match="more than 1,000,000 opcodes"):
        loads(b"\x80\x02" + b"]" * (MAX_OPCODES + 1), "file")


def test_deep_nesting_does_not_exhaust_the_stack() -> None:
    with pytest.raises(UsageError, match="does not end"):
        loads(b"\x80\x02)" + b"\x85" * 200_000 + b"].", "file")


def harmless(value: Any, depth: int = 0) -> bool:
    """Made of plain data alone (arrays' unfinished holders may lie deeper; callers accept none)."""
    return type(value) in (dict, list, tuple, str, bytes, int, bool, type(None), np.ndarray) or (
        type(value).__module__ == "torchdfa.train.unpickle"
    )


def read_or_refuse(content: bytes) -> None:
    try:
        value = loads(content, "file")
    except UsageError:
        return
    assert harmless(value)


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(good()) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_mutated_files_are_read_or_refused_in_one_sentence(changes: list[tuple[int, int]]) -> None:
    content = bytearray(good())
    for place, value in changes:
        content[place] = value
    read_or_refuse(bytes(content))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(good())), st.integers(0, len(good())))
def test_cut_and_doubled_files_are_refused_in_one_sentence(start: int, stop: int) -> None:
    read_or_refuse(good()[:start] + good()[stop:])


PIECES = [b"\x80\x02", b"}", b"]", b")", b"(", b"\x85", b"\x86", b"\x87", b"t", b"e", b"a", b"u", b"s", b"b", b"R"]
PIECES += [b"cnumpy\ndtype\n", b"cnumpy\nndarray\n", b"cnumpy.core.multiarray\n_reconstruct\n", b"K\x00", b"K\x01"]
PIECES += [b"U\x02u1", b"U\x01b", b"q\x00", b"h\x00", b"N", b"\x88", b"\x89", b"\x94", b"\x93", b"\x8a\x01\x05", b"."]


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=30))
def test_any_programme_of_allowed_opcodes_is_read_or_refused(pieces: list[bytes]) -> None:
    read_or_refuse(b"".join(pieces) + b".")
