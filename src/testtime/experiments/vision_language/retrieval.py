"""Retrieval of captions by images and of images by captions, each with one right answer."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, final

from testtime.corruptions import CORRUPTIONS
from testtime.errors import check_name
from testtime.experiments import Cell, Column, Experiment, Plan, Request, Row, Run, Table, Unit
from testtime.experiments.experiment import Resource
from testtime.experiments.registry import code_of, read_constants
from testtime.processor import Precision
from testtime.vision_language import retrieval_study
from testtime.vision_language.rlcf import RLCF
from testtime.vision_language.study import chosen_images, facts_of

__all__ = ["RETRIEVAL", "Retrieval"]

FACTS = read_constants(__package__ or "", "retrieval")
STUDY = "testtime.vision_language.retrieval_study"
NOTES = (
    "The pair is ConSE of a small MobileNet and all-MiniLM-L6-v2, a stand-in for CLIP, and the reward model a ConSE pair of "
    "other breadth with the same text encoder: no figure here is one of a paper.",
    "rooms: rendered views with captions of their objects; other domains: images of ImageNet, on whose classes the image "
    "encoder was trained, with the names of their classes.",
)


@final
class Retrieval(Experiment):
    """RLCF on the encoder of a query, by image and by text, with the controls that could explain a gain."""

    family = "vision-language"
    unused = ("model", "device")
    name = "vision-language-retrieval"
    title = "Captions by images and images by captions, each with one right answer"
    note = "Recall at 1, 5 and 10 of the one right answer; ties count as wrong."

    def __init__(self) -> None:
        self.settings = dict(FACTS["settings"])
        self.resources = (
            Resource("images", "data", "imagenet"),
            Resource("pair", "weights", "CLIP ViT-B/16", ("conse",)),
        )

    def precisions(self, request: Request) -> tuple[Precision, ...]:
        return ("float32",)

    def plan(self, request: Request) -> Plan:
        given: dict[str, Any] = {name: self.setting(request, name) for name in self.settings}
        given["images"] = min(given["images"], request.limit or given["images"])
        _check(given)
        data = str(Path(request.data).resolve())
        if {*given["domains"]} != {"rooms"}:  # missing images are reported before any work
            asked = {"data": "imagenet", "domain": "clean", "classes": 0, "images": given["images"]}
            found, _ = chosen_images(asked, data)
            if len(found) < given["images"]:
                raise ValueError(
                    f"images is at most {len(found)}, the images in {data}, got {given['images']}"
                )
        places, facts, cells = {"data": data}, facts_of(given, data), list[Cell]()
        rows = self.chosen_rows(Row.listed(FACTS["rows"]), request)
        study, seeds = code_of(retrieval_study), request.seeds or (0,)
        made = {}
        for domain in given["domains"]:
            own = {k: given[k] for k in ("images", "severity", "side")} | {"domain": domain}
            made[domain] = Unit(f"{STUDY}:make_pairs", own, f"{domain}, pairs", {}, study, places)
        for row, domain, seed in product(rows, given["domains"], seeds):
            if not row.about.get("drawn") and seed != seeds[0]:
                continue
            method = row.about["method"]
            p = {
                "method": method,
                "seed": seed if row.about.get("drawn") else 0,
                "samples": given["samples"],
                "facts": facts,
            }
            code = {**study, **(code_of(RLCF) if method == "rlcf" else {})}
            unit = Unit(
                f"{STUDY}:retrieve",
                p,
                f"{row.label}, {domain}, seed {seed}",
                {"data": made[domain]},
                code,
                places,
            )
            cells.append(Cell(row.label, domain, seed, unit))
        about = {"domains": given["domains"], "images": given["images"]}
        return Plan(rows, cells, facts=facts, used={"images": "imagenet", "pair": "conse"}, about=about)

    def tables(self, run: Run) -> Sequence[Table]:
        about, found = run.about["about"], []
        notes = [*run.notes, *NOTES, f"{about['images']} pairs of each domain."]
        for domain in about["domains"]:
            columns = [
                Column(f"R@{k}", (way, str(k)), domain, group)
                for way, group in (("images", "image to text"), ("texts", "text to image"))
                for k in retrieval_study.RANKS
            ]
            title = f"Recall, {domain.replace('_', ' ')}"
            found.append(Table.of(title, run.rows, columns, run.records(), run.missing, notes))
        return found


def _check(given: dict[str, Any]) -> None:
    """Refuse settings that no run can have, with a ValueError."""
    if not given["domains"] or len({*given["domains"]}) < len(given["domains"]):
        raise ValueError(f"domains names one domain or more, each once, got {given['domains']}")
    for domain in given["domains"]:
        check_name("domain of retrieval", domain, ("clean", "rooms", *CORRUPTIONS))
    if given["images"] < 2 or given["samples"] < 2:
        raise ValueError(
            f"expected two images and samples or more, got {given['images']} and {given['samples']}"
        )
    if not 1 <= given["severity"] <= 5 or given["side"] < 8:
        raise ValueError(
            f"expected a severity from 1 to 5 and a side of 8 pixels or more, got {given['severity']} and {given['side']}"
        )


RETRIEVAL = Retrieval()
