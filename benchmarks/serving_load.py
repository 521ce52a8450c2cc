"""Load of the server: requests per second and p99 with adaptation, against the same server without it, as ratios.

A server runs in a process of its own, on loopback; threads send corrupted digits to streams of their own, batch after batch.
Rounds with adaptation and rounds without it (the same streams, ``learn=False``) take turns, so that a slow minute slows both.
The figure is the median over rounds of the ratio of neighbours; p99 is over all requests of a kind.

    python benchmarks/serving_load.py                       # digits, guarded TENT
    python benchmarks/serving_load.py --method bn-adapt --no-guard --out load.json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from testtime.corruptions import corrupt
from testtime.data import embedded
from testtime.files import write_json
from testtime.serve import Client


@dataclass
class Measured:
    """Seconds of every request, and requests per second of every round."""

    seconds: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)

    def p99(self) -> float:
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]


def batches(size: int, count: int, seed: int) -> list[Tensor]:
    """Batches of digits under noise, none of which was sent before: the gate keeps repeated images from being learned."""
    test, draws = embedded().test, torch.Generator().manual_seed(seed)
    images = corrupt(test.batch(range(len(test))), "gaussian_noise")
    rows = torch.randperm(len(images), generator=draws).repeat(size * count // len(images) + 1)
    chosen = images[rows[: size * count]]
    return list((chosen + 0.01 * torch.randn(chosen.shape, generator=draws)).clamp(0, 1).split(size))


def measure(url: str, inputs: list[Tensor], clients: int, learn: bool, into: Measured) -> None:
    """One round: every client sends all inputs of its share."""
    lock = threading.Lock()

    def work(number: int) -> None:
        with Client(url, model="digits-cnn") as client:
            for x in inputs[number::clients]:
                began = time.perf_counter()
                answer = client.infer(x, f"client-{number}", learn=learn)
                seconds = time.perf_counter() - began
                assert answer.adapted == learn, answer
                with lock:
                    into.seconds.append(seconds)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(clients)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    into.rates.append(len(inputs) / (time.perf_counter() - began))


def row(url: str, size: int, requests: int, rounds: int, clients: int) -> dict[str, Any]:
    on, off = Measured(), Measured()
    measure(url, batches(size, 4 * clients, size), clients, True, Measured())
    for number in range(rounds):
        inputs = batches(size, requests, 1000 * size + number)
        measure(url, inputs, clients, True, on)
        measure(url, inputs, clients, False, off)
    rates = [a / b for a, b in zip(on.rates, off.rates, strict=True)]
    return {
        "batch": size,
        "requests": len(on.seconds),
        "rate": statistics.median(on.rates),
        "rate_without": statistics.median(off.rates),
        "rate_ratio": statistics.median(rates),
        "p99": on.p99(),
        "p99_without": off.p99(),
        "p99_ratio": on.p99() / off.p99(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--method", default="tent")
    parser.add_argument("--no-guard", action="store_true")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--requests", type=int, default=200, help="requests of a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--out", help="file for the figures, JSON")
    given = parser.parse_args()
    command = ["-m", "testtime", "serve", "--model", "digits-cnn", "--method", given.method, "--port", "0"]
    command += ["--no-guard"] if given.no_guard else []
    with tempfile.TemporaryDirectory() as state:
        server = subprocess.Popen(
            [sys.executable, *command, "--rate", "100000", "--state", state, "--logs", "text"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        try:
            assert server.stdout is not None
            url = server.stdout.readline().split(" at ")[1].split(",")[0]
            rows = [row(url, size, given.requests, given.rounds, given.clients) for size in given.batches]
        finally:
            server.terminate()
            server.wait()
    print("batch  requests/s  without  ratio   p99 ms  without  ratio")
    for r in rows:
        print(
            f"{r['batch']:>5}  {r['rate']:>10.1f}  {r['rate_without']:>7.1f}  {r['rate_ratio']:>5.2f}  "
            f"{1000 * r['p99']:>7.1f}  {1000 * r['p99_without']:>7.1f}  {r['p99_ratio']:>5.2f}"
        )
    if given.out:
        facts = {
            "command": ["benchmarks/serving_load.py", *sys.argv[1:]],
            "torch": torch.__version__,
            "rows": rows,
        }
        print(write_json(given.out, json.loads(json.dumps(facts))))


if __name__ == "__main__":
    main()
