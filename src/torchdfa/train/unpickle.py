"""Read the few things a CIFAR pickle holds without handing it to Python's pickle.

The reader is a stack machine over the opcodes that the files need, in the Python 2 spelling and in that of numpy
resaving them (protocols 2 to 4). Nothing callable is ever on its stack: three numpy names are known as mere words,
and the one pattern in which they may stand yields a uint8 array. A subclass of ``pickle.Unpickler`` with its own
``find_class`` was not enough: BUILD would still set attributes, EXT1 go round ``find_class``, one LONG_BINPUT reserve
32 GB, and nested tuples as a dict key hash for ever.
"""

from __future__ import annotations

import io
import math
import pickletools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchdfa.errors import UsageError

_OPCODES = {opcode.code: opcode for opcode in pickletools.opcodes}
MAX_OPCODES = 1_000_000  # CIFAR-100's training file has 260,000


class _Refused(Exception):
    """What the machine found that such a file never holds."""


@dataclass(frozen=True)
class _Word:
    name: str


_RECONSTRUCT, _NDARRAY, _DTYPE = _Word("_reconstruct"), _Word("ndarray"), _Word("dtype")
_WORDS = {
    "numpy.core.multiarray _reconstruct": _RECONSTRUCT,  # numpy 1
    "numpy._core.multiarray _reconstruct": _RECONSTRUCT,  # numpy 2
    "numpy ndarray": _NDARRAY,
    "numpy dtype": _DTYPE,
}


@dataclass(frozen=True)
class _UInt8:
    pass


@dataclass
class _Array:
    values: NDArray[np.uint8] | None = None


def loads(data: bytes, name: str) -> Any:
    """Return the dict, list, tuple, str, bytes, int, bool, None or uint8 array in ``data``; keys are str.

    ``name`` stands in the UsageError that anything else raises.
    """
    try:
        return _plain(_Machine(data).run())
    except _Refused as refusal:
        reason = str(refusal)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError):
        # What pickletools' argument readers and a stack in disorder raise.
        reason = "it is truncated or damaged"
    raise UsageError(f"{name} is not a CIFAR file: {reason}; nothing in it was run. Get it again.")


def _plain(value: Any) -> Any:
    """Take the top level's arrays out of their holders; none can be deeper in what the callers accept."""
    if isinstance(value, dict):
        return {key: item.values if isinstance(item, _Array) else item for key, item in value.items()}
    return value


