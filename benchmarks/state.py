"""What the state of an adapter costs: the base of a step, resets, memory banks; as ratios of CPU time within one run.

    python benchmarks/state.py                      # all sections
    python benchmarks/state.py --only base,reset    # some of base, autograd, reset, peer, banks

Every contender takes its turn on the same batch, round after round, and a figure is the median over rounds of a ratio of
process CPU times. F is a plain forward without a graph of the same model and batch.

base   TENT on ResNet-20 of CIFAR-10 with plain autograd: the adapter, its ``step``
       without the base, and the method by hand with torch's own layers and Adam (torch's default, and its fused one).
autograd  a step of TENT with ``autograd="lean"`` and ``"recompute"`` against plain autograd.
reset  ``reset`` and ``load_state_dict`` in F of ResNet-50 and ResNet-101 at 224 x 224, and in ms of chains of 10 to 160
       norm layers.
peer   ``Episodic(Repeat(Tent, 3))`` against the TentEngine of torch-ttt 0.0.2 with three steps, where that is installed; its
       ``eval()``, which adaptation needs, normalises by the statistics of the source.
banks  T3A with 1,000 classes and AdaNPC with 50,000 remembered source features, 2,048 wide, on ResNet-50 at 64 x 64.
"""

from __future__ import annotations

import argparse
import copy
import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from speed import tent_loop
from torch import Tensor, nn

from testtime.adapter import Adapter
from testtime.methods import T3A, AdaNPC, Tent
from testtime.models import WideResNet, resnet20
from testtime.models.resnet import ResNet
from testtime.norm import source_statistics
from testtime.wrap import Episodic, Repeat

Call = Callable[[Tensor], Any]


def taken(contenders: dict[str, Call], shape: tuple[int, ...], rounds: int) -> dict[str, list[float]]:
    """Seconds of process CPU time of each contender in each round, after two rounds that do not count."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    rng = torch.Generator().manual_seed(0)
    for i in range(rounds + 2):
        x = torch.rand(*shape, generator=rng)
        order = list(contenders.items())
        for name, call in order[i % len(order) :] + order[: i % len(order)]:
            start = time.process_time()
            call(x)
            if i >= 2:
                seconds[name].append(time.process_time() - start)
    return seconds


def ratio(seconds: dict[str, list[float]], one: str, other: str) -> float:
    """The median over rounds of the time of one contender in units of another's."""
    return statistics.median(a / b for a, b in zip(seconds[one], seconds[other], strict=True))


def plain(model: nn.Module) -> Call:
    """F."""

    def forward(x: Tensor) -> Tensor:
        with torch.no_grad():
            return model(x)

    return forward


def base(rounds: int) -> None:
    """Print what the base adds to a step of TENT."""
    net = resnet20().eval()
    print(
        "TENT on ResNet-20, 32 x 32       adapter / by hand   / by hand, fused Adam   / its step without the base"
    )
    for size, count in ((1, 12 * rounds), (200, rounds)):
        inner = Tent(net)
        contenders = {
            "adapter": Tent(net, autograd="plain"),
            "step": inner.step,
            "hand": tent_loop(net),
            "fused": tent_loop(net, fused=True),
        }
        seconds = taken(contenders, (size, 3, 32, 32), count)
        figures = [ratio(seconds, "adapter", other) for other in ("hand", "fused", "step")]
        print(f"  batch {size:<22}{figures[0]:17.3f}{figures[1]:24.3f}{figures[2]:30.3f}")


def autograd(rounds: int) -> None:
    """Print the time of a step of TENT that saves less, in units of one with plain autograd."""
    print("TENT                                 lean / plain   recompute / plain")
    cases = [("ResNet-20, 32 px", resnet20(), (n, 3, 32, 32)) for n in (1, 8, 200)]
    cases += [("WideResNet-40-2, 32 px", WideResNet(40, 2), (64, 3, 32, 32))]
    cases += [("ResNet-50, 128 px", ResNet(50), (8, 3, 128, 128))]
    for name, net, shape in cases:
        contenders = {how: Tent(net.eval(), autograd=how) for how in ("plain", "lean", "recompute")}
        seconds = taken(contenders, shape, rounds * (5 if shape[0] < 9 else 1))
        lean, again = (ratio(seconds, how, "plain") for how in ("lean", "recompute"))
        print(f"  {name + f', batch {shape[0]}':<35}{lean:8.3f}{again:18.3f}", flush=True)


