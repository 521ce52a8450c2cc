"""Series at equal steps of time, with the borders of their parts, and the reader of CSV files."""

from __future__ import annotations

import csv
import hashlib
import math
import re
from calendar import monthrange
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from testtime.errors import DataError, did_you_mean

__all__ = ["Series", "read_csv", "windows_of"]

SHARES = (0.6, 0.2)  # of the training and of the validation rows
REMEDY = "resample the file to equal steps and fill or drop what is missing"
MONTH = timedelta(days=365.2425) / 12  # mean length in the Gregorian calendar
LARGEST = 1e30  # sums of so large values are finite in float32


@dataclass(frozen=True)
class Series:
    """Some series at equal steps of time.

    Args:
        name: name of the data.
        values: (T, D) observations, float32, all finite.
        columns: names of the D series.
        start: time of the first observation.
        step: time from one observation to the next; of calendar months their mean length, a twelfth of 365.2425 days.
        train, validation: number of rows of these parts, which come first, one at least for training; the rest is for the test.
        graph: (D, D) weights of edges between the series, or None.

    Raises:
        TypeError: the values are no floating-point tensor, or a part is no whole number of rows.
        DataError: the parts leave no row for training or for the test, a value is not finite, or numbers do not agree.
    """

    name: str
    values: Tensor
    columns: tuple[str, ...]
    start: datetime
    step: timedelta
    train: int
    validation: int
    graph: Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for part, count in {"train": self.train, "validation": self.validation}.items():
            if isinstance(count, bool) or not isinstance(count, Integral):
                raise TypeError(f"{self.name}: {part} is a number of rows, a whole one, got {count!r}")
        if not isinstance(self.values, Tensor) or not self.values.is_floating_point():
            got = self.values.dtype if isinstance(self.values, Tensor) else type(self.values).__name__
            raise TypeError(
                f"{self.name}: expected values (T, D) as a floating-point tensor, got {got}; convert them: "
                "torch.as_tensor(values, dtype=torch.float32)"
            )
        if self.values.dim() != 2 or self.values.shape[1] != len(self.columns):
            raise DataError(
                f"{self.name}: expected values (T, {len(self.columns)}), got shape {tuple(self.values.shape)}"
            )
        if min(self.train, self.validation) < 0 or self.train + self.validation >= len(self.values):
            raise DataError(
                f"{self.name}: {len(self.values)} rows, of which {self.train} are for training and {self.validation} for "
                "validation; expected some more for the test"
            )
        if not self.train:
            raise DataError(
                f"{self.name}: no row is for training; expected one or more, by which values are standardised"
            )
        if bad := (~self.values.isfinite()).any(1).nonzero()[:, 0].tolist():
            raise DataError(
                f"{self.name}: {len(bad)} rows hold NaN or infinity, first row {bad[0]}; {REMEDY}"
            )

    @property
    def mean(self) -> Tensor:
        """Mean (D,) of the training rows."""
        return self.values[: self.train].mean(0)

    @property
    def deviation(self) -> Tensor:
        """Standard deviation (D,) of the training rows; 1 for a series that is constant in them."""
        rows = self.values[: self.train]
        constant = (rows == rows[0]).all(0)  # rounding makes the deviation of a constant larger than zero
        return torch.where(constant, 1.0, rows.std(0, correction=0))

    def standardised(self) -> Tensor:
        """Return the values (T, D) less the mean of the training rows, divided by their deviation."""
        return (self.values - self.mean) / self.deviation

    def period(self, season: timedelta | None = None) -> int:
        """Return the number of observations in a season.

        Args:
            season: its length; None takes a day, and a year of 365.2425 days for steps of calendar months.

        Raises:
            TypeError: season is no span of time.
            ValueError: a season is no whole number of steps.
        """
        if season is None:
            season = timedelta(days=1) if self.step % MONTH else 12 * MONTH
        if not isinstance(season, timedelta):
            raise TypeError(f"season is a datetime.timedelta, such as timedelta(days=1), got {season!r}")
        if season % self.step or season < self.step:
            raise ValueError(
                f"{self.name}: a season of {season} is no whole number of steps of {self.step}; give the period as a number "
                "of observations"
            )
        return season // self.step

    def digest(self) -> str:
        """Return the SHA-256 of values, times, parts and graph."""
        facts = (self.columns, self.start.isoformat(), self.step.total_seconds(), self.train, self.validation)
        found = hashlib.sha256(repr(facts).encode())
        for tensor in (self.values, self.graph):
            found.update(b"" if tensor is None else tensor.contiguous().numpy().tobytes())
        return found.hexdigest()


