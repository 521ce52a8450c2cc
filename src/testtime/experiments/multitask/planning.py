"""Units from rows: whatever a row needs is a unit of its own, which rows, seeds and experiments share."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from testtime.build import find_method
from testtime.data import sha256_of
from testtime.errors import need_packages, unknown_name
from testtime.experiments.experiment import Cell, Experiment, Plan, Resource, Unit
from testtime.experiments.multitask.listing import CONSTANTS
from testtime.experiments.request import Request
from testtime.experiments.table import Row
from testtime.multitask.protocol import Protocol
from testtime.multitask.public import SETS, Part
from testtime.scenes.tracer import warn_if_slow

__all__ = ["PRESETS", "MultitaskExperiment", "Planner", "at_rate", "resolve_parts"]

HERE = "testtime.experiments.multitask.units"
PRESETS: dict[str, dict[str, Any]] = CONSTANTS["presets"]
RENDERED = 20  # houses that one unit renders
IMAGES, ENCODER = "a rendered set of houses", "random initialisation"


class MultitaskExperiment(Experiment):
    """What the experiments of the family share: their facts, data and weights with stand-ins, the need of the renderer.

    Args:
        name: name in ``experiments.toml``.
    """

    family = "multitask"
    resources = (
        Resource("images", "data", "Taskonomy, NYUD-v2 and PASCAL-Context", (IMAGES,)),
        Resource("encoder", "weights", "ImageNet weights", (ENCODER, "own")),
    )

    def __init__(self, name: str) -> None:
        self.facts = CONSTANTS["experiments"][name]
        self.name, self.title, self.source = name, self.facts["title"], self.facts.get("source", "")
        self.note = self.facts.get("note", "")
        self.seeds = tuple(self.facts.get("seeds", (0, 1, 2)))
        self.settings = {"preset": self.facts.get("preset", "tiny"), **self.facts.get("settings", {})}
        if "data" in self.facts:  # public sets: nothing stands in for them
            images = Resource("images", "data", self.facts["data"])
            self.resources = (images, *MultitaskExperiment.resources[1:])

    def check_machine(self, say: Callable[[str], None]) -> None:
        if self.facts.get("rendered", True):
            need_packages(PIL="images", cv2="scenes")
            warn_if_slow(say)
        else:
            need_packages(PIL="images")


def resolve_parts(
    changes: Mapping[str, Any], preset: str, data: str, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the changes of a domain with each part of a public set opened: its size, number of images and digest.

    Args:
        changes: changes of parts of the preset; a part with a "set" has the arguments of
            :class:`testtime.multitask.public.Part`.
        preset: name of the preset, whose part "public" has sizes of images by set and numbers of images by part.
        data: folder of the data sets.
        settings: settings of the run that name arguments of a part, such as the scene of 7-Scenes.

    Raises:
        DataError: a set is not there in its published layout.
        ValueError: there is no such preset, set or transfer.
    """
    if preset not in PRESETS:
        raise unknown_name("preset", preset, PRESETS)
    found, sizes = dict(changes), PRESETS[preset].get("public", {})
    for name in ("source", "validation", "target"):
        facts = changes.get(name, {})
        if "set" not in facts:
            continue
        size = sizes.get("sizes", {}).get(facts["set"], PRESETS[preset]["target"]["size"])
        images = {"images": sizes["images"][name]} if name in sizes.get("images", {}) else {}
        facts = {"size": size, **images, **facts}
        facts |= {key: settings[key] for key in facts if key in settings}
        clean = Part(**{**facts, "noise": 0.0}).read(Path(data).resolve())
        found[name] = {**facts, "count": len(clean), "digest": clean.digest()}  # type: ignore[attr-defined]
    return found


def at_rate(row: Row, rate: float) -> Row:
    """Return a row whose learning rate is given, not chosen."""
    return replace(row, about={**row.about, "rates": [rate]})


