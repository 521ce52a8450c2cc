"""What a run is asked for, as a value and as a TOML file: ``run.toml`` in the folder of every run."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from testtime.errors import DataError, check_name, unknown_name
from testtime.files import damaged
from testtime.toml import AGAIN, read_toml, write_toml

__all__ = ["Request"]

LARGEST_SEED = 2**32 - 1  # what every generator takes
PRECISIONS = ("auto", "float32", "bfloat16")
SEVERAL = ("seeds", "rows", "methods")
FIXED = (
    "experiment",
    "limit",
    "device",
    "precision",
    "model",
)  # what all commands on a folder have in common
KINDS: Mapping[str, tuple[type, str]] = {
    "seeds": (int, "a list of whole numbers"),
    **dict.fromkeys(("rows", "methods"), (str, "a list of strings")),
    "limit": (int, "a whole number"),
    **dict.fromkeys(("experiment", "device", "precision", "data", "model", "token"), (str, "a string")),
}


@dataclass(frozen=True)
class Request:
    """What a run is asked for; ``run.toml`` holds these fields by name.

    Args:
        experiment: name of the experiment.
        seeds: random seeds; None takes the experiment's.
        rows: labels of some rows; None takes all.
        methods: own methods that get a row: "package.module:Class", or names of entry points ``testtime.methods``.
        limit: images of each domain, or another count that the family names; None takes all.
        device: device of the networks.
        precision: "float32" or "bfloat16"; "auto" is resolved when the run starts.
        data: folder of data sets and weights on this machine.
        model: source model instead of the experiment's: a name, a file of weights, "timm:NAME" or "hf:NAME".
        settings: settings of the family, numbers, strings, truth values and lists of them.
        token: random word of the run folder, for units that belong to one run alone, such as a baseline of time.
    """

    experiment: str
    seeds: tuple[int, ...] | None = None
    rows: tuple[str, ...] | None = None
    methods: tuple[str, ...] = ()
    limit: int | None = None
    device: str = "cpu"
    precision: str = "auto"
    data: str = ".data"
    model: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    token: str = ""

    def __post_init__(self) -> None:
        for name, (kind, form) in KINDS.items():
            value = getattr(self, name)
            if isinstance(value, list | range) and name in SEVERAL:
                value = tuple(value)
                object.__setattr__(self, name, value)
            parts = value if name in SEVERAL else (value,)
            if value is not None and not (isinstance(parts, tuple) and all(type(p) is kind for p in parts)):
                raise ValueError(f"expected {name} as {form}, got {value!r}")
        if not isinstance(self.settings, Mapping):
            raise ValueError(f"expected settings as a table of names and values, got {self.settings!r}")
        seeds = (0,) if self.seeds is None else self.seeds
        if not seeds or len({*seeds}) < len(seeds) or min(seeds) < 0:
            raise ValueError(f"expected different seeds from 0, at least one, got {self.seeds}")
        if max(seeds) > LARGEST_SEED:
            raise ValueError(f"expected seeds up to {LARGEST_SEED}, got {max(seeds)}")
        check_name("precision", self.precision, PRECISIONS)
        if self.rows is not None and not self.rows:
            raise ValueError("the list of rows is empty; leave it out to take all of the experiment's")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"expected a limit from 1, got {self.limit}")

    @classmethod
    def read(cls, path: str | Path) -> Request:
        """Read a TOML file.

        Raises:
            FileNotFoundError: there is no such file.
            DataError: it is no TOML, or has another key than the fields of a request, or a value of another type.
        """
        content = read_toml(path)
        known = sorted(f.name for f in fields(cls))
        for name in content:
            if name not in known:
                raise DataError(f"{path}: {unknown_name('key', name, known)}")
        with damaged(path, AGAIN):
            if "experiment" not in content:
                raise ValueError("expected the key experiment, a name of testtime list")
            return cls(**content)

    def write(self, path: str | Path) -> Path:
        """Write the TOML file from which :meth:`read` makes an equal request."""
        found = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "settings"}
        content = {name: value for name, value in found.items() if value not in (None, "", ())}
        return write_toml(path, {**content, **({"settings": dict(self.settings)} if self.settings else {})})

    def joined(self, before: Request) -> Request:
        """Return the request of a folder that holds an earlier run: rows and seeds of both.

        Raises:
            ValueError: another setting differs; the message names it.
        """
        for name in (*FIXED, *sorted({*self.settings, *before.settings})):
            pair = [getattr(r, name) if name in FIXED else r.settings.get(name) for r in (before, self)]
            if pair[0] != pair[1]:
                was, wanted = (f"the default {name}" if one is None else f"{name} {one}" for one in pair)
                what = f"the folder holds a run with {was}, this one has {wanted}"
                raise ValueError(f"{what}; give another folder with --out")
        rows = None
        if self.rows is not None and before.rows is not None:
            rows = tuple(dict.fromkeys((*before.rows, *self.rows)))
        seeds = tuple(sorted({*(before.seeds or ()), *(self.seeds or ())}))
        methods = tuple(dict.fromkeys((*before.methods, *self.methods)))
        return replace(self, rows=rows, seeds=seeds, methods=methods, token=before.token)

    def started(self, seeds: tuple[int, ...], precision: str) -> Request:
        """Return the request with everything resolved that may be left open."""
        token = self.token or secrets.token_hex(4)
        return replace(self, seeds=self.seeds or seeds, precision=precision, token=token)
