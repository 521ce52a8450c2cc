"""Compare every method in one process and in several (testtime.wrap.DataParallel): the figures of docs/production.md.

    python scripts/compare_processes.py [--processes 2] [METHOD ...]

Five batches of 24 digits with Gaussian noise, digits-cnn in float64, on the CPU with gloo; the first process has 5 images
of each batch, the last one the others, those between none.
"""

from __future__ import annotations

import argparse
import inspect
import os
import warnings
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from testtime import list_methods
from testtime.adapter import Adapter
from testtime.build import adapt, find_method
from testtime.corruptions import corrupt
from testtime.data import embedded
from testtime.models import load_model
from testtime.wrap import DataParallel

BATCH, BATCHES, FIRST = 24, 5, 5


def batches() -> list[Tensor]:
    x = embedded().test.batch(range(BATCH * BATCHES))
    return list(corrupt(x, "gaussian_noise").double().split(BATCH))


def built(name: str) -> Adapter:
    classes = {"classes": 10} if "classes" in inspect.signature(find_method(name)).parameters else {}
    adapter = adapt(load_model("digits-cnn").double(), name, **classes)
    if adapter.source != "none":
        train = embedded().train
        x, y = train.batch(range(96)).double(), train.targets(range(96))
        parts = list(zip(x.split(BATCH), y.split(BATCH), strict=True))
        adapter.prepare(parts if adapter.labelled_source else [images for images, _ in parts])
    return adapter


def run(rank: int, size: int, port: int, names: list[str], found: Any) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if size > 1:
        dist.init_process_group("gloo", rank=rank, world_size=size)
    ends = [0, *[FIRST] * (size - 1), BATCH]
    results: dict[str, Any] = {}
    for name in names:
        try:
            adapter = built(name)
            call = DataParallel(adapter, check_every=1) if size > 1 else adapter
            logits = [call(x[ends[rank] : ends[rank + 1]]).logits.numpy() for x in batches()]
            results[name] = logits, {k: v.double().numpy() for k, v in adapter.state_dict().items()}
        except (ValueError, RuntimeError, TypeError) as error:
            results[name] = str(error)
    found.put((rank, results))
    if size > 1:
        dist.barrier()
        dist.destroy_process_group()


def results(size: int, port: int, names: list[str]) -> list[dict[str, Any]]:
    context = mp.get_context("spawn")
    found = context.Queue()
    processes = [context.Process(target=run, args=(r, size, port, names, found)) for r in range(size)]
    for process in processes:
        process.start()
    by_rank = dict(found.get() for _ in processes)
    for process in processes:
        process.join()
    return [by_rank[rank] for rank in range(size)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("methods", nargs="*")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--port", type=int, default=29650)
    arguments = parser.parse_args()
    names = arguments.methods or list_methods()
    (alone,) = results(1, 0, names)
    shared = results(arguments.processes, arguments.port, names)
    print("| method | logits | state | processes equal |\n|---|---|---|---|")
    for name in names:
        refused = [r[name] for r in (alone, *shared) if isinstance(r[name], str)]
        if refused:
            print(f"| {name} | {refused[0][:100]} | | |")
            continue
        parts = [r[name][0] for r in shared]
        logits = max(
            abs(
                torch.cat([torch.from_numpy(p[i]) for p in parts]) - torch.from_numpy(alone[name][0][i])
            ).max()
            for i in range(BATCHES)
        )
        states = [r[name][1] for r in (alone, *shared)]
        state = max(
            (abs(states[0][k] - states[1][k]).max() for k in states[0] if states[0][k].size), default=0
        )
        equal = all((states[1][k] == other[k]).all() for other in states[2:] for k in states[1])
        print(
            f"| {name} | {float(logits):.0e} | {float(state):.0e} | {'yes' if equal else 'no'} |", flush=True
        )


if __name__ == "__main__":
    main()
