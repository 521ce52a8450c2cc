"""Time every corruption and a stream in process CPU time: ``python benchmarks/corruptions.py``.

Where imagecorruptions 1.1.2 is installed (with scikit-image), every corruption is timed against it in turn, uint8 images to
uint8 images with the constants of ImageNet-C; the ratio is images per second, ours over theirs, the median of the rounds.
Three names that numpy, setuptools and scikit-image have removed since are put back for the run. A stream is timed against plain
indexing, against the corruption alone, and, with threads that render in advance, against itself without: on two idle
processors the time on the clock with two of them is 0.5 where they are ideal.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable
from functools import partial
from importlib.resources import files
from types import ModuleType
from typing import Any

import numpy as np
import torch

from testtime.corruptions import CORRUPTIONS, EXTRA, corrupt
from testtime.data import from_arrays
from testtime.processor import machine_load, processor_name
from testtime.streams import clean, continual, corrupted


def peer() -> ModuleType | None:
    """Return imagecorruptions, or None where it is not installed."""
    warnings.simplefilter("ignore")
    np.float_ = np.float64  # type: ignore[attr-defined]  # noqa: NPY201
    resources = ModuleType("pkg_resources")
    resources.resource_filename = lambda package, name: str(  # type: ignore[attr-defined]
        files(package.rpartition(".")[0]) / name
    )
    sys.modules.setdefault("pkg_resources", resources)
    try:
        import imagecorruptions  # type: ignore[import-not-found]
    except ImportError:
        return None
    blur = imagecorruptions.corruptions.gaussian

    def gaussian(image: Any, sigma: Any, multichannel: bool = False, **others: Any) -> Any:
        return blur(image, sigma, channel_axis=-1 if multichannel else None, **others)

    imagecorruptions.corruptions.gaussian = gaussian
    return imagecorruptions  # type: ignore[no-any-return]


def seconds(run: Callable[[], object]) -> float:
    """Return the CPU time of one call."""
    start = time.process_time()
    run()
    return time.process_time() - start


def in_turn(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Return the CPU times of several calls that take turns, after one round that fills the caches."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            second = seconds(run)
            if number:
                taken[name].append(second)
    return taken


def kinds(names: list[str], size: int, severities: list[int], rounds: int, other: ModuleType | None) -> None:
    """Print the time of an image under each corruption, and the ratio to the other library."""
    count, few = (256, 8) if size <= 64 else (6, 2)
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 8, 8, generator=generator)
    x = torch.nn.functional.interpolate(coarse, size, mode="bicubic").clamp(0, 1).mul(255).to(torch.uint8)
    pictures = list(x[:few].permute(0, 2, 3, 1).contiguous().numpy())
    for name in names:
        for severity in severities:
            runs: dict[str, Callable[[], object]] = {
                "ours": partial(corrupt, x, name, severity, constants="imagenet")
            }
            if other is not None:
                runs["theirs"] = lambda n=name, s=severity: [other.corrupt(p, s, n) for p in pictures]
            taken = in_turn(runs, rounds)
            line = f"{size:4} {name:18} {severity}  {1000 * statistics.median(taken['ours']) / count:8.3f} ms"
            if other is not None:
                ratios = [b / few * count / a for a, b in zip(taken["ours"], taken["theirs"], strict=True)]
                line += f" {statistics.median(ratios):8.2f} x"
            print(line, flush=True)


def streams(rounds: int) -> None:
    """Print the time of a stream relative to plain indexing and to the corruption alone."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (2000, 3, 32, 32), dtype=np.uint8)
    images = from_arrays("noise", pixels, rng.integers(0, 10, 2000), tuple("abcdefghij"))
    x = torch.from_numpy(pixels)
    order = torch.randperm(2000, generator=torch.Generator().manual_seed(0)).split(200)
    plain = continual(images, [clean(images)])
    noisy = continual(images, [corrupted(images, "gaussian_noise")])
    spend = deque[object](maxlen=0).extend  # a batch is gone when the next one comes
    runs: dict[str, Callable[[], object]] = {
        "indexing": lambda: spend(x[rows].float().div_(255) for rows in order),
        "clean stream": lambda: spend(plain),
        "corruption": lambda: spend(corrupt(x[rows], "gaussian_noise") for rows in order),
        "corrupted stream": lambda: spend(noisy),
    }
    taken = in_turn(runs, rounds)
    for name, base in (("clean stream", "indexing"), ("corrupted stream", "corruption")):
        ratio = statistics.median(a / b for a, b in zip(taken[name], taken[base], strict=True))
        print(f"{name:18} {2000 / statistics.median(taken[name]):9.0f} images/s {ratio:6.2f} x {base}")


def workers(rounds: int) -> None:
    """Print what threads that render in advance take, in units of a stream without: processor time, and time on the clock."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (2000, 3, 32, 32), dtype=np.uint8)
    images = from_arrays("noise", pixels, rng.integers(0, 10, 2000), tuple("abcdefghij"))
    noisy = continual(images, [corrupted(images, "gaussian_noise")])
    taken: dict[int, list[tuple[float, float]]] = {0: [], 1: [], 2: []}
    for number in range(rounds + 1):
        for count, times in taken.items():
            clock, processor = time.monotonic(), time.process_time()
            deque[object](maxlen=0).extend(noisy.prefetch(count))
            if number:
                times.append((time.process_time() - processor, time.monotonic() - clock))
    for count in (1, 2):
        each = zip(taken[count], taken[0], strict=True)
        ratios = [(a / c, b / d) for (a, b), (c, d) in each]
        processor, clock = (statistics.median(values) for values in zip(*ratios, strict=True))
        print(
            f"{count} worker(s)        {processor:.2f} x the processor time, {clock:.2f} x the time on the clock"
        )


def main() -> None:
    """Print the tables, with the processor and the load."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--kinds", nargs="*", default=[*CORRUPTIONS, *EXTRA])
    parser.add_argument("--sizes", type=int, nargs="*", default=[32, 224])
    parser.add_argument("--severities", type=int, nargs="*", default=[1, 3, 5])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{processor_name()}, {arguments.threads} thread(s), load {machine_load()}")
    streams(arguments.rounds)
    workers(arguments.rounds)
    other = peer()
    print(
        "per image, images/s over imagecorruptions"
        if other
        else "per image (imagecorruptions is not installed)"
    )
    for size in arguments.sizes:
        kinds(arguments.kinds, size, arguments.severities, arguments.rounds, other)


if __name__ == "__main__":
    main()
