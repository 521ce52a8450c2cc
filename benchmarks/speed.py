"""Time per batch of the methods, as ratios within one run.

Every contender takes its turn on the same batches, round after round, so a slow minute slows them all; the figure is the
median over rounds of the ratio to the contender named in the column's head.

    python benchmarks/speed.py                      # random images, ResNet-20 of the digits' shape, CPU
    python benchmarks/speed.py --weights FILE       # cifar10_resnet20.safetensors, as in the README

The loop is TENT written by hand, with torch's own BatchNorm and Adam and nothing of this library. The floor of PAF + KIP
is three forwards (two without a graph) and one backward to the inputs, with no update, filter or answer.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from testtime.methods import PAFKIP, Source, Tent
from testtime.models import load_model, resnet20


def tent_loop(model: nn.Module, fused: bool | None = None) -> Callable[[Tensor], Tensor]:
    """TENT with nothing of this library; ``fused`` is of torch's Adam."""
    net = copy.deepcopy(model).train().requires_grad_(False)
    parameters = []
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.track_running_stats, m.running_mean, m.running_var = False, None, None
            parameters += [m.weight.requires_grad_(True), m.bias.requires_grad_(True)]
    optimizer = torch.optim.Adam(parameters, lr=1e-3, fused=fused)

    def step(x: Tensor) -> Tensor:
        z = net(x)
        loss = -(z.softmax(1) * z.log_softmax(1)).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return z.detach()

    return step


def floor(model: nn.Module) -> Callable[[Tensor], Tensor]:
    source = copy.deepcopy(model).eval().requires_grad_(False)
    batch = copy.deepcopy(model).train().requires_grad_(False)
    parameters = []
    for m in batch.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.track_running_stats, m.running_mean, m.running_var = False, None, None
            parameters += [m.weight.requires_grad_(True), m.bias.requires_grad_(True)]

    def step(x: Tensor) -> Tensor:
        with torch.no_grad():
            source(x), batch(x)
        z = batch(x)
        torch.autograd.grad(z.sum(), parameters)
        return z.detach()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", help="cifar10_resnet20.safetensors; random weights time the same")
    parser.add_argument("--batch-size", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    net = load_model("cifar10-resnet20", options.weights) if options.weights else resnet20().eval()
    net = net.to(options.device, memory_format=torch.channels_last)
    contenders: dict[str, Callable[[Tensor], Tensor]] = {
        "source": Source(net),
        "tent, a loop by hand": tent_loop(net),
        "tent": Tent(net),
        "three forwards and one backward": floor(net),
        "paf-kip": PAFKIP(net, 10),
        "paf-kip, batched": PAFKIP(net, 10, batched=True),
        "paf-kip, output after": PAFKIP(net, 10, output="after"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for i in range(options.rounds + 2):
        x = torch.rand(options.batch_size, 3, 32, 32, device=options.device).contiguous(
            memory_format=torch.channels_last
        )
        order = list(contenders.items())
        for name, call in order[i % len(order) :] + order[: i % len(order)]:
            start = time.perf_counter()
            call(x)
            if x.is_cuda:
                torch.cuda.synchronize()
            if i >= 2:
                seconds[name].append(time.perf_counter() - start)

    def ratio(name: str, to: str) -> float:
        return statistics.median(a / b for a, b in zip(seconds[name], seconds[to], strict=True))

    print(f"{'':34}{'ms':>8}{'/ source':>10}{'/ loop':>10}{'/ tent':>10}{'/ floor':>10}")
    for name, taken in seconds.items():
        columns = [
            ratio(name, to)
            for to in ("source", "tent, a loop by hand", "tent", "three forwards and one backward")
        ]
        print(f"{name:34}{1e3 * statistics.median(taken):8.1f}" + "".join(f"{c:10.3f}" for c in columns))


if __name__ == "__main__":
    main()
