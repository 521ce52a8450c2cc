"""``testtime bench`` and what belongs to it, until the family "online" is on the experiment engine."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from testtime.cli import experiments
from testtime.cli.options import (
    add_precision,
    device,
    new_file,
    new_folder,
    print_progress,
    seeds,
    whole,
    words,
)
from testtime.errors import need_packages

if TYPE_CHECKING:
    from testtime.bench.protocol import Protocol, Row
    from testtime.data import ImageSet
    from testtime.streams import Stream

__all__ = ["add"]

DATA = ".data"  # the folder of data sets and weights


def add(commands: Any) -> None:
    """Add the commands to the subparsers of ``testtime``."""
    bench = commands.add_parser("bench", help="run a protocol x methods x seeds grid")
    bench.add_argument("protocol", nargs="?", help="a name; --list shows them")
    bench.add_argument("--list", action="store_true", help="list the protocols and leave")
    bench.add_argument("--data", metavar="DIR", help="folder of data sets and weights (.data)")
    bench.add_argument("--methods", type=words, metavar="A,B", help="some of the protocol's methods")
    bench.add_argument("--seeds", type=seeds, metavar="0,1,2", help="instead of the protocol's")
    bench.add_argument("--limit", type=whole(), metavar="N", help="closed-set images for each domain")
    bench.add_argument(
        "--open-sets", type=words, metavar="A,B", help="instead of the protocol's; none: no unknown images"
    )
    bench.add_argument("--batch-size", type=whole(), metavar="N", help="instead of the protocol's")
    orders = ("continual", "gradual", "mixed", "correlated", "mixed-correlated", "label-shift")
    bench.add_argument("--order", choices=orders, help="how the domains arrive, instead of the protocol's")
    bench.add_argument(
        "--severity", type=whole(), choices=range(1, 6), metavar="1-5", help="instead of the protocol's"
    )
    bench.add_argument("--device", type=device, default="cpu", help="cpu or cuda (cpu)")
    add_precision(bench)
    bench.add_argument("--out", type=new_folder, metavar="DIR", help="folder of the run (runs/PROTOCOL)")
    bench.add_argument(
        "--cache", type=new_folder, metavar="DIR", help="folder of corrupted images (cache beside the run)"
    )
    bench.add_argument("--jobs", type=whole(), default=1, metavar="N", help="processes (1)")
    bench.add_argument(
        "--no-labels",
        action="store_true",
        help="run the methods in shadow and note what they give away without labels; then: testtime recommend",
    )
    bench.add_argument(
        "--images",
        metavar="DIR",
        help="with --no-labels: your images, in natural order (frame_2 before frame_10)",
    )
    bench.add_argument(
        "--skip-damaged",
        action="store_true",
        help="with --images: leave out pictures that cannot be read, and name them",
    )
    bench.add_argument("--model", metavar="NAME", help="with --images: the source model")
    bench.add_argument("--source", metavar="DIR", help="with --images: unlabelled images of its source")
    bench.add_argument(
        "--no-mirror",
        action="store_true",
        help="with --no-labels: turn images a little instead of mirroring them, also where the model allows both",
    )
    bench.set_defaults(run=_bench)

    choose = commands.add_parser("recommend", help="name a method for a stream without labels, with reasons")
    choose.add_argument("run_folder", metavar="RUN", help="folder of a run of testtime bench --no-labels")
    choose.add_argument(
        "--judge", action="store_true", help="beside the estimates the truth, where the stream had labels"
    )
    choose.set_defaults(run=_recommend)

    report = commands.add_parser("report", help="make the page of a run")
    report.add_argument(
        "run_folder", metavar="RUN", nargs="+", help="folder of the run; several are compared"
    )
    report.add_argument(
        "--out",
        type=new_file,
        metavar="FILE",
        help="the page (report.html in the folder, or comparison.html)",
    )
    report.add_argument(
        "--json", type=new_file, metavar="FILE", help="of a comparison: the figures, for programs"
    )
    report.set_defaults(run=_report)

    demo = commands.add_parser("demo", help="the main job on data that comes along, in about a minute")
    demo.add_argument(
        "--out", type=new_folder, default="runs/demo", metavar="DIR", help="folder of the run (runs/demo)"
    )
    demo.add_argument("--jobs", type=whole(), default=2, metavar="N", help="processes (2)")
    demo.add_argument("--limit", type=whole(), metavar="N", help="known images for each domain")
    demo.add_argument("--methods", type=words, metavar="A,B", help="some of the methods")
    demo.set_defaults(run=_demo)


def _bench(arguments: argparse.Namespace) -> int:
    from testtime.bench.grid import run_grid
    from testtime.bench.protocols import PROTOCOLS, protocol
    from testtime.bench.sets import EMBEDDED

    if arguments.list or (arguments.protocol is None and not arguments.no_labels):
        for one in PROTOCOLS.values():
            print(f"{one.name:24} {one.title}")
        return 0
    _agree(arguments)
    if arguments.images:
        return _own(arguments)
    changes = {name: getattr(arguments, name) for name in ("seeds", "limit", "order", "severity")}
    chosen = protocol(arguments.protocol).narrowed(
        arguments.methods,
        arguments.open_sets,
        arguments.batch_size,
        **{name: value for name, value in changes.items() if value is not None},
    )
    if chosen.closed in EMBEDDED or any(column.open_set in EMBEDDED for column in chosen.columns):
        need_packages(sklearn="demo", PIL="images")
    if arguments.no_labels:
        return _hidden(arguments, chosen)
    out = new_folder(arguments.out or f"runs/{chosen.name}")
    failures = run_grid(
        chosen,
        arguments.data or DATA,
        out,
        arguments.device,
        arguments.jobs,
        arguments.cache,
        ["testtime", *arguments.argv],
        print_progress,
        arguments.precision,
    )
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    print(out)
    return 1 if failures else 0


def _agree(arguments: argparse.Namespace) -> None:
    """Refuse options of a bench that do not go together, or name a folder that does not exist."""
    a = arguments
    if a.data is not None and not Path(a.data).is_dir():
        raise ValueError(f"--data {a.data}: no such folder; expected the folder of data sets and weights")
    if a.images and not a.no_labels:
        raise ValueError("--images are a stream without labels; add --no-labels")
    if a.no_labels and (a.protocol is None) == (a.images is None):
        raise ValueError("--no-labels needs a stream: a protocol, or --images DIR and --model NAME")
    if a.images and a.model is None:
        raise ValueError("--images need --model NAME, the network that is in use")
    if a.images:
        others = {"seeds": a.seeds, "limit": a.limit, "open-sets": a.open_sets, "order": a.order}
        others |= {"severity": a.severity, "cache": a.cache}
        reason = "belongs to a protocol and not to --images"
    else:
        others, reason = {"model": a.model, "source": a.source}, "needs --images DIR"
        others["skip-damaged"] = a.skip_damaged or None
    if a.no_labels and (a.jobs > 1 or len(a.seeds or ()) > 1):
        raise ValueError("--no-labels is one stream in one process; give one --seeds and no --jobs")
    if not a.no_labels:
        others["no-mirror"] = a.no_mirror or None
        reason = "needs --no-labels" if a.no_mirror else reason
    for name, value in others.items():
        if value is not None:
            raise ValueError(f"--{name} {reason}")
    for name, path in {"images": a.images, "source": a.source}.items():
        if path is not None and not Path(path).exists():
            raise ValueError(f"--{name} {path}: no such file or folder")


def _own(arguments: argparse.Namespace) -> int:
    """Candidates in shadow on a folder of images."""
    from testtime.bench.protocols import protocol
    from testtime.bench.sets import size_for
    from testtime.data import image_folder
    from testtime.models import model_card
    from testtime.streams import clean, recorded

    need_packages(PIL="images")
    card = model_card(arguments.model)
    skip = arguments.skip_damaged
    images = replace(image_folder(arguments.images, skip_damaged=skip), labels=None, classes=())
    stream = recorded(clean(images, size_for(card.size)), arguments.batch_size or 200)
    source = image_folder(arguments.source, skip_damaged=skip) if arguments.source else None
    rows = protocol("field-continual").narrowed(arguments.methods).rows
    skipped = {one.name: list(one.skipped) for one in (images, source) if one is not None and one.skipped}
    out = arguments.out or "runs/no-labels"
    code = _shadow(arguments, rows, card.name, stream, source, str(arguments.images), out, skipped)
    for name, names in skipped.items():
        print(f"{name}: left out {len(names)} damaged pictures: {', '.join(names)}")
    return code


def _hidden(arguments: argparse.Namespace, chosen: Protocol) -> int:
    """Candidates in shadow on the first column of a protocol, its labels kept from them."""
    from testtime.bench import sets
    from testtime.bench.cache import cached
    from testtime.bench.cell import make_stream

    out = arguments.out or f"runs/{chosen.name}-no-labels"
    column, seed = chosen.columns[0], chosen.seeds[0]
    stream = make_stream(chosen, column, seed, arguments.data or DATA, chosen.limit)
    stream = cached(stream, Path(arguments.cache or Path(out).parent / "cache"))
    source = sets.source_images(chosen.closed, arguments.data or DATA)
    name = f"{chosen.name}, {chosen.order}, {column.name}, seed {seed}"
    return _shadow(arguments, chosen.rows, chosen.model, stream, source, name, out)


def _shadow(
    arguments: argparse.Namespace,
    rows: Sequence[Row],
    model: str,
    stream: Stream,
    source: ImageSet | None,
    name: str,
    out: str,
    skipped: Mapping[str, Sequence[str]] | None = None,
) -> int:
    from testtime.bench.shadow import Shadow, started_precision
    from testtime.processor import resolve_precision

    shadow = Shadow(
        rows,
        model,
        arguments.data or DATA,
        stream,
        source,
        arguments.device,
        resolve_precision(arguments.precision, arguments.device, started_precision(out), print_progress),
        False if arguments.no_mirror else None,
        bool(arguments.methods),
    )
    about: dict[str, Any] = {"stream": name, "command": ["testtime", *arguments.argv]}
    if skipped:
        about["damaged"] = skipped
    shadow.run(new_folder(out), about, print_progress)
    print(f"{out}: now run testtime recommend {out}")
    return 0


def _recommend(arguments: argparse.Namespace) -> int:
    from testtime.bench.shadow import advise, advise_text, judged, unfinished, write_advice

    folder = arguments.run_folder
    known = judged(folder) if arguments.judge else None
    print(advise_text(advise(folder), known, unfinished(folder)))
    print(f"The page: {write_advice(arguments.run_folder)}")
    return 0


def _report(arguments: argparse.Namespace) -> int:
    if all((Path(folder) / "run.toml").is_file() for folder in arguments.run_folder):
        return experiments.report(*arguments.run_folder, out=arguments.out, as_json=arguments.json)
    from testtime.bench.compare import compare, comparison_figures, comparison_text, write_comparison
    from testtime.bench.report import read_run, text_table, write_report
    from testtime.files import write_json

    if len(arguments.run_folder) > 1:
        found = compare(arguments.run_folder)
        print(comparison_text(found))
        if arguments.json:
            write_json(arguments.json, comparison_figures(found))
        print(write_comparison(found, arguments.out or "comparison.html"))
        return 0
    if arguments.json:
        raise ValueError("--json holds the figures of a comparison; name two or more runs")
    (folder,) = arguments.run_folder
    page = write_report(folder, arguments.out)
    print(text_table(read_run(folder)))
    print(page)
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    from testtime.bench.grid import run_grid
    from testtime.bench.protocols import protocol
    from testtime.bench.report import read_run, text_table, write_report

    need_packages(sklearn="demo", PIL="images")
    chosen = protocol("digits-open").narrowed(arguments.methods)
    if arguments.limit is not None:
        chosen = chosen.narrowed(limit=arguments.limit, slow_limit=arguments.limit)
    print("Handwritten digits under 15 corruptions, photographs among them: who adapts, and who is fooled?")
    failures = run_grid(
        chosen,
        DATA,
        arguments.out,
        jobs=arguments.jobs,
        command=["testtime", *arguments.argv],
        say=print_progress,
    )
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    page = write_report(arguments.out)
    print(text_table(read_run(arguments.out)))
    print(f"The report: {page}")
    return 1 if failures else 0
