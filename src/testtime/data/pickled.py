"""A reader of the tables in pickles that does not execute them.

``pickle.load`` executes code of the file. The published Python batches of CIFAR do not need that: they contain a dict of
lists, strings and arrays. `read_pickled` interprets the opcodes as data, supports the few names that numpy uses for arrays, and
refuses others.

Time and memory are bounded by the size of the file, although a pickle can refer to one object many times: arrays are views of
the bytes of the file, the total length of encoded text is bounded by its size, the keys of dicts are text, and the table may
not have more items than the file has bytes.
"""

import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from testtime.data.files import need_file
from testtime.errors import DataError

LARGEST = 2**31
"""Largest size of a file in bytes; CIFAR-100, the largest published file, has 155 MB."""
OPCODES = 20_000_000
"""Largest number of opcodes of a file; CIFAR-100 has 300,000."""


class _Name:
    """The name of a global in the pickle, which is never imported."""

    def __init__(self, path: str) -> None:
        self.path = path.replace("numpy._core.", "numpy.core.")


class _Array:
    """An array under construction: numpy pickles an empty array and then its state."""

    def __init__(self) -> None:
        self.value: NDArray[Any] | None = None

    def build(self, state: Any) -> None:
        _, shape, kind, fortran, data = state
        if not isinstance(data, bytes | bytearray) or not isinstance(kind, _Type):
            raise ValueError(f"an array of {type(kind).__name__} in {type(data).__name__}")
        flat = np.frombuffer(data, dtype=kind.simple())
        self.value = flat.reshape(shape, order="F" if fortran else "C")


class _Type:
    """A dtype under construction: booleans, integers and floats only."""

    def __init__(self, code: Any) -> None:
        self.code = _need_text(code)
        self.order = "|"

    def build(self, state: Any) -> None:
        self.order = _need_text(state[1])

    def simple(self) -> np.dtype[Any]:
        if self.code[:1] not in ("b", "i", "u", "f") or not self.code[1:].isdigit() or len(self.code) > 3:
            raise ValueError(f"arrays of {self.code[:20]!r} are not read")
        if self.order not in ("|", "<", ">", "="):
            raise ValueError(f"the byte order {self.order[:20]!r} is unknown")
        return np.dtype(("" if self.order == "|" else self.order) + self.code)


def _need_text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"a {type(value).__name__} where text is needed")
    return value


def _from_buffer(data: Any, kind: Any, shape: Any, order: Any) -> _Array:
    made = _Array()
    made.build((1, shape, kind, order == "F", data))
    return made


CALLS: dict[str, Callable[..., Any]] = {
    "numpy.core.multiarray._reconstruct": lambda *_: _Array(),
    "numpy.core.numeric._frombuffer": _from_buffer,
    "numpy.core.multiarray.scalar": lambda kind, data: _from_buffer(data, kind, (), "C"),
    "numpy.dtype": lambda code, *_: _Type(code),
}

CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
}
_LITERALS = """
INT BININT BININT1 BININT2 LONG LONG1 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE
SHORT_BINUNICODE BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8
"""
LITERALS = frozenset(_LITERALS.split())
NOTHING = {"PROTO", "FRAME"}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Machine:
    """The stack and the memo of the pickle machine, for the opcodes of plain tables.

    Args:
        size: size of the file in bytes, which is also the largest total length of text that is encoded to the bytes of
            arrays.
    """

    def __init__(self, size: int) -> None:
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks under the marks
        self.memo: dict[int, Any] = {}
        self.left = size

    def since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def encoded(self, text: Any) -> bytes:
        self.left -= len(_need_text(text))
        if self.left < 0:
            raise ValueError("it repeats its text until it is longer than the file")
        return text.encode("latin-1")

    def step(self, code: str, argument: Any) -> None:
        stack = self.stack
        if code in NOTHING:
            return
        if code in CONSTANTS:
            stack.append(CONSTANTS[code]())
        elif code in LITERALS:
            stack.append(argument)
        elif code == "MARK":
            self.below.append(stack)
            self.stack = []
        elif code in ("BINPUT", "LONG_BINPUT", "PUT"):
            self.memo[int(argument)] = stack[-1]
        elif code == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif code in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(self.memo[int(argument)])
        elif code in TUPLES:
            items = [stack.pop() for _ in range(TUPLES[code])]
            stack.append(tuple(items[::-1]))
        elif code == "GLOBAL":
            stack.append(_Name(argument.replace(" ", ".")))
        else:
            self.combine(code)

    def combine(self, code: str) -> None:
        if code in ("TUPLE", "LIST", "DICT"):
            items = self.since_mark()
            self.stack.append(tuple(items) if code == "TUPLE" else items if code == "LIST" else _table(items))
        elif code in ("APPEND", "APPENDS"):
            items = self.since_mark() if code == "APPENDS" else [self.stack.pop()]
            self.top(list).extend(items)
        elif code in ("SETITEM", "SETITEMS"):
            items = self.since_mark() if code == "SETITEMS" else [self.stack.pop() for _ in range(2)][::-1]
            self.top(dict).update(_table(items))
        elif code == "STACK_GLOBAL":
            name, module = _need_text(self.stack.pop()), _need_text(self.stack.pop())
            self.stack.append(_Name(f"{module}.{name}"))
        elif code == "REDUCE":
            arguments, name = self.stack.pop(), self.stack.pop()
            self.stack.append(self.called(name, arguments))
        elif code == "BUILD":
            state, made = self.stack.pop(), self.stack[-1]
            if isinstance(made, _Array) and isinstance(state[4], str):
                state = (*state[:4], self.encoded(state[4]))
            made.build(state)
        else:
            raise ValueError(f"it holds the opcode {code}")

    def top(self, kind: type) -> Any:
        if not isinstance(self.stack[-1], kind):
            raise ValueError(f"a {type(self.stack[-1]).__name__} where a {kind.__name__} is filled")
        return self.stack[-1]

    def called(self, name: Any, arguments: Any) -> Any:
        path = name.path if isinstance(name, _Name) else type(name).__name__
        if path == "_codecs.encode":
            text, _ = arguments
            return self.encoded(text)
        if path not in CALLS:
            raise ValueError(f"it contains a call of {path[:80]!r}")
        return CALLS[path](*arguments)


def _table(items: list[Any]) -> dict[str, Any]:
    """Return a dict of alternating keys and values; keys have to be text, so that hashing is safe."""
    keys = [key.decode("latin-1") if isinstance(key, bytes) else _need_text(key) for key in items[::2]]
    return dict(zip(keys, items[1::2], strict=True))


class _Plain:
    """Function that replaces arrays under construction by arrays, for a largest number of items."""

    def __init__(self, items: int) -> None:
        self.left = items

    def __call__(self, value: Any) -> Any:
        self.left -= 1
        if self.left < 0:
            raise ValueError("it repeats its parts until they are more than the file has bytes")
        if isinstance(value, _Array):
            return value.value
        if isinstance(value, dict):
            return {key: self(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self(item) for item in value)
        if isinstance(value, _Name | _Type):
            raise ValueError(f"it holds a {type(value).__name__.strip('_').lower()} that is no data")
        return value


def read_pickled(path: str | Path) -> dict[str, Any]:
    """Return the dict in a pickle without executing it.

    Args:
        path: path of a pickle of protocol 0 to 5 with a dict of numbers, strings, lists and numeric arrays.

    Raises:
        DataError: the file is damaged or contains other objects, such as calls of functions.
    """
    path = need_file(Path(path), "a pickled dict of arrays and lists")
    try:
        size = path.stat().st_size
        if size > LARGEST:
            raise ValueError(f"{size} bytes, where at most {LARGEST} are read")
        machine = _Machine(size)
        for count, (opcode, argument, _) in enumerate(pickletools.genops(path.read_bytes())):
            if opcode.name == "STOP":
                break
            if count == OPCODES:
                raise ValueError(f"more than {OPCODES} opcodes")
            machine.step(opcode.name, argument)
        (table,) = machine.stack
        if not isinstance(table, dict):
            raise ValueError(f"it holds a {type(table).__name__}, not a dict")
        return _Plain(size)(table)
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise DataError(
            f"{path}: expected a pickled dict of arrays and lists, found otherwise ({error}); nothing was"
            " executed; if the file is damaged, fetch it again, or use the binary version of the data set"
        ) from error