class _Machine:
    """One method for each allowed opcode, named after it in pickletools; all other opcodes are refused."""

    def __init__(self, data: bytes) -> None:
        self.file = io.BytesIO(data)
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks under each open MARK
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        for _ in range(MAX_OPCODES):
            code = self.file.read(1)
            if not code:
                raise _Refused("it ends too early")
            opcode = _OPCODES.get(code.decode("latin-1"))
            if opcode is not None and opcode.name == "STOP":
                return self._stop()
            method = getattr(self, f"op_{opcode.name}", None) if opcode is not None else None
            if opcode is None or method is None:
                raise _Refused(f"it uses the opcode {opcode.name if opcode else repr(code)}")
            # Strings in lines are the one kind whose reader in pickletools warns, of odd escapes.
            reader = self._two_lines if opcode.name == "GLOBAL" else opcode.arg.reader if opcode.arg else None
            method(reader(self.file) if reader else None)
        raise _Refused(f"it has more than {MAX_OPCODES:,} opcodes")

    @staticmethod
    def _two_lines(file: io.BytesIO) -> str:
        module, name = (file.readline(100).decode("ascii").removesuffix("\n") for _ in range(2))
        return f"{module} {name}"

    def _stop(self) -> Any:
        if self.below or len(self.stack) != 1 or self.file.read(1):
            raise _Refused("it does not end where its content ends")
        return self.stack[0]

    def op_PROTO(self, version: int) -> None:
        if version > 4:
            raise _Refused(f"it is of pickle protocol {version}")

    def op_FRAME(self, size: int) -> None:
        """A hint for readers of streams."""

    def push(self, value: Any) -> None:
        self.stack.append(value)

    # The argument is the value: pickletools reads Python 2's strings as latin-1.
    op_BININT = op_BININT1 = op_BININT2 = op_LONG1 = push
    op_BINSTRING = op_SHORT_BINSTRING = op_BINUNICODE = op_SHORT_BINUNICODE = push
    op_BINBYTES = op_SHORT_BINBYTES = push

    def op_NONE(self, _: None) -> None:
        self.push(None)

    def op_NEWTRUE(self, _: None) -> None:
        self.push(True)

    def op_NEWFALSE(self, _: None) -> None:
        self.push(False)

    def op_EMPTY_DICT(self, _: None) -> None:
        self.push({})

    def op_EMPTY_LIST(self, _: None) -> None:
        self.push([])

    def op_EMPTY_TUPLE(self, _: None) -> None:
        self.push(())

    def op_TUPLE1(self, _: None) -> None:
        self.stack[-1:] = [(self.stack[-1],)]

    def op_TUPLE2(self, _: None) -> None:
        self.stack[-2:] = [(self.stack[-2], self.stack[-1])]

    def op_TUPLE3(self, _: None) -> None:
        self.stack[-3:] = [(self.stack[-3], self.stack[-2], self.stack[-1])]

    def op_MARK(self, _: None) -> None:
        self.below.append(self.stack)
        self.stack = []

    def _since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def op_TUPLE(self, _: None) -> None:
        self.push(tuple(self._since_mark()))

    def op_APPENDS(self, _: None) -> None:
        items = self._since_mark()
        _expect(self.stack[-1], list).extend(items)

    def op_APPEND(self, _: None) -> None:
        item = self.stack.pop()
        _expect(self.stack[-1], list).append(item)

    def op_SETITEMS(self, _: None) -> None:
        self._set_items(self._since_mark())

    def op_SETITEM(self, _: None) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set_items([key, value])

    def _set_items(self, items: list[Any]) -> None:
        target = _expect(self.stack[-1], dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[key.decode("ascii") if isinstance(key, bytes) else _expect(key, str)] = value

    def op_BINPUT(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    op_LONG_BINPUT = op_BINPUT

    def op_MEMOIZE(self, _: None) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def op_BINGET(self, index: int) -> None:
        self.push(self.memo[index])

    op_LONG_BINGET = op_BINGET

    def op_GLOBAL(self, module_and_name: str) -> None:
        if module_and_name not in _WORDS:
            raise _Refused(f"it asks for {module_and_name[:60].replace(' ', '.')!r}")
        self.push(_WORDS[module_and_name])

    def op_STACK_GLOBAL(self, _: None) -> None:
        name, module = _expect(self.stack.pop(), str), _expect(self.stack.pop(), str)
        self.op_GLOBAL(f"{module} {name}")

    def op_REDUCE(self, _: None) -> None:
        arguments, word = _expect(self.stack.pop(), tuple), self.stack.pop()
        if word is _RECONSTRUCT and arguments in ((_NDARRAY, (0,), "b"), (_NDARRAY, (0,), b"b")):
            self.push(_Array())
        elif word is _DTYPE and arguments in (("u1", 0, 1), ("u1", False, True)):
            self.push(_UInt8())
        else:
            raise _Refused("it builds something other than a uint8 array")

    def op_BUILD(self, _: None) -> None:
        state, target = _expect(self.stack.pop(), tuple), self.stack[-1]
        if isinstance(target, _Array) and target.values is None:
            target.values = _array(*state)
        elif not (isinstance(target, _UInt8) and state == (3, "|", None, None, None, -1, -1, 0)):
            raise _Refused("it builds something other than a uint8 array")


def _expect(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise _Refused(f"it has a {type(value).__name__} where a {kind.__name__} belongs")
    return value


def _array(version: int, shape: tuple[int, ...], dtype: _UInt8, fortran: bool, raw: str | bytes) -> NDArray[np.uint8]:
    """numpy's own state of an array; the size is compared with the bytes that are there, so none is reserved."""
    if version != 1 or type(dtype) is not _UInt8 or type(fortran) not in (bool, int):
        raise _Refused("it builds something other than a uint8 array")
    if not all(type(size) is int and 0 < size <= 2**31 for size in _expect(shape, tuple)):
        raise _Refused("it has an array of a shape that cannot be")
    content = raw.encode("latin-1") if isinstance(raw, str) else _expect(raw, bytes)
    if len(shape) > 4 or math.prod(shape) != len(content):
        raise _Refused("it has an array with another number of bytes than its shape asks for")
    return np.frombuffer(content, np.uint8).reshape(shape, order="F" if fortran else "C")
