"""``testtime demo``, ``recommend`` and ``methods``: adaptation to the next batch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from testtime.cli.experiments import run_one
from testtime.cli.options import Commands, Jobs, Option, Seed, new_file, new_folder
from testtime.errors import need_packages

__all__ = ["COMMANDS", "demo", "estimate", "methods", "recommend"]


def recommend(
    folder: Annotated[str, Option("folder of a run of testtime run no-labels", metavar="RUN")],
    *,
    judge: Annotated[bool, Option("beside the estimates the truth, where there are labels")] = False,
) -> int:
    """Name a method for a stream without labels, with reasons."""
    from testtime.experiments import read_run
    from testtime.experiments.online.no_labels import NO_LABELS, advice_table
    from testtime.report import write_page

    found = read_run(folder)
    print(advice_table(found, judge).text())
    print(f"The page: {write_page(found.folder / 'report.html', NO_LABELS.page(found))}")
    return 0


def demo(
    *,
    out: Annotated[str, Option("folder of the run", new_folder, "DIR")] = "runs/demo",
    jobs: Jobs = 2,
    limit: Annotated[int | None, Option("known images for each domain")] = None,
    rows: Annotated[tuple[str, ...] | None, Option("some of the methods", metavar="ROW")] = None,
    command: Sequence[str] = (),
) -> int:
    """Adapt to corrupted digits with photographs among them, data that comes along, in about a minute."""
    need_packages(sklearn="demo", PIL="images")
    from testtime.experiments import Request
    from testtime.experiments.online.experiment import online

    settings = {} if limit is None else {"slow_limit": limit}
    request = Request("digits-open", rows=rows, limit=limit, precision="float32", settings=settings)
    online("digits-open").chosen_rows(online("digits-open").rows, request)
    print("Handwritten digits under 15 corruptions, photographs among them: which methods help, which fail?")
    return run_one(request, out, jobs=jobs, command=command)


def estimate(
    predictions: Annotated[
        str, Option("folder of a run, or a CSV or NPZ of own predictions", None, "RUN|FILE")
    ],
    *,
    labels: Annotated[
        tuple[str, ...], Option("CSV of index,label, one for each round", None, "FILE", several=True)
    ] = (),
    row: Annotated[str | None, Option("method of the run that is in use")] = None,
    choose: Annotated[int, Option("samples to label next", names=("--next",))] = 0,
    out: Annotated[str, Option("CSV of these, to be filled in", new_file, "FILE")] = "next.csv",
    interval: Annotated[Literal["wilson", "student", "betting"], Option("kind of interval")] = "wilson",
    seed: Seed = 0,
) -> int:
    """Estimate the accuracy on a stream from few labels, with a 95 % interval, and choose samples to label next."""
    from testtime.experiments.online.few_labels import run_predictions
    from testtime.metrics.few_labels import estimate_or_choose, read_predictions

    found = run_predictions(predictions, row) if Path(predictions).is_dir() else read_predictions(predictions)
    print(estimate_or_choose(found, labels, interval, choose, out, seed))
    return 0


def methods(*, as_json: Annotated[bool, Option("for programs", names=("--json",))] = False) -> int:
    """List the methods with what they need."""
    from testtime.catalogue import catalogue, text

    found = catalogue()
    print(json.dumps(found, indent=1) if as_json else text(found))
    return 0


COMMANDS: Commands = {"recommend": recommend, "demo": demo, "estimate": estimate, "methods": methods}
