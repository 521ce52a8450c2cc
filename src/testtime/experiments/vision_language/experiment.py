"""The experiments of the family: methods on a zero-shot classifier, by domain: accuracy, calibration and cost."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, Literal, final

from testtime.experiments import Cell, Column, Experiment, Plan, Request, Row, Run, Table, Unit
from testtime.experiments.experiment import Resource
from testtime.experiments.registry import code_of, read_constants
from testtime.processor import Precision
from testtime.vision_language.study import chosen_images, facts_of

__all__ = ["VisionLanguage"]

FACTS = read_constants(__package__ or "", "experiments")
STUDY = "testtime.vision_language.study"
DRAWS = ("ZERO", "TPT", "DiffTPT", "RLCF", f"{STUDY}:MeanOfViews")  # methods whose views depend on the seed
STAND_INS = (
    "The pair is ConSE of a small MobileNet and all-MiniLM-L6-v2, a stand-in for CLIP; the generator of DiffTPT makes AugMix "
    "views and the reward of RLCF is a ConSE pair of other breadth: no figure here is one of a paper."
)


@final
class VisionLanguage(Experiment):
    """Methods on a zero-shot classifier; the names are those of ``experiments.toml``."""

    family = "vision-language"
    unused = ("model", "device")
    note = "Accuracy and calibration error by domain, the adapter is new in each; forwards are of the image encoder."

    def __init__(self, name: str) -> None:
        own = FACTS["experiments"][name]
        self.name, self.title = name, own["title"]
        self.settings = {**FACTS["settings"], **{k: v for k, v in own.items() if k != "title"}}
        self.resources = (
            Resource("images", "data", self.settings["data"]),
            Resource("pair", "weights", "CLIP ViT-B/16", ("conse",)),
        )

    def precisions(self, request: Request) -> tuple[Precision, ...]:
        return ("float32",)

    def plan(self, request: Request) -> Plan:
        given: dict[str, Any] = {name: self.setting(request, name) for name in self.settings}
        _check(given)
        data = str(Path(request.data).resolve())
        facts, rows, cells = facts_of(given, data), self.chosen_rows(Row.listed(FACTS["rows"]), request), []
        common = {k: v for k, v in given.items() if k not in ("domains", "views", "share")} | {"facts": facts}
        common["images"] = min(given["images"], request.limit or given["images"])
        chosen_images(
            {**common, "domain": given["domains"][0]}, data
        )  # missing data is reported before any work
        for row, domain, seed in product(rows, given["domains"], request.seeds or ()):
            about = {k: v for k, v in row.about.items() if k != "views"}
            if row.about.get("views"):
                about |= {"views": given["views"], "share": given["share"]}
            drawn = seed if about["method"] in DRAWS else 0
            parameters = {**common, "templates": "one", **about, "domain": domain, "seed": drawn}
            name, code = f"{row.label}, {domain}, seed {seed}", code_of(about["method"])
            weight = float(given["views"] if row.about.get("views") else 1)
            unit = Unit(f"{STUDY}:classify", parameters, name, {}, code, {"data": data}, weight)
            cells.append(Cell(row.label, domain, seed, unit))
        about = {"domains": given["domains"], "images": common["images"], "views": given["views"]}
        return Plan(rows, cells, facts=facts, used={"images": given["data"], "pair": "conse"}, about=about)

    def tables(self, run: Run) -> Sequence[Table]:
        about, found = run.about["about"], []
        notes = [*run.notes, STAND_INS]
        notes.append(
            f"{about['images']} images of each domain at most; {about['views']} views where a method makes views."
        )
        measures: tuple[tuple[str, str, Literal["higher", "lower"]], ...] = (
            ("Accuracy", "accuracy", "higher"),
            ("Calibration error (ECE)", "ece", "lower"),
        )
        for title, key, better in measures:
            columns = [Column(d.replace("_", " "), (key,), d, "", "%", 1, better) for d in about["domains"]]
            columns.append(Column("mean", (key,), None, "", "%", 1, better))
            if key == "accuracy":
                columns += [
                    Column("image encoder", ("forwards",), None, "forwards of an image", "", 1, None),
                    Column("prompts", ("texts",), None, "forwards of an image", "", 0, None),
                ]
            found.append(Table.of(f"{title} by domain", run.rows, columns, run.records(), run.missing, notes))
        return found


def _check(given: dict[str, Any]) -> None:
    """Refuse numbers that no run can have, with a ValueError."""
    for name in ("images", "views", "batch"):
        if given[name] < 1:
            raise ValueError(f"{name} is a whole number from 1, got {given[name]}")
    if not 0 < given["share"] <= 1:
        raise ValueError(f"share is a share of the views, above 0 and at most 1, got {given['share']}")
    if not given["domains"]:
        raise ValueError("domains names one domain or more, got none")
    if given["classes"] == 1 or given["classes"] < 0:
        raise ValueError(f"classes is a number of classes from 2, or 0 for all, got {given['classes']}")
