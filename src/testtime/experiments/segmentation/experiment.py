"""The experiments of the family: methods on logits of each pixel, with overlap, boundaries, calibration and forgetting."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, final

from testtime.data import sha256_of
from testtime.experiments import Cell, Column, Experiment, Plan, Request, Row, Run, Table, Unit
from testtime.experiments.experiment import Resource
from testtime.experiments.registry import code_of, read_constants
from testtime.models.small_segmenter import ROADS
from testtime.models.zoo import PACKAGED
from testtime.processor import Precision

__all__ = ["Segmentation"]

FACTS = read_constants(__package__ or "", "experiments")
UNITS = f"{__package__}.units"
DUSK, CLEAN = "dusk", "other house"
FIRST_TEST_HOUSE = 100


@final
class Segmentation(Experiment):
    """Methods for logits of each pixel on a stream of frames; the names are those of ``experiments.toml``.

    ``limit`` counts the frames of each stream.
    """

    family = "segmentation"
    unused = ("model", "device")
    note = (
        "Online: each frame is predicted once, before or while the method learns from it. Forgetting is the mIoU on held-out "
        "frames of the source after the stream less that before it."
    )

    def __init__(self, name: str) -> None:
        own = FACTS["experiments"][name]
        self.name, self.title, self.roads = name, own["title"], name == "segmentation-camvid"
        self.settings = {**FACTS["settings"], **{k: v for k, v in own.items() if k != "title"}}
        self.resources = (Resource("frames", "data", "CamVid"),) if self.roads else ()
        if not self.roads:
            self.settings |= FACTS["scenes"]

    def precisions(self, request: Request) -> tuple[Precision, ...]:
        return ("float32",)

    def plan(self, request: Request) -> Plan:
        p: dict[str, Any] = {name: self.setting(request, name) for name in self.settings}
        for name in ("batch", "source_frames", "held"):
            if p[name] < 1:
                raise ValueError(f"{name} is a whole number from 1, got {p[name]}")
        rows = self.chosen_rows(Row.listed(FACTS["rows"]), request)
        places = {"data": str(Path(request.data).resolve())} if self.roads else {}
        facts = self._facts(places)
        columns = [DUSK] if self.roads else [CLEAN, *p["shifts"]]
        common = {name: p[name] for name in ("batch", "source_frames", "held", "tolerance")}
        common |= {"limit": request.limit, "facts": facts}
        cells = []
        for row, column, seed in product(rows, columns, request.seeds or ()):
            method, seed_used = row.about["method"], seed if _drawn(row) or not self.roads else 0
            parameters = {**common, **row.about, "stream": column, "seed": seed_used}
            needs = {} if self.roads else self._needs(p, column, seed)
            code = {} if method == "labels" else code_of(method)
            name = f"{row.label}, {column}, seed {seed}"
            cells.append(
                Cell(row.label, column, seed, Unit(f"{UNITS}:follow", parameters, name, needs, code, places))
            )
        used = {"frames": "CamVid"} if self.roads else {}
        return Plan(
            rows, cells, facts=facts, used=used, about={"columns": columns, "tolerance": p["tolerance"]}
        )

    def _facts(self, places: dict[str, str]) -> dict[str, str]:
        if not self.roads:
            return {}
        from testtime.experiments.segmentation.units import frames_digest, road_frames

        parts = ("source", "dusk", "held")
        digests = {part: frames_digest(road_frames(places["data"], part)) for part in parts}
        return {**digests, "weights": sha256_of(PACKAGED / ROADS)}

    def _needs(self, p: dict[str, Any], column: str, seed: int) -> dict[str, Unit]:
        """The rendered frames of a stream, and the source that was trained on other houses."""
        train = list(range(p["houses"]))
        test = list(range(FIRST_TEST_HOUSE, FIRST_TEST_HOUSE + p["test_houses"]))

        def rooms(houses: list[int], frames: int, shift: str | None, name: str) -> Unit:
            facts = {
                "houses": houses,
                "frames": frames,
                "shift": shift,
                "style": "default",
                "size": p["size"],
            }
            return Unit(f"{UNITS}:render_rooms", facts, name)

        made = rooms(train, p["frames"], None, "rooms of the source")
        held = rooms(test, p["test_frames"], None, "rooms of other houses")
        stream = (
            held
            if column == CLEAN
            else rooms(test, p["test_frames"], column, f"rooms of other houses, {column}")
        )
        source = Unit(
            f"{UNITS}:train_on_rooms",
            {"epochs": p["epochs"], "seed": seed},
            f"source, seed {seed}",
            {"rooms": made},
        )
        return {"source": source, "rooms": made, "stream": stream, "held": held}

    def tables(self, run: Run) -> Sequence[Table]:
        about = run.about["about"]
        records = [r for r in run.records() if r.column != CLEAN]
        where = DUSK if DUSK in about["columns"] else None
        measures = [
            Column("mIoU", ("miou",), where),
            Column("boundary F", ("boundary_f",), where),
            Column("ECE", ("ece",), where, better="lower"),
            Column("pixel accuracy", ("accuracy",), where),
            Column("forgetting", ("forgetting",), where, unit="points of mIoU", signed=True),
            Column("CPU time", ("seconds",), where, unit="s", better="lower"),
        ]
        note = f"Boundary F within {about['tolerance']:g} pixels; ECE over pixels, 15 bins."
        title = "Segmentation under shift" + ("" if where else ", mean over the shifts")
        found = [Table.of(title, run.rows, measures, records, run.missing, [*run.notes, note])]
        if where is None:
            by_shift = [Column(name, ("miou",), name) for name in about["columns"]]
            title = "mIoU by shift; the first column is a house of the same style, without a shift"
            found.append(Table.of(title, run.rows, by_shift, run.records(), run.missing, run.notes))
        return found


def _drawn(row: Row) -> bool:
    """Whether the results of a row depend on its seed."""
    import inspect

    from testtime.build import find_method

    method = row.about["method"]
    return method != "labels" and "seed" in inspect.signature(find_method(method)).parameters
