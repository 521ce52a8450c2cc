"""Readers of published data: ETT, the buses of Montevideo, and the atomic files of LibCity (PeMS, NYCTaxi, T-Drive)."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from testtime.data.files import AGAIN, need_choice, need_file
from testtime.errors import DataError, did_you_mean
from testtime.files import damaged, read_json
from testtime.forecasting.series import SHARES, Series, equal_steps, read_csv

__all__ = ["read_buses", "read_ett", "read_libcity"]

ETT = {"ETTh1": 1, "ETTh2": 1, "ETTm1": 4, "ETTm2": 4}  # rows of an hour
MONTH = 30 * 24  # hours
STATES = {".dyna": ("entity_id",), ".grid": ("row_id", "column_id")}
UNREAD = {".od": "flows between pairs", ".gridod": "flows between pairs of cells"}


def read_ett(root: str | Path, name: str = "ETTh1") -> Series:
    """Read a transformer of ETT from its CSV file, with the usual parts of 12, 4 and 4 months of 30 days.

    Args:
        root: folder of the file, or the one that contains it as ``ETT-small`` or ``ett``.
        name: "ETTh1", "ETTh2" (hourly), "ETTm1" or "ETTm2" (every 15 minutes).

    Raises:
        ValueError: there is no such name.
        DataError: the file is missing or damaged.

    Source: Zhou et al., Informer, AAAI 2021; github.com/zhouhaoyi/ETDataset, CC BY-ND 4.0.
    """
    need_choice(name, ETT, "name")
    root, month = Path(root), MONTH * ETT[name]
    places = [folder / f"{name}.csv" for folder in (root, root / "ETT-small", root / "ett")]
    path = need_file(places, f"{name}.csv of github.com/zhouhaoyi/ETDataset")
    series = read_csv(path, "date", train=12 * month, validation=4 * month)
    return replace(series, values=series.values[: 20 * month])


def read_buses(root: str | Path) -> Series:
    """Read the passengers at 675 bus stops of Montevideo, hourly for a month, with the graph of the lines.

    An edge between two stops weighs :math:`\\exp(-d^2 / \\sigma^2)` for the distance d in metres that the file gives and its
    standard deviation sigma.

    Args:
        root: folder of ``montevideo_bus.json``, or the one that contains it as ``buses``.

    Raises:
        DataError: the file is missing or damaged.

    Source: PyTorch Geometric Temporal (Rozemberczki et al., CIKM 2021); data of Uruguay's open-data catalogue.
    """
    name = "montevideo_bus.json"
    path = need_file(
        [Path(root) / name, Path(root) / "buses" / name], f"{name} of PyTorch Geometric Temporal"
    )
    shape = {"nodes": [dict], "links": [dict]}
    content = read_json(path, AGAIN, shape)
    with damaged(path, AGAIN):
        nodes, links = content["nodes"], content["links"]
        values = torch.tensor([node["y"] for node in nodes], dtype=torch.float32).T.contiguous()
        at = {node["bus_stop"]: i for i, node in enumerate(nodes)}
        edges = [(at[e["source"]], at[e["target"]], float(e["weight"])) for e in links]
    train, validation = (int(share * len(values)) for share in SHARES)
    names = tuple(str(node["bus_stop"]) for node in nodes)
    first, hour = datetime(2020, 10, 1, tzinfo=UTC), timedelta(hours=1)
    return Series("buses", values, names, first, hour, train, validation, _kernel(len(nodes), edges))


def _kernel(nodes: int, edges: list[tuple[int, int, float]]) -> Tensor:
    """Symmetric weights (D, D) of edges by a Gaussian of their lengths; 1 for all where the lengths do not differ."""
    lengths = np.array([length for _, _, length in edges])
    spread = float(lengths.std()) if len(edges) else 0.0
    graph = torch.zeros(nodes, nodes)
    for a, b, length in edges:
        weight = math.exp(-((length / spread) ** 2)) if spread > 0 else 1.0
        graph[a, b] = graph[b, a] = max(weight, float(graph[a, b]))
    return graph


def read_libcity(root: str | Path, name: str, measure: str | None = None) -> Series:
    """Read a data set in LibCity's atomic files: states of sensors (PeMS) or of the cells of a grid (NYCTaxi, T-Drive).

    ``NAME.dyna`` has a row (dyna_id, type, time, entity_id, measures...) for each sensor and time, ``NAME.grid`` one
    (dyna_id, type, time, row_id, column_id, measures...) for each cell and time. ``NAME.rel``, where it is there, gives the
    graph: its ``link_weight``, or 1 for every edge.

    Args:
        root: folder of these files, or the one that contains it as NAME.
        name: name of the data set, such as "PEMSD4" or "NYCTAXI20140112".
        measure: name of a measure, such as "traffic_flow" or "inflow"; None takes all, sensor after sensor.

    Raises:
        DataError: files are missing or damaged, a sensor lacks a time, or there is no such measure.

    Source: Wang et al., LibCity, SIGSPATIAL 2021. Parts of 60, 20 and 20 %, as in ADCSD's experiments with traffic.
    """
    folder = next((f for f in (Path(root), Path(root) / name) if any(f.glob(f"{name}.*"))), Path(root))
    path = next((p for end in STATES if (p := folder / f"{name}{end}").is_file()), None)
    if path is None:
        others = [end for end in UNREAD if (folder / f"{name}{end}").is_file()]
        what = f"{folder / name}{others[0]} holds {UNREAD[others[0]]}, which are not read" if others else ""
        raise DataError(f"{what or folder / f'{name}.dyna or .grid: no such file'}; expected states by time")
    keys = STATES[path.suffix]
    measures: list[str] = []
    entities: dict[tuple[str, ...], list[list[float]]] = {}
    times: dict[tuple[str, ...], list[tuple[int, str]]] = {}
    for line, row in _rows(path, ("time", *keys)):
        measures = measures or _measures(path, row, keys, measure)
        key = tuple(row[k] for k in keys)
        with damaged(Path(f"{path}, line {line}"), AGAIN):
            entities.setdefault(key, []).append([float(row[m]) for m in measures])
        times.setdefault(key, []).append((line, row["time"].replace("Z", "+00:00")))
    if not entities:
        raise DataError(f"{path}: no rows below the line of names; {AGAIN}")
    values, start, step = _aligned(path, entities, times)
    names = [" ".join([*key, m] if len(measures) > 1 else key) for key in entities for m in measures]
    train, validation = (int(share * len(values)) for share in SHARES)
    graph = _relations(folder / f"{name}.rel", [key[0] for key in entities], len(measures), len(keys))
    return Series(name, values, tuple(names), start, step, train, validation, graph)


def _rows(path: Path, needed: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a file by the names of its first line."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        absent = [name for name in needed if name not in (reader.fieldnames or ())]
        if absent:
            raise DataError(f"{path}: no column {absent[0]!r}; it has {', '.join(reader.fieldnames or ())}")
        for row in reader:
            if None in row or None in row.values():
                raise DataError(
                    f"{path}, line {reader.line_num}: another number of fields than names; {AGAIN}"
                )
            yield reader.line_num, row


def _measures(path: Path, row: dict[str, str], keys: tuple[str, ...], measure: str | None) -> list[str]:
    found = [name for name in row if name not in ("dyna_id", "type", "time", *keys)]
    if measure is not None and measure not in found:
        raise DataError(
            f"{path}: no measure {measure!r}{did_you_mean(measure, found)}; it has {', '.join(found)}"
        )
    if not found:
        raise DataError(f"{path}: no column of a measure beside {', '.join(row)}; {AGAIN}")
    return found if measure is None else [measure]


def _aligned(path: Path, entities: dict[Any, list[list[float]]], times: dict[Any, Any]) -> tuple[Any, ...]:
    """The values (T, D) of all entities, whose times must be the same and equally spaced."""
    first = next(iter(times))
    expected = [text for _, text in times[first]]
    if len(expected) < 2:
        raise DataError(f"{path}: {' '.join(first)} has {len(expected)} time; expected two or more")
    for key, found in times.items():
        if [text for _, text in found] != expected:
            raise DataError(
                f"{path}: {' '.join(key)} has other times than {' '.join(first)} ({len(found)} against {len(expected)}); "
                "expected the same times for each"
            )
    values = np.asarray(list(entities.values()), np.float32)  # (entities, T, measures)
    if not np.isfinite(values).all():
        raise DataError(f"{path}: a value is missing or infinite; fill it first")
    flat = values.transpose(1, 0, 2).reshape(values.shape[1], -1)
    return torch.from_numpy(np.ascontiguousarray(flat)), *equal_steps(path, times[first])


def _relations(path: Path, names: list[str], measures: int, keys: int) -> Tensor | None:
    """The graph (D, D) of a file of relations between sensors, or None where there is none, or several values a sensor."""
    if keys > 1 or measures > 1 or not path.is_file():
        return None
    at, graph = {name: i for i, name in enumerate(names)}, torch.zeros(len(names), len(names))
    for line, row in _rows(path, ("origin_id", "destination_id")):
        with damaged(Path(f"{path}, line {line}"), AGAIN):
            a, b = at[row["origin_id"]], at[row["destination_id"]]
            graph[a, b] = float(row.get("link_weight", 1.0))
    return graph
