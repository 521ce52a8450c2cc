"""The experiments of the family: data that is made once, a probe that is taught once, and a unit for each row and seed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, final

from testtime.data import sha256_of, textures
from testtime.errors import DataError
from testtime.experiments import Cell, Column, Experiment, Plan, Request, Row, Run, Table, Unit
from testtime.experiments.experiment import Resource
from testtime.experiments.registry import code_of, read_constants
from testtime.models.opened import find_weights
from testtime.processor import Precision
from testtime.vision_language import local_data, local_study
from testtime.vision_language.anovl import AnoVL
from testtime.vision_language.conse import ENCODER
from testtime.vision_language.gensam import GenSAM
from testtime.vision_language.t3al import T3AL

__all__ = ["LocalTokens"]

FACTS = read_constants(__package__ or "", "experiments")
DATA, STUDY = "testtime.vision_language.local_data", "testtime.vision_language.local_study"
METHODS = {"anovl": AnoVL, "t3al": T3AL, "known class": T3AL, "gensam": GenSAM}
MEASURES: dict[str, tuple[tuple[str, str, str], ...]] = {
    "score_anomalies": (
        ("whole", "image", "AUROC of images"),
        ("peak", "peak", "AUROC of images"),
        ("AUROC", "pixel", "pixels"),
        ("PRO", "pro", "pixels"),
        ("F1 max", "f1", "pixels"),
    ),
    "localise": (
        ("0.3", "map_30", "mAP at IoU"),
        ("0.5", "map_50", "mAP at IoU"),
        ("0.7", "map_70", "mAP at IoU"),
        ("mean", "map", "mAP at IoU"),
        ("F", "frame_f", "frames"),
        ("right", "classes", "classes of walks"),
    ),
    "segment_words": (
        ("IoU", "iou", "masks"),
        ("of IoU 0.5", "half", "masks"),
        ("on the object", "hits", "points of the first round"),
    ),
}
NOTES = {
    "score_anomalies": "whole: by the embedding of the image, which no step of AnoVL changes (controls: as peak); peak: by the "
    "largest value of the map; F1 max: at the threshold that is best for the labels.",
    "localise": "Frames count where the class of the walk is right.",
    "segment_words": "The word of the object, and those of what is around it, are given, in place of a vision-language model.",
}
STAND_IN = (
    "ConSE stands in for CLIP (an ImageNet MobileNet of width 0.25 and MiniLM embeddings of class names); taught: its last "
    "layer was learned with labels on other textures or houses, a ceiling. No figure of a paper is claimed."
)


@final
class LocalTokens(Experiment):
    """Local tokens, frames and prompts of image-text pairs; names and rows are those of ``experiments.toml``."""

    family = "local_tokens"
    unused = ("model", "device", "limit")
    note = STAND_IN
    seeds = (0, 1, 2)

    def __init__(self, name: str) -> None:
        own = FACTS["experiments"][name]
        self.name, self.title, self.make, self.score = name, own["title"], own["make"], own["score"]
        self.settings = {**FACTS["settings"], **own["data"]}
        data = Resource("textures", "data", "dtd", ("own",)) if self.make == "make_textures" else None
        weights = Resource("network", "weights", "CLIP", ("ConSE of imagenet_mobilenetv1_x0.25 and MiniLM",))
        self.resources = (weights,) if data is None else (data, weights)

    def precisions(self, request: Request) -> tuple[Precision, ...]:
        return ("float32",)

    def plan(self, request: Request) -> Plan:
        given = {name: self.setting(request, name) for name in self.settings}
        self._check(given)
        if request.methods:
            raise ValueError(
                f"{self.name}: its rows are those of testtime run {self.name} --rows; own methods are not run here, got "
                f"{', '.join(request.methods)}: call them on testtime.vision_language.ImageText"
            )
        folder = Path(request.data).resolve()
        weights = folder / local_study.WEIGHTS
        if (found := find_weights(ENCODER, folder)) != weights:
            raise DataError(
                f"{self.name}: expected the weights of the image encoder as {weights}, found {found}; rename it"
            )
        facts, places = {"weights": sha256_of(weights)}, {"data": str(folder)}
        used = {"network": "ConSE of imagenet_mobilenetv1_x0.25 and MiniLM"}
        if self.make == "make_textures":
            facts["textures"], used["textures"] = textures(folder).digest(), "dtd"
        strength = given.pop("strength")
        own = {**given, "seed": 0, "facts": {k: v for k, v in facts.items() if k == "textures"}}
        data = Unit(f"{DATA}:{self.make}", own, f"{self.name}, data", {}, code_of(local_data), places)
        study = code_of(local_study)
        about = {"strength": strength, "facts": facts}
        taught = Unit(f"{STUDY}:teach", about, f"{self.name}, probe", {"data": data}, study, places)
        cells, rows = [], self.chosen_rows(Row.listed(FACTS["rows"][self.score]), request)
        for row, seed in product(rows, self.seeds if request.seeds is None else request.seeds):
            known = {k: v for k, v in row.about.items() if k != "drawn"}
            drawn = bool(row.about.get("drawn"))
            if not drawn and seed != min(request.seeds or self.seeds):
                continue
            p = {**FACTS["common"][self.score], **known, "seed": seed * drawn, "facts": facts}
            needs = {"data": data, **({"teach": taught} if p["pair"] == "taught" else {})}
            code = {**study, **code_of(*({METHODS[p["method"]]} if p["method"] in METHODS else ()))}
            unit = Unit(
                f"{STUDY}:{self.score}", p, f"{self.name}, {row.label}, seed {seed}", needs, code, places
            )
            cells.append(Cell(row.label, "all", seed, unit))
        return Plan(rows, cells, facts=facts, used=used, about={"score": self.score})

    def _check(self, given: dict[str, Any]) -> None:
        for name, value in given.items():
            if value <= 0:
                raise ValueError(f"{self.name}: {name} is a number above 0, got {value}")

    def tables(self, run: Run) -> Sequence[Table]:
        score, records = run.about["about"]["score"], list(run.records())
        notes = [*run.notes, NOTES[score]]
        columns = [Column(name, (key,), "all", group) for name, key, group in MEASURES[score]]
        found = [Table.of(self.title, run.rows, columns, records, run.missing, notes)]
        if score == "score_anomalies":
            kinds = list(dict.fromkeys(kind for record in records for kind in record.result["by"]))
            columns = [Column(kind, ("by", kind), "all") for kind in kinds]
            title = "AUROC of pixels by kind of anomaly, in images with one"
            found.append(Table.of(title, run.rows, columns, records, run.missing, notes[:1]))
        return found