def chain(layers: int) -> nn.Module:
    """A network with so many norm layers."""
    blocks = [m for _ in range(layers) for m in (nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))]
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    ).eval()


def state_calls(adapter: Adapter) -> dict[str, Call]:
    """A reset and a load, each of an adapter that has moved."""
    state = adapter.state_dict()
    return {"reset": lambda _: adapter.reset(), "load": lambda _: adapter.load_state_dict(state)}


def reset(rounds: int) -> None:
    """Print what a reset and a load cost."""
    print("TENT                             reset       load")
    for depth in (50, 101):
        net = ResNet(depth).eval()
        adapter = Tent(net)
        adapter(torch.rand(1, 3, 224, 224))
        seconds = taken({"F": plain(net), **state_calls(adapter)}, (1, 3, 224, 224), rounds)
        figures = [ratio(seconds, name, "F") for name in ("reset", "load")]
        print(f"  ResNet-{depth:<20}{figures[0]:7.3f} F  {figures[1]:7.3f} F")
    for layers in (10, 20, 40, 80, 160):
        adapter = Tent(chain(layers))
        adapter(torch.rand(1, 3, 8, 8))
        seconds = taken(state_calls(adapter), (1,), rounds)
        figures = [1000 * statistics.median(seconds[name]) for name in ("reset", "load")]
        print(f"  {layers:>3} norm layers {' ' * 12}{figures[0]:7.2f} ms {figures[1]:7.2f} ms")


def peer(rounds: int) -> None:
    """Print the episodic step against torch-ttt's."""
    try:
        from torch_ttt.engine.tent_engine import TentEngine
    except ImportError:
        print("torch-ttt is not installed (pip install torch-ttt==0.0.2): no comparison")
        return
    net = ResNet(50).eval()
    theirs = TentEngine(copy.deepcopy(net), {"lr": 1e-3, "num_steps": 3}).eval()
    contenders = {
        "F": plain(net),
        "batch": Episodic(Repeat(Tent(net), 3)),
        "ours": Episodic(Repeat(Tent(net, norm=source_statistics), 3)),
        "theirs": theirs,
    }
    seconds = taken(contenders, (1, 3, 224, 224), rounds)
    print("three episodic steps of TENT and a prediction, ResNet-50, batch 1")
    print(f"  Episodic(Repeat(Tent, 3)), statistics of the batch  {ratio(seconds, 'batch', 'F'):6.2f} F")
    print(f"  the same, statistics of the source as in torch-ttt  {ratio(seconds, 'ours', 'F'):6.2f} F")
    print(f"  TentEngine of torch-ttt                             {ratio(seconds, 'theirs', 'F'):6.2f} F")
    print(f"  ours / theirs, statistics of the source             {ratio(seconds, 'ours', 'theirs'):6.2f}")


def banks(rounds: int) -> None:
    """Print what memory banks cost."""
    net, shape = ResNet(50).eval(), (1, 3, 64, 64)
    t3a, adanpc = T3A(net), AdaNPC(net)
    features = nn.functional.normalize(torch.randn(50_000, 2048), dim=1)
    adanpc.of_source.fill(features, torch.arange(50_000) % 1000)
    likeness = plain(lambda x: torch.randn(1, 2048) @ features.T)  # type: ignore[arg-type]
    seconds = taken({"F": plain(net), "T3A": t3a, "AdaNPC": adanpc, "likeness": likeness}, shape, rounds)
    both = [a + b for a, b in zip(seconds["F"], seconds["likeness"], strict=True)]
    seconds["arithmetic"] = both
    held = sum(rows.nbytes + doubt.nbytes for rows, doubt in t3a.memory.held) / 2**20
    print("ResNet-50, 64 x 64, 1,000 classes, batch 1")
    print(f"  T3A    {ratio(seconds, 'T3A', 'F'):6.2f} F; {held:.1f} MiB of supports")
    products = ratio(seconds, "AdaNPC", "arithmetic")
    print(
        f"  AdaNPC {ratio(seconds, 'AdaNPC', 'F'):6.2f} F; {products:.2f} of F and the products with the features"
    )


def main() -> None:
    """Print the sections, with the processor and its load."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="base,autograd,reset,peer,banks")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    print(f"{platform.processor() or platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, "
          f"{os.cpu_count()} cores, {options.threads} threads used, load {load}, torch {torch.__version__}")  # fmt: skip
    sections = {"base": base, "autograd": autograd, "reset": reset, "peer": peer, "banks": banks}
    for name in options.only.split(","):
        sections[name](options.rounds)


if __name__ == "__main__":
    main()
