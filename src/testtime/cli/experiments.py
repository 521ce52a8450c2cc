"""``testtime run`` and ``testtime list``: the experiments of all families."""

from __future__ import annotations

import argparse
import json
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from testtime.cli.options import Once, add_precision, device, new_folder, print_progress, seeds, whole, words
from testtime.experiments.registry import find_experiment, list_experiments

if TYPE_CHECKING:
    from testtime.experiments import Backend

__all__ = ["add", "listing", "run"]

FIELDS = ("seeds", "rows", "methods", "limit", "device", "precision", "data", "model")  # of a request


def add(commands: Any) -> None:
    """Add the two commands to the subparsers of ``testtime``."""
    parser = commands.add_parser(
        "run", help="run experiments; the same command goes on where it was left, from any number of hosts"
    )
    parser.add_argument(
        "names",
        nargs="+",
        metavar="NAME|FILE.toml",
        help="experiments of testtime list, or files of requests",
    )
    parser.add_argument("--data", metavar="DIR", help="folder of data sets and weights (.data)")
    parser.add_argument("--model", metavar="NAME", help="source model: a name, a file, timm:NAME or hf:NAME")
    parser.add_argument("--seeds", type=seeds, metavar="0,1,2", help="instead of the experiment's")
    parser.add_argument("--rows", nargs="+", action=Once, metavar="ROW", help="some of the experiment's")
    parser.add_argument(
        "--methods",
        type=words,
        metavar="A,B",
        help="rows of own methods: package.module:Class, or entry points",
    )
    parser.add_argument("--limit", type=whole(), metavar="N", help="images of each domain (all)")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of the experiment's family"
    )
    parser.add_argument("--device", type=device, help="cpu or cuda (cpu)")
    add_precision(parser)
    parser.set_defaults(precision=None)
    parser.add_argument("--jobs", type=whole(), metavar="N", help="processes, one thread each (this process)")
    parser.add_argument("--ray", metavar="ADDRESS", help="a cluster of Ray: its address, auto, or local")
    parser.add_argument("--out", type=new_folder, metavar="DIR", help="folder of the run (runs/NAME)")
    parser.add_argument(
        "--store", type=new_folder, metavar="DIR", help="folder of artefacts that runs share (beside the run)"
    )
    parser.add_argument(
        "--again", action="store_true", help="make results of another version of the code again"
    )
    parser.set_defaults(run=_run)
    listed = commands.add_parser("list", help="list the experiments by family")
    listed.add_argument("family", nargs="?", help="one family")
    listed.add_argument("--json", action="store_true", help="for programs")
    listed.set_defaults(run=lambda arguments: listing(arguments.family, arguments.json))


def listing(family: str | None = None, as_json: bool = False) -> int:
    """Print the experiments by family.

    Args:
        family: one family; None for all.
        as_json: whether they are printed as JSON.
    """
    found = list_experiments(family)
    if as_json:
        print(json.dumps({name: [vars(one) for one in listed] for name, listed in found.items()}, indent=1))
        return 0
    for name, listed in found.items():
        width = max(len(one.name) for one in listed)
        print(name)
        for one in listed:
            print(f"  {one.name:{width}}  {one.title}{f' ({one.source})' if one.source else ''}")
    return 0


def run(
    name: str,
    changes: Mapping[str, Any],
    out: str | None = None,
    store: str | None = None,
    backend: Backend | None = None,
    again: bool = False,
    command: Sequence[str] = (),
) -> int:
    """Run an experiment, print its tables and write its page; return the exit code.

    Args:
        name: name of an experiment, or path of a request, such as the ``run.toml`` of a run.
        changes: fields of the request that differ from the file or from the defaults.
        out: folder of the run; None is the folder of the file ``run.toml``, or ``runs/NAME``.
        store: folder of artefacts; None is beside the run.
        backend: back-end that executes the units.
        again: whether results of another version of the code are made again.
        command: command line, for the provenance.
    """
    from testtime.experiments import Request, read_run, run_experiment
    from testtime.report import write_page

    path = Path(name)
    request = Request.read(path) if path.suffix == ".toml" else Request(name)
    settings = {**request.settings, **changes.get("settings", {})}
    request = replace(request, **{**changes, "settings": settings})
    experiment = find_experiment(request.experiment)
    folder = Path(out or (path.parent if path.name == "run.toml" else f"runs/{request.experiment}"))
    summary = run_experiment(experiment, request, folder, store, backend, command, print_progress, again)
    found = read_run(folder)
    for table in experiment.tables(found):
        print(table.text(), end="\n\n")
    print(write_page(folder / "report.html", experiment.page(found)))
    return summary.exit_code


def _run(arguments: argparse.Namespace) -> int:
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)  # "module:Class" may name a file beside the command
    given = {name: getattr(arguments, name) for name in FIELDS if getattr(arguments, name) is not None}
    changes = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    changes["settings"] = dict(_setting(text) for text in arguments.set)
    if arguments.out and len(arguments.names) > 1:
        raise ValueError("--out is the folder of one run; leave it out, or name one experiment")
    codes = []
    for name in arguments.names:
        backend = _backend(arguments.jobs, arguments.ray)
        command = ["testtime", *arguments.argv]
        codes.append(run(name, changes, arguments.out, arguments.store, backend, arguments.again, command))
    return max(codes)


def _backend(jobs: int | None, ray: str | None) -> Backend:
    from testtime.experiments import Here, Processes, Ray

    if ray is not None:
        return Ray(ray, jobs)
    return Here() if jobs is None else Processes(jobs)


def _setting(text: str) -> tuple[str, Any]:
    """A setting, its value read as TOML; what is no TOML is a string."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ValueError(f"expected a setting as KEY=VALUE, got {text!r}")
    try:
        return name, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name, value
