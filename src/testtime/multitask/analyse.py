"""The analyses of the S4T paper beside its tables, each one command: ``testtime multitask analyse NAME``.

They look at the networks that the study ``table1`` has trained (or train them, to the same folder), and leave a page and the
figures behind: the affinity of tasks (figure 6), the loss under masks (figure 7), parameters and time (tables 6 and 9), and,
which the paper does not have, whether every method moves the encoder where labels would.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from testtime.adapter import Adapter
from testtime.bench.page import definitions, deviation, document, figure, mean, show, table, write_page
from testtime.bench.svg import Series, line_chart
from testtime.files import write_json
from testtime.multitask.analysis import affinity, affinity_gap, direction, masked_losses
from testtime.multitask.presets import Preset
from testtime.multitask.protocol import loaded
from testtime.multitask.published import TABLE_9
from testtime.multitask.results import write_command
from testtime.multitask.studies import RATIOS, STUDIES
from testtime.multitask.study import arriving, chosen_rate, make_adapter, source_model, train_sources
from testtime.multitask.training import train
from testtime.progress import progress

__all__ = ["ANALYSES", "analyse"]

STUDY = STUDIES["table1"]
S4T, BN_ONLY = "S4T", "S4T's network, BN only"
DIRECTION_RATE = 1e-4
"""Small, so that the steps of all methods show where their losses point."""


def analyse(
    name: str,
    preset: Preset,
    folder: str | Path,
    seed: int = 0,
    jobs: int = 1,
    argv: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> Path:
    """Run an analysis and write its page.

    Args:
        name: one of :data:`ANALYSES`.
        preset: how large.
        folder: of all studies; data and networks are taken from there, and made if they are not there.
        seed: of the networks.
        jobs: processes that render and train.
        argv: the command, to be kept beside the result.
        say: is told what begins, and the result.

    Returns:
        the page; ``result.json`` lies beside it.

    Raises:
        ValueError: there is no such analysis.
    """
    if name not in ANALYSES:
        raise ValueError(f"no analysis {name!r}; there are {', '.join(ANALYSES)}")
    where = Path(folder) / f"analyse-{name}"
    where.mkdir(parents=True, exist_ok=True)
    result, page = ANALYSES[name](preset, Path(folder), seed, jobs, say)
    write_json(where / "result.json", {"preset": preset.name, "seed": seed, **result})
    write_command(where, argv)
    return write_page(where / "report.html", page)


def _affinity(
    preset: Preset, folder: Path, seed: int, jobs: int, say: Callable[[str], None]
) -> tuple[Any, str]:
    """Figure 6: is the affinity of the tasks, after adaptation, nearer to that of a network tuned on the target?"""
    target, other = (
        preset.domain("target"),
        replace(preset.domain("target"), first=preset.domain("target").first + 500),
    )
    for domain in (target, other):
        domain.prepare(folder, jobs)
    _sources(preset, folder, ["s4t"], seed, jobs)
    images = arriving(target.read(folder), seed)
    tuned = source_model(STUDY, "s4t", seed, preset, folder / STUDY.name)
    recipe = replace(preset.recipe, iterations=max(1, preset.recipe.iterations // 5), lr=preset.recipe.lr / 2)
    say(f"tuning on the labels of {other.houses} other houses of the target's style")
    train(tuned, other.read(folder), recipe, folder / "models" / f"{preset.name}-s4t-tuned-{seed}", seed)
    networks: dict[str, nn.Module] = {
        "before adaptation": source_model(STUDY, "s4t", seed, preset, folder / STUDY.name),
        **{f"after {row}": _adapted(row, preset, folder, seed, images) for row in (BN_ONLY, S4T)},
    }
    aim = affinity(tuned, images)
    found = {
        name: affinity(net, images) for name, net in progress(networks.items(), len(networks), "affinity")
    }
    gaps = {name: affinity_gap(one, aim) for name, one in found.items()}
    means = {name: _off_diagonal(gap) for name, gap in gaps.items()}
    for name, gap in means.items():
        say(f"mean gap {name}: {gap:.4f}")
    tasks = list(preset.tasks)
    result = {
        "tasks": tasks,
        "tuned": aim.tolist(),
        "affinity": {name: one.tolist() for name, one in found.items()},
        "mean_gap": means,
    }
    first, control, last = means.values()
    verdict = "closer to" if last < first else "farther from"
    lead = (
        f"After S4T the affinity of the tasks is {verdict} that of a network tuned on the target's style than before: the "
        f"mean gap goes from {first:.3f} to {last:.3f}. Estimating the BatchNorm statistics again, and no more, makes it "
        f"{control:.3f}."
    )
    darkest = max(gap.max().item() for gap in gaps.values()) or 1.0
    heat = "".join(
        figure(_heat(tasks, gap, darkest, 3), f"{escape(name)}, mean {means[name]:.3f}")
        for name, gap in gaps.items()
    )
    matrices = "".join(
        figure(_heat(tasks, one), escape(name))
        for name, one in {**found, "tuned on the target's style": aim}.items()
    )
    note = (
        '<p class="note">Affinity is the cosine between the latents of two tasks, averaged over the images of the target. The '
        "gap is its absolute difference to that of a network tuned, with labels, on other houses of the target's style; the "
        "mean is over pairs of different tasks. Figure 6 of the paper shows before and after; the control between is ours.</p>"
    )
    sections = [
        ("gap", "Gap", "The gap to a network tuned on the target", f'<div class="three">{heat}</div>{note}'),
        ("affinity", "Affinity", "The affinities themselves", f'<div class="three">{matrices}</div>'),
    ]
    return result, _page("Do the tasks relate as they should?", "affinity", preset, seed, lead, sections)


def _masks(preset: Preset, folder: Path, seed: int, jobs: int, say: Callable[[str], None]) -> tuple[Any, str]:
    """Figure 7: how much does the synchronizer lose when most of what it sees is hidden?"""
    domain = replace(preset.domain("source"), first=4000, houses=preset.domain("target").houses)
    domain.prepare(folder, jobs)
    _sources(preset, folder, ["s4t"], seed, jobs)
    model = source_model(STUDY, "s4t", seed, preset, folder / STUDY.name)
    found = masked_losses(model, domain.read(folder), progress(RATIOS, len(RATIOS), "mask ratios"))
    tasks = list(preset.tasks)
    relative = {name: [100 * found[r][name] / found[0.0][name] for r in RATIOS] for name in tasks}
    at = {name: values[RATIOS.index(0.9)] for name, values in relative.items()}
    for name in tasks:
        say(f"{name}: " + ", ".join(f"{r:g} {found[r][name]:.4f}" for r in RATIOS))
    worst = max(at, key=at.__getitem__)
    lead = (
        f"With nine tenths of the latent hidden, the synchronizer's loss is between {min(at.values()):.0f} and "
        f"{at[worst]:.0f} % of its loss with nothing hidden ({escape(worst)} suffers most). The paper says that it keeps over "
        "90 % of its performance there. It was trained with one ratio, "
        f"{preset.branch.get('ratio', 0.8):g}."
    )
    series = [Series(name, RATIOS, values, i) for i, (name, values) in enumerate(relative.items(), 1)]
    chart = line_chart(
        series,
        "Loss of the synchronizer by the share of tokens that is masked",
        "; ".join(f"{name}: {', '.join(f'{v:.0f}' for v in values)}" for name, values in relative.items()),
        "%",
        x_unit="mask ratio",
        height=300,
    )
    head = "".join(f'<th scope="col">{r:g}</th>' for r in RATIOS)
    rows = [
        f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td>{found[r][name]:.3f}</td>" for r in RATIOS)}</tr>'
        for name in tasks
    ]
    content = figure(chart, "Loss of every task, % of that at ratio 0") + table(
        "Loss of the synchronised outputs against the labels",
        f'<tr><th scope="col">task</th>{head}</tr>',
        rows,
    )
    note = f'<p class="note">On {domain.houses * domain.frames} images of source houses that no network has seen.</p>'
    result = {"ratios": list(RATIOS), "losses": {f"{r:g}": found[r] for r in RATIOS}}
    page = _page(
        "What does a mask cost?", "masks", preset, seed, lead, [("loss", "Loss", "The loss", content + note)]
    )
    return result, page


def _cost(
    preset: Preset, folder: Path, seed: int, jobs: int, say: Callable[[str], None], rounds: int = 20
) -> tuple[Any, str]:
    """Tables 6 and 9: parameters, and the time of a step as a multiple of a plain prediction, in one run, in turns."""
    preset.domain("target").prepare(folder, jobs)
    skip = {row.name for row in STUDY.rows if "network" in row.name}
    rows = [row for row in STUDY.rows if row.name not in skip]
    _sources(preset, folder, [row.source for row in rows], seed, jobs)
    models = {row.name: source_model(STUDY, row.source, seed, preset, folder / STUDY.name) for row in rows}
    adapters = {
        row.name: make_adapter(row, models[row.name], row.rates[0], seed, preset, folder / STUDY.name)
        for row in rows
    }
    x = next(loaded(preset.domain("target").read(folder), preset.tasks, STUDY.protocol.batch, "cpu"))[0]
    base = models[STUDY.rows[0].name]
    ratios: dict[str, list[float]] = {name: [] for name in adapters}
    for turn in progress(range(rounds + 2), rounds + 2, "rounds"):
        with torch.no_grad():
            plain = _seconds(base, x)
        for name, adapter in adapters.items():
            ratio = _seconds(adapter, x) / plain
            if turn >= 2:
                ratios[name].append(ratio)
    result = {
        name: {
            "parameters": sum(p.numel() for p in models[name].parameters()),
            "times_a_prediction": statistics.median(values),
        }
        for name, values in ratios.items()
    }
    size = result[STUDY.rows[0].name]["parameters"]
    body = []
    for name, cost in result.items():
        there = TABLE_9.get(name, {})
        more = f"{100 * (cost['parameters'] / size - 1):+.1f}"
        printed = [
            show(there.get("parameters", float("nan")), 2),
            show(there.get("seconds", float("nan")), 4),
        ]
        cells = [f"{cost['parameters'] / 1e6:.3f}", more, f"{cost['times_a_prediction']:.1f}", *printed]
        body.append(f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td>{c}</td>" for c in cells)}</tr>')
        say(f"{name}: {cost['parameters']:,} parameters, {cost['times_a_prediction']:.1f} times a prediction")
    heads = ("parameters, M", "against the base, %", "step, times a prediction", "paper, M", "paper, s")
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    ours = result[S4T]
    lead = (
        f"S4T adds {100 * (ours['parameters'] / size - 1):.1f} % of parameters, and a step of it takes "
        f"{ours['times_a_prediction']:.1f} times a plain prediction of the same {STUDY.protocol.batch} images."
    )
    note = (
        f'<p class="note">Median over {rounds} rounds, in each of which every row takes its turn on the same batch; a plain '
        "prediction is one forward of the base network without a graph. The last two columns are the paper's table 9: a "
        "ResNet-50, on an RTX A6000.</p>"
    )
    content = table("Parameters and time", f'<tr><th scope="col">row</th>{head}</tr>', body) + note
    page = _page(
        "What does a step cost?",
        "cost",
        preset,
        seed,
        lead,
        [("cost", "Cost", "Parameters and time", content)],
    )
    return {"rows": result}, page


def _direction(
    preset: Preset, folder: Path, seed: int, jobs: int, say: Callable[[str], None]
) -> tuple[Any, str]:
    """Why a method gains more or less than the statistics alone: the way it went, against the way labels would have sent it."""
    target = preset.domain("target")
    target.prepare(folder, jobs)
    rows = [row for row in STUDY.rows if len(row.rates) > 1]
    seeds = [s for s in STUDY.seeds if s >= seed]
    found: dict[str, list[dict[str, float]]] = {row.name: [] for row in rows}
    for one in seeds:
        _sources(preset, folder, [row.source for row in rows], one, jobs)
    cells = [(one, row) for one in seeds for row in rows]
    for one, row in progress(cells, len(cells), "directions"):
        images = arriving(target.read(folder), one)
        source = source_model(STUDY, row.source, one, preset, folder / STUDY.name)
        adapter = _adapted(row.name, preset, folder, one, images, DIRECTION_RATE)
        found[row.name].append(direction(adapter, source, images, preset.tasks))
    tasks = [*preset.tasks, "all"]
    means = {name: {t: mean([one[t] for one in many]) for t in tasks} for name, many in found.items()}
    spread = {name: deviation([one["all"] for one in many]) for name, many in found.items()}
    ranked = sorted(means, key=lambda name: -means[name]["all"])
    for name in ranked:
        say(f"{name}: " + ", ".join(f"{t} {means[name][t]:+.3f}" for t in tasks) + f" ±{spread[name]:.3f}")
    each = ", ".join(f"{one['all']:+.2f}" for one in found[S4T])
    lead = (
        f"The step of <strong>{escape(ranked[0])}</strong> is most like the one that labels would have taken: a cosine of "
        f"{means[ranked[0]]['all']:+.2f} over the encoder. S4T's is {means[S4T]['all']:+.2f} (by seed {each}); a random "
        "direction has 0."
    )
    body = [
        f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td>{means[name][t]:+.2f}</td>" for t in tasks)}'
        f"<td>±{spread[name]:.2f}</td></tr>"
        for name in ranked
    ]
    head = "".join(f'<th scope="col">{t}</th>' for t in (*tasks, "over seeds"))
    note = (
        '<p class="note">Cosine between what the encoder\'s weights did in '
        f"{STUDY.protocol.steps} steps at a rate of {DIRECTION_RATE:g} and the steepest descent of the labelled loss on the "
        "whole target, at the source's weights with the adapted statistics. 1 is what labels would do, 0 a random direction. "
        "The labels are for judging alone.</p>"
    )
    content = (
        table("Cosine with the labelled descent", f'<tr><th scope="col">row</th>{head}</tr>', body) + note
    )
    sections = [("direction", "Direction", "Does it go where labels would?", content)]
    page = _page(
        "Does learning without labels go where labels would?", "direction", preset, seed, lead, sections
    )
    return {"seeds": seeds, "rate": DIRECTION_RATE, "cosines": found}, page


ANALYSES: dict[str, Callable[[Preset, Path, int, int, Callable[[str], None]], tuple[Any, str]]] = {
    "affinity": _affinity,
    "masks": _masks,
    "cost": _cost,
    "direction": _direction,
}


def _sources(preset: Preset, folder: Path, names: Sequence[str], seed: int, jobs: int) -> None:
    """The trained networks, and the data that they and the choice of a rate need."""
    for name in ("source", "validation"):
        preset.domain(name).prepare(folder, jobs)
    (folder / STUDY.name).mkdir(parents=True, exist_ok=True)
    failures = train_sources(STUDY, preset, folder / STUDY.name, names, [seed], jobs)
    if failures:
        raise RuntimeError("; ".join(failures))


def _adapted(
    name: str, preset: Preset, folder: Path, seed: int, images: Any, rate: float | None = None
) -> Adapter:
    """The adapter of a row after the protocol's steps on the first batch, at a rate or at the one chosen for it."""
    row = next(r for r in STUDY.rows if r.name == name)
    model = source_model(STUDY, row.source, seed, preset, folder / STUDY.name)
    if rate is None:
        rate = chosen_rate(row, preset, folder / STUDY.name, STUDY)
    adapter = make_adapter(row, model, rate, seed, preset, folder / STUDY.name)
    x, _ = next(loaded(images, {}, STUDY.protocol.batch, "cpu"))
    for _ in range(STUDY.protocol.steps):
        adapter(x)
    return adapter


