"""What serving costs beside the adapter, as ratios within one run.

    python benchmarks/serving.py                                  # ResNet-20, 200 x 32 x 32 and 1 x 32 x 32, Tent
    python benchmarks/serving.py --model wrn40-2 --batch-sizes 1
    python benchmarks/serving.py --model resnet50 --batch-sizes 1 # ResNet-50 at 224 x 224 (needs torchvision)

For each batch size, an adapter alone and a session around an equal one take turns on the same images; the parts of a session
are timed by themselves. An exchange takes the state of one stream out of the network and puts that of another in. A snapshot
is durable when it counts: audit log, file and folder are flushed. Random weights and images: only times and bytes count.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from testtime.methods import Tent
from testtime.models import WideResNet, resnet20
from testtime.serve import Session, SessionOptions
from testtime.serve.gate import GateOptions, InputGate
from testtime.serve.swapping import Slots


def network(name: str) -> tuple[nn.Module, int]:
    torch.manual_seed(0)
    if name == "resnet20":
        return resnet20().eval(), 32
    if name == "wrn40-2":
        return WideResNet(40, 2, 100).eval(), 32
    import torchvision

    return getattr(torchvision.models, name)().eval(), 224


def timed(calls: dict[str, Callable[[int], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of the processor of each call, taking turns; two rounds are not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(rounds + 2):
        order = list(calls.items())
        for name, call in order[i % len(order) :] + order[: i % len(order)]:
            start = time.process_time()
            call(i)
            if i >= 2:
                seconds[name].append(time.process_time() - start)
    return seconds


def overhead(name: str, size: int, rounds: int, folder: Path) -> None:
    net, side = network(name)
    alone = Tent(net)
    pool = [
        torch.rand(size, 3, side, side, generator=torch.Generator().manual_seed(i)) for i in range(rounds + 2)
    ]
    gate = InputGate(GateOptions())
    with Session(Tent(net), folder / str(size), options=SessionOptions(snapshot_every=0)) as session:
        slots = session._engine.slots
        waiting = [slots.copy()]

        def exchange(_: int) -> None:
            waiting[0] = slots.exchange(waiting[0])

        calls: dict[str, Callable[[int], object]] = {
            "forward": lambda i: alone.predict(pool[i]),
            "step of the adapter": lambda i: alone(pool[i]),
            "step of the session": lambda i: session.submit(pool[i]),
            "gate": lambda i: gate.screen(pool[i], (), (0.0, 1.0)),
            "hash of the state": lambda _: slots.hash(),
            "exchange of streams": exchange,
        }
        seconds = timed(calls, rounds)
        state = waiting[0].nbytes
    weights = sum(p.nbytes for p in net.parameters())
    print(f"\n{name}, {size} x 3 x {side} x {side}: state of a stream {state} bytes, weights {weights}")
    print(f"{'':24}{'ms':>9}{'/ step':>9}{'/ forward':>10}")
    step, forward = seconds["step of the adapter"], seconds["forward"]
    for call, taken in seconds.items():
        ratios = [statistics.median(a / b for a, b in zip(taken, to, strict=True)) for to in (step, forward)]
        print(f"{call:24}{1e3 * statistics.median(taken):9.3f}{ratios[0]:9.4f}{ratios[1]:10.4f}")


def snapshots(name: str, count: int, folder: Path) -> None:
    net, side = network(name)
    options = SessionOptions(snapshot_every=0)
    with Session(Tent(net), folder / "snapshots", options=options) as session:
        session.submit(torch.rand(2, 3, side, side))
        taken, plain = [], []
        size = session.snapshot().bytes
        for i in range(count):
            start = time.perf_counter()
            session.snapshot()
            middle = time.perf_counter()
            path = folder / f"plain{i % 2}"
            with open(path, "wb") as file:
                file.write(bytes(size))
                file.flush()
                os.fsync(file.fileno())
            plain.append(time.perf_counter() - middle)
            taken.append(middle - start)
    taken.sort()
    plain.sort()
    at = int(0.99 * count)
    print(f"\nsnapshot of {size} bytes, {count} times, durable")
    print(f"{'':34}{'median ms':>10}{'p99 ms':>9}")
    print(f"{'snapshot':34}{1e3 * taken[count // 2]:10.2f}{1e3 * taken[at]:9.2f}")
    print(f"{'write and fsync of as many bytes':34}{1e3 * plain[count // 2]:10.2f}{1e3 * plain[at]:9.2f}")


def added(name: str, count: int, folder: Path) -> None:
    """Time of requests that take a snapshot, written by a thread, beside that of the same ones without.

    On a machine that does other work, the two differ by less than by chance: the last row is the processor's time that a
    snapshot takes in the thread of the request, the time of the others is that of a clock.
    """
    net, side = network(name)
    pool = [torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(i)) for i in range(count)]
    seconds: dict[int, list[float]] = {0: [], 2: []}
    with contextlib.ExitStack() as stack:
        sessions = {
            every: stack.enter_context(
                Session(Tent(net), folder / f"added{every}", options=SessionOptions(snapshot_every=every))
            )
            for every in seconds
        }
        for i, x in enumerate(pool):
            for every in (0, 2) if i // 2 % 2 else (2, 0):
                start = time.perf_counter()
                sessions[every].submit(x)
                seconds[every].append(time.perf_counter() - start)
            if i % 2:  # these took a snapshot; the thread is done before the next one is due
                sessions[2].settle()
        copying = []
        for _ in range(count):
            start = time.thread_time()
            sessions[2].snapshot(wait=False)
            copying.append(time.thread_time() - start)
            sessions[2].settle()
    plain, taking = (sorted(seconds[every][11::2]) for every in (0, 2))
    print(f"\nrequests of one image that take a snapshot, every second one of {count}")
    print(f"{'':34}{'median ms':>10}{'p99 ms':>9}")
    for text, values in (("without", plain), ("with", taking), ("copy of the state", sorted(copying))):
        print(f"{text:34}{1e3 * statistics.median(values):10.2f}{1e3 * values[int(0.99 * len(values))]:9.2f}")


def worst(name: str, size: int, rounds: int, folder: Path) -> None:
    """Time of requests whose samples are all admitted, by kind of input, divided by that of uniform noise."""
    net, side = network(name)

    def noise(i: int) -> torch.Tensor:
        return torch.rand(size, 3, side, side, generator=torch.Generator().manual_seed(i))

    def one_of_each(i: int) -> torch.Tensor:
        x = noise(i)
        x[-1] = x[0] if size > 1 else x[-1]
        return x

    kinds: dict[str, Callable[[int], torch.Tensor]] = {
        "uniform noise": noise,
        "denormal": lambda i: noise(i) * 1e-39,
        "half denormal": lambda i: torch.where(noise(i) < 0.5, noise(i + 1) * 1e-39, noise(i)),
        "1e-20": lambda i: noise(i) * 1e-20,
        "contrast of 1e-5": lambda i: 0.5 + noise(i) * 1e-5,
        "edge of the range": lambda i: 3 * noise(i) - 1,
        "binary": lambda i: (noise(i) < 0.5).float(),
        "one value": lambda i: torch.full((size, 3, side, side), 0.1 + i / 1000),
        "one learned, one repeated": one_of_each,
    }
    with Session(Tent(net), folder / f"worst{size}", options=SessionOptions(snapshot_every=0)) as session:
        calls = {
            kind: lambda i, kind=kind, make=make: session.submit(
                make(i), kind.replace(" ", "_").replace(",", "")
            )
            for kind, make in kinds.items()
        }
        seconds = timed(calls, rounds)
    print(f"\n{name}, {size} x 3 x {side} x {side}: requests by kind of input / uniform noise")
    for kind, taken in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(taken, seconds["uniform noise"], strict=True))
        print(f"{kind:34}{ratio:10.2f}")


def memory(name: str, streams: int) -> None:
    net, _ = network(name)
    slots = Slots(Tent(net))
    gc.collect()
    parked = [slots.copy() for _ in range(streams)]
    print(f"\n{streams} streams of {name}: {sum(p.nbytes for p in parked) / 2**20:.1f} MiB of state")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[200, 1])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--snapshots", type=int, default=200)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        for size in options.batch_sizes:
            overhead(options.model, size, options.rounds, Path(folder))
            worst(options.model, min(size, 16), options.rounds, Path(folder))
        snapshots(options.model, options.snapshots, Path(folder))
        added(options.model, 2 * options.snapshots, Path(folder))
    memory(options.model, options.streams)


if __name__ == "__main__":
    main()
