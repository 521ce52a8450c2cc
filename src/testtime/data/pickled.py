"""Read the tables inside a pickle without executing it.

``pickle.load`` runs what the file says. The published CIFAR batches for Python need nothing of that: they
hold a dict of lists, strings and arrays. `read_pickled` walks the opcodes as data, knows the few names with
which numpy writes an array, and refuses the rest.
"""

import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from testtime.errors import DataError

MARK = object()


class _Name:
    """A global that the pickle mentions; it is never looked up."""

    def __init__(self, path: str) -> None:
        self.path = path.replace("numpy._core.", "numpy.core.")


class _Array:
    """An array under construction: numpy pickles an empty one and then its state."""

    def __init__(self) -> None:
        self.value: NDArray[Any] | None = None

    def build(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, data = state
        flat = np.frombuffer(_bytes(data), dtype=_simple(dtype))
        self.value = flat.reshape(shape, order="F" if fortran else "C")


class _Type:
    """A dtype under construction; only booleans, integers and floats."""

    def __init__(self, code: str) -> None:
        self.code = code
        self.order = "|"

    def build(self, state: tuple[Any, ...]) -> None:
        self.order = str(state[1])


def _bytes(data: bytes | str) -> bytes:
    return data.encode("latin-1") if isinstance(data, str) else bytes(data)


def _simple(kind: _Type) -> np.dtype[Any]:
    if kind.code[:1] not in ("b", "i", "u", "f") or not kind.code[1:].isdigit():
        raise ValueError(f"arrays of {kind.code!r} are not read")
    return np.dtype(("" if kind.order == "|" else kind.order) + kind.code)


def _from_buffer(data: bytes, kind: _Type, shape: tuple[int, ...], order: str) -> _Array:
    made = _Array()
    made.build((1, shape, kind, order == "F", data))
    return made


CALLS: dict[str, Callable[..., Any]] = {
    "numpy.core.multiarray._reconstruct": lambda *_: _Array(),
    "numpy.core.numeric._frombuffer": _from_buffer,
    "numpy.core.multiarray.scalar": lambda kind, data: _from_buffer(data, kind, (), "C"),
    "numpy.dtype": lambda code, *_: _Type(str(code)),
    "_codecs.encode": lambda text, _: text.encode("latin-1"),
}

CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "MARK": lambda: MARK,
}
_LITERALS = """
INT BININT BININT1 BININT2 LONG LONG1 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE
SHORT_BINUNICODE BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8
"""
LITERALS = frozenset(_LITERALS.split())
NOTHING = {"PROTO", "FRAME"}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Machine:
    """The stack and the memo of the pickle machine, for the opcodes that make plain tables."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def since_mark(self) -> list[Any]:
        at = max(i for i, item in enumerate(self.stack) if item is MARK)
        items = self.stack[at + 1 :]
        del self.stack[at:]
        return items

    def step(self, code: str, argument: Any) -> None:
        stack = self.stack
        if code in NOTHING:
            return
        if code in CONSTANTS:
            stack.append(CONSTANTS[code]())
        elif code in LITERALS:
            stack.append(argument)
        elif code in ("BINPUT", "LONG_BINPUT", "PUT"):
            self.memo[int(argument)] = stack[-1]
        elif code == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif code in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(self.memo[int(argument)])
        elif code in TUPLES:
            items = stack[-TUPLES[code] :]
            stack[-TUPLES[code] :] = [tuple(items)]
        elif code == "GLOBAL":
            stack.append(_Name(argument.replace(" ", ".")))
        else:
            self.combine(code)

    def combine(self, code: str) -> None:
        stack = self.stack
        if code in ("TUPLE", "LIST"):
            items = self.since_mark()
            stack.append(tuple(items) if code == "TUPLE" else items)
        elif code == "DICT":
            items = self.since_mark()
            stack.append(dict(zip(items[::2], items[1::2], strict=True)))
        elif code in ("APPEND", "APPENDS"):
            items = self.since_mark() if code == "APPENDS" else [stack.pop()]
            stack[-1].extend(items)
        elif code in ("SETITEM", "SETITEMS"):
            items = self.since_mark() if code == "SETITEMS" else [stack.pop() for _ in range(2)][::-1]
            stack[-1].update(zip(items[::2], items[1::2], strict=True))
        elif code == "STACK_GLOBAL":
            name, module = stack.pop(), stack.pop()
            stack.append(_Name(f"{module}.{name}"))
        elif code == "REDUCE":
            arguments, name = stack.pop(), stack.pop()
            if not isinstance(name, _Name) or name.path not in CALLS:
                raise ValueError(f"it asks to call {getattr(name, 'path', name)!r}")
            stack.append(CALLS[name.path](*arguments))
        elif code == "BUILD":
            state = stack.pop()
            stack[-1].build(state)
        else:
            raise ValueError(f"it holds the opcode {code}")


def _plain(value: Any) -> Any:
    """Replace arrays under construction by arrays, bytes keys by text."""
    if isinstance(value, _Array):
        return value.value
    if isinstance(value, dict):
        return {_text(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


def _text(key: Any) -> str:
    return key.decode("latin-1") if isinstance(key, bytes) else str(key)


def read_pickled(path: str | Path) -> dict[str, Any]:
    """Return the dict that a pickle holds, executing nothing of it.

    Args:
        path: a pickle of protocol 0 to 5 with a dict of numbers, strings, lists and numeric arrays.

    Raises:
        DataError: if the file is damaged or asks for anything else, such as calling a function.
    """
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(Path(path).read_bytes()):
            if opcode.name == "STOP":
                break
            machine.step(opcode.name, argument)
        (table,) = machine.stack
        if not isinstance(table, dict):
            raise ValueError(f"it holds a {type(table).__name__}, not a dict")
        return _plain(table)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{path}: expected a pickled dict of arrays and lists, found otherwise ({error}); nothing was"
            " executed; if the file is damaged, fetch it again, or use the binary version of the data set"
        ) from error
