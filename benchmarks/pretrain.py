"""Samples per second of pre-training, loader and all, as a ratio to a plain loop within one run.

The plain loop is PyTorch alone: the same model and AdamW, on a few random batches that are held
in memory; it reads nothing, draws no masks, writes nothing. All contenders take their turn, round after round, so a slow minute
slows them all; the figure is the median over rounds of the ratio to the plain loop, 1 where the loader costs nothing.

    python benchmarks/pretrain.py                               # the tiny preset's model and picture, one thread, CPU
    python benchmarks/pretrain.py --size S --side 128 --batch 256 --device cuda --precision bfloat16 --workers 0 4 8
    python benchmarks/pretrain.py --boxes                       # with a sequence, whose spans are drawn sample by sample

The last lines say how long the loader alone takes for a batch, in this process.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from testtime.space.loader import Batches, Part
from testtime.space.masking import Masking
from testtime.space.modalities import DEPTH, EDGES, NORMALS, RGB, Modality, boxes
from testtime.space.model import Batch, FourM
from testtime.space.pretrain import Recipe, pretrain
from testtime.space.sequences import Box, BoxVocabulary
from testtime.space.shards import Shards, write_shards

VOCABULARY = BoxVocabulary(["chair", "table"])


class Random(nn.Module):
    """A tokenizer that tells random tokens, at once."""

    def __init__(self, modality: Modality, side: int, patch: int, vocabulary: int) -> None:
        super().__init__()
        self.modality, self.size, self.vocabulary = modality, (side, side), vocabulary
        self.grid = (side // patch, side // patch)

    def encode(self, value: torch.Tensor) -> torch.Tensor:
        return torch.randint(self.vocabulary, (len(value), self.grid[0] * self.grid[1]))


class Frames(Sequence[dict[str, object]]):
    """Random pictures, with all that is sensed and eight boxes."""

    def __init__(self, count: int, side: int) -> None:
        self.count, self.side = count, side

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: object) -> dict[str, object]:
        made = {m.name: torch.rand(m.channels, self.side, self.side) for m in (RGB, DEPTH, NORMALS, EDGES)}
        corners = torch.rand(8, 2).tolist()
        return {**made, "boxes": [Box(x / 2, y / 2, x / 2 + 0.5, y / 2 + 0.5, "chair") for x, y in corners]}


def shards(folder: Path, options: argparse.Namespace) -> Shards:
    side, patch = options.side, options.patch
    made = {f"tok_{m.name}": Random(m, side, patch, options.vocabulary) for m in (RGB, DEPTH, NORMALS, EDGES)}
    words = (boxes("boxes", len(VOCABULARY)), VOCABULARY, 64) if options.boxes else None
    frames = Frames(options.frames, side)
    return write_shards(folder, frames, made, (side, side), patch, 2, boxes=words)  # type: ignore[arg-type]


def plain(model: nn.Module, held: Sequence[Batch], recipe: Recipe, device: str) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=recipe.betas)
    half = torch.autocast(device, torch.bfloat16, enabled=recipe.precision == "bfloat16")

    def run() -> None:
        for step in range(recipe.steps):
            optimizer.zero_grad(set_to_none=True)
            with half:
                loss = torch.stack(list(model(held[step % len(held)]).values())).mean()
            loss.backward()
            optimizer.step()
        loss.item()

    return run


def seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="tiny", help="of the model, a name in SIZES")
    parser.add_argument("--side", type=int, default=64, help="of the picture in pixels")
    parser.add_argument("--patch", type=int, help="side of a patch; by default 8 below 128 pixels, else 16")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=24, help="shown, and as many asked for")
    parser.add_argument("--vocabulary", type=int, default=240)
    parser.add_argument("--frames", type=int, default=1000)
    parser.add_argument("--boxes", action="store_true", help="with boxes as a sequence")
    parser.add_argument("--steps", type=int, default=40, help="of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    options.patch = options.patch or (8 if options.side < 128 else 16)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = shards(folder / "shards", options)
        n = options.tokens
        recipe = Recipe(options.steps, options.batch, inputs=n, targets=n, precision=options.precision)
        batches = Batches([Part(made)], Masking(made.streams, inputs=n, targets=n), recipe.batch)
        model = FourM(made.streams, options.size, (options.side, options.side), options.patch)
        held = [batches[step].to(options.device) for step in range(4)]
        held = [replace(b, pixels=torch.rand_like(b.pixels)) for b in held]
        contenders: dict[str, Callable[[int], object]] = {}
        loop = plain(model.to(options.device), held, recipe, options.device)
        contenders["plain loop, batches in memory"] = lambda i: loop()
        for w in options.workers:
            contenders[f"pretrain, {w} workers"] = lambda i, w=w: pretrain(  # type: ignore[misc]
                model, batches, recipe, folder / f"run-{i}-{w}", options.device, w
            )
        taken: dict[str, list[float]] = {name: [] for name in contenders}
        for i in range(options.rounds + 1):
            order = list(contenders.items())
            for name, call in order[i % len(order) :] + order[: i % len(order)]:
                spent = seconds(lambda: call(i))  # noqa: B023 - called at once
                if i:
                    taken[name].append(spent)
        samples = options.steps * options.batch
        print(f"{'':34}{'samples/s':>12}{'/ plain':>10}")
        for name, values in taken.items():
            ratio = statistics.median(p / v for p, v in zip(next(iter(taken.values())), values, strict=True))
            print(f"{name:34}{samples / statistics.median(values):12.0f}{ratio:10.3f}")
        alone = statistics.median(seconds(lambda: batches.compact(step)) for step in range(20))  # noqa: B023
        print(f"{'the loader alone':34}{options.batch / alone:12.0f}   {1e3 * alone:.1f} ms a batch")


if __name__ == "__main__":
    main()
