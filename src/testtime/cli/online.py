"""``testtime demo`` and ``recommend``, and ``bench``, the former spelling of ``run`` for online adaptation."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from testtime.cli.experiments import run
from testtime.cli.options import add_precision, device, new_folder, seeds, whole, words
from testtime.errors import need_packages

__all__ = ["add"]

ORDERS = ("continual", "gradual", "mixed", "correlated", "mixed-correlated", "label-shift")
EMBEDDED = "digits"  # begins the names of experiments on embedded data


def add(commands: Any) -> None:
    """Add the commands to the subparsers of ``testtime``."""
    _add_bench(commands)
    choose = commands.add_parser("recommend", help="name a method for a stream without labels, with reasons")
    choose.add_argument("run_folder", metavar="RUN", help="folder of a run of testtime run no-labels")
    choose.add_argument(
        "--judge", action="store_true", help="beside the estimates the truth, where the stream had labels"
    )
    choose.set_defaults(run=_recommend)
    demo = commands.add_parser("demo", help="the main job on data that comes along, in about a minute")
    demo.add_argument(
        "--out", type=new_folder, default="runs/demo", metavar="DIR", help="folder of the run (runs/demo)"
    )
    demo.add_argument("--jobs", type=whole(), default=2, metavar="N", help="processes (2)")
    demo.add_argument("--limit", type=whole(), metavar="N", help="known images for each domain")
    demo.add_argument("--methods", type=words, metavar="A,B", help="some of the methods")
    demo.set_defaults(run=_demo)


def _add_bench(commands: Any) -> None:
    bench = commands.add_parser("bench", help="former spelling of run, for online adaptation")
    bench.add_argument("protocol", nargs="?", help="an experiment; --list shows them")
    bench.add_argument("--list", action="store_true", help="list the experiments and leave")
    bench.add_argument("--data", metavar="DIR", help="folder of data sets and weights (.data)")
    bench.add_argument("--methods", type=words, metavar="A,B", help="some of the experiment's methods")
    bench.add_argument("--seeds", type=seeds, metavar="0,1,2", help="instead of the experiment's")
    bench.add_argument("--limit", type=whole(), metavar="N", help="closed-set images for each domain")
    bench.add_argument("--open-sets", type=words, metavar="A,B", help="none: no unknown images")
    bench.add_argument("--batch-size", type=whole(), metavar="N", help="instead of the experiment's")
    bench.add_argument("--order", choices=ORDERS, help="how the domains arrive")
    bench.add_argument(
        "--severity", type=whole(), choices=range(1, 6), metavar="1-5", help="of the corruptions"
    )
    bench.add_argument("--device", type=device, default="cpu", help="cpu or cuda (cpu)")
    add_precision(bench)
    bench.add_argument("--out", type=new_folder, metavar="DIR", help="folder of the run (runs/EXPERIMENT)")
    bench.add_argument(
        "--cache", type=new_folder, metavar="DIR", help="folder of the store (store beside the run)"
    )
    bench.add_argument("--jobs", type=whole(), default=1, metavar="N", help="processes (1)")
    bench.add_argument(
        "--no-labels", action="store_true", help="run the methods in shadow; then: testtime recommend"
    )
    bench.add_argument("--images", metavar="DIR", help="with --no-labels: your images, in natural order")
    bench.add_argument(
        "--skip-damaged", action="store_true", help="with --images: leave out damaged pictures"
    )
    bench.add_argument("--model", metavar="NAME", help="with --images: the source model")
    bench.add_argument("--source", metavar="DIR", help="with --images: unlabelled images of its source")
    bench.add_argument(
        "--no-mirror", action="store_true", help="with --no-labels: turn images, do not mirror them"
    )
    bench.set_defaults(run=_bench)


def _bench(a: argparse.Namespace) -> int:
    from testtime.experiments.online.listing import LISTED, entries

    if a.list or (a.protocol is None and not a.no_labels):
        for one in LISTED[:-1]:
            print(f"{one.name:24} {one.title}")
        return 0
    _agree(a)
    if a.protocol is not None and a.protocol not in entries():
        from testtime.experiments.registry import find_experiment

        find_experiment(a.protocol)
    if a.protocol is not None and a.protocol.startswith(EMBEDDED):
        need_packages(sklearn="demo", PIL="images")
    if a.images:
        need_packages(PIL="images")
    settings = {
        name: getattr(a, name)
        for name in ("open_sets", "batch_size", "order", "severity", "images", "source")
    }
    settings = {name: value for name, value in settings.items() if value is not None}
    changes = {
        name: getattr(a, name) for name in ("seeds", "limit", "data", "model") if getattr(a, name) is not None
    }
    changes |= {"device": a.device, "precision": a.precision, "settings": settings}
    if a.methods:
        changes["rows"] = tuple(a.methods)
    name, out = a.protocol, a.out or f"runs/{a.protocol}{'-no-labels' * a.no_labels}"
    if a.no_labels:
        name = "no-labels"
        settings |= {"stream": a.protocol} if a.protocol else {"skip_damaged": True} if a.skip_damaged else {}
        settings |= {"mirror": False} if a.no_mirror else {}
        out = a.out or ("runs/no-labels" if a.images else out)
    return run(name, changes, out, a.cache, _backend(a.jobs), command=["testtime", *a.argv])


def _backend(jobs: int) -> Any:
    from testtime.experiments import Here, Processes

    return Processes(jobs) if jobs > 1 else Here()


def _agree(a: argparse.Namespace) -> None:
    """Refuse options that do not go together, or name a folder that does not exist."""
    if a.data is not None and not Path(a.data).is_dir():
        raise ValueError(f"--data {a.data}: no such folder; expected the folder of data sets and weights")
    if a.images and not a.no_labels:
        raise ValueError("--images are a stream without labels; add --no-labels")
    if a.no_labels and (a.protocol is None) == (a.images is None):
        raise ValueError("--no-labels needs a stream: an experiment, or --images DIR and --model NAME")
    if a.images and a.model is None:
        raise ValueError("--images need --model NAME, the network that is in use")
    if a.images:
        others = {
            name: getattr(a, name) for name in ("seeds", "limit", "open_sets", "order", "severity", "cache")
        }
        reason = "belongs to an experiment and not to --images"
    else:
        others = {"model": a.model, "source": a.source, "skip_damaged": a.skip_damaged or None}
        reason = "needs --images DIR"
    if a.no_labels and (a.jobs > 1 or len(a.seeds or ()) > 1):
        raise ValueError("--no-labels is one stream in one process; give one --seeds and no --jobs")
    if not a.no_labels and a.no_mirror:
        raise ValueError("--no-mirror needs --no-labels")
    for name, value in others.items():
        if value is not None:
            raise ValueError(f"--{name.replace('_', '-')} {reason}")
    for name, path in {"images": a.images, "source": a.source}.items():
        if path is not None and not Path(path).exists():
            raise ValueError(f"--{name} {path}: no such file or folder")


def _recommend(arguments: argparse.Namespace) -> int:
    from testtime.experiments import read_run
    from testtime.experiments.online.no_labels import NO_LABELS, advice_table
    from testtime.report import write_page

    found = read_run(arguments.run_folder)
    print(advice_table(found, arguments.judge).text())
    print(f"The page: {write_page(found.folder / 'recommendation.html', NO_LABELS.page(found))}")
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    need_packages(sklearn="demo", PIL="images")
    print("Handwritten digits under 15 corruptions, photographs among them: who adapts, and who is fooled?")
    changes: dict[str, Any] = {"precision": "float32", "settings": {}}
    if arguments.limit is not None:
        changes |= {"limit": arguments.limit, "settings": {"slow_limit": arguments.limit}}
    if arguments.methods:
        changes["rows"] = tuple(arguments.methods)
    command = ["testtime", *arguments.argv]
    return run("digits-open", changes, arguments.out, None, _backend(arguments.jobs), command=command)
