"""The experiments of the family: which units a run consists of, and what its tables show."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, final

import numpy as np

from testtime.data.places import add_source, find_set, image_size, images_of
from testtime.experiments import Cell, Column, Experiment, Plan, Record, Request, Row, Run, Table
from testtime.experiments.experiment import Resource, Unit
from testtime.experiments.online.stream import source_model
from testtime.experiments.production import following, listing, world
from testtime.experiments.registry import code_of, guard_code
from testtime.metrics import windows
from testtime.plugins import resolve
from testtime.streams.named import corrupted_domains

__all__ = ["Production"]

GUARDED = " guarded"  # behind the label of a method
BENIGN = ("continual", "repeated", "mini-ccc", "mixed")  # known images alone, their classes in random order
BASES = (Row("Source", "base", about={"method": "Source"}), Row("BN", "base", about={"method": "BNAdapt"}))
METHODS = (
    Row("TENT", about={"method": "Tent"}),
    Row("EATA", about={"method": "EATA", "arguments": {"fisher_alpha": 1.0}}),
    Row("RoTTA", about={"method": "RoTTA"}),
    Row("ROID", about={"method": "ROID"}),
    Row("PAF+KIP", about={"method": "PAFKIP"}),
)
TENFOLD = Row("TENT x10", about={"method": "Tent", "arguments": {"optimizer": "testtime.parts:adam(0.01)"}})
BLIND = Row("TENT x10, blind reset", "control", about={**TENFOLD.about, "reset_every": 100})
Records = Sequence[Record]


@final
class Production(Experiment):
    """Methods with and without a guard on some streams; the names are those of :data:`ALL`.

    Settings: ``closed`` and ``open_set`` are data sets or folders, ``source`` is a folder of images of the source, ``guard`` is
    the import path of a wrapper ("" for none), ``steps`` is the number of steps of an attack.
    """

    family = "production"
    resources = (
        Resource("images", "data", "digits", ("own",)),
        Resource("source model", "weights", "digits-cnn", ("own",)),
    )
    forms = {"source": "images"}  # noqa: RUF012

    def __init__(self, name: str) -> None:
        streams, self.rows, self.length, batch_size, self.read = ALL[name]
        self.name, self.title = name, {listed.name: listed.title for listed in listing.LISTED}[name]
        data = {"closed": "digits", "open_set": "photographs", "source": None}
        guard = {"guard": "testtime.wrap:Guarded", "batch_size": batch_size, "steps": 20}
        self.settings = {**data, **guard, "streams": list(streams)}

    def plan(self, request: Request) -> Plan:
        places = {"data": str(Path(request.data).resolve())}
        p, guard = self._parameters(request, places), self.setting(request, "guard")
        shown: list[tuple[Row, str]] = []
        for row in self.chosen_rows([*BASES, *self.rows], request):
            guarded = replace(row, label=row.label + GUARDED)
            shown += [(row, ""), (guarded, guard)] if guard and row.role == "method" else [(row, "")]
        cells, streams = [], self.setting(request, "streams")
        for stream, seed in product(streams, request.seeds or ()):
            made: dict[str, Unit] = {}
            for row, around in shown:
                needs: dict[str, Unit] = {base: made[base] for base in ("Source", "BN") if base in made}
                code = code_of(row.about["method"])
                if around:
                    needs["unguarded"] = made[row.label.removesuffix(GUARDED)]
                    code |= guard_code(resolve(around))
                facts = {**p, **row.about, "stream": stream, "seed": seed, "guard": around}
                name = f"{row.label}, {stream}, seed {seed}"
                made[row.label] = Unit(f"{following.__name__}:follow", facts, name, needs, code, places)
                cells.append(Cell(row.label, stream, seed, made[row.label]))
        used = {"images": p["closed"], "source model": p["model"]}
        about = {"streams": streams, "length": p["length"]}
        return Plan([row for row, _ in shown], cells, facts=p["facts"], used=used, about=about)

    def _parameters(self, request: Request, places: dict[str, str]) -> dict[str, Any]:
        """The parameters that all units share; digests are read here, and own folders and files added to the places."""
        closed, opened = (find_set(self.setting(request, name), places) for name in ("closed", "open_set"))
        if source := self.setting(request, "source"):
            add_source(source, places)
        name = request.model or "digits-cnn"
        found, images = source_model(name, places), images_of(closed, places)
        found.check_classes(images)
        if Path(name).is_file():
            places[f"model {found.name}"], name = str(Path(name).resolve()), found.name
        size = image_size(closed, found.side)
        facts = {"weights": found.digest, closed: images.digest(), opened: images_of(opened, places).digest()}
        facts["corruptions"] = corrupted_domains(closed, places, world.CORRUPTIONS, 5, size)[1]
        given = {name: self.setting(request, name) for name in ("batch_size", "steps")}
        return {
            **{"closed": closed, "open_set": opened, "model": name, "side": found.side, "facts": facts},
            **{"length": request.limit or self.length, **given},
            **{"device": request.device, "precision": request.precision},
        }

    def tables(self, run: Run) -> Sequence[Table]:
        return self.read(run, run.records())


def _table(
    run: Run, title: str, columns: Sequence[Column], records: Records, notes: Sequence[str] = ()
) -> Table:
    return Table.of(title, run.rows, columns, records, run.missing, [*run.notes, *notes])


def _zoo_tables(run: Run, records: Records) -> Sequence[Table]:
    streams = run.about["about"]["streams"]
    lengths = ", ".join(f"{window:,}" for window in sorted({record.result["window"] for record in records}))
    points, every = partial(Column, unit="points", signed=True), partial(Column, of="all")
    promises = [points(name, ("less", "Source", "worst"), name) for name in streams]

    def kept(result: dict[str, Any]) -> float:
        worst = promises[0].read(result)
        return worst if math.isnan(worst) else 100.0 * (worst >= -windows.MARGIN)

    lowest: dict[tuple[str, int], float] = {}
    for r in records:
        lowest[r.row, r.seed] = np.fmin(lowest.get((r.row, r.seed), math.nan), promises[0].read(r.result))
    whole = [replace(r, column=of) for r in records for of in ("all", "benign")[: 1 + (r.column in BENIGN)]]
    whole += [Record(row, "worst", seed, {"worst": value}) for (row, seed), value in lowest.items()]
    summary = [
        points("worst", ("worst",), "worst", group="window less Source,"),
        every("promise kept", kept, unit="% of streams", places=0),
        every("mean", ("accuracy",)),
        every("last fifth", ("last_fifth",)),
        every("worst window", ("worst_window",)),
        points("less BN", ("less", "BN", "mean"), "all"),
        points("less unguarded, benign", ("less", "unguarded", "mean"), "benign"),
        every("delay", ("delay",), unit="batches", better="lower"),
        Column("false resets", ("false_resets",), "benign", unit="per stream", better="lower"),
    ]
    notes = [
        f"Windows of {lengths} samples.",
        f"The promise: no window more than {windows.MARGIN:g} point below the shipped model on the same samples.",
        "Delay: from the batch from which the unguarded run loses most to the first batch that the guard answers otherwise or "
        "takes back; false resets: those before that batch, or on a stream without damage.",
        f"Benign streams: {', '.join(BENIGN)}.",
    ]
    means = [Column(name, ("accuracy",), name) for name in streams]
    return [
        _table(run, "The failure zoo, all streams", summary, whole, notes),
        _table(run, "Worst window less the shipped model", promises, records, notes[:1]),
        _table(run, "Accuracy", means, records),
    ]


def _poisoning_tables(run: Run, records: Records) -> Sequence[Table]:
    kinds = [kind for kind in run.about["about"]["streams"] if kind != "none"]
    clean = {(r.row, r.seed): r.result["accuracy"] for r in records if r.column == "none"}
    harmed = [r for r in records if r.column in kinds and (r.row, r.seed) in clean]
    lost = [replace(r, result={"lost": clean[r.row, r.seed] - r.result["accuracy"]}) for r in harmed]
    loss = partial(Column, group="loss by", unit="points", better="lower", signed=True)
    columns = [Column("accuracy without", ("accuracy",), "none"), *(loss(k, ("lost",), k) for k in kinds)]
    notes = [f"{kind}: {world.ATTACKS[kind]}." for kind in kinds]
    return [_table(run, "Accuracy that benign samples lose", columns, [*records, *lost], notes)]


def _soak_tables(run: Run, records: Records) -> Sequence[Table]:
    def tenths(name: str, function: Callable[[list[float]], float]) -> Callable[[dict[str, Any]], float]:
        return lambda result: function(result["tenths"][name])

    names = ("first", *map(str, range(2, 10)), "last")
    parts = [Column(n, tenths("accuracy", lambda v, i=i: v[i]), group="tenth") for i, n in enumerate(names)]  # type: ignore[misc]
    worst, ratio = partial(Column, unit="points", signed=True), partial(Column, unit="last / first", places=2)
    columns = [
        Column("accuracy", ("accuracy",)),
        worst("worst window", ("less", "Source", "worst"), group="less Source,"),
        ratio("p99 of time", tenths("p99_ms", lambda v: v[-1] / v[0]), better="lower"),
        ratio("median of time", tenths("median_ms", lambda v: v[-1] / v[0]), better="lower"),
        Column(
            "memory", tenths("memory", lambda v: v[-1] - v[0]), unit="MiB, last less first", better="lower"
        ),
    ]
    whole = _table(run, "Soak", columns, records)
    return [whole, _table(run, "Accuracy from tenth to tenth", parts, records)]


ALL = {
    "failure-zoo": (tuple(world.STREAMS), (*METHODS, TENFOLD, BLIND), 20_000, 64, _zoo_tables),
    "poisoning": (tuple(world.ATTACKS), METHODS, 10_000, 200, _poisoning_tables),
    "soak": (("repeated",), (METHODS[0], TENFOLD), 1_000_000, 64, _soak_tables),
}
