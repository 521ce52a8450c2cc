"""The whole in minutes: train a small network on houses of one style, meet another style, adapt, report.

``testtime multitask demo`` renders what it needs, trains, and adapts to eight images in 40 steps, beside the same network as
it is and beside the control that only estimates the BatchNorm statistics again. What was done is not done again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path

import torch

from testtime.adapter import Adapter
from testtime.data.dense import DenseSet
from testtime.files import read_json, write_json
from testtime.methods import S4T, Source
from testtime.models.assisted import Assisted
from testtime.multitask.pictures import MOMENTS, Strip, moments, write_pictures
from testtime.multitask.presets import Domain, Preset
from testtime.multitask.protocol import Protocol, follow
from testtime.multitask.report import write_report
from testtime.multitask.study import AGAIN, RATE, Cell
from testtime.multitask.training import Recipe, train
from testtime.parts.optimizers import sgd

__all__ = ["DEMO", "run_demo"]

BASE, CONTROL, OURS = "Unadapted", "BN only", "S4T"
RATES = (2e-5, 1e-4, 1e-3)
SIZE = (64, 64)

DEMO = Preset(
    "demo",
    18,
    16,
    {"features": 16, "size": 32, "patch": 4, "width": 32, "depth": 2, "decoder_depth": 1},
    Recipe(iterations=600, batch=16, lr=4e-3, every=100),
    {
        "source": Domain(0, 18, 20, SIZE),
        "validation": Domain(5000, 3, 8, SIZE, style="minimal", shift="cold"),
        "target": Domain(9000, 6, 8, SIZE, style="other"),
    },
)
"""Small enough for two cores and a few minutes; the figures are an illustration, not a result."""


def run_demo(
    folder: str | Path,
    preset: Preset = DEMO,
    seed: int = 0,
    jobs: int = 2,
    steps: int = 40,
    say: Callable[[str], None] = print,
) -> Path:
    """Render, train, adapt, measure and draw; continue where it was left.

    Args:
        folder: of all that is made: frames, network, cells, pictures, the page.
        preset: how large.
        seed: of training, order and masks.
        jobs: processes that render.
        steps: on the first eight images of the target.
        say: is told what begins.

    Returns:
        the path of the page.
    """
    folder = Path(folder)
    (folder / "cells").mkdir(parents=True, exist_ok=True)
    for name in ("source", "validation", "target"):
        domain = preset.domain(name)
        light = f", {domain.shift}" if domain.shift else ""
        say(
            f"{domain.houses} houses, {domain.houses * domain.frames} images: {name} ({domain.style} style{light})"
        )
        domain.prepare(folder, jobs)
    data = {name: preset.domain(name).read(folder) for name in ("source", "validation", "target")}
    say(f"a network for {', '.join(preset.tasks)}, with its synchronizer: {preset.recipe.iterations} steps")
    model = _trained(preset, data["source"], folder, seed)
    protocol = Protocol(steps=steps)
    rate = _chosen(model, data["validation"], preset, protocol, folder, seed, say)
    order = torch.randperm(len(data["target"]), generator=torch.Generator().manual_seed(seed)).tolist()
    target = data["target"].subset(order)
    adapters = {
        BASE: Source(model),
        CONTROL: S4T(model, sgd(0.0), seed=seed),
        OURS: S4T(model, sgd(rate, weight_decay=1e-6), seed=seed),
    }
    for row, adapter in adapters.items():
        cell = Cell("demo", row, seed, "target", preset.name)
        path = folder / "cells" / cell.file
        if path.exists():
            continue
        say(f"{row}: {steps} steps on {protocol.batch} images, measured on {len(target)}")
        begin = time.monotonic()
        curve = follow(adapter, target, preset.tasks, protocol)
        write_json(
            path,
            {
                **asdict(cell),
                "source": "s4t",
                "rate": rate if row == OURS else 0.0,
                "steps": curve.steps,
                "values": curve.values,
                "higher_is_better": curve.higher_is_better,
                "parameters": sum(p.numel() for p in model.parameters()),
                "seconds": time.monotonic() - begin,
            },
        )
    about = {
        "study": "demo",
        "title": "Four tasks in houses the network has never seen",
        "published": "",
        "rows": list(adapters),
        "protocol": asdict(protocol),
        "preset": preset.name,
        "domains": {name: asdict(preset.domain(name)) for name in data},
    }
    write_json(folder / "study.json", about)
    if not (folder / "pictures" / "pictures.json").exists():
        say("pictures")
        _draw(folder, preset, target, adapters, protocol)
    return write_report(folder)


def _trained(preset: Preset, source: DenseSet, folder: Path, seed: int) -> Assisted:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = preset.synchronized(preset.network())
    train(model, source, preset.recipe, folder / "model", seed)
    return model


def _chosen(
    model: Assisted,
    validation: DenseSet,
    preset: Preset,
    protocol: Protocol,
    folder: Path,
    seed: int,
    say: Callable[[str], None],
) -> float:
    """The learning rate with the best last step on the validation shift, which is not the target's."""
    path = folder / f"rate-{OURS.lower()}.json"
    if not path.exists():
        say("the learning rate, on the validation shift")
        ends = replace(protocol, record_every=max(1, protocol.steps))
        tried = {}
        for rate in RATES:
            curve = follow(
                S4T(model, sgd(rate, weight_decay=1e-6), seed=seed), validation, preset.tasks, ends
            )
            tried[rate] = curve.gains(curve.at(0))[-1]
        best = max(tried, key=tried.__getitem__)
        write_json(path, {"rate": best, "tried": {str(k): v for k, v in tried.items()}})
    return float(read_json(path, AGAIN, RATE, finite=False)["rate"])


def _draw(
    folder: Path,
    preset: Preset,
    target: DenseSet,
    adapters: Mapping[str, Adapter],
    protocol: Protocol,
) -> None:
    x, labels = target.batch(range(min(protocol.batch, len(target))))
    kept = moments(adapters[OURS], x, protocol.steps, MOMENTS)
    strips = [Strip("before" if step == 0 else f"step {step}", outputs) for step, outputs in kept.items()]
    only = moments(adapters[CONTROL], x, protocol.steps, ())
    strips.append(Strip(f"{CONTROL}, step {protocol.steps}", only[protocol.steps]))
    write_pictures(
        folder,
        preset.tasks,
        x,
        labels,
        strips,
        f"Images that {OURS} adapted to, before it, during it and after it; at the right the control, which learns nothing. "
        "The figure below an answer is its metric on this image alone.",
    )
