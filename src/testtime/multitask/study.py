"""Studies: rows of methods, seeds and shifted domains, run cell by cell, resumable, every cell a file.

A row says which source model it needs and which adapter goes over it. Rows that need the same source model share one
training. Learning rates are chosen on a *validation* shift of unseen source houses, never on the target.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from testtime.adapter import Adapter
from testtime.data.dense import DenseSet
from testtime.files import check_shape, damaged, read_json, slug, write_json
from testtime.methods import Source
from testtime.models.multitask import MultiTaskNet
from testtime.multitask.presets import PRESETS, Preset
from testtime.multitask.protocol import RELEASED, Protocol, follow
from testtime.multitask.training import load_trained, train
from testtime.progress import progress
from testtime.workers import start_worker, worker_pool

__all__ = [
    "Cell",
    "Row",
    "Study",
    "arriving",
    "chosen_rate",
    "make_adapter",
    "read_cells",
    "run_study",
    "slug",
    "source_model",
    "train_sources",
]

AGAIN = "delete it and run the same command again"
CELL = {
    **dict.fromkeys(("row", "domain", "preset"), str),
    "seed": int,
    "steps": [int],
    "values": dict,
    "higher_is_better": dict,
    **dict.fromkeys(("rate", "parameters", "seconds"), (float, type(None))),
}
RATE = {"rate": float, "tried": dict}

PREPARED = 512
"""Source images, at most, that an adapter is shown before the first batch."""

MakeModel = Callable[[MultiTaskNet, Preset], nn.Module]
MakeAdapter = Callable[[nn.Module, float, int], Adapter]


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        name: for people.
        source: names the source model; rows with the same name share its training.
        model: adds a branch to the plain network, or returns it as it is.
        adapter: of a trained model, a learning rate and a seed.
        rates: learning rates to choose from on the validation shift; the first is the default, one alone is not chosen.
        prepare: whether the adapter sees unlabelled source batches before the first batch.
    """

    name: str
    source: str
    model: MakeModel
    adapter: MakeAdapter
    rates: tuple[float, ...] = (0.0,)
    prepare: bool = False


