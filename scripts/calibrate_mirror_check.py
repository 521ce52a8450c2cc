"""How often the warning about mirrored views is given, and after how many images: on digits it is right, on photographs wrong.

    python scripts/calibrate_mirror_check.py --data .data digits-cnn cifar10-resnet20 imagenet-mobilenet-x0.25

For each of 15 corruptions at severity 5, and for clean images: the share of contradictions among the images that the model,
by the statistics of each batch, is confident about; and, over ten orders of the images, how many streams are warned of and how
many images the decision takes (no decision within the images at hand counts as no warning).
"""

from __future__ import annotations

import argparse
import warnings

import numpy as np
import torch
from torch import Tensor, nn

from testtime.corruptions import CORRUPTIONS
from testtime.data.named import named
from testtime.models import open_model
from testtime.parts import random_crop_flip
from testtime.parts.views import MirrorCheck, contradicted
from testtime.progress import progress
from testtime.streams import clean, corrupted


class Mirroring(nn.Module):
    """What the check looks at: a network, and a view of it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.augment = model, random_crop_flip


def decided(model: nn.Module, x: Tensor, batch: int) -> tuple[bool, int]:
    """Whether a stream is warned of, and the number of images until the decision."""
    check = MirrorCheck()
    for number, images in enumerate(x.split(batch), 1):
        check(Mirroring(model), images)
        if not check.open:
            return check.warned, number * batch
    return False, len(x)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", help="names of source models")
    parser.add_argument("--data", default=".data", help="folder of data sets and weights (.data)")
    parser.add_argument("--images", type=int, default=500, help="images of each corruption (500)")
    parser.add_argument("--batch-size", type=int, default=32, help="images of a batch (32)")
    parser.add_argument("--orders", type=int, default=10, help="orders of the images (10)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", UserWarning)
    for name in given.models:
        found = open_model(name, given.data)
        model, size = found.model, (found.side,) * 2
        model.views = None
        images = named(name.partition("-")[0], given.data)
        chosen = np.random.default_rng(0).permutation(len(images))[: given.images]
        domains = [clean(images, size), *(corrupted(images, c, 5, size=size) for c in CORRUPTIONS)]
        print(f"{name}: contradictions, streams warned of, median number of images until the decision")
        for domain in progress(domains, len(domains), name):
            x = domain.render(chosen)
            sure, changed = (
                sum(n) for n in zip(*(contradicted(model, b) for b in x.split(given.batch_size)), strict=True)
            )
            runs = []
            for seed in range(given.orders):
                order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
                runs.append(decided(model, x[order], given.batch_size))
            warned, number = sum(w for w, _ in runs), np.median([n for _, n in runs])
            share = 100 * changed / max(sure, 1)
            print(f"{domain.name:18} {share:5.1f} %  {warned:2} of {len(runs)}  {number:4.0f}", flush=True)


if __name__ == "__main__":
    main()
