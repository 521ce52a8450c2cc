"""Types of command-line options: each checks a value before the command has made anything."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from testtime.errors import did_you_mean

__all__ = [
    "Once",
    "Parser",
    "above",
    "add_precision",
    "device",
    "existing",
    "new_file",
    "new_folder",
    "numbers",
    "print_progress",
    "seeds",
    "share",
    "size",
    "whole",
    "words",
]


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, with the name that was probably meant."""

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with 2."""
        self.exit(2, f"{self.prog}: {message}; {self.prog} --help explains\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            names = [str(choice) for choice in action.choices]
            message = f"no choice {value!r}{did_you_mean(str(value), names)}; there are {', '.join(names)}"
            raise argparse.ArgumentError(action, message)


def whole(low: int = 1) -> Callable[[str], int]:
    """Return the type of whole numbers from a lowest one.

    >>> whole(1)("3")
    3
    """

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if value < low:
            raise argparse.ArgumentTypeError(f"expected a whole number from {low}, got {text!r}")
        return value

    return convert


def above(text: str) -> float:
    """Convert a number above 0."""
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value


class Once(argparse.Action):
    """Stores a list in which each value may stand once."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: Any = None
    ) -> None:
        """Store the values."""
        try:
            _once(values, " ".join(map(str, values)))
        except argparse.ArgumentTypeError as error:
            raise argparse.ArgumentError(self, str(error)) from None
        setattr(namespace, self.dest, values)


def share(text: str) -> float:
    """Convert a number from 0 to 1."""
    value = _number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text!r}")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def words(text: str) -> list[str]:
    """Convert words with commas between them; each may stand once.

    >>> words("tent, eata")
    ['tent', 'eata']
    """
    found = [word.strip() for word in text.split(",") if word.strip()]
    _once(found, text)
    return found


def numbers(low: int = 0) -> Callable[[str], tuple[int, ...]]:
    """Return the type of whole numbers from a lowest one with commas between them; each may stand once.

    >>> numbers()("0,1,2")
    (0, 1, 2)
    """

    def convert(text: str) -> tuple[int, ...]:
        try:
            found = tuple(int(word) for word in text.split(",") if word.strip())
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"expected numbers with commas between, as 0,1,2, got {text!r}"
            ) from None
        _once(found, text)
        if min(found) < low:
            raise argparse.ArgumentTypeError(f"expected numbers from {low}, got {text!r}")
        return found

    return convert


seeds = numbers()


def _once(found: Sequence[Any], text: str) -> None:
    if not found:
        raise argparse.ArgumentTypeError(f"expected one or more, with commas between, got {text!r}")
    twice = next((one for one in found if found.count(one) > 1), None)
    if twice is not None:
        raise argparse.ArgumentTypeError(f"{twice} stands twice in {text!r}; name it once")


def size(text: str) -> tuple[int, int]:
    """Convert pixels, one number for a square or height x width.

    >>> size("64"), size("48x64")
    ((64, 64), (48, 64))
    """
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise argparse.ArgumentTypeError(f"expected pixels as 64 or 48x64 (height x width), got {text!r}")
    return int(sides[0]), int(sides[-1])


def device(text: str) -> str:
    """Check the name of a device; "cpu" is known without torch."""
    if text == "cpu":
        return text
    from testtime.processor import need_device

    try:
        return need_device(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def existing(text: str) -> str:
    """Check the path of a file or folder that has to exist."""
    if not text or not Path(text).exists():
        raise argparse.ArgumentTypeError(f"no such file or folder: {text!r}")
    return text


def new_folder(text: str) -> str:
    """Check the path of a folder that may be made or filled: nothing on the way to it is a file, or closed."""
    if not text:
        raise argparse.ArgumentTypeError("expected a folder, got an empty name")
    path = Path(text)
    for part in (path, *path.parents):
        if part.exists() and not part.is_dir():
            raise argparse.ArgumentTypeError(f"{part} is a file; expected a folder, or a name that is free")
    _need_writable(next((part for part in (path, *path.parents) if part.is_dir()), Path()))
    return text


def new_file(text: str) -> str:
    """Check the path of a file that may be written: its folder exists, and it is no folder itself."""
    path = Path(text)
    if not text or path.is_dir():
        raise argparse.ArgumentTypeError(f"expected the name of a file, got {text!r}")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{path.parent} is no folder; make it first, or choose another")
    _need_writable(path.parent)
    return text


def _need_writable(folder: Path) -> None:
    if not os.access(folder, os.W_OK):
        raise argparse.ArgumentTypeError(f"{folder} is read-only for this user; choose another folder")


def add_precision(parser: argparse.ArgumentParser) -> None:
    """Add ``--precision`` to a parser."""
    parser.add_argument(
        "--precision",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="bfloat16 runs the networks under autocast; auto takes it where the processor computes in it (auto)",
    )


def print_progress(line: str) -> None:
    """Print a line on standard error at once."""
    print(line, file=sys.stderr, flush=True)
