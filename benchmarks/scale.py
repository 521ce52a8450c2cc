"""Steps with many classes and with large memory banks, in units of their own arithmetic.

    python benchmarks/scale.py
    python benchmarks/scale.py --classes 10 1000 --methods t3a,eata

The model is two convolutions with BatchNorm and a linear layer of 64 features to so many classes; images of 16 x 16 in batches
of 64. The arithmetic of a step is what its method declares, a forward F for each forward and two for each backward, of the same
model. A bank is filled first; its update is timed alone (no step of the optimizer falls into it), in units of F.
Process CPU time, every method in turn with F, medians of the ratios over the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings

import torch
from state import Call, plain, ratio
from torch import Tensor, nn

from testtime.build import build_method

METHODS = ("tent", "eata", "sar", "roid", "lame", "t3a", "adanpc", "paf-kip", "cotta")
BANKS = ("rotta", "sotta")


def network(classes: int) -> nn.Module:
    """A small network of so many classes."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.BatchNorm2d(64), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes),
    ).eval()  # fmt: skip


def measured(contenders: dict[str, Call], batches: list[Tensor]) -> dict[str, list[float]]:
    """Processor time of each contender on each batch, after two that do not count."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for i, x in enumerate(batches):
        for name, call in contenders.items():
            start = time.process_time()
            call(x)
            if i >= 2:
                seconds[name].append(time.process_time() - start)
    return seconds


def classes(name: str, counts: list[int], rounds: int) -> None:
    """Print a row: a step of a method with so many classes, in units of its arithmetic."""
    cells = []
    for count in counts:
        net, rng = network(count), torch.Generator().manual_seed(0)
        batches = [torch.rand(64, 3, 16, 16, generator=rng) for _ in range(rounds + 2)]
        try:
            adapter = build_method({"method": name, "arguments": {}}, net, count, 0)
            if adapter.source != "none":
                adapter.prepare(batches[:2])
        except (TypeError, ValueError, RuntimeError) as error:
            cells.append(f"not timed: {str(error)[:60]}")
            continue
        seconds = measured({"F": plain(net), "step": adapter}, batches)
        forwards, backwards = adapter.cost
        cells.append(f"{ratio(seconds, 'step', 'F') / (forwards + 2 * backwards):.2f}")
    print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def banks(name: str, capacities: list[int], rounds: int) -> None:
    """Print a row: a batch that is offered to a full memory bank, in units of F."""
    cells = []
    for capacity in capacities:
        net, rng = network(10), torch.Generator().manual_seed(0)
        arguments = {"capacity": capacity, "frequency": 10**9}
        adapter = build_method({"method": name, "arguments": arguments}, net, 10, 0)
        if name == "sotta":
            adapter.threshold = 0.0  # type: ignore[assignment]
        for _ in range(-(-capacity // 512)):
            adapter(torch.rand(512, 3, 16, 16, generator=rng))
        batches = [torch.rand(64, 3, 16, 16, generator=rng) for _ in range(rounds + 2)]
        seconds = measured({"F": plain(net), "step": adapter}, batches)
        milliseconds = 1000 * statistics.median(seconds["step"])
        cells.append(f"{ratio(seconds, 'step', 'F'):.2f} ({milliseconds:.1f} ms)")
    print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 1000, 22_000])
    parser.add_argument("--banks", type=int, nargs="*", default=[64, 512, 4096])
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for heads, labels, row, sizes in (
        ("a step in units of its arithmetic", given.methods.split(","), classes, given.classes),
        ("a batch of 64 offered to a bank, in F", BANKS, banks, given.banks),
    ):
        if sizes:
            print(f"| {heads} | " + " | ".join(f"{size:,}" for size in sizes) + " |")
            print("|---|" + "---:|" * len(sizes))
            for name in labels:
                row(name, sizes, given.rounds)
            print()


if __name__ == "__main__":
    main()
