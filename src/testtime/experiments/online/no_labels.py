"""Candidates in shadow on a stream without labels: the diagnostics of each, and which one to take."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray

from testtime import report, selection
from testtime.build import build_method
from testtime.data.places import find_set, has_source, images_of, source_batches
from testtime.experiments import Cell, Column, Experiment, Plan, Record, Request, Run, Table, Unit, Workspace
from testtime.experiments.online import listing
from testtime.experiments.online.cell import SLOW
from testtime.experiments.online.experiment import FORMS, HERE, Batches, Inputs, Online, online
from testtime.experiments.online.stream import cached_stream, source_model
from testtime.experiments.pages import run_page, table_blocks
from testtime.experiments.registry import EVERY, code_of
from testtime.experiments.run import AGAIN
from testtime.files import check_shape, damaged
from testtime.methods import Source
from testtime.processor import autocast

__all__ = ["NO_LABELS", "NoLabels", "advice_table", "read_candidates", "true_accuracy"]

ABOUT = {"model": str, "stream": str, "left_out": {EVERY: str}}
LINES = 6  # candidates whose lines have a colour
SAME = "predictions that are those of the source model."
NEITHER = partial(Column, better=None)
COLUMNS = (
    Column("estimate", lambda c: c.accuracy),
    Column("AETTA", lambda c: c.aetta),
    NEITHER("agreement", lambda c: c.agreement, note=SAME),
    NEITHER("confidence", lambda c: c.confidence),
    NEITHER("drift", lambda c: c.confidence_drift, group="confidence", signed=True),
    NEITHER("diversity", lambda c: c.diversity),
    NEITHER("drift", lambda c: c.diversity_drift, group="diversity", signed=True),
    Column("time", lambda c: c.milliseconds, unit="ms", places=0, better="lower"),
    NEITHER("alarms", lambda c: len(c.alarms), unit="", places=0),
)


def group_images(work: Workspace) -> dict[str, Any]:
    """Group the images of a stream by appearance."""
    stream, features = cached_stream(work, work.parameters["limit"]), []
    for number, batch in enumerate(stream, 1):
        features.append(selection.appearance_features(batch.x).numpy())
        work.progress(number, len(stream))
    groups = selection.appearance_groups(np.concatenate(features), work.parameters["classes"])
    return {"batches": len(stream), "groups": groups.tolist()}


def run_in_shadow(work: Workspace) -> dict[str, Any]:
    """Let a candidate predict and learn, and keep its diagnostics; labels, where there are any, only judge it afterwards."""
    p, device = work.parameters, work.parameters["device"]
    found, plain = (source_model(p["model"], work.places) for _ in range(2))
    adapter = build_method(p, found.model.to(device), found.classes, 0)
    adapter.to(device)
    stream, labels, lines = cached_stream(work, p["limit"]), [], []
    right = known = 0

    def images() -> Iterator[torch.Tensor]:
        for batch in stream:
            labels.append(batch.y.numpy())
            yield batch.x.to(device)

    with autocast(device, p["precision"]):
        if adapter.source != "none":
            size = stream.domains[0].size
            batches = source_batches(p["closed"], work.places, stream.batch_size, 0, size)
            adapter.prepare([x.to(device) for x in batches])
        source, disturb = (
            Source(plain.model.to(device)),
            selection.mirrored if p["mirror"] else selection.turned,
        )
        for one in selection.monitor(adapter, images(), source, disturb=disturb):
            lines.append(asdict(one))
            right += int((labels[-1] == one.predicted).sum())
            known += int((labels[-1] >= 0).sum())
            work.progress(len(lines), len(stream))
    # The folders of own images need not be the classes of the model.
    judged = known and p["order"] != "recorded"
    return {"diagnostics": lines, "accuracy": 100 * right / known if judged else None}


@final
class NoLabels(Experiment):
    """Candidates in shadow on own images, or on the stream of an experiment whose labels are kept from them.

    Settings: ``stream`` is an experiment of this family, of which the first column and seed count; without it the stream is
    the folder ``images``, or that of ``--data``, in natural order. ``source`` is a folder of images of the source.
    ``mirror`` says whether a mirrored image is still of its class, otherwise images are turned; by default the model says it.
    """

    name, family, title = "no-labels", "online", listing.SHADOW
    settings = {  # noqa: RUF012
        **dict.fromkeys(online("field-continual").settings),
        **{"stream": "", "images": "", "mirror": None, "skip_damaged": False},
    }
    forms = {**online("field-continual").settings, **FORMS, "mirror": True}  # noqa: RUF012

    def plan(self, request: Request) -> Plan:
        stream = self.setting(request, "stream")
        base = online(stream or "field-continual")
        asked = replace(request, settings={k: v for k, v in request.settings.items() if k in base.settings})
        places = base.places(asked)
        inputs, p = base.first_column(asked, places) if stream else self._own(base, request, asked, places)
        found, mirror = source_model(inputs.model, inputs.places), self.setting(request, "mirror")
        needs = {"images": base.images_unit(p, inputs, "stream")}
        kinds = (f"{HERE}.no_labels:group_images", f"{HERE}.no_labels:run_in_shadow")
        appearance = {**needs["images"].parameters, "classes": found.classes}
        others = {"appearance": Unit(kinds[0], appearance, "appearance", needs, places=inputs.places)}
        p["mirror"] = found.views.mirror if mirror is None else mirror
        rows, left_out, cells = [], {}, []
        for row in base.chosen_rows(base.rows, request):
            adapter = build_method(row.about, found.model, found.classes, 0)
            if adapter.source != "none" and not has_source(inputs.closed, inputs.places):
                left_out[row.label] = "it must see images of the source; give them with the setting source"
            elif adapter.cost[0] > SLOW and request.rows is None:
                left_out[row.label] = f"it takes {adapter.cost[0]:g} forwards a batch; name it with --rows"
            else:
                code = code_of(row.about["method"])
                unit = Unit(kinds[1], {**row.about, **p}, row.label, needs, code, inputs.places)
                rows.append(row)
                cells.append(Cell(row.label, "", p["seed"], unit))
        about = {"model": inputs.model, "stream": stream or inputs.closed, "left_out": left_out}
        return Plan(rows, cells, others, inputs.facts, about=about)

    def _own(
        self, base: Online, request: Request, asked: Request, places: dict[str, str]
    ) -> tuple[Inputs, dict[str, Any]]:
        """A folder of images and the model that is in use, and the parameters of its units."""
        folder = Path(self.setting(request, "images") or request.data)
        skip, size = self.setting(request, "skip_damaged"), self.setting(request, "batch_size")
        if request.model is None:
            raise ValueError("own images need --model, the network that is in use")
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder; expected the folder of images as they arrive")
        if request.limit is not None:
            raise ValueError("own images are all used; leave --limit out, or give a folder of fewer images")
        if given := [name for name in ("order", "corruptions") if name in request.settings]:
            raise ValueError(f"own images come as they were recorded; leave out the setting {given[0]}")
        name, found = find_set(str(folder.resolve()), places), base.find_model(request, places)
        images = images_of(name, places, skip)
        facts = {"weights": found.digest, name: images.digest()}
        facts |= {f"damaged {number}": path for number, path in enumerate(images.skipped, 1)}
        inputs, column = Inputs(name, found.name, found.side, facts, places), Batches("own images")
        column = replace(column, batch_size=column.batch_size if size is None else size)
        column.check()
        own: dict[str, Any] = {"order": "recorded", "corruptions": [], "limit": None, "slow_limit": None}
        more = {"skip_damaged": True} if skip else {}
        return inputs, {**base.parameters(asked, inputs, column, 0), **own, **more}

    def tables(self, run: Run) -> Sequence[Table]:
        return [advice_table(run)]

    def page(self, run: Run) -> report.Page:
        seen, groups = read_candidates(run)
        advice, series, about = selection.recommend(seen, groups), [], run.about["about"]
        tints = {c.name: number for number, c in enumerate(advice.candidates[:LINES], 1)}
        for candidate in reversed(advice.candidates):
            ends, guesses = selection.over_time(seen[candidate.name], groups)
            series.append(report.Series(candidate.name, ends, guesses, tints.get(candidate.name, 0)))
        chart = report.line_chart(series, title="Estimated accuracy", y="%", x="images")
        drawn = report.Figure(chart, "Accuracy as it is estimated without labels")
        kind = f"{len(groups)} images without labels · {about['model']}"
        sections = [
            report.Section("time", "Time", "Over time", [drawn]),
            report.Section(
                "diagnostics", "Diagnostics", "Diagnostics of each", table_blocks(advice_table(run))
            ),
        ]
        lead: list[report.Block] = [report.Note(kind), report.Bullets(advice.reasons)]
        return run_page(run, lead, sections, [("stream", about["stream"])], title=_take(run, advice))


NO_LABELS = NoLabels()


def read_candidates(run: Run) -> tuple[dict[str, list[selection.Diagnostics]], NDArray[np.int64]]:
    """Return the diagnostics of the finished candidates, and the group of each image by appearance.

    Raises:
        ValueError: the run is of another experiment, or no candidate is finished.
        DataError: a result is damaged.
    """
    if run.about["experiment"] != NoLabels.name:
        raise ValueError(f"{run.folder} is not a run without labels: testtime run {NoLabels.name} makes one")
    with damaged(run.folder / "run.json", AGAIN):
        check_shape(run.about["about"], ABOUT, "about")
    appearance, seen = run.other("appearance"), {r.row: r.result for r in run.records(_diagnostics)}
    if not seen or appearance is None:
        advice = "the same testtime run command goes on from there"
        raise ValueError(f"{run.folder}: no candidate is finished; {advice}")
    return seen, np.array(appearance["groups"])


def _diagnostics(record: Record) -> list[selection.Diagnostics]:
    def known(line: dict[str, Any]) -> dict[str, Any]:
        numbers = {name: math.nan if value is None else value for name, value in line.items()}
        return {**numbers, "predicted": tuple(line["predicted"])}

    return [selection.Diagnostics(**known(line)) for line in record.result["diagnostics"]]


def true_accuracy(run: Run) -> dict[str, float]:
    """Return the accuracy of each candidate in percent, where the stream had labels; no estimate has seen it."""
    return {r.row: r.result["accuracy"] for r in run.records() if r.result["accuracy"] is not None}


def advice_table(run: Run, judge: bool = False) -> Table:
    """Return the estimates of the candidates, the best first, with the recommendation and its reasons below.

    Args:
        judge: whether the true accuracy is shown with the estimates, where the stream had labels.
    """
    advice, truth = selection.recommend(*read_candidates(run)), true_accuracy(run) if judge else {}
    labels, columns = {row.label: row for row in run.rows}, [*COLUMNS]
    notes = [f"{_take(run, advice)}.", *advice.reasons]
    notes += [f"{name}: left out, {reason}." for name, reason in run.about["about"]["left_out"].items()]
    if truth:
        best, name = max(truth, key=lambda candidate: truth[candidate]), advice.name
        columns.insert(1, Column("true", lambda c: truth.get(c.name)))
        first, own, less = map(report.show, (truth[best], truth[name], truth[best] - truth[name]))
        judged = f"the best is {best} with {first} %, {name} has {own} %, {less} points less"
        notes.append(f"Judged with the labels: {judged}.")
    records = [Record(c.name, "", 0, c) for c in advice.candidates]
    rows = [labels[c.name] for c in advice.candidates]
    return Table.of("Estimated without labels", rows, columns, records, run.missing, notes)


def _take(run: Run, advice: selection.Advice) -> str:
    done = len(run.about["cells"]) - len(run.missing)
    of = f", of the {done} of {len(run.about['cells'])} candidates that are finished" if run.missing else ""
    return f"Take {advice.name}{of}"
