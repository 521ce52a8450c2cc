"""Experiments: the units of work of a table or figure, the cells that show them, and the data and weights it stands on."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from testtime.errors import check_name, did_you_mean
from testtime.experiments.table import Row

if TYPE_CHECKING:
    from testtime.experiments.request import Request
    from testtime.experiments.run import Run
    from testtime.experiments.table import Table
    from testtime.processor import Precision
    from testtime.report import Chart, Page

__all__ = ["Cell", "Experiment", "Plan", "Resource", "Unit", "closure"]


@dataclass(frozen=True)
class Unit:
    """One piece of work: a function, its parameters in values of JSON, and the units that it needs.

    Equal units have equal addresses, whichever experiment declares them: what one has made, another finds.

    Args:
        kind: import path "package.module:name" of a function that takes a :class:`Workspace` and returns a dictionary of JSON.
        parameters: all that the result depends on beside the needed units: also seed, device, precision, digests of data.
        name: short name for people and for file names.
        needs: units that are done before, by the name under which the function finds them.
        code: version of the code by name, see :func:`testtime.experiments.registry.code_of`.
        places: paths on this machine by name, such as the data folder; the result must not depend on them.
        weight: expected work relative to other units, for the remaining time.
        alone: whether nothing else of the run may run at the same time, as for measurements of time.

    Raises:
        TypeError: a parameter is no value of JSON.
    """

    kind: str
    parameters: Mapping[str, Any]
    name: str
    needs: Mapping[str, Unit] = field(default_factory=dict)
    code: Mapping[str, str] = field(default_factory=dict)
    places: Mapping[str, str] = field(default_factory=dict)
    weight: float = 1.0
    alone: bool = False

    def __post_init__(self) -> None:
        if self.kind.count(":") != 1:
            raise ValueError(f"the kind of a unit is 'package.module:function', got {self.kind!r}")
        for name, value in self.parameters.items():
            try:
                json.dumps(value, allow_nan=False)
            except (TypeError, ValueError) as error:
                what = f"{self.name}: the parameter {name!r} is no value of JSON ({error})"
                raise TypeError(
                    f"{what}; pass names and numbers, and build objects in the unit's function"
                ) from None

    @cached_property
    def address(self) -> str:
        """The SHA-256 of kind, parameters and needed units, 32 hexadecimal digits of it."""
        facts = [self.kind, dict(self.parameters), {name: unit.address for name, unit in self.needs.items()}]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]

    @cached_property
    def versions(self) -> dict[str, str]:
        """The code of this unit, and of the needed ones as "unit: name"."""
        needed = {f"{n}: {key}": v for n, unit in self.needs.items() for key, v in unit.versions.items()}
        return {**self.code, **needed}

    def described(self) -> dict[str, Any]:
        """Return the unit in values of JSON, from which any process can execute it."""
        return {
            **{name: getattr(self, name) for name in ("address", "kind", "name")},
            "parameters": json.loads(json.dumps(dict(self.parameters))),
            "needs": {name: unit.address for name, unit in self.needs.items()},
            "code": self.versions,
            "places": {name: str(Path(place).absolute()) for name, place in self.places.items()},
        }


def closure(units: Iterable[Unit]) -> list[Unit]:
    """Return the units and all that they need, each once and after what it needs."""
    found: dict[str, Unit] = {}
    for unit in units:
        if unit.address not in found:
            found |= {need.address: need for need in closure(unit.needs.values())} | {unit.address: unit}
    return list(found.values())


@dataclass(frozen=True)
class Cell:
    """The place of a unit's result in the tables. Several cells may show one unit, several units may share a place.

    Args:
        row: label of the row.
        column: name of the setting, domain or measure.
        seed: random seed; cells of one seed are compared in pairs.
        unit: unit whose result is shown.
        about: further facts, in values of JSON.
    """

    row: str
    column: str
    seed: int
    unit: Unit
    about: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """All that a run consists of.

    Args:
        rows: rows of the tables in their order.
        cells: cells of the tables.
        others: units that no cell shows, by name, such as a baseline or the choice of a learning rate.
        facts: digests of data and weights by name.
        used: name of the data set or model in use for each resource of the experiment.
        about: further facts for tables and pages, in values of JSON.
    """

    rows: Sequence[Row]
    cells: Sequence[Cell]
    others: Mapping[str, Unit] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    used: Mapping[str, str] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def units(self) -> list[Unit]:
        """The units that the run is for, each once."""
        units = [*self.others.values(), *(cell.unit for cell in self.cells)]
        return list({unit.address: unit for unit in units}.values())


@dataclass(frozen=True)
class Resource:
    """Data or weights that an experiment stands on, by their role in it, and what may stand in for them.

    Args:
        prefers: name of the data set or model of the paper.
        accepts: names of stand-ins, the better first; "own" for any folder or file of the user.
    """

    name: str
    kind: Literal["data", "weights"]
    prefers: str
    accepts: tuple[str, ...] = ()


class Experiment(ABC):
    """A table or figure as a named object: it plans units of work, and reads tables out of their results.

    A family is a subclass; its experiments are objects that differ in name (that on the command line), title (one line),
    source (paper and table), note (differences from it), default seeds, resources, settings with their defaults, and
    forms: examples of settings whose defaults (None, an empty list) do not show their types, and unused: the fields of a
    request ("model", "device", "limit") that it has no use for.
    """

    name: str
    family: ClassVar[str]
    title: str
    source: str = ""
    note: str = ""
    seeds: tuple[int, ...] = (0,)
    resources: tuple[Resource, ...] = ()
    settings: Mapping[str, Any] = {}
    forms: Mapping[str, Any] = {}
    unused: tuple[str, ...] = ()

    @abstractmethod
    def plan(self, request: Request) -> Plan:
        """Return rows, cells and units of a run; digests of data and weights are read here.

        Raises:
            DataError: data or weights are not there.
            ValueError: the experiment has no such row or setting.
        """

    @abstractmethod
    def tables(self, run: Run) -> Sequence[Table]:
        """Return the tables of a run, from its folder alone."""

    def figures(self, run: Run) -> Sequence[Chart | None]:
        """Return the figures of a run, from its folder alone."""
        return ()

    def page(self, run: Run) -> Page:
        """Return the page of a run: its tables, its figures, and how it was made."""
        from testtime.experiments.pages import run_page, table_blocks, table_sections
        from testtime.report import Figure, Section

        drawn, tables = [Figure(chart, chart.title) for chart in self.figures(run) if chart], self.tables(run)
        result = [Section("result", "Result", "The result", table_blocks(*tables))]
        sections = result if len(tables) == 1 else table_sections(tables)
        return run_page(run, run.about["note"], [*sections, Section("figures", "Figures", "Figures", drawn)])

    def compared(self, runs: Sequence[Run]) -> Sequence[Table]:
        """Return the tables of several runs of the family side by side; a ValueError says that they cannot be compared."""
        raise ValueError(f"runs of the family {self.family} are not compared; give one run")

    def comparison_page(self, runs: Sequence[Run]) -> Page:
        """Return the page of several runs of the family side by side, see :meth:`compared`."""
        from testtime.experiments.pages import tables_page

        names = ", ".join(run.about["experiment"] for run in runs)
        return tables_page(f"{len(runs)} runs", f"testtime · {self.family}", names, self.compared(runs))

    def precisions(self, request: Request) -> tuple[Precision, ...]:
        """Return the precisions that the experiment can compute in; an experiment without autocast has one."""
        return ("float32", "bfloat16")

    def setting(self, request: Request, name: str) -> Any:
        """Return the value of a setting of the family, or its default."""
        return request.settings.get(name, self.settings[name])

    def check_settings(self, request: Request) -> None:
        """Refuse what the experiment has no use for, and settings of another kind than their defaults, with a ValueError."""
        for name in self.unused:
            if (given := getattr(request, name)) != getattr(type(request), name):
                raise ValueError(f"{self.name} has no use for --{name} ({given}); leave it out")
        for name, value in request.settings.items():
            check_name(f"setting of {self.name}", name, self.settings)
            form = self.forms.get(name, self.settings[name])
            if form is not None and not _alike(value, form):
                expected = f"expected the setting {name} in the form of {form!r}"
                hint = f"; a list is JSON: '{name}={json.dumps(form[:1])}'" if isinstance(form, list) else ""
                raise ValueError(f"{self.name}: {expected}, got {value!r}{hint}")
            if (twice := _repeated(value)) and not _repeated(form):
                raise ValueError(f"{self.name}: the setting {name} has {twice[0]!r} twice; give it once")

    def check_machine(self, say: Callable[[str], None]) -> None:  # noqa: B027 - nothing to check by default
        """Refuse a run for which packages are missing with an ImportError, and say to a person what will be slow."""

    def chosen_rows(self, rows: Sequence[Row], request: Request) -> list[Row]:
        """Return those of the rows that the request names, the base rows, and one for each own method.

        Rows are named by their labels in any spelling, or by a method (``about["method"]``) that is no row's label. The row of
        an own method has the label of its class, and the import path or entry point as ``about["method"]``.

        Raises:
            ValueError: there is no row of this name.
        """
        from testtime.build import find_method

        own, taken = [], {row.label for row in rows}
        for name in request.methods:
            label = find_method(name).label
            own.append(Row(f"{label} ({name})" if label in taken else label, about={"method": name}))
            taken.add(label)
        if request.rows is None:
            return [*rows, *own]
        labels = {_bare(row.label) for row in rows}
        spelled = [{_bare(row.label), *({_bare(row.about.get("method") or "")} - labels)} for row in rows]
        for name in request.rows:
            if not any(_bare(name) in names for names in spelled):
                known = [row.label for row in rows]
                meant = did_you_mean(name, known)
                raise ValueError(f"{self.name} has no row {name!r}{meant}; its rows are {', '.join(known)}")
        wanted = {_bare(name) for name in request.rows}
        return [
            *(r for r, names in zip(rows, spelled, strict=True) if wanted & names or r.role == "base"),
            *own,
        ]


def _repeated(value: Any) -> list[Any]:
    """The items of a list that are in it before."""
    return [item for i, item in enumerate(value) if item in value[:i]] if isinstance(value, list) else []


def _alike(value: Any, form: Any) -> bool:
    """Whether a value is of the kind of another: whole numbers are numbers, and the items of a list are as its first.

    >>> _alike(1, 0.5), _alike(1.5, 1), _alike(True, 1), _alike(["fog", 3], ["snow"]), _alike(1, {})
    (True, False, False, False, True)
    """
    kinds = ((bool,), (int,), (int, float), (str,), (list, tuple))
    kind: Any = next((kind for kind in kinds if isinstance(form, kind)), None)
    if kind is None:
        return True  # of no kind that is checked
    if not isinstance(value, kind) or isinstance(value, bool) != isinstance(form, bool):
        return False
    return kind != (list, tuple) or not form or all(_alike(item, form[0]) for item in value)


def _bare(label: str) -> str:
    """A label without case, spaces, hyphens and an inner "+"; a final one counts.

    >>> _bare("PAF+KIP") == _bare("paf-kip") == _bare("PAFKIP"), _bare("UniEntPlus") == _bare("UniEnt+"), _bare("UniEnt")
    (True, True, 'unient')
    """
    kept = "".join(c for c in label.lower() if c.isalnum() or c in "+.=").replace("plus", "+")
    return kept[:-1].replace("+", "") + kept[-1:]
