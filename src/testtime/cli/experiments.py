"""``testtime run``, ``list`` and ``report``: the experiments of all families, and the pages of their runs."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from testtime.cli import options
from testtime.cli.options import Commands, Option, Precision, Seeds, new_file, new_folder
from testtime.experiments.registry import find_experiment, list_experiments

if TYPE_CHECKING:
    from testtime.experiments import Experiment, Request, Run, Table
    from testtime.report import Page

__all__ = ["COMMANDS", "Changes", "list_", "report", "run", "run_one"]

DATA = "folder of data sets and weights, or own images (.data)"
MODEL = "source model: a name, a file, timm:NAME, hf:NAME or module:function"
OWN = Option(
    "rows of own methods: package.module:Class, or entry points",
    options.words,
    "A,B",
    ("--methods", "--method"),
)
EXPERIMENTS = Option("experiments of testtime list, or files", several=True, metavar="NAME|FILE.toml")
SETTINGS = Option("settings of the family", metavar="KEY=VALUE", names=("--set",))
PAGE = Option("the page (report.html in the folder, or comparison.html)", new_file, "FILE")
CLUSTER = Option("a cluster of Ray: its address, auto, or local", metavar="ADDRESS")
STORE = Option("artefacts that runs share (beside the run)", new_folder, "DIR")


@dataclass(frozen=True)
class Changes:
    """What differs from the experiment, or from the file of a request."""

    data: Annotated[str | None, Option(DATA)] = None
    model: Annotated[str | None, Option(MODEL)] = None
    methods: Annotated[tuple[str, ...] | None, OWN] = None
    seeds: Seeds = None
    rows: Annotated[tuple[str, ...] | None, Option("some of the experiment's", metavar="ROW")] = None
    limit: Annotated[int | None, Option("images of each domain (all)")] = None
    device: Annotated[str | None, Option("cpu or cuda (cpu)", options.device)] = None
    precision: Precision = None
    settings: Annotated[tuple[str, ...], SETTINGS] = ()

    def request(self, name: str) -> Request:
        """Return the request of an experiment, or of a TOML file, with these changes."""
        from testtime.experiments import Request

        path = Path(name)
        if path.suffix == ".toml" and not path.is_file():
            raise ValueError(f"{name}: no such file; expected a request, such as the run.toml of a run")
        before = Request.read(path) if path.suffix == ".toml" else Request(name)
        if self.data is not None and not Path(self.data).exists():
            raise ValueError(
                f"--data {self.data}: no such folder; expected the folder of data sets and weights, or of own images"
            )
        given = {name: value for name, value in vars(self).items() if value is not None}
        settings = {**before.settings, **dict(map(options.setting, self.settings))}
        return replace(before, **{**given, "settings": settings})


def run(
    *names: Annotated[str, EXPERIMENTS],
    changes: Changes,
    jobs: Annotated[int | None, Option("processes, one thread each (this process)")] = None,
    ray: Annotated[str | None, CLUSTER] = None,
    out: Annotated[str | None, Option("folder of the run (runs/NAME)", new_folder, "DIR")] = None,
    store: Annotated[str | None, STORE] = None,
    again: Annotated[bool, Option("make results of another version of the code again")] = False,
    command: Sequence[str] = (),
) -> int:
    """Run experiments; the same command goes on where it was left, from any number of hosts."""
    if out and len(names) > 1:
        raise ValueError("--out is the folder of one run; leave it out, or name one experiment")
    if any(":" in name for name in changes.methods or ()):
        sys.path.append(str(Path.cwd()))  # where the user's own module may lie
    asked = [(Path(name), changes.request(name)) for name in names]
    for _, request in asked:
        find_experiment(request.experiment).check_settings(request)
    codes = []
    for path, request in asked:
        folder = out or (path.parent if path.name == "run.toml" else f"runs/{request.experiment}")
        codes.append(run_one(request, folder, store, jobs, ray, again, command))
    return max(codes)


def run_one(
    request: Request,
    folder: str | Path,
    store: str | None = None,
    jobs: int | None = None,
    ray: str | None = None,
    again: bool = False,
    command: Sequence[str] = (),
) -> int:
    """Run an experiment, print its tables and write its page; return the exit code."""
    from testtime.experiments import Here, Processes, Ray, read_run, run_experiment

    experiment, local = find_experiment(request.experiment), Processes(jobs) if jobs else Here()
    backend = local if ray is None else Ray(ray, jobs)
    summary = run_experiment(
        experiment, request, folder, store, backend, command, options.print_progress, again
    )
    found = read_run(folder)
    if found.records():
        _show(experiment.tables(found), experiment.page(found), found.folder / "report.html")
    return summary.exit_code


def list_(
    family: Annotated[str | None, Option("one family")] = None,
    *,
    as_json: Annotated[bool, Option("for programs", names=("--json",))] = False,
) -> int:
    """List the experiments by family, a line each; --json has their sources in full."""
    found = list_experiments(family)
    if as_json:
        print(json.dumps({name: [vars(one) for one in listed] for name, listed in found.items()}, indent=1))
        return 0
    room = shutil.get_terminal_size((120, 24)).columns
    for name, listed in found.items():
        width = max(len(one.name) for one in listed)
        print(name)
        for one in listed:
            line = f"  {one.name:{width}}  {one.title}{f' ({one.source})' if one.source else ''}"
            print(line if len(line) <= room else f"{line[: room - 3].rstrip()}...")
    return 0


def report(
    *runs: Annotated[str, Option("folder of a run; several are compared", metavar="RUN", several=True)],
    out: Annotated[str | None, PAGE] = None,
    as_json: Annotated[str | None, Option("the tables, for programs", new_file, "FILE", ("--json",))] = None,
) -> int:
    """Print the tables of a run and write its page, or those of several runs side by side."""
    from testtime.experiments import read_run
    from testtime.files import write_json

    found = [read_run(folder) for folder in runs]
    if empty := [str(run.folder) for run in found if run.about["cells"] and not run.records()]:
        raise ValueError(f"{empty[0]} has no result yet; run the command that began it again")
    experiments = list(map(_experiment, found))
    first = experiments[0]
    if len({one.family for one in experiments}) > 1:
        pairs = zip(found, experiments, strict=True)
        families = ", ".join(f"{run.folder} ({one.family})" for run, one in pairs)
        raise ValueError(f"expected runs of one family, got {families}; make a page for each family")
    if len(found) == 1:
        tables, page = first.tables(found[0]), first.page(found[0])
    else:
        tables, page = first.compared(found), first.comparison_page(found)
    if as_json:
        write_json(as_json, [table.json() for table in tables])
    default = found[0].folder / "report.html" if len(found) == 1 else "comparison.html"
    _show(tables, page, out or default, len(found) > 1)
    return 0


def _experiment(run: Run) -> Experiment:
    """The experiment of a run; an error names the folder."""
    name, family = run.about["experiment"], run.about["family"]
    try:
        found = find_experiment(name)
    except ValueError as error:
        raise ValueError(f"{run.folder}: {error}; a later version, or another package, may have it") from None
    if found.family != family:
        raise ValueError(f"{run.folder}: {name} is of the family {found.family}, its run.json says {family}")
    if not run.about["cells"]:
        raise ValueError(f"{run.folder}: the run has no cells; run {name} with other rows")
    return found


def _show(tables: Sequence[Table], page: Page, path: str | Path, markdown: bool = False) -> None:
    """Print tables, write a page, and print its path."""
    from testtime.report import write_page

    for table in tables:
        print(table.markdown() if markdown else table.text(), end="\n\n")
    print(write_page(path, page))


COMMANDS: Commands = {"run": run, "list": list_, "report": report}