@dataclass(frozen=True)
class Planner:
    """Makes the units of a run.

    Args:
        request: request of the run; its model is a file of ImageNet weights that encoders start from.
        name: name of the preset.
        protocol: protocol of adaptation and measurement.
        base: row that gains are measured against when learning rates are chosen.
        changes: changes of parts of the preset, by name of the part; "one_room": whether the first batch of the target is from
            one room.

    Raises:
        ValueError: there is no such preset.
    """

    request: Request
    name: str
    protocol: Protocol
    base: Row
    changes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name not in PRESETS:
            raise unknown_name("preset", self.name, PRESETS)

    @property
    def preset(self) -> Mapping[str, Any]:
        """The preset, a table of ``experiments.toml``, with the changes; a part of a public set replaces houses whole."""
        parts: dict[str, dict[str, Any]] = {}
        for part, facts in PRESETS[self.name].items():
            changes = self.changes.get(part, {})
            parts[part] = {**({} if "set" in changes else facts), **changes}
        return parts

    @property
    def target(self) -> dict[str, Any]:
        """The target houses, or the target's part of a public set."""
        target = self.preset["target"]
        return target if "set" in target else {"noise": 0.0, **target}

    @property
    def sets(self) -> list[str]:
        """The names of the public sets that are in use."""
        parts = (self.preset[name] for name in ("source", "validation", "target"))
        return list(dict.fromkeys(part["set"] for part in parts if "set" in part))

    def plan(
        self, rows: Sequence[Row], cells: Sequence[Cell], others: Mapping[str, Unit], **about: Any
    ) -> Plan:
        """Return the plan of a run, with what is used for each of the family's resources."""
        encoder = ENCODER if self.request.model is None else MultitaskExperiment.resources[1].prefers
        facts = {"preset": self.name, "protocol": asdict(self.protocol), **about}
        images = ", ".join(SETS[name].title for name in self.sets) or IMAGES
        return Plan(rows, cells, others, used={"images": images, "encoder": encoder}, about=facts)

    def network(self, row: Row, seed: int) -> Unit:
        """Return the unit that trains the source model of a row; rows with the same network share it.

        A row that is "tuned" goes on from there, on the labels of other houses of the target's style.
        """
        recipe, target, own = self.preset["recipe"], self.preset["target"], row.about["network"]
        name = f"network with {', '.join(f'{k} {v}' for k, v in own.items()) or 'no branch'}, seed {seed}"
        source = self._training(row, seed, name, self.preset["source"], recipe, {})
        if not row.about.get("tuned"):
            return source
        recipe = {**recipe, "iterations": max(1, recipe["iterations"] // 5), "lr": recipe["lr"] / 2}
        houses = {**target, "first": target["first"] + 500}
        return self._training(row, seed, f"tuned {name}", houses, recipe, {"start": source})

    def rate(self, row: Row) -> Unit | None:
        """Return the unit that chooses the learning rate for all seeds, with networks of seed 0; None if there is one rate."""
        rates, steps = row.about["rates"], max(1, self.protocol.steps)
        if len(rates) == 1:
            return None
        ends = replace(self, protocol=replace(self.protocol, record_every=steps))
        rows, name = {"row": row, "base": self.base}, f"rate of {row.label}"
        return ends.adapting("choose_rate", name, rows, 0, self.preset["validation"], rates=rates)

    def adapting(
        self,
        kind: str,
        name: str,
        rows: Mapping[str, Row],
        seed: int,
        houses: Mapping[str, Any],
        **parameters: Any,
    ) -> Unit:
        """Return a unit that adapts, with the networks, learning rates and houses that it needs.

        Args:
            kind: name of the function in :mod:`units`.
            name: name of the unit, without the seed.
            rows: rows by their role.
            seed: seed of networks, order and randomness.
            houses: target houses, or a part of a public set (:func:`resolve_parts`).
            parameters: further parameters.
        """
        p, request = self.protocol, self.request
        needs = self._rendered(houses) | {role: self.network(row, seed) for role, row in rows.items()}
        if "rates" not in parameters:
            chosen = {f"rate {role}": self.rate(row) for role, row in rows.items()}
            needs |= {need: unit for need, unit in chosen.items() if unit is not None}
        if any(row.about["prepare"] for row in rows.values()):
            parameters |= {"source": self.preset["source"], "prepared": self.preset["recipe"]["batch"]}
            needs |= self._rendered(self.preset["source"])
        methods = sorted({row.about["method"] for row in rows.values()} - {None})
        images = request.limit or (
            houses["count"] if "set" in houses else houses["houses"] * houses["frames"]
        )
        passes = images * len(p.recorded) + 3 * p.steps * (p.batch if p.eval_on == "full_target" else images)
        parameters |= {"seed": seed, "houses": houses, "protocol": asdict(p)}
        parameters |= {"limit": request.limit, "device": request.device}
        if kind != "choose_rate" and self.changes.get("one_room"):
            parameters["one_room"] = True
        return Unit(
            f"{HERE}:{kind}",
            {"rows": {role: self._row(row) for role, row in rows.items()}, **parameters},
            f"{name}, seed {seed}",
            needs,
            {method: sha256_of(Path(inspect.getfile(find_method(method)))) for method in methods},
            self._places,
            weight=passes * len(parameters.get("rates", rows)) / 1000,
            alone=kind == "time_steps",
        )

    def _row(self, row: Row) -> dict[str, Any]:
        about = {name: value for name, value in row.about.items() if name not in ("rates", "tuned")}
        rates = row.about["rates"]
        return {**about, "network": self._network(row), "rate": rates[0] if len(rates) == 1 else None}

    def _network(self, row: Row) -> dict[str, Any]:
        """The row's network and branch as :func:`testtime.multitask.branches.build` takes them."""
        own = dict(row.about["network"])
        branch = own.pop("branch", None)
        arguments = {**self.preset["branch"], **own} if branch == "synchronizer" else own
        return {**self.preset["network"], "branch": branch, "arguments": arguments}

    def _training(
        self, row: Row, seed: int, name: str, houses: Any, recipe: Any, start: Mapping[str, Unit]
    ) -> Unit:
        request, model = self.request, self.request.model
        facts = {"network": self._network(row), "seed": seed, "houses": houses, "recipe": recipe}
        facts |= {"device": request.device, "precision": request.precision}
        facts |= {} if model is None else {"imagenet": sha256_of(Path(model))}
        places = self._places | ({} if model is None else {"imagenet": model})
        needs, weight = {**self._rendered(houses), **start}, 3 * recipe["iterations"] * recipe["batch"] / 1000
        return Unit(f"{HERE}:train_network", facts, name, needs, places=places, weight=weight)

    @property
    def _places(self) -> dict[str, str]:
        """The folder of the public sets, where there are any."""
        return {"data": str(Path(self.request.data).resolve())} if self.sets else {}

    def _rendered(self, houses: Mapping[str, Any]) -> dict[str, Unit]:
        """The units that render houses, a number of them each; none for a part of a public set."""
        if "set" in houses:
            return {}
        found, end = {}, houses["first"] + houses["houses"]
        houses = {name: value for name, value in houses.items() if name != "misnormalised"}
        for first in range(houses["first"], end, RENDERED):
            part = {**houses, "first": first, "houses": min(RENDERED, end - first), "noise": 0.0}
            name, weight = f"houses {first} to {first + part['houses'] - 1}", part["houses"] * part["frames"]
            found[name] = Unit(f"{HERE}:render", {"houses": part}, name, weight=weight / 200)
        return found
