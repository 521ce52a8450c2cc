"""Types of options: each checks a word before the command has made anything, and says what to do."""

from __future__ import annotations

import argparse
import math
import os
import sys
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

__all__ = [
    *("Commands", "Device", "Jobs", "Option", "Precision", "Seed", "Seeds", "device", "existing", "new_file"),
    *("new_folder", "number", "once", "print_progress", "seeds", "setting", "size", "url", "whole", "words"),
]

Commands = dict[str, Callable[..., int]]
"""Functions of commands by name."""


@dataclass(frozen=True)
class Option:
    """How the command line gives a parameter, in its annotation: ``Annotated[int, Option("processes")]``.

    Args:
        help: text for ``--help``; a default is added.
        convert: function that checks a word and converts it; by default it follows from the type of the parameter.
        metavar: the value in ``--help``.
        names: names of the option, where they are not the parameter's.
        several: whether it takes several words, among which one may stand twice.
    """

    help: str
    convert: Callable[[str], Any] | None = None
    metavar: str | None = None
    names: tuple[str, ...] = ()
    several: bool = False


def once(found: Sequence[Any], text: str) -> tuple[Any, ...]:
    """Return values as a tuple; there is at least one, and each stands once."""
    if not found:
        raise argparse.ArgumentTypeError(f"expected one or more, with commas between, got {text!r}")
    twice = next((one for one in found if found.count(one) > 1), None)
    if twice is not None:
        raise argparse.ArgumentTypeError(f"{twice} stands twice in {text!r}; name it once")
    return tuple(found)


def whole(low: int = 1) -> Callable[[str], int]:
    """Return the type of whole numbers from a lowest one."""

    def convert(text: str) -> int:
        if not text.isascii() or not text.isdecimal() or int(text) < low:
            raise argparse.ArgumentTypeError(f"expected a whole number from {low}, got {text!r}")
        return int(text)

    return convert


def number(high: float = math.inf) -> Callable[[str], float]:
    """Return the type of numbers above 0, or from 0 to a highest one."""

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (0 <= value <= high if high < math.inf else 0 < value < math.inf):
            expected = f"from 0 to {high:g}" if high < math.inf else "above 0"
            raise argparse.ArgumentTypeError(f"expected a number {expected}, got {text!r}")
        return value

    return convert


def words(text: str) -> tuple[str, ...]:
    """Convert names with commas between them; each may stand once."""
    return once([word.strip() for word in text.split(",") if word.strip()], text)


def seeds(text: str) -> tuple[int, ...]:
    """Convert whole numbers from 0 with commas between them; each may stand once."""
    expected = f"expected numbers with commas between, as 0,1,2, got {text!r}"
    try:
        found = [int(word) for word in text.split(",") if word.strip()]
    except ValueError:
        raise argparse.ArgumentTypeError(expected) from None
    if min(found, default=0) < 0:
        raise argparse.ArgumentTypeError(f"expected numbers from 0, got {text!r}")
    return once(found, text)


def size(text: str) -> tuple[int, int]:
    """Convert pixels, one number for a square or height x width."""
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise argparse.ArgumentTypeError(f"expected pixels as 64 or 48x64 (height x width), got {text!r}")
    return int(sides[0]), int(sides[-1])


def url(text: str) -> str:
    """Check that a word is a URL: a kind, "://" and a place."""
    kind, found, place = text.partition("://")
    if not (kind and found and place):
        expected = "expected a URL as s3://bucket/folder or file:///folder"
        raise argparse.ArgumentTypeError(f"{expected}, got {text!r}")
    return text


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
        raise argparse.ArgumentTypeError(f"no such file or folder: {text!r}; check its spelling")
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


def setting(text: str) -> tuple[str, Any]:
    """Convert a setting KEY=VALUE, whose value is read as TOML; what is no TOML is a string."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ValueError(f"expected a setting as KEY=VALUE, got {text!r}")
    try:
        return name, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name, value


def _need_writable(folder: Path) -> None:
    if not os.access(folder, os.W_OK):
        raise argparse.ArgumentTypeError(f"{folder} is read-only for this user; choose another folder")


def print_progress(line: str) -> None:
    """Print a line on standard error at once."""
    print(line, file=sys.stderr, flush=True)


Device = Annotated[str, Option("cpu or cuda", device)]
Jobs = Annotated[int, Option("processes")]
Precision = Annotated[
    Literal["auto", "float32", "bfloat16"] | None,
    Option("of the networks, under autocast; auto is bfloat16 where the processor computes in it (auto)"),
]
Seed = Annotated[int, Option("random seed (0)", whole(0))]
Seeds = Annotated[tuple[int, ...] | None, Option("in place of the experiment's", seeds, "0,1,2")]
