"""Accuracy of a guard of sentences with numbers beside them, by what its disturbance changes.

The model, its classes and its streams are those of the world "dictionary" of the laws. In the streams "words" a class comes for
384 samples at a time, and up to a third of the words is replaced by words of no class; in "numbers" the numbers are higher and
wider. Accuracies are in percent; those of guards, calibrated on 320 source samples, are less that of the shipped model.

    python benchmarks/guard_words.py
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from testtime import Adapter
from testtime.intake.named import NamedTensors
from testtime.laws.worlds import WORLDS, reworded, tokenised
from testtime.methods import BNAdapt, Source, Tent
from testtime.wrap import Guarded

WORLD = WORLDS["dictionary"]
Disturb = Callable[[NamedTensors], dict[str, Tensor]]


def masking(every: int) -> Disturb:
    """Return a function that masks every so many words."""

    def masked(x: NamedTensors) -> dict[str, Tensor]:
        kept = torch.arange(x["input_ids"].shape[1]) % every != every - 1
        return {**x.entries, "attention_mask": x["attention_mask"] * kept}

    return masked


def numbers_alone(x: NamedTensors) -> dict[str, Tensor]:
    """Add noise to the numbers beside the words."""
    facts, rng = x["facts"], torch.Generator().manual_seed(0)
    return {**x.entries, "facts": facts + 0.05 * facts.std() * torch.randn(facts.shape, generator=rng)}


DISTURBANCES: dict[str, Disturb] = {
    "numbers alone": numbers_alone,
    "every sixth word masked": masking(6),
    "every fourth word masked": masking(4),
}


def stream(kind: str, seed: int) -> Iterator[tuple[NamedTensors, Tensor]]:
    """Yield 60 batches of 32 samples and their classes."""
    rng = torch.Generator().manual_seed(seed)
    for i in range(60):
        x, y = tokenised(512, rng)
        rows = torch.nonzero(y == i // 12)[:32, 0] if kind == "words" else slice(32)
        x, y = x[rows], y[rows]
        if kind == "words":
            ids = reworded(x["input_ids"], 1.0, rng) * x["attention_mask"]
            yield NamedTensors({**x.entries, "input_ids": ids}), y
        else:
            yield NamedTensors({**x.entries, "facts": 2 + 3 * x["facts"]}), y


def accuracy(adapter: Adapter, batches: list[tuple[NamedTensors, Tensor]]) -> float:
    hits: Any = [adapter(dict(x.entries)).argmax(dim=1) == y for x, y in batches]
    return 100 * float(torch.cat(hits).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    source = WORLD.source(10)
    for kind in ("words", "numbers"):
        for seed in range(options.seeds):
            batches = list(stream(kind, seed))
            shipped = accuracy(Source(WORLD.network()), batches)
            others = [accuracy(make(WORLD.network()), batches) for make in (BNAdapt, Tent)]
            print(
                f"{kind}, seed {seed}: shipped {shipped:.1f}, BN {others[0]:.1f}, TENT {others[1]:.1f}",
                end="",
            )
            for name, disturb in DISTURBANCES.items():
                guarded = Guarded(Tent(WORLD.network()), disturb=disturb)
                guarded.prepare(dict(x.entries) for x in source)
                print(f", {name} {accuracy(guarded, batches) - shipped:+.1f}", end="")
            print()


if __name__ == "__main__":
    main()
