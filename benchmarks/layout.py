"""What a layout of memory and ``torch.compile`` do to a step of TENT on a CPU.

    python benchmarks/layout.py
    python benchmarks/layout.py --models resnet20 --no-compile

For each model: a step on the model with ``.to(memory_format=torch.channels_last)`` in units of one on the model as it is, and
the largest difference of their first logits (0 where the bits are equal); then a step whose forward is compiled by torch's
default compiler, in the same units, the largest difference of its first logits, and the seconds of processor time of its first
two steps, compilation and the C++ compiler included, with an empty cache.
"""

from __future__ import annotations

import argparse
import copy
import os
import resource
import time
import warnings
from tempfile import TemporaryDirectory

import torch
from state import Call, ratio, taken
from torch import Tensor, nn

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


def spent() -> float:
    """Seconds of processor time of this process and of those that it has waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def compiled(net: nn.Module, x: Tensor) -> tuple[Tent | None, Tensor, float]:
    """An adapter whose network is compiled, its first logits, and the seconds of two steps; None where there is no compiler."""
    adapter, start = Tent(net), spent()
    try:
        adapter.model.network.compile()  # type: ignore[union-attr]
        logits = adapter(x).logits
        adapter(x)
    except Exception as error:  # noqa: BLE001 - whatever a compiler raises is the result
        print(f"  torch.compile: {type(error).__name__}: {str(error).splitlines()[0][:100]}")
        return None, x, 0.0
    return adapter, logits, spent() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--no-compile", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with TemporaryDirectory() as cache:
        os.environ |= {"TORCHINDUCTOR_CACHE_DIR": cache, "TORCHINDUCTOR_COMPILE_THREADS": "1"}
        table(given.models, given.rounds, not given.no_compile)


def table(models: list[str], rounds: int, compiles: bool) -> None:
    """Print a line for each model."""
    warnings.simplefilter("ignore")
    print(
        "| model | channels last | difference of logits | compiled | difference of logits | first two steps |"
    )
    print("|---|---:|---:|---:|---:|---:|")
    for name in models:
        make, shape = MODELS[name]
        torch.manual_seed(0)
        net = make().eval()
        last = copy.deepcopy(net).to(memory_format=torch.channels_last)
        contenders: dict[str, Call] = {"plain": Tent(net), "last": Tent(last)}
        x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        first = [call(x).logits for call in contenders.values()]
        difference = float((first[0] - first[1]).abs().max())
        fast, logits, seconds = compiled(net, x) if compiles else (None, x, 0.0)
        if fast is not None:
            contenders["compiled"] = fast
        times = taken(contenders, shape, rounds * (5 if shape[0] == 1 else 1))
        line = f"| {name} | {ratio(times, 'last', 'plain'):.2f} | {difference:.1e} |"
        if fast is not None:
            apart = float((first[0] - logits).abs().max())
            line += f" {ratio(times, 'compiled', 'plain'):.2f} | {apart:.1e} | {seconds:.0f} s |"
        print(line if fast is not None else line + " | | |", flush=True)


if __name__ == "__main__":
    main()
