"""Candidates in shadow on a stream without labels: the diagnostics of each, and which one to take."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray

from testtime.data import sha256_of
from testtime.experiments.experiment import Cell, Experiment, Plan, Unit
from testtime.experiments.online import listing, sets
from testtime.experiments.online.cell import SLOW, autocast, build, prepare
from testtime.experiments.online.experiment import HERE, Batches, Inputs, online
from testtime.experiments.online.stream import cached_stream
from testtime.experiments.pages import provenance_section, table_blocks
from testtime.experiments.registry import find_method
from testtime.experiments.request import Request
from testtime.experiments.run import Run
from testtime.experiments.store import Workspace
from testtime.experiments.table import Column, Record, Row, Table
from testtime.files import damaged
from testtime.methods import Source
from testtime.report import Bullets, Page, Section, Series, figures, line_chart, show
from testtime.selection import (
    Advice,
    Diagnostics,
    appearance_features,
    appearance_groups,
    mirrored,
    monitor,
    over_time,
    recommend,
    turned,
)

__all__ = ["NO_LABELS", "NoLabels", "advice_table", "read_candidates", "true_accuracy"]

LINES = 6  # candidates whose lines have a colour
COLUMNS = (
    Column("estimate", lambda c: c.accuracy),
    Column("AETTA", lambda c: c.aetta),
    Column(
        "agreement",
        lambda c: c.agreement,
        better=None,
        note="predictions that are those of the source model.",
    ),
    Column("confidence", lambda c: c.confidence, better=None),
    Column("drift", lambda c: c.confidence_drift, group="confidence", signed=True, better=None),
    Column("diversity", lambda c: c.diversity, better=None),
    Column("drift", lambda c: c.diversity_drift, group="diversity", signed=True, better=None),
    Column("time", lambda c: c.milliseconds, unit="ms", places=0, better="lower"),
    Column("alarms", lambda c: len(c.alarms), unit="", places=0, better=None),
)


def group_images(work: Workspace) -> dict[str, Any]:
    """Group the images of a stream by appearance."""
    stream = cached_stream(work, work.parameters["limit"])
    features = []
    for number, batch in enumerate(stream, 1):
        features.append(appearance_features(batch.x).numpy())
        work.progress(number, len(stream))
    groups = appearance_groups(np.concatenate(features), work.parameters["classes"])
    return {"images": stream.images, "batches": len(stream), "groups": groups.tolist()}


def run_in_shadow(work: Workspace) -> dict[str, Any]:
    """Let a candidate predict and learn, and keep its diagnostics; labels, where there are any, only judge it afterwards."""
    p, device = work.parameters, work.parameters["device"]
    found = sets.source_model(p["model"], work.places)
    adapter = build(p, found.model.to(device), found.classes, 0)
    adapter.to(device)
    stream = cached_stream(work, p["limit"])
    labels: list[NDArray[np.int64]] = []

    def images() -> Iterator[torch.Tensor]:
        for batch in stream:
            labels.append(batch.y.numpy())
            yield batch.x.to(device)

    right = known = 0
    lines = []
    with autocast(p):
        prepare(adapter, work, stream, 0, torch.contiguous_format)
        plain = Source(sets.source_model(p["model"], work.places).model.to(device))
        for one in monitor(adapter, images(), plain, disturb=mirrored if p["mirror"] else turned):
            lines.append(asdict(one))
            right += int((labels[-1] == one.predicted).sum())
            known += int((labels[-1] >= 0).sum())
            work.progress(len(lines), len(stream))
    judged = (
        known and p["order"] != "recorded"
    )  # the folders of own images need not be the classes of the model
    return {"diagnostics": lines, "accuracy": 100 * right / known if judged else None}


@final
class NoLabels(Experiment):
    """Candidates in shadow on own images, or on the stream of an experiment whose labels are kept from them.

    Settings: ``stream`` is an experiment of this family, of which the first column and seed count; without it the stream is
    the folder ``images``, or that of ``--data``, in natural order. ``source`` is a folder of images of the source.
    ``mirror`` says whether a mirrored image is still of its class, otherwise images are turned; by default the model says it.
    """

    name, family, title = "no-labels", "online", listing.LISTED[-1].title
    settings = {**online("field-continual").settings, "stream": "", "images": "", "mirror": None}  # noqa: RUF012
    settings["skip_damaged"] = False

    def plan(self, request: Request) -> Plan:
        stream = self.setting(request, "stream")
        base = online(stream or "field-continual")
        asked = replace(request, settings={k: v for k, v in request.settings.items() if k in base.settings})
        places: dict[str, str] = {"data": str(Path(request.data).resolve())}
        if source := self.setting(request, "source"):
            places["set source"] = places[f"set {sets.find_set(source, places)}"]
        if stream:
            columns = base.chosen_columns(asked, places)[:1]
            inputs = base.find_inputs(asked, columns, places)
            p = base.parameters(asked, inputs, columns[0], (request.seeds or (0,))[0])
        else:
            inputs = self._own(request, places)
            size = self.setting(request, "batch_size") or 200
            p = base.parameters(asked, inputs, Batches("own images", None, size), 0)
            p |= {"order": "recorded", "corruptions": [], "limit": None, "slow_limit": None}
        found = sets.source_model(inputs.model, inputs.places)
        mirror = self.setting(request, "mirror")
        p["mirror"] = found.views.mirror if mirror is None else mirror
        images = base.images_unit(p, inputs.places, "stream")
        appearance = {**images.parameters, "classes": found.classes}
        grouped = Unit(
            f"{HERE}.no_labels:group_images",
            appearance,
            "appearance",
            {"images": images},
            places=inputs.places,
        )
        rows, left_out, cells = [], {}, []
        for row in base.chosen_rows(base.rows, request):
            cls = find_method(row.about["method"])
            if reason := self._unfit(row, found.model, found.classes, inputs, request):
                left_out[row.label] = reason
                continue
            code = {row.about["method"]: sha256_of(inspect.getfile(cls))}
            kind, needs = f"{HERE}.no_labels:run_in_shadow", {"images": images}
            unit = Unit(kind, {**row.about, **p}, row.label, needs, code, inputs.places)
            rows.append(row)
            cells.append(Cell(row.label, "", p["seed"], unit))
        about = {
            "model": inputs.model,
            "stream": stream or inputs.closed,
            "left_out": left_out,
            "order": p["order"],
        }
        used = {} if stream else {"images": inputs.closed}
        return Plan(rows, cells, {"appearance": grouped}, inputs.facts, used, about)

    def _own(self, request: Request, places: dict[str, str]) -> Inputs:
        """A folder of images and the model that is in use."""
        folder = Path(self.setting(request, "images") or request.data)
        if request.model is None:
            raise ValueError("own images need --model, the network that is in use")
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder; expected the folder of images as they arrive")
        name, found = sets.find_set(str(folder.resolve()), places), sets.source_model(request.model, places)
        places[f"model {found.name}"] = request.model
        if self.setting(request, "skip_damaged"):
            places["skip damaged"] = "yes"
        images = sets.images_of(name, places)
        facts = {"weights": found.digest, name: images.digest()}
        facts |= {f"damaged {number}": path for number, path in enumerate(images.skipped, 1)}
        return Inputs(name, found.name, found.side, facts, places, len(images))

    def _unfit(self, row: Row, model: torch.nn.Module, classes: int, inputs: Inputs, request: Request) -> str:
        """Why a candidate is left out; empty if it is not."""
        adapter = build(row.about, model, classes, 0)
        own = f"set {inputs.closed}" in inputs.places and "set source" not in inputs.places
        if adapter.source != "none" and own:
            return "it must see images of the source; give them with the setting source"
        if adapter.cost[0] > SLOW and request.rows is None:
            return f"it takes {adapter.cost[0]:g} forwards a batch; name it with --rows"
        return ""

    def tables(self, run: Run) -> Sequence[Table]:
        return [advice_table(run)]

    def page(self, run: Run) -> Page:
        seen, groups = read_candidates(run)
        advice, series = recommend(seen, groups), []
        tints = {c.name: number for number, c in enumerate(advice.candidates[:LINES], 1)}
        for candidate in reversed(advice.candidates):
            ends, guesses = over_time(seen[candidate.name], groups)
            series.append(Series(candidate.name, ends, guesses, tints.get(candidate.name, 0)))
        chart = line_chart(series, title="Estimated accuracy", y="%", x="images")
        drawn = figures((chart, "Accuracy as it is estimated without labels"))
        items = [("stream", run.about["about"]["stream"]), ("images", f"{len(groups)} without labels")]
        return Page(
            title=_take(run, advice),
            kicker=f"testtime · {len(groups)} images without labels · {run.about['about']['model']}",
            lead=[Bullets(advice.reasons)],
            sections=[
                Section("time", "Time", "Over time", drawn),
                Section("diagnostics", "Diagnostics", "Diagnostics of each", table_blocks(advice_table(run))),
                provenance_section(run, items),
            ],
        )


NO_LABELS = NoLabels()


def read_candidates(run: Run) -> tuple[dict[str, list[Diagnostics]], NDArray[np.int64]]:
    """Return the diagnostics of the finished candidates, and the group of each image by appearance.

    Raises:
        ValueError: the run is of another experiment, or no candidate is finished.
        DataError: a result is damaged.
    """
    if run.about["experiment"] != NoLabels.name:
        raise ValueError(
            f"{run.folder} is not the folder of a run without labels: testtime run no-labels makes one"
        )
    appearance, seen = run.other("appearance"), {}
    with damaged(run.folder / "results", "delete the run and give the same command again"):
        for record in run.records():
            lines = record.result["diagnostics"]
            seen[record.row] = [
                Diagnostics(**{**line, "predicted": tuple(line["predicted"])}) for line in lines
            ]
    if not seen or appearance is None:
        raise ValueError(
            f"{run.folder}: no candidate is finished; the same testtime run command goes on from there"
        )
    return seen, np.array(appearance["groups"])


def true_accuracy(run: Run) -> dict[str, float]:
    """Return the accuracy of each candidate in percent, where the stream had labels; no estimate has seen it."""
    return {r.row: r.result["accuracy"] for r in run.records() if r.result["accuracy"] is not None}


def advice_table(run: Run, judge: bool = False) -> Table:
    """Return the estimates of the candidates, the best first, with the recommendation and its reasons below.

    Args:
        run: a run of the experiment.
        judge: whether the true accuracy stands beside the estimates, where the stream had labels.
    """
    advice, truth = recommend(*read_candidates(run)), true_accuracy(run) if judge else {}
    labels = {row.label: row for row in run.rows}
    rows = [labels[c.name] for c in advice.candidates]
    columns = [*COLUMNS]
    if truth:
        columns.insert(1, Column("true", lambda c: truth.get(c.name)))
    notes = [f"{_take(run, advice)}.", *advice.reasons, *_left_out(run)]
    if advice.name in truth:
        best = max(truth, key=lambda name: truth[name])
        notes.append(
            f"Judged with the labels: the best is {best} with {show(truth[best])} %, {advice.name} has "
            f"{show(truth[advice.name])} %, {show(truth[best] - truth[advice.name])} points less."
        )
    records = [Record(c.name, "", 0, c) for c in advice.candidates]
    return Table.of("Estimated without labels", rows, columns, records, run.missing, notes)


def _take(run: Run, advice: Advice) -> str:
    done = len(run.about["cells"]) - len(run.missing)
    of = f", of the {done} of {len(run.about['cells'])} candidates that are finished" if run.missing else ""
    return f"Take {advice.name}{of}"


def _left_out(run: Run) -> list[str]:
    left: Mapping[str, str] = run.about["about"]["left_out"]
    return [f"{name}: left out, {reason}." for name, reason in left.items()]
