"""What a step of each method saves for its backward, in MiB, beside the network's weights, by ``autograd=``: EcoTTA's claim.

Counted are the tensors that autograd saves on one batch, each storage once, without parameters and buffers: the activations,
which are most of what adapting needs beyond predicting. The peak over the passes of a step is the largest of them.

    python benchmarks/memory.py --data .data                       # the public ResNet-20 of CIFAR-10, batch of 200
    python benchmarks/memory.py --data .data --methods TENT,EcoTTA --batch-size 64

EcoTTA (Song et al., CVPR 2023) claims up to 86 % less than CoTTA and 80 % less than TENT, as meta networks beside frozen groups
need the activations of the meta networks alone.
"""

from __future__ import annotations

import argparse
import time
from statistics import median

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from testtime.adapter import Adapter
from testtime.build import build_method
from testtime.data.named import training_images
from testtime.experiments import Request
from testtime.experiments.online.experiment import online
from testtime.experiments.online.stream import make_stream, source_model

MIB = 2**20
WAYS = ("plain", "lean")


class Kept:
    """Bytes that are saved for a backward pass, and the most at one time."""

    def __init__(self, own: set[int]) -> None:
        self.own, self.live, self.most = own, {}, 0
        self.now = 0

    def pack(self, x: Tensor) -> tuple[Tensor, int]:
        """Count a storage when it is saved first."""
        where = x.untyped_storage().data_ptr()
        if where not in self.own and where not in self.live:
            self.live[where] = x.untyped_storage().nbytes()
            self.now += self.live[where]
            self.most = max(self.most, self.now)
        return x, where

    def unpack(self, saved: tuple[Tensor, int]) -> Tensor:
        """When the first is used, the pass is on its way back: the next forward begins at nothing."""
        self.live, self.now = {}, 0
        return saved[0]


def kept(adapter: Adapter, x: Tensor) -> float:
    """MiB that the second step on a batch saves at most."""
    adapter(x)
    own = {t.untyped_storage().data_ptr() for t in (*adapter.parameters(), *adapter.buffers())} | {
        x.untyped_storage().data_ptr()
    }
    count = Kept(own)
    with saved_tensors_hooks(count.pack, count.unpack):
        adapter(x)
    return count.most / MIB


def ratio_of_times(one: Adapter, other: Adapter, x: Tensor, rounds: int) -> float:
    """Median of the ratios of the processor time of steps that follow one another."""
    found = []
    for _ in range(rounds):
        times = []
        for adapter in (one, other):
            start = time.process_time()
            adapter(x)
            times.append(time.process_time() - start)
        found.append(times[0] / times[1])
    return median(found)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default=".data", help="folder of data sets and weights (.data)")
    parser.add_argument("--methods", default="Source,BN-adapt,TENT,EATA,SAR,ROID,CoTTA,PAF+KIP,EcoTTA")
    parser.add_argument("--batch-size", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=0, help="steps by which times are compared (0: none)")
    given = parser.parse_args()
    field = online("field-continual")
    settings = {"batch_size": given.batch_size, "corruptions": field.entry["corruptions"][:1]}
    request = Request(field.name, rows=tuple(given.methods.split(",")), data=given.data, settings=settings)
    inputs, parameters = field.first_column(request, field.places(request))
    x = make_stream(parameters, inputs.places, given.batch_size)[0].x
    source = training_images(inputs.closed, given.data)
    found = {}
    for row in field.chosen_rows(field.rows, request):
        adapters = []
        for how in WAYS:
            adapter = build_method(row.about, source_model(inputs.model, inputs.places).model, 10, 0)
            adapter.autograd = how
            if adapter.source != "none":
                adapter.prepare([source.batch(range(200 * i, 200 * i + 200)) for i in range(3)])
            adapters.append(adapter)
        times = [ratio_of_times(adapters[1], adapters[0], x, given.rounds)] if given.rounds else []
        found[row.label] = [kept(adapter, x) for adapter in adapters] + times
    print(f"{'MiB':14}{'plain':>8}{'lean':>8}{'ratio':>8}{'/ TENT':>9}{'time':>8}")
    for label, (plain, lean, *times) in found.items():
        ratio = f"{lean / plain:8.2f}" if plain else f"{'':8}"
        tent = f"{plain / found['TENT'][0]:9.2f}" if "TENT" in found else f"{'':9}"
        print(f"{label:14}{plain:8.1f}{lean:8.1f}{ratio}{tent}" + "".join(f"{t:8.2f}" for t in times))


if __name__ == "__main__":
    main()
