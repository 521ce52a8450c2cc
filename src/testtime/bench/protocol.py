"""A protocol says what was run: data, order, batches, methods and their arguments; and what was published."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from testtime.adapter import Adapter
from testtime.bench.sets import SETS
from testtime.build import nested_arguments
from testtime.corruptions import CORRUPTIONS, EXTRA
from testtime.data import sha256_of
from testtime.errors import did_you_mean, unknown_name
from testtime.methods import METHODS
from testtime.wrap import ResetEvery

ORDERS = (
    "continual",
    "gradual",
    "mixed",
    "correlated",
    "mixed-correlated",
    "label-shift",
    "wandering",
)

__all__ = ["Column", "Figures", "Protocol", "Row"]

Figures = tuple[float | None, float | None, float | None]  # accuracy, AUROC, H-score, in percent


@dataclass(frozen=True)
class Row:
    """A method of a table, with its arguments.

    Args:
        label: as the table calls it.
        method: the class in `testtime.methods`.
        arguments: what it is built with beside model, classes and seed; the others are the method's defaults.
        reset_every: steps after which it begins anew; never unless given.
    """

    label: str
    method: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    reset_every: int | None = None

    @property
    def spoken(self) -> dict[str, str]:
        """What it differs in from the method's defaults, as text."""
        said = {name: spoken(value) for name, value in sorted(self.arguments.items())}
        return said | ({"reset every": str(self.reset_every)} if self.reset_every else {})

    @property
    def slug(self) -> str:
        """The label as a word: for the command line and for folders.

        >>> Row("PAF+KIP", "PAFKIP").slug, Row("UniEnt+", "UniEntPlus").slug
        ('paf-kip', 'unient+')
        """
        return slug(self.label)

    @property
    def available(self) -> bool:
        """Whether this version of the library has the method."""
        return self.method in METHODS

    @property
    def code(self) -> str:
        """The SHA-256 of the method's file: which version of it was run."""
        import testtime.methods

        return sha256_of(inspect.getfile(getattr(testtime.methods, self.method)))

    def build(self, model: nn.Module, classes: int, seed: int) -> Adapter:
        """The adapter on a model."""
        import testtime.methods

        cls = getattr(testtime.methods, self.method)
        takes = inspect.signature(cls.__init__).parameters
        given = {k: v for k, v in {"classes": classes, "seed": seed}.items() if k in takes}
        adapter: Adapter = cls(model, **{**given, **nested_arguments(cls, self.arguments)})
        return ResetEvery(adapter, self.reset_every) if self.reset_every else adapter


@dataclass(frozen=True)
class Column:
    """A setting of a table: which open set, how large a batch, how many unknown.

    Args:
        name: as the table calls it.
        open_set: a key of `testtime.bench.sets.SETS`, or None for a closed set alone.
        batch_size: known and unknown together.
        ratio: unknown for each known.
        note: remark on the results in this setting, for the report.

    Raises:
        ValueError: a batch without images, or a ratio that is not above 0.
    """

    name: str
    open_set: str | None
    batch_size: int = 200
    ratio: float = 1.0
    note: str = ""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"a batch holds at least 1 image, got batch_size {self.batch_size}")
        if not self.ratio > 0:
            raise ValueError(f"ratio is a number above 0, got {self.ratio}; leave out the open set for none")


