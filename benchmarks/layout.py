"""What a layout of memory and ``torch.compile`` do to a step of TENT on a CPU.

    python benchmarks/layout.py
    python benchmarks/layout.py --models resnet20 --no-compile

For each model: a step on the model with ``.to(memory_format=torch.channels_last)`` in units of one on the model as it is, and
the largest difference of their first logits (0 where the bits are equal); then a step whose forward is compiled by torch's
default compiler, in the same units, and the seconds of processor time of its first two steps, compilation included.
"""

from __future__ import annotations

import argparse
import copy
import time
import warnings

import torch
from state import Call, ratio, taken
from torch import nn

from testtime.methods import Tent
from testtime.models import WideResNet, load_model, resnet20
from testtime.models.resnet import ResNet

MODELS = {
    "digits-cnn": (lambda: load_model("digits-cnn"), (200, 3, 32, 32)),
    "resnet20": (resnet20, (200, 3, 32, 32)),
    "resnet20, batch 1": (resnet20, (1, 3, 32, 32)),
    "wrn-40-2": (lambda: WideResNet(40, 2), (64, 3, 32, 32)),
    "resnet50": (lambda: ResNet(50), (4, 3, 224, 224)),
}


def compiled(net: nn.Module, shape: tuple[int, ...]) -> tuple[Tent | None, float]:
    """An adapter whose network is compiled, and the seconds that took; None where there is no compiler."""
    adapter, start = Tent(net), time.process_time()
    try:
        adapter.model.network.compile()  # type: ignore[union-attr]
        for _ in range(2):
            adapter(torch.rand(shape))
    except Exception as error:  # noqa: BLE001 - whatever a compiler raises is the result
        print(f"  torch.compile: {type(error).__name__}: {str(error).splitlines()[0][:100]}")
        return None, 0.0
    return adapter, time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--no-compile", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print("| model | channels last | difference of logits | compiled | first two steps |")
    print("|---|---:|---:|---:|---:|")
    for name in given.models:
        make, shape = MODELS[name]
        torch.manual_seed(0)
        net = make().eval()
        last = copy.deepcopy(net).to(memory_format=torch.channels_last)
        contenders: dict[str, Call] = {"plain": Tent(net), "last": Tent(last)}
        x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        first = [call(x).logits for call in contenders.values()]
        difference = float((first[0] - first[1]).abs().max())
        fast, seconds = (None, 0.0) if given.no_compile else compiled(net, shape)
        if fast is not None:
            contenders["compiled"] = fast
        times = taken(contenders, shape, given.rounds * (5 if shape[0] == 1 else 1))
        of_compiled = (
            f"{ratio(times, 'compiled', 'plain'):.2f} | {seconds:.0f} s" if fast is not None else " | "
        )
        print(
            f"| {name} | {ratio(times, 'last', 'plain'):.2f} | {difference:.1e} | {of_compiled} |", flush=True
        )


if __name__ == "__main__":
    main()