def _seconds(call: Callable[[Tensor], object], x: Tensor) -> float:
    begin = time.perf_counter()
    call(x)
    return time.perf_counter() - begin


def _off_diagonal(matrix: Tensor) -> float:
    n = len(matrix)
    return (matrix.sum() - matrix.diagonal().sum()).item() / max(1, n * n - n)


def _heat(names: Sequence[str], matrix: Tensor, darkest: float = 1.0, places: int = 2) -> str:
    """A matrix of numbers as a table whose cells are the darker the larger the number is in size."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    rows = []
    for name, line in zip(names, matrix.tolist(), strict=True):
        cells = "".join(
            f'<td style="background:color-mix(in srgb, var(--c1) {60 * min(1.0, abs(v) / darkest):.0f}%, transparent)">'
            f"{v:.{places}f}</td>"
            for v in line
        )
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>')
    return f'<table><thead><tr><th scope="col"></th>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'


def _page(
    title: str, name: str, preset: Preset, seed: int, lead: str, sections: Sequence[tuple[str, str, str, str]]
) -> str:
    made: Mapping[str, object] = {
        "preset": preset.name,
        "seed": seed,
        "command": f"testtime multitask analyse {name}",
    }
    return document(
        title,
        f"testtime multitask · {name} · {preset.name}",
        lead,
        [*sections, ("made", "Provenance", "How this was made", definitions(made.items()))],
        ".three{display:grid;gap:.4rem 1.6rem;grid-template-columns:repeat(auto-fit,minmax(min(19rem,100%),1fr))}"
        ".three th,.three td{padding:.3rem .4rem}.three table{font-size:.85em}",
    )
