"""Time of a step of every method, in forwards and in units of the method by hand where there is one.

    python benchmarks/steps.py --methods tent,eata --out FOLDER

ResNet-20 of 10 classes, images of 32 x 32. Each method takes its turn with a plain forward F of the same batch, round after
round; a figure is the median over the rounds of the ratio of process CPU times. A method whose file is there is not timed
again; one that does not take this model is named with the reason.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from speed import tent_loop
from state import Call, plain, ratio, taken
from torch import Tensor, nn

from testtime.build import build_method, find_method, list_methods
from testtime.files import read_json, write_json
from testtime.models import resnet20

BY_HAND: dict[str, Callable[[nn.Module], Callable[[Tensor], Tensor]]] = {"tent": tent_loop}
"""Methods that are written by hand in torch alone."""


def timed(name: str, size: int, rounds: int) -> dict[str, Any]:
    """Time one method.

    Returns:
        ``F``, its step in forwards, ``cost``, the forwards and backwards that it declares, ``hand``, its step in units of the
        one by hand, where there is one; or ``skipped``, the reason.
    """
    torch.manual_seed(0)
    net, cls = resnet20().eval(), find_method(name)
    rng = torch.Generator().manual_seed(1)
    try:
        adapter = build_method({"method": name, "arguments": {}}, net, 10, 0)
        if adapter.source != "none":
            x, y = torch.rand(32, 3, 32, 32, generator=rng), torch.arange(32) % 10
            adapter.prepare([(x, y)] * 2 if adapter.labelled_source else [x] * 2)
    except (TypeError, ValueError, RuntimeError) as error:
        return {"label": cls.label, "skipped": str(error).split(";")[0].split("\n")[0][:120]}
    contenders: dict[str, Call] = {"F": plain(net), "method": adapter}
    if name in BY_HAND:
        contenders["hand"] = BY_HAND[name](net)
    seconds = taken(contenders, (size, 3, 32, 32), rounds)
    found = {
        "label": cls.label,
        "F": ratio(seconds, "method", "F"),
        "cost": list(adapter.cost),
        "batch": size,
    }
    return found | ({"hand": ratio(seconds, "method", "hand")} if "hand" in contenders else {})


def lines(folder: Path) -> list[str]:
    """The Markdown table of what is in the folder."""
    rows = [
        "| method | a step, F | forwards and backwards that it declares | in units of the method by hand |",
        "|---|---:|---|---:|",
    ]
    skipped = []
    for path in sorted(folder.glob("*.json")):
        found = read_json(path, "a result of benchmarks/steps.py")
        if "skipped" in found:
            skipped.append(f"{found['label']} ({found['skipped']})")
            continue
        forwards, backwards = found["cost"]
        hand = f"{found['hand']:.2f}" if "hand" in found else ""
        rows.append(f"| {found['label']} | {found['F']:.2f} | {forwards:g}, {backwards:g} | {hand} |")
    return [*rows, *(["", "Not timed: " + "; ".join(skipped) + "."] if skipped else [])]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", default=",".join(list_methods()))
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", default="benchmarks/results/steps", help="folder, one file a method")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    folder = Path(given.out)
    for name in given.methods.split(","):
        path = folder / f"{name}.json"
        if not path.exists():
            write_json(path, timed(name, given.batch_size, given.rounds))
    print("\n".join(lines(folder)))


if __name__ == "__main__":
    main()