@dataclass(frozen=True)
class Protocol:
    """What a paper ran, so that its table is one command.

    Args:
        name: for the command line.
        title: what it shows.
        closed: the closed set, a key of `testtime.bench.sets.SETS`.
        model: the source model, a key of `testtime.models.MODELS`.
        rows: methods.
        columns: settings.
        corruptions: the domains in their order.
        severity: 1 to 5.
        rounds: how often the domains come (4 rounds of 15 are 60 shifts).
        order: "continual", "gradual", "mixed", "correlated", "mixed-correlated", "label-shift" or "wandering".
        target, pace: of a wandering stream: the accuracy of the source model that it keeps to, in [0, 1], and the
            images at each of its pairs of severities. It is as long as the others: ``limit`` for each corruption.
        speed: how many batches arrive while the source model answers one; a method that is slower misses some, and the
            source model answers them. None waits for the method.
        reset: whether the adapter begins every domain as it was born; else there is never a reset.
        returns: whether the clean images come at last.
        limit: closed-set images for each domain; None is all.
        slow_limit: the same for methods of more than 20 forwards a batch.
        seeds: of order and methods.
        published: figures of the source by row label and column name.
        latency: published seconds for each batch by row label.
        source: where they are from.
        note: what is different here.
    """

    name: str
    title: str
    closed: str
    model: str
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    corruptions: tuple[str, ...] = CORRUPTIONS
    severity: int = 5
    rounds: int = 1
    order: str = "continual"
    target: float | None = None
    pace: int | None = None
    speed: float | None = None
    reset: bool = False
    returns: bool = False
    limit: int | None = None
    slow_limit: int | None = None
    seeds: tuple[int, ...] = (0,)
    published: Mapping[str, Mapping[str, Figures]] = field(default_factory=dict)
    latency: Mapping[str, float] = field(default_factory=dict)
    source: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        counts = {
            "limit": self.limit,
            "slow_limit": self.slow_limit,
            "rounds": self.rounds,
            "pace": self.pace,
        }
        for name, value in counts.items():
            if value is not None and value < 1:
                raise ValueError(f"{name} is a whole number from 1, got {value}")
        if self.severity not in range(1, 6):
            raise ValueError(f"severity is a whole number from 1 to 5, got {self.severity}")
        if self.order not in ORDERS:
            raise unknown_name("order", self.order, ORDERS)
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds are different whole numbers from 0, at least one; got {self.seeds}")
        for column in self.columns:
            if column.open_set is not None and round(column.batch_size / (1 + column.ratio)) < 1:
                raise ValueError(
                    f"a batch of {column.batch_size} with {column.ratio:g} unknown for each known image holds no known one; "
                    "take a larger batch, or no open set"
                )
        for corruption in self.corruptions:
            if corruption not in CORRUPTIONS + EXTRA:
                raise unknown_name("corruption", corruption, CORRUPTIONS + EXTRA)
        if self.order == "wandering" and (self.target is None or self.pace is None):
            raise ValueError(
                "a wandering stream needs a target and a pace; take the protocol field-wandering"
            )

    def narrowed(
        self,
        methods: list[str] | None = None,
        open_sets: list[str] | None = None,
        batch_size: int | None = None,
        **changes: Any,
    ) -> Protocol:
        """The protocol with some of its methods, other open sets, another batch size or other fields.

        Args:
            methods: row labels, or classes that are nobody's label, in any spelling of case and hyphens.
            open_sets: keys of `testtime.bench.sets.SETS`, or "none" for the closed set alone.
            batch_size: of every column.
            changes: other fields.

        Raises:
            ValueError: it has no such method, there is no such open set, or a value is out of its range.
        """
        rows, columns = self.rows, self.columns
        if methods == [] or open_sets == []:
            raise ValueError(
                "the list of methods or open sets is empty; leave it out to take the protocol's own"
            )
        if methods is not None:
            labels, classes = ({_plain(getattr(row, what)) for row in rows} for what in ("label", "method"))
            unknown = [m for m in methods if _plain(m) not in labels | classes]
            if unknown:
                has = [row.slug for row in rows]
                meant = did_you_mean(unknown[0], has)
                raise ValueError(
                    f"{self.name} has no method {', '.join(unknown)}{meant}; it has {', '.join(has)}"
                )
            wanted = {_plain(m) for m in methods}
            rows = tuple(
                row for row in rows if {_plain(row.label), *({_plain(row.method)} - labels)} & wanted
            )
        if open_sets is not None:
            for name in open_sets:
                if name != "none" and name not in SETS:
                    raise unknown_name("data set", name, ["none", *SETS])
            columns = tuple(column for name in open_sets for column in _with_open_set(columns, name))
        if batch_size is not None:
            columns = tuple(replace(column, batch_size=batch_size) for column in columns)
        return replace(self, rows=rows, columns=columns, **changes)


def _with_open_set(columns: tuple[Column, ...], name: str) -> list[Column]:
    """The columns of one open set; those of another with the set exchanged where a table has none."""
    same = [column for column in columns if column.open_set == (None if name == "none" else name)]
    if same:
        return same
    if name == "none":
        return [replace(columns[0], name="closed set", open_set=None, note="")]
    settings = {(column.batch_size, column.ratio): column for column in columns}
    if len(settings) == 1:
        return [replace(columns[0], name=name, open_set=name, note="")]
    return [replace(c, name=f"{c.name} {name}", open_set=name, note="") for c in settings.values()]


def spoken(value: object) -> str:
    """An argument as text that is the same in every process: a function by its name, anything else as it prints.

    >>> spoken(len), spoken(0.1)
    ('builtins.len', '0.1')
    """
    name = getattr(value, "__qualname__", None)
    return f"{value.__module__}.{name}" if name else repr(value)


def _plain(label: str) -> str:
    """A name without case, hyphens and spaces; a final "+" counts."""
    kept = "".join(c for c in slug(label) if c not in "- _")
    return kept.replace("plus", "+")


def slug(label: str) -> str:
    """Turn a label into a word of small letters, digits, "+", "." and "-"; that of a method is the method's name."""
    names = {other: entry.name for cls, entry in METHODS.items() for other in (cls, entry.label)}
    if label in names:
        return names[label]
    kept = "".join(c if c.isalnum() or c in "+.=" else "-" for c in label.lower())
    return "-".join(part for part in kept.split("-") if part)