@dataclass(frozen=True)
class Study:
    """What is compared, on what, and how.

    Attributes:
        name: of the command and the folder.
        title: of the table.
        rows: the first is the base that Delta_TTT is measured against.
        seeds: each trains its own source models and draws its own order of the target.
        protocol: what is adapted to and measured.
        domains: names of the preset's target domains.
        published: where the paper has it.
    """

    name: str
    title: str
    rows: tuple[Row, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    protocol: Protocol = RELEASED
    domains: tuple[str, ...] = ("target",)
    published: str = ""


@dataclass(frozen=True)
class Cell:
    """One row, one seed, one domain: names from which a process can build everything."""

    study: str
    row: str
    seed: int
    domain: str
    preset: str

    @property
    def file(self) -> str:
        """The file of its result."""
        return f"{slug(self.row)}--{slug(self.domain)}--{self.seed}.json"


def run_study(
    study: Study,
    preset: Preset,
    folder: str | Path,
    jobs: int = 1,
    seeds: Sequence[int] | None = None,
    rows: Sequence[str] | None = None,
    say: Callable[[str], None] = print,
) -> list[str]:
    """Train what is needed, choose learning rates, run the cells that are not done yet.

    Args:
        study: what.
        preset: how large; its data are made under the folder's parent and shared by all studies there.
        folder: results (``cells/*.json``); source models lie in ``models`` beside it, for other studies too.
        jobs: processes.
        seeds, rows: some of the study's; the base row is always run.
        say: is told what begins.

    Returns:
        what failed, one line each; the other cells are done.
    """
    folder = Path(folder)
    (folder / "cells").mkdir(parents=True, exist_ok=True)
    wanted = [r for r in study.rows if rows is None or r.name in rows or r is study.rows[0]]
    cells = [
        Cell(study.name, row.name, seed, domain, preset.name)
        for seed in (study.seeds if seeds is None else seeds)
        for domain in study.domains
        for row in wanted
    ]
    before = folder / "study.json"
    earlier = read_json(before, AGAIN).get("seeds", []) if before.is_file() else []
    about = {
        "study": study.name,
        "title": study.title,
        "published": study.published,
        "rows": [
            r.name for r in study.rows if r in wanted or any((folder / "cells").glob(f"{slug(r.name)}--*"))
        ],
        "seeds": sorted({*earlier, *(cell.seed for cell in cells)}),
        "protocol": asdict(study.protocol),
        "preset": preset.name,
        "domains": {name: asdict(preset.domain(name)) for name in ("source", "validation", *study.domains)},
    }
    write_json(folder / "study.json", about)
    for domain in ("source", "validation", *study.domains):
        say(f"data: {domain}")
        preset.domain(domain).prepare(folder.parent, jobs)
    failures = train_sources(
        study, preset, folder, [r.source for r in wanted], sorted({c.seed for c in cells}), jobs
    )
    tuned = [r for r in wanted if len(r.rates) > 1 and not _rate_file(r, folder).exists()]
    failures += _all(
        _choose, [(study.name, r.name, preset.name, folder) for r in tuned], jobs, "learning rates"
    )
    todo = [(c, folder) for c in cells if not (folder / "cells" / c.file).exists()]
    failures += _all(_run, todo, jobs, "cells")
    return failures


def train_sources(
    study: Study, preset: Preset, folder: Path, names: Sequence[str], seeds: Sequence[int], jobs: int = 1
) -> list[str]:
    """Train the source models of these names that are not there yet; what failed, one line each."""
    models = [(study.name, name, seed, preset.name, folder) for seed in seeds for name in sorted(set(names))]
    return _all(_train, models, jobs, "source models")


def read_cells(folder: str | Path) -> dict[tuple[str, str, int], dict[str, Any]]:
    """The results in a folder, by row, domain and seed.

    Raises:
        FileNotFoundError: there are none.
        DataError: a file is damaged.
    """
    files = sorted((Path(folder) / "cells").glob("*.json"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no cells; run the study first: testtime multitask bench")
    found = {}
    for file in files:
        cell = read_json(file, AGAIN, CELL, finite=False)
        with damaged(file, AGAIN):
            for task, series in cell["values"].items():
                check_shape(series, [(float, type(None))], task)
                if len(series) != len(cell["steps"]) or task not in cell["higher_is_better"]:
                    raise ValueError(f"the values of {task} do not fit the steps")
        found[cell["row"], cell["domain"], cell["seed"]] = cell
    return found


def source_model(
    study: Study, name: str, seed: int, preset: Preset, folder: Path, fresh: bool = False
) -> nn.Module:
    """The trained source model of a row (or an untrained one), from the folder's neighbours."""
    row = next(r for r in study.rows if r.source == name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = row.model(preset.network(), preset)
    return model if fresh else load_trained(model, _model_folder(folder, name, seed, preset))


def _model_folder(folder: Path, name: str, seed: int, preset: Preset) -> Path:
    return folder.parent / "models" / f"{preset.name}-{slug(name)}-{seed}"


def _train(study_name: str, name: str, seed: int, preset_name: str, folder: Path) -> None:
    study, preset = _study(study_name), PRESETS[preset_name]
    where = _model_folder(folder, name, seed, preset)
    if (where / "model.safetensors").exists():
        return
    begin = time.monotonic()
    model = source_model(study, name, seed, preset, folder, fresh=True)
    train(model, _data(preset, "source", folder), preset.recipe, where, seed)
    write_json(where / "about.json", {"seconds": time.monotonic() - begin, "parameters": _count(model)})


def _choose(study_name: str, row_name: str, preset_name: str, folder: Path) -> None:
    """Try the rates of a row on the validation shift, with the first seed's model, and keep the best at the last step."""
    study, preset = _study(study_name), PRESETS[preset_name]
    row = next(r for r in study.rows if r.name == row_name)
    seed = study.seeds[0]
    model = source_model(study, row.source, seed, preset, folder)
    data = arriving(_data(preset, "validation", folder), seed)
    protocol = replace(study.protocol, record_every=max(1, study.protocol.steps))
    tasks = preset.tasks
    base_row = study.rows[0]
    base_model = source_model(study, base_row.source, seed, preset, folder)
    base = follow(Source(base_model), data, tasks, replace(protocol, steps=0)).at(0)
    tried: dict[float, float | None] = {}
    for rate in row.rates:
        try:
            curve = follow(make_adapter(row, model, rate, seed, preset, folder), data, tasks, protocol)
            tried[rate] = curve.gains(base)[-1]
        except ArithmeticError:  # it has diverged: the rate is out, and the table says so
            tried[rate] = None
    held = {rate: gain for rate, gain in tried.items() if gain is not None}
    if not held:
        raise ArithmeticError(f"{row.name} diverges at every rate of {row.rates}; add lower ones to its row")
    best = max(held, key=held.__getitem__)
    write_json(_rate_file(row, folder), {"rate": best, "tried": {str(k): v for k, v in tried.items()}})


def _run(cell: Cell, folder: Path) -> None:
    study, preset = _study(cell.study), PRESETS[cell.preset]
    row = next(r for r in study.rows if r.name == cell.row)
    model = source_model(study, row.source, cell.seed, preset, folder)
    rate = _rate(row, folder)
    target = arriving(_data(preset, cell.domain, folder), cell.seed)
    adapter = make_adapter(row, model, rate, cell.seed, preset, folder)
    begin = time.monotonic()
    curve = follow(adapter, target, preset.tasks, study.protocol)
    result = {
        **asdict(cell),
        "source": row.source,
        "rate": rate,
        "steps": curve.steps,
        "values": curve.values,
        "higher_is_better": curve.higher_is_better,
        "parameters": _count(model),
        "seconds": time.monotonic() - begin,
    }
    write_json(folder / "cells" / cell.file, result)


def chosen_rate(row: Row, preset: Preset, folder: Path, study: Study) -> float:
    """The learning rate of a row, chosen now if it has not been."""
    if len(row.rates) > 1 and not _rate_file(row, folder).exists():
        _choose(study.name, row.name, preset.name, folder)
    return _rate(row, folder)


def _rate(row: Row, folder: Path) -> float:
    if len(row.rates) == 1:
        return row.rates[0]
    return float(read_json(_rate_file(row, folder), AGAIN, RATE, finite=False)["rate"])


def _rate_file(row: Row, folder: Path) -> Path:
    return folder / f"rate-{slug(row.name)}.json"


def arriving(data: DenseSet, seed: int) -> DenseSet:
    """The samples in the order in which a seed meets them, whatever house they are from."""
    return data.subset(torch.randperm(len(data), generator=torch.Generator().manual_seed(seed)).tolist())


def make_adapter(row: Row, model: nn.Module, rate: float, seed: int, preset: Preset, folder: Path) -> Adapter:
    """The adapter of a row, shown source batches where it wants them."""
    adapter = row.adapter(model, rate, seed)
    if row.prepare:
        source, size = _data(preset, "source", folder), preset.recipe.batch
        starts = range(0, min(PREPARED, len(source)) - size + 1, size)
        adapter.prepare(source.batch(range(i, i + size))[0] for i in starts)
    return adapter


def _study(name: str) -> Study:
    from testtime.multitask.studies import STUDIES

    return STUDIES[name]


@lru_cache(maxsize=4)
def _data(preset: Preset, domain: str, folder: Path) -> DenseSet:
    return preset.domain(domain).read(folder.parent)


def _count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _all(work: Callable[..., None], todo: Sequence[tuple[Any, ...]], jobs: int, title: str) -> list[str]:
    """Do all of it, in processes if there are several; what raises is reported, and the rest goes on."""
    failures: list[str] = []
    if jobs <= 1 or len(todo) <= 1:
        for arguments in progress(todo, len(todo), title):
            _attempt(failures, arguments, lambda arguments=arguments: work(*arguments))  # type: ignore[misc]
        return failures
    with worker_pool(jobs, _start) as pool:
        futures = {pool.submit(work, *arguments): arguments for arguments in todo}
        for future in progress(as_completed(futures), len(todo), title):
            _attempt(failures, futures[future], future.result)
    return failures


def _attempt(failures: list[str], arguments: tuple[Any, ...], call: Callable[[], Any]) -> None:
    try:
        call()
    except Exception as error:  # noqa: BLE001 - one method must not end the run of the others; it is reported
        what = ", ".join(str(a) for a in arguments if not isinstance(a, Path))
        failures.append(f"{what}: {type(error).__name__}: {error}")


def _start() -> None:
    start_worker()
    torch.set_num_threads(1)
