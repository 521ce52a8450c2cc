"""What a step of each method keeps for its backward pass, in MiB, beside the network's weights: EcoTTA's claim.

Counted are the tensors that autograd saves on one batch, each storage once, without parameters and buffers: the activations,
which are most of what adapting needs beyond predicting. The peak over the passes of a step is the largest of them.

    python benchmarks/memory.py --data .data                       # the public ResNet-20 of CIFAR-10, batch of 200
    python benchmarks/memory.py --data .data --methods TENT,EcoTTA --batch-size 64

EcoTTA (Song et al., CVPR 2023) claims up to 86 % less than CoTTA and 80 % less than TENT, as meta networks beside frozen groups
need the activations of the meta networks alone.
"""

from __future__ import annotations

import argparse

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from testtime.adapter import Adapter
from testtime.build import build_method
from testtime.data.named import training_images
from testtime.experiments import Request
from testtime.experiments.online.experiment import online
from testtime.experiments.online.stream import make_stream, source_model

MIB = 2**20


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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default=".data", help="folder of data sets and weights (.data)")
    parser.add_argument("--methods", default="Source,BN-adapt,TENT,EATA,SAR,ROID,CoTTA,PAF+KIP,EcoTTA")
    parser.add_argument("--batch-size", type=int, default=200)
    given = parser.parse_args()
    field = online("field-continual")
    settings = {"batch_size": given.batch_size, "corruptions": field.entry["corruptions"][:1]}
    request = Request(field.name, rows=tuple(given.methods.split(",")), data=given.data, settings=settings)
    inputs, parameters = field.first_column(request, field.places(request))
    x = make_stream(parameters, inputs.places, given.batch_size)[0].x
    source = training_images(inputs.closed, given.data)
    found = {}
    for row in field.chosen_rows(field.rows, request):
        adapter = build_method(row.about, source_model(inputs.model, inputs.places).model, 10, 0)
        if adapter.source != "none":
            adapter.prepare([source.batch(range(200 * i, 200 * i + 200)) for i in range(3)])
        found[row.label] = kept(adapter, x)
    print(f"{'':14}{'MiB':>8}{'/ TENT':>9}")
    for label, size in found.items():
        ratio = f"{size / found['TENT']:.2f}" if "TENT" in found else ""
        print(f"{label:14}{size:8.1f}{ratio:>9}")


if __name__ == "__main__":
    main()
