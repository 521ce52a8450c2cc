"""Time every corruption against gaussian_noise in the same run: ``python benchmarks/corruptions.py``."""

from __future__ import annotations

import argparse
import time

import torch

from testtime.corruptions import CORRUPTIONS, EXTRA, corrupt


def seconds(x: torch.Tensor, name: str, severity: int, repeats: int) -> float:
    """The fastest of `repeats` runs, after one that fills the caches."""
    times = []
    for _ in range(repeats + 1):
        if x.is_cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        corrupt(x, name, severity)
        if x.is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def main() -> None:
    """Print ms per image and the ratio, for a batch of CIFAR size and one of ImageNet size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--severity", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for size, count in ((32, 1000), (224, 16)):
        x = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0)).to(arguments.device)
        print(f"{count} images of {size} x {size}, severity {arguments.severity}, {arguments.device}")
        took = {name: seconds(x, name, arguments.severity, arguments.repeats) for name in CORRUPTIONS + EXTRA}
        for name, second in took.items():
            ratio = second / took["gaussian_noise"]
            print(f"  {name:18} {1000 * second / count:8.3f} ms/image {ratio:7.2f} x")


if __name__ == "__main__":
    main()
