"""The command line: ``testtime demo``, ``bench``, ``report``, ``methods``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0, 1 when cells of a run failed, 2 for a mistake of the user's.

    Args:
        argv: the arguments without the program's name; None takes those of the process.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    arguments = _parser().parse_args(given)
    arguments.argv = given
    try:
        return int(arguments.run(arguments))
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0
    except (ValueError, ImportError, OSError) as error:
        print(f"testtime: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="testtime", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    bench = commands.add_parser("bench", help="run a protocol x methods x seeds grid")
    bench.add_argument("protocol", nargs="?", help="a name; --list shows them")
    bench.add_argument("--list", action="store_true", help="list the protocols and leave")
    bench.add_argument(
        "--data", default=".data", metavar="DIR", help="folder of data sets and weights (.data)"
    )
    bench.add_argument("--methods", type=_words, metavar="A,B", help="some of the protocol's methods")
    bench.add_argument("--seeds", type=_numbers, metavar="0,1,2", help="instead of the protocol's")
    bench.add_argument("--limit", type=int, metavar="N", help="closed-set images for each domain")
    bench.add_argument("--open-sets", type=_words, metavar="A,B", help="instead of the protocol's")
    bench.add_argument("--batch-size", type=int, metavar="N", help="instead of the protocol's")
    orders = ("continual", "gradual", "mixed", "correlated")
    bench.add_argument("--order", choices=orders, help="how the domains arrive, instead of the protocol's")
    bench.add_argument("--severity", type=int, choices=range(1, 6), help="instead of the protocol's")
    bench.add_argument("--device", default="cpu", help="cpu or cuda (cpu)")
    bench.add_argument(
        "--precision",
        choices=("float32", "bfloat16"),
        default="float32",
        help="bfloat16: networks under autocast, about twice as fast where the processor knows it",
    )
    bench.add_argument("--out", metavar="DIR", help="folder of the run (runs/PROTOCOL)")
    bench.add_argument("--cache", metavar="DIR", help="folder of corrupted images (cache beside the run)")
    bench.add_argument("--jobs", type=int, default=1, metavar="N", help="processes (1)")
    bench.set_defaults(run=_bench)

    report = commands.add_parser("report", help="make the page of a run")
    report.add_argument("run_folder", metavar="RUN", help="folder of the run")
    report.add_argument("--out", metavar="FILE", help="the page (report.html in the folder)")
    report.set_defaults(run=_report)

    demo = commands.add_parser("demo", help="the main job on data that comes along, in about a minute")
    demo.add_argument("--out", default="runs/demo", metavar="DIR", help="folder of the run (runs/demo)")
    demo.add_argument("--jobs", type=int, default=2, metavar="N", help="processes (2)")
    demo.add_argument("--limit", type=int, metavar="N", help="known images for each domain")
    demo.add_argument("--methods", type=_words, metavar="A,B", help="some of the methods")
    demo.set_defaults(run=_demo)

    methods = commands.add_parser("methods", help="list the methods with what they need")
    methods.add_argument("--json", action="store_true", help="for programs")
    methods.set_defaults(run=_methods)
    return parser


def _bench(arguments: argparse.Namespace) -> int:
    from testtime.bench.grid import run_grid
    from testtime.bench.protocols import PROTOCOLS, protocol

    if arguments.list or arguments.protocol is None:
        for one in PROTOCOLS.values():
            print(f"{one.name:24} {one.title}")
        return 0
    changes = {name: getattr(arguments, name) for name in ("seeds", "limit", "order", "severity")}
    chosen = protocol(arguments.protocol).narrowed(
        arguments.methods,
        arguments.open_sets,
        arguments.batch_size,
        **{name: value for name, value in changes.items() if value is not None},
    )
    out = arguments.out or f"runs/{chosen.name}"
    command = ["testtime", *arguments.argv]
    failures = run_grid(
        chosen,
        arguments.data,
        out,
        arguments.device,
        arguments.jobs,
        arguments.cache,
        command,
        lambda line: print(line, file=sys.stderr, flush=True),
        arguments.precision,
    )
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    print(out)
    return 1 if failures else 0


def _report(arguments: argparse.Namespace) -> int:
    from testtime.bench.report import read_run, text_table, write_report

    page = write_report(arguments.run_folder, arguments.out)
    print(text_table(read_run(arguments.run_folder)))
    print(page)
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    from testtime.bench.grid import run_grid
    from testtime.bench.protocols import protocol
    from testtime.bench.report import read_run, text_table, write_report

    chosen = protocol("digits-open").narrowed(arguments.methods)
    if arguments.limit is not None:
        chosen = chosen.narrowed(limit=arguments.limit, slow_limit=arguments.limit)
    print("Handwritten digits under 15 corruptions, photographs among them: who adapts, and who is fooled?")
    failures = run_grid(
        chosen,
        ".data",
        arguments.out,
        jobs=arguments.jobs,
        command=["testtime", *arguments.argv],
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    page = write_report(arguments.out)
    print(text_table(read_run(arguments.out)))
    print(f"The report: {page}")
    return 1 if failures else 0


def _methods(arguments: argparse.Namespace) -> int:
    from testtime.bench.methods import catalogue, text

    found = catalogue()
    if arguments.json:
        import json

        print(json.dumps(found, indent=1))
    else:
        print(text(found))
    return 0


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in _words(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers with commas between, got {text!r}") from None
