"""The command line of testtime: experiments and their pages, demonstrations, methods, houses, and training."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from testtime import __version__
from testtime.cli import experiments, multitask, online, scenes, serve, space
from testtime.cli.command import Parser, add_command
from testtime.cli.former import translated
from testtime.cli.options import Commands
from testtime.workers import Terminated, terminable

__all__ = ["main", "parser"]


COMMANDS: Commands = {**experiments.COMMANDS, **online.COMMANDS, **serve.COMMANDS}
FAMILIES: dict[str, tuple[str, Commands]] = {
    "scenes": ("furnished houses with exact labels: make, show", scenes.COMMANDS),
    "multitask": ("models of several dense tasks: train", multitask.COMMANDS),
    "space": ("models that are pre-trained in the place they work in: ingest", space.COMMANDS),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0, 1 when units of a run failed, 2 for a mistake of the user's.

    An interrupted command returns 130, one that SIGTERM ended 143, as shells expect it.

    Args:
        argv: the arguments without the program's name; None takes those of the process.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a console may lack the letters of a table
    try:
        with terminable():
            given = translated(list(sys.argv[1:] if argv is None else argv))
            arguments = vars(parser().parse_args(given))
            return int(arguments["function"]({**arguments, "command": ["testtime", *given]}))
    except KeyboardInterrupt as stop:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 143 if isinstance(stop, Terminated) else 130
    except BrokenPipeError:
        return 0
    except (ValueError, ImportError, OSError) as error:
        print(f"testtime: {error}", file=sys.stderr)
        return 2


def parser() -> Parser:
    """Return the parser of all commands; what a command needs is imported when it runs."""
    made = Parser(prog="testtime", description=__doc__)
    made.add_argument("--version", action="version", version=f"testtime {__version__}")
    commands = made.add_subparsers(required=True, metavar="COMMAND")
    for name, function in COMMANDS.items():
        add_command(commands, name, function)
    for name, (about, functions) in FAMILIES.items():
        family = commands.add_parser(name, help=about.replace("%", "%%"), description=about)
        below = family.add_subparsers(required=True, metavar="COMMAND")
        for command, function in functions.items():
            add_command(below, command, function)
    return made
