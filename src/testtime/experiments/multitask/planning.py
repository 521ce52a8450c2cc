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
from testtime.scenes.tracer import warn_if_slow

__all__ = ["PRESETS", "MultitaskExperiment", "Planner", "at_rate"]

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
        self.seeds = tuple(self.facts.get("seeds", (0, 1, 2)))
        self.settings = {"preset": self.facts.get("preset", "tiny")}

    def check_machine(self, say: Callable[[str], None]) -> None:
        need_packages(PIL="images", cv2="scenes")
        warn_if_slow(say)


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
        """The preset, a table of ``experiments.toml``, with the changes."""
        return {part: {**facts, **self.changes.get(part, {})} for part, facts in PRESETS[self.name].items()}

    @property
    def target(self) -> dict[str, Any]:
        """The target houses."""
        return {"noise": 0.0, **self.preset["target"]}

    def plan(
        self, rows: Sequence[Row], cells: Sequence[Cell], others: Mapping[str, Unit], **about: Any
    ) -> Plan:
        """Return the plan of a run, with what is used for each of the family's resources."""
        encoder = ENCODER if self.request.model is None else MultitaskExperiment.resources[1].prefers
        facts = {"preset": self.name, "protocol": asdict(self.protocol), **about}
        return Plan(rows, cells, others, used={"images": IMAGES, "encoder": encoder}, about=facts)

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
            houses: target houses.
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
        images = request.limit or houses["houses"] * houses["frames"]
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
        places = {} if model is None else {"imagenet": model}
        needs, weight = {**self._rendered(houses), **start}, 3 * recipe["iterations"] * recipe["batch"] / 1000
        return Unit(f"{HERE}:train_network", facts, name, needs, places=places, weight=weight)

    def _rendered(self, houses: Mapping[str, Any]) -> dict[str, Unit]:
        """The units that render houses, a number of them each."""
        found, end = {}, houses["first"] + houses["houses"]
        houses = {name: value for name, value in houses.items() if name != "misnormalised"}
        for first in range(houses["first"], end, RENDERED):
            part = {**houses, "first": first, "houses": min(RENDERED, end - first), "noise": 0.0}
            name, weight = f"houses {first} to {first + part['houses'] - 1}", part["houses"] * part["frames"]
            found[name] = Unit(f"{HERE}:render", {"houses": part}, name, weight=weight / 200)
        return found
