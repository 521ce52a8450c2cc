"""Cost of a guard: time of the processor for a step, as a ratio to the same adapter without it, within one run.

Both adapters take the same batches in turns, round after round; the figure is the ratio of the medians over the second half of
the rounds, and, beside it, of the sums, checks included, and of the medians of rounds without a check. The images are those of
the model's data set, as they were learned or, with ``--drift``, under Gaussian noise.

    python benchmarks/guard.py                       # digits-cnn and TENT, batches of 200
    python benchmarks/guard.py --batch-size 1 --rounds 400
    python benchmarks/guard.py --model cifar10-resnet20 --data .data
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from testtime.build import adapt
from testtime.data.places import images_of, source_batches
from testtime.models import load_model
from testtime.wrap import Guarded

SETS = {"digits-cnn": "digits", "cifar10-resnet20": "cifar10"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--method", default="tent")
    parser.add_argument("--model", choices=sorted(SETS), default="digits-cnn")
    parser.add_argument("--data", default=".data", help="folder with cifar10/ and weights/")
    parser.add_argument("--batch-size", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--drift", action="store_true", help="Gaussian noise")
    options = parser.parse_args()
    torch.set_num_threads(1)
    places, closed = {"data": options.data}, SETS[options.model]
    images = images_of(closed, places)
    weights = None if closed == "digits" else f"{options.data}/weights/cifar10_resnet20.safetensors"
    model = load_model(options.model, weights)
    source = list(source_batches(closed, places, 64, 0, None))
    plain, guarded = adapt(model, options.method), Guarded(adapt(model, options.method))
    guarded.prepare(source)
    taken: dict[str, list[float]] = {"plain": [], "guarded": []}
    trusted, checked, asked = 0, [False] * options.rounds, [False]
    guarded.reference.register_forward_pre_hook(lambda *_: asked.append(True))
    rng = torch.Generator().manual_seed(0)
    for i in range(options.rounds):
        rows = torch.randint(len(images), (options.batch_size,), generator=rng).numpy()
        x = images.batch(rows, None)
        if options.drift:
            x = (x + 0.3 * torch.randn(x.shape, generator=rng)).clamp(0, 1)
        asked.clear()
        turns = [("plain", plain), ("guarded", guarded)]
        for name, adapter in turns if i % 2 else turns[::-1]:
            began = time.process_time()
            adapter(x)
            taken[name].append(time.process_time() - began)
        checked[i] = bool(asked)
        trusted += int(guarded.trusted and i >= options.rounds // 2)
    later = {name: times[options.rounds // 2 :] for name, times in taken.items()}
    median = statistics.median(later["guarded"]) / statistics.median(later["plain"])
    total = sum(later["guarded"]) / sum(later["plain"])
    plainly = [
        t for t, check in zip(later["guarded"], checked[options.rounds // 2 :], strict=True) if not check
    ]
    unchecked = statistics.median(plainly) / statistics.median(later["plain"]) if plainly else float("nan")
    print(
        f"{options.model}, {options.method}, batches of {options.batch_size}: median {median:.3f}, all {total:.3f} of a step,",
        f"{unchecked:.3f} in {len(plainly)} rounds without a check, trusted in {trusted} of {len(later['plain'])} rounds,",
        f"{1e3 * statistics.median(later['plain']):.1f} ms",
    )


if __name__ == "__main__":
    main()
