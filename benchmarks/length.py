"""Streams of a million images: time of a step, memory of the process and size of the state, over tenths of the stream.

    python benchmarks/length.py                          # the methods below, each on 5,000 batches of 200 images
    python benchmarks/length.py --methods tent,rotta --out FOLDER

One process for each method, so that the memory is its own; a method whose file is there is not run again. The images are noise
of 8 x 8 whose mean drifts, the model is a convolution, BatchNorm and a linear layer: what a step costs beside the network is
most of it. A figure that grew with the stream would show in the last tenth.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from testtime.adapter import Adapter
from testtime.build import build_method
from testtime.files import read_json, write_json
from testtime.processor import machine_load, processor_name

GROUPS = {
    "statistics": "bn-adapt",
    "entropy": "tent",
    "entropy with filters and a Fisher penalty": "eata",
    "sharpness-aware entropy": "sar",
    "weights averaged over the stream": "roid",
    "filter of the open set": "paf-kip",
    "prototypes": "t3a",
    "outputs of the batch": "lame",
    "memory bank and teacher": "rotta",
    "memory bank": "sotta",
    "teacher of all weights": "cotta",
}
"""A method of each group; the last three take most of the time."""


def network() -> nn.Module:
    """A small network with BatchNorm, of ten classes."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(72, 10)
    ).eval()


def resident() -> float:
    """MiB of memory that the process has now; on systems without /proc the most that it had."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def batch(i: int, size: int, rng: torch.Generator) -> Tensor:
    """Images of batch number i; a period of the drift is 97 batches."""
    mean = 0.5 + 0.3 * math.sin(2 * math.pi * i / 97)
    return torch.rand(size, 3, 8, 8, generator=rng).sub_(0.5).mul_(0.4).add_(mean)


def held(adapter: Adapter) -> int:
    """Bytes of the state."""
    return sum(v.nbytes for v in adapter.state_dict().values())


def measured(label: str, images: int, size: int) -> dict[str, Any]:
    """Run one method over the stream.

    Returns:
        for each tenth the median of the processor time of a step in milliseconds, the memory of the process in MiB and the
        bytes of the state at its end.
    """
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    adapter = build_method({"method": label, "arguments": {}}, network(), 10, 0)
    rng, steps = torch.Generator().manual_seed(1), images // size
    if adapter.source != "none":
        adapter.prepare([batch(i, size, rng) for i in range(4)])
    tenths: list[dict[str, float]] = []
    for part in range(10):
        taken = []
        for i in range(part * steps // 10, (part + 1) * steps // 10):
            x = batch(i, size, rng)
            start = time.process_time()
            adapter(x)
            taken.append(time.process_time() - start)
        tenths.append(
            {"ms": 1000 * statistics.median(taken), "MiB": resident(), "state": float(held(adapter))}
        )
        print(f"{label}: {part + 1} of 10 tenths", file=sys.stderr, flush=True)
    return {
        "method": label, "images": images, "batch": size, "tenths": tenths, "processor": processor_name(),
        "load": machine_load(), "torch": torch.__version__,
    }  # fmt: skip


def table(folder: Path) -> list[str]:
    """The Markdown lines of what is in the folder."""
    lines = [
        "| group | method | images | step, first and last tenth, ms | ratio | memory, MiB | state, KiB |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for group, label in GROUPS.items():
        path = folder / f"{label}.json"
        if not path.exists():
            continue
        found = read_json(path, "a result of benchmarks/length.py")
        first, last = found["tenths"][0], found["tenths"][-1]
        lines.append(
            f"| {group} | {label} | {found['images']:,} | {first['ms']:.2f}, {last['ms']:.2f} "
            f"| {last['ms'] / first['ms']:.2f} | {first['MiB']:.1f}, {last['MiB']:.1f} "
            f"| {first['state'] / 1024:.1f}, {last['state'] / 1024:.1f} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", default=",".join(GROUPS.values()))
    parser.add_argument("--images", type=int, default=10**6)
    parser.add_argument("--batch-size", type=int, default=200)
    parser.add_argument(
        "--out", default="benchmarks/results/length", help="folder of the results, one file a method"
    )
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measured(given.one, given.images, given.batch_size)))
        return
    folder = Path(given.out)
    for label in given.methods.split(","):
        path = folder / f"{label}.json"
        if not path.exists():
            command = [sys.executable, __file__, "--one", label, "--images", str(given.images)]
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
            text = subprocess.check_output(
                [*command, "--batch-size", str(given.batch_size)], env=environment, text=True
            )
            write_json(path, json.loads(text.splitlines()[-1]))
    print("\n".join(table(folder)))


if __name__ == "__main__":
    main()