def windows_of(values: Tensor, span: int) -> Tensor:
    """Return all windows of consecutive observations, in the order of time.

    Args:
        values: (T, D).
        span: number of observations of a window.

    Returns:
        (T - span + 1, span, D), a view.

    Raises:
        ValueError: there are fewer observations than a window has.

    >>> windows_of(torch.arange(4.0)[:, None], 3)[..., 0]
    tensor([[0., 1., 2.],
            [1., 2., 3.]])
    """
    if values.dim() != 2 or len(values) < span or span < 1:
        raise ValueError(f"expected at least {span} observations (T, D), got shape {tuple(values.shape)}")
    return values.unfold(0, span, 1).transpose(1, 2)


def read_csv(
    path: str | Path,
    time: str = "time",
    columns: Sequence[str] | None = None,
    train: int | None = None,
    validation: int | None = None,
) -> Series:
    """Read series from a CSV file with a column of times (ISO 8601) and a column for each series.

    Args:
        path: the file; its first line holds the names of the columns.
        time: name of the column of times.
        columns: names of the series to read, in this order; None reads all others.
        train: number of training rows; None for 60 %.
        validation: number of validation rows; None for 20 %.

    Raises:
        TypeError: columns is one text, or a part is no whole number of rows.
        DataError: there is no such file or column, a time or a value cannot be read, times do not increase, or steps are not
            equal; the message names the line and what to do.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected a CSV file of series with a column {time!r}")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            lines = [(reader.line_num, row) for row in reader if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: no CSV in UTF-8 ({error}); save it as comma-separated text") from error
    if not lines:
        raise DataError(f"{path}: the file is empty; expected a line of names and a line for each time")
    head, body = [name.strip() for name in lines[0][1]], lines[1:]
    wanted = _columns(path, head, time, columns)
    if len(body) < 2:
        raise DataError(f"{path}: expected at least two rows below the line of names, got {len(body)}")
    for number, row in body:
        if len(row) != len(head):
            raise DataError(f"{path}, line {number}: expected {len(head)} fields, got {len(row)}")
    at = head.index(time)
    start, step = equal_steps(path, [(line, row[at]) for line, row in body])
    values = np.empty((len(body), len(wanted)), np.float32)
    for j, name in enumerate(wanted):
        k = head.index(name)
        values[:, j] = [_number(path, line, name, row[k]) for line, row in body]
    train = int(SHARES[0] * len(body)) if train is None else train
    validation = int(SHARES[1] * len(body)) if validation is None else validation
    return Series(path.stem, torch.from_numpy(values), tuple(wanted), start, step, train, validation)


def _columns(path: Path, head: list[str], time: str, columns: Sequence[str] | None) -> list[str]:
    """The names of the series to read, checked against the first line."""
    double = sorted({name for name in head if head.count(name) > 1})
    if double:
        raise DataError(f"{path}: the column {double[0]!r} is there twice; give each its own name")
    if time not in head:
        meant = did_you_mean(time, head) or f"; it has {', '.join(head[:8])}"
        remedy = "rename the column of times, or give its name as time= of read_csv"
        if mark := re.search(r"[;\t|]", ",".join(head)):
            meant = ""
            remedy = f"its fields are separated by {mark[0]!r}: save it with commas, and numbers with decimal points"
        raise DataError(f"{path}: no column {time!r}{meant}; {remedy}")
    if isinstance(columns, str):
        raise TypeError(f"columns is a list of names, got {columns!r}; one name is a list too: [{columns!r}]")
    wanted = [name for name in head if name != time] if columns is None else list(dict.fromkeys(columns))
    for name in wanted:
        if name not in head or name == time:
            raise DataError(f"{path}: no series {name!r}{did_you_mean(name, head)}; it has {', '.join(head)}")
    if not wanted:
        raise DataError(f"{path}: no series beside the column {time!r}; expected one column for each")
    return wanted


def _number(path: Path, line: int, name: str, text: str) -> float:
    if not text.strip():
        raise DataError(f"{path}, line {line}: no value of {name!r}; {REMEDY}")
    try:
        value = float(text.replace("_", "x"))  # Python takes 1_000 for a thousand, other programs do not
    except ValueError:
        raise DataError(
            f"{path}, line {line}: expected a number of {name!r}, got {text!r}; write it as 1234.5"
        ) from None
    if not math.isfinite(value):
        raise DataError(f"{path}, line {line}: {name!r} is {text.strip()}; {REMEDY}")
    if abs(value) > LARGEST:
        raise DataError(
            f"{path}, line {line}: {name!r} is {text.strip()}, above {LARGEST:g} in size; choose a larger unit"
        )
    return value


def equal_steps(path: Path, texts: Iterable[tuple[int, str]]) -> tuple[datetime, timedelta]:
    """Return the first time and the step of times that are equally spaced, also by calendar months.

    Months apart are times of the same day of a month, or of the last, such as 2024-01-31 and 2024-02-29.

    Args:
        path: the file, for messages.
        texts: lines and their times in ISO 8601, at least two.

    Raises:
        DataError: a time cannot be read, some have a time zone and others not, times do not increase, or there is a gap.
    """
    lines, times = [], []
    for line, text in texts:
        try:
            found = datetime.fromisoformat(text.strip())
        except ValueError:
            raise DataError(
                f"{path}, line {line}: expected a time in ISO 8601 such as 2016-07-01 00:00:00, got {text!r}"
            ) from None
        lines.append(line)
        times.append(found)
        if (found.tzinfo is None) != (times[0].tzinfo is None):
            raise DataError(
                f"{path}, line {line}: {text.strip()} has {'a' if found.tzinfo else 'no'} time zone, unlike the first time; "
                "give all times one, or none"
            )
    times = [time if time.tzinfo else time.replace(tzinfo=UTC) for time in times]
    calendar = _same_days(times)
    steps: list[Any] = [_months(a, b) if calendar else b - a for a, b in pairwise(times)]
    step = sorted(steps)[len(steps) // 2]  # the usual one
    unit = " month(s)" if calendar else ""
    for line, time, before, after in zip(lines[1:], times[1:], times, steps, strict=False):
        if time <= before:
            what = "is before that of the row above; sort the rows by time"
            what = what if time < before else "is there twice; keep one of the two rows"
            raise DataError(f"{path}, line {line}: the time {time} {what}")
        if after != step:
            kind = "a gap" if after > step and not after % step else "an irregular step"
            raise DataError(
                f"{path}, line {line}: {kind} of {after}{unit} where the usual step is {step}{unit}; {REMEDY} (pandas: "
                "frame.resample(...).interpolate())"
            )
    return times[0], step * MONTH if calendar else step


def _months(a: datetime, b: datetime) -> int:
    return 12 * (b.year - a.year) + b.month - a.month


def _same_days(times: Sequence[datetime]) -> bool:
    """Whether all times are at the same hour of the same day of a month, or of the last one, by their own clocks."""
    last = all(time.day == monthrange(time.year, time.month)[1] for time in times)
    return len({time.time() for time in times}) == 1 and (last or len({time.day for time in times}) == 1)
