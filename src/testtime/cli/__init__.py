"""The command line: ``run``, ``list``, ``report``, ``demo``, ``recommend``, ``methods``, and three families of commands."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from importlib import import_module

from testtime import __version__
from testtime.cli import experiments, online
from testtime.cli.options import (
    Parser,
    new_file,
    new_folder,
    print_progress,
    size,
    whole,
    words,
)
from testtime.errors import need_packages
from testtime.workers import Terminated, terminable

__all__ = ["main"]

FAMILIES = {
    "multitask": "several dense tasks adapted together: list, train, bench, analyse, report, demo",
    "space": "a model pre-trained in the place it will work in: list, ingest, bench, report, demo",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0, 1 when cells of a run failed, 2 for a mistake of the user's.

    An interrupted command returns 130, one that SIGTERM ended 143, as shells expect it.

    Args:
        argv: the arguments without the program's name; None takes those of the process.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a console may lack the letters of a table
    try:
        with terminable():
            arguments = _parser(given[:1]).parse_args(given)
            arguments.argv = given
            return int(arguments.run(arguments))
    except KeyboardInterrupt as stop:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 143 if isinstance(stop, Terminated) else 130
    except BrokenPipeError:
        return 0
    except (ValueError, ImportError, OSError) as error:
        print(f"testtime: {error}", file=sys.stderr)
        return 2


def _parser(first: Sequence[str]) -> argparse.ArgumentParser:
    """The parser; the commands of a family are there only if it is the first word."""
    parser = Parser(prog="testtime", description=__doc__)
    parser.add_argument("--version", action="version", version=f"testtime {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    methods = commands.add_parser("methods", help="list the methods with what they need")
    methods.add_argument("--json", action="store_true", help="for programs")
    methods.set_defaults(run=_methods)

    scenes = commands.add_parser("scenes", help="furnished houses with exact labels: make them, show them")
    steps = scenes.add_subparsers(required=True, metavar="COMMAND")
    make = steps.add_parser(
        "make", help="render houses into files; the same command goes on where it was left"
    )
    make.add_argument("--out", type=new_folder, required=True, metavar="DIR", help="folder of the spaces")
    make.add_argument("--spaces", type=whole(), default=30, metavar="N", help="houses (30)")
    make.add_argument("--frames", type=whole(), default=40, metavar="N", help="views of each house (40)")
    make.add_argument("--size", type=size, default=(64, 64), metavar="N|HxW", help="pixels (64)")
    make.add_argument("--style", default="default", help="the prior of furniture and layout (default)")
    make.add_argument("--shift", metavar="NAME", help="a shift of domain; the labels stay exact")
    make.add_argument(
        "--seed", type=whole(0), default=0, metavar="N", help="first house; the next ones follow (0)"
    )
    make.add_argument(
        "--camera-seed", type=whole(0), default=0, metavar="N", help="other views of the same houses"
    )
    make.add_argument("--jobs", type=whole(), default=2, metavar="N", help="processes (2)")
    make.add_argument("--moved", type=whole(0), metavar="N", help="small objects elsewhere, the same cameras")
    make.add_argument("--backend", metavar="NAME", help="embree, numpy or gl (embree where it is installed)")
    make.set_defaults(run=_scenes_make)
    show = steps.add_parser("show", help="draw a contact sheet of all modalities")
    show.add_argument("root", metavar="DIR", help="folder of the spaces")
    show.add_argument("--spaces", type=words, metavar="A,B", help="some of the spaces")
    show.add_argument("--frames", type=whole(), default=4, metavar="N", help="rows (4)")
    show.add_argument("--width", type=whole(32), default=160, metavar="N", help="pixels of a picture (160)")
    show.add_argument("--out", type=new_file, metavar="FILE", help="the sheet (sheet.png in the folder)")
    show.set_defaults(run=_scenes_show)

    experiments.add(commands)
    online.add(commands)
    for name, about in FAMILIES.items():
        family = commands.add_parser(name, help=about)
        if name in first:
            import_module(f"testtime.cli.{name}").add(family)
    return parser


def _methods(arguments: argparse.Namespace) -> int:
    from testtime.catalogue import catalogue, text

    found = catalogue()
    if arguments.json:
        print(json.dumps(found, indent=1))
    else:
        print(text(found))
    return 0


def _scenes_make(arguments: argparse.Namespace) -> int:
    from testtime.scenes.disk import Recipe, make
    from testtime.scenes.tracer import warn_if_slow

    tracer = {"gl": {"moderngl": "render-gl"}, "embree": {"embreex": "scenes"}}.get(arguments.backend, {})
    need_packages(PIL="images", cv2="scenes", **tracer)
    if arguments.backend is None:
        warn_if_slow(print_progress)
    recipes = [
        Recipe(
            seed,
            arguments.style,
            arguments.shift,
            arguments.frames,
            arguments.size,
            arguments.camera_seed,
            arguments.moved,
            arguments.backend,
        )
        for seed in range(arguments.seed, arguments.seed + arguments.spaces)
    ]
    make(arguments.out, recipes, arguments.jobs)
    print(arguments.out)
    return 0


def _scenes_show(arguments: argparse.Namespace) -> int:
    from testtime.scenes.sheet import write_sheet

    need_packages(PIL="images")
    print(write_sheet(arguments.root, arguments.out, arguments.spaces, arguments.frames, arguments.width))
    return 0
