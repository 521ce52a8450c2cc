"""Which kinds of model work under which methods: every pair is tried, and docs/models.md says what happened.

    python scripts/model_matrix.py            # writes docs/models.md
    python scripts/model_matrix.py --kinds "weight_norm (former)" DataParallel --out some.md

A pair works when the adapter is built (and prepared, where the method wants that), answers two batches with valid logits of
the model's shape, has updated itself if the method learns, and leaves the model that it was built on as it was. Every pair
runs in a process of its own, so that a crash costs one cell; this needs a system that can fork.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import testtime
from testtime.methods import EATA, PAFKIP, ROID, SAR, T3A, BNAdapt, CoTTA, RoTTA, Source, Tent

CLASSES, BATCH = 5, 16
STILL = ("Source", "BN-adapt", "T3A")  # they take no gradient

METHODS: dict[str, Callable[[nn.Module], testtime.Adapter]] = {
    "Source": Source,
    "BN-adapt": BNAdapt,
    "TENT": Tent,
    "EATA": lambda model: EATA(model, CLASSES, margin=2.0),
    "SAR": lambda model: SAR(model, CLASSES, margin=2.0),
    "CoTTA": lambda model: CoTTA(model, views=2),
    "RoTTA": lambda model: RoTTA(model, CLASSES, capacity=BATCH, frequency=BATCH),
    "ROID": lambda model: ROID(model, CLASSES),
    "T3A": T3A,
    "PAF+KIP": lambda model: PAFKIP(model, CLASSES),
}


class Network(nn.Module):
    """Two convolutions with a normalisation each, and a linear head."""

    def __init__(self, norm: Callable[[int], nn.Module] = nn.BatchNorm2d, outputs: int = CLASSES) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), norm(8), nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1), norm(16), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(16, outputs)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.features(x).mean(dim=(2, 3)))


class Transformer(nn.Module):
    """Patches of 4 x 4 and two blocks with LayerNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 4, stride=4)
        self.blocks = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True, norm_first=True)
                for _ in range(2)
            )
        )
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.blocks(tokens)).mean(dim=1))


class Through(Network):
    """The network with its features computed by way of a function."""

    def __init__(self, way: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.way(self.features, x).mean(dim=(2, 3)))


class Answers(Network):
    """The network with its logits and features in a container."""

    def __init__(self, how: Callable[[Tensor, Tensor], Any], outputs: int = CLASSES) -> None:
        super().__init__(outputs=outputs)
        self.how = how

    def forward(self, x: Tensor) -> Any:
        features = self.features(x).mean(dim=(2, 3))
        return self.how(self.head(features), features)


class Keeps(Network):
    """The network that keeps the features of its last forward."""

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.features(x).mean(dim=(2, 3))
        return self.head(self.last)


class Dense(Network):
    """The network with logits for every pixel."""

    def forward(self, x: Tensor) -> Tensor:
        z = self.features(x).permute(0, 2, 3, 1)
        return F.interpolate(self.head(z).permute(0, 3, 1, 2), x.shape[-2:])


@dataclass
class Output:
    """What a library returns in place of logits."""

    logits: Tensor


def _under_no_grad(features: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return features(x)


def _used(model: nn.Module) -> nn.Module:
    model(torch.rand(BATCH, 3, 16, 16))
    return model


def _distributed() -> nn.Module:
    store = Path(tempfile.mkdtemp()) / "store"
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    return nn.parallel.DistributedDataParallel(Network())


def _with(reparametrise: Callable[[nn.Module], nn.Module], model: nn.Module) -> nn.Module:
    reparametrise(model.get_submodule("features.3"))
    return model


def _images(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(BATCH, 3, 16, 16).to(dtype)


@dataclass(frozen=True)
class Kind:
    """A kind of model.

    Attributes:
        make: builds the model.
        shape: of its logits for a batch.
        batch: draws a batch that it takes.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...] = (BATCH, CLASSES)
    batch: Callable[[], Tensor] = _images


def _table() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, CLASSES))


class Recurrent(nn.Module):
    """A recurrent network with LayerNorm for sequences (N, T, 12)."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.norm, self.head = (
            nn.GRU(12, 16, batch_first=True),
            nn.LayerNorm(16),
            nn.Linear(16, CLASSES),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.cell(x)[0]).mean(dim=1))


KINDS: dict[str, Kind] = {
    "BatchNorm": Kind(Network),
    "GroupNorm": Kind(lambda: Network(lambda c: nn.GroupNorm(4, c))),
    "LayerNorm (vision transformer)": Kind(Transformer),
    "InstanceNorm": Kind(lambda: Network(lambda c: nn.InstanceNorm2d(c, affine=True))),
    "no normalisation": Kind(lambda: Network(lambda c: nn.Identity())),
    "BatchNorm without running statistics": Kind(
        lambda: Network(lambda c: nn.BatchNorm2d(c, track_running_stats=False))
    ),
    "SyncBatchNorm": Kind(lambda: Network(nn.SyncBatchNorm)),
    "lazy BatchNorm before its first batch": Kind(lambda: Network(lambda c: nn.LazyBatchNorm2d())),
    "weight_norm (former)": Kind(lambda: _used(_with(nn.utils.weight_norm, Network()))),
    "weight_norm (parametrization)": Kind(
        lambda: _used(_with(nn.utils.parametrizations.weight_norm, Network()))
    ),
    "spectral_norm (former)": Kind(lambda: _used(_with(nn.utils.spectral_norm, Network()))),
    "spectral_norm (parametrization)": Kind(
        lambda: _used(_with(nn.utils.parametrizations.spectral_norm, Network()))
    ),
    "keeps its last features": Kind(lambda: _used(Keeps())),
    "DataParallel": Kind(lambda: nn.DataParallel(Network())),
    "DistributedDataParallel": Kind(_distributed),
    "torch.compile": Kind(lambda: torch.compile(Network(), backend="eager")),
    "torch.fx": Kind(lambda: torch.fx.symbolic_trace(Network())),
    "scripted": Kind(lambda: torch.jit.script(Network())),
    "traced": Kind(lambda: torch.jit.trace(Network().eval(), torch.rand(BATCH, 3, 16, 16))),
    "exported": Kind(lambda: torch.export.export(Network().eval(), (torch.rand(BATCH, 3, 16, 16),)).module()),
    "quantized": Kind(
        lambda: torch.ao.quantization.quantize_dynamic(Network().eval(), {nn.Linear}, dtype=torch.qint8)
    ),
    "checkpoint(use_reentrant=True)": Kind(
        lambda: Through(lambda f, x: checkpoint(f, x, use_reentrant=True))
    ),
    "checkpoint(use_reentrant=False)": Kind(
        lambda: Through(lambda f, x: checkpoint(f, x, use_reentrant=False))
    ),
    "features under no_grad": Kind(lambda: Through(_under_no_grad)),
    "tuple (logits, features)": Kind(lambda: Answers(lambda y, z: (y, z))),
    "tuple (features, logits)": Kind(lambda: Answers(lambda y, z: (z, y))),
    'dictionary {"logits"}': Kind(lambda: Answers(lambda y, z: {"logits": y})),
    'dictionary {"out", "aux"}': Kind(lambda: Answers(lambda y, z: OrderedDict(out=y, aux=y / 2))),
    "dataclass with logits": Kind(lambda: Answers(lambda y, z: Output(y))),
    "probabilities": Kind(lambda: Answers(lambda y, z: y.softmax(dim=1))),
    "one logit (N, 1)": Kind(lambda: Network(outputs=1), (BATCH, 1)),
    "no class dimension (N,)": Kind(lambda: Answers(lambda y, z: y[:, 0], 1), (BATCH,)),
    "dense logits (N, C, H, W)": Kind(Dense, (BATCH, CLASSES, 16, 16)),
    "float16": Kind(lambda: Network().half(), batch=lambda: _images(torch.float16)),
    "bfloat16": Kind(lambda: Network().bfloat16(), batch=lambda: _images(torch.bfloat16)),
    "float64": Kind(lambda: Network().double(), batch=lambda: _images(torch.float64)),
    "channels_last": Kind(
        lambda: Network(lambda c: nn.GroupNorm(4, c)).to(memory_format=torch.channels_last),
        batch=lambda: _images().to(memory_format=torch.channels_last),
    ),
    "table input (N, 12), BatchNorm1d": Kind(_table, batch=lambda: torch.randn(BATCH, 12)),
    "sequence input (N, T, 12), LayerNorm": Kind(Recurrent, batch=lambda: torch.randn(BATCH, 7, 12)),
}


def attempt(kind: Kind, method: str) -> tuple[str, str]:
    """Try one pair.

    Returns:
        "works", "refused" (TypeError or ValueError) or "fails", and the message, empty where it works.
    """
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    model = kind.make()
    if type(model).__name__ != "GraphModule" and not isinstance(model, torch.jit.ScriptModule):
        model.train(False)
    before = {
        k: v.clone() for k, v in model.state_dict().items() if isinstance(v, Tensor) and not _is_lazy(v)
    }
    try:
        adapter = METHODS[method](model)
        if adapter.source != "none":
            adapter.prepare([kind.batch(), kind.batch()])
        answers = [adapter(kind.batch()) for _ in range(2)]
    except (TypeError, ValueError) as error:
        return "refused", f"{type(error).__name__}: {error}"
    except Exception as error:  # noqa: BLE001 - a cell of the table, whatever it is
        return "fails", f"{type(error).__name__}: {error}"
    for y in answers:
        logits = getattr(y, "logits", y)
        shape = (
            tuple(logits.shape)
            if isinstance(logits, Tensor)
            else {k: tuple(v.shape) for k, v in logits.items()}
        )
        if shape != kind.shape:
            return "fails", f"answers {shape} where the model's logits are {kind.shape}"
        if not bool(y.valid.all()):
            return (
                "fails",
                f"answers {int((~y.valid).sum())} of {len(logits)} samples with values that are not finite",
            )
    if method not in STILL and not any(y.updated for y in answers):
        return "fails", "answers, but never updates itself"
    if any(not torch.equal(v, model.state_dict()[k]) for k, v in before.items()):
        return "fails", "changes the model that it was built on"
    return "works", ""


def _is_lazy(value: Tensor) -> bool:
    return torch.nn.parameter.is_lazy(value)


def attempt_apart(kind: Kind, method: str) -> tuple[str, str]:
    """As :func:`attempt`, in a process of its own; one that dies "fails"."""
    with tempfile.NamedTemporaryFile() as file:
        child = os.fork()
        if not child:
            try:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
                try:
                    found = attempt(kind, method)
                except Exception as error:  # noqa: BLE001 - the model itself could not be made
                    found = "fails", f"the model cannot be made: {type(error).__name__}: {error}"
                Path(file.name).write_text(json.dumps(found))
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        written = Path(file.name).read_text()
    if not written:
        return "fails", "the process dies"
    result, message = json.loads(written)
    return result, message


def page(found: dict[str, dict[str, tuple[str, str]]], methods: Sequence[str]) -> str:
    """The table in Markdown, every message once beneath it.

    Args:
        found: by kind of model, by method, the result and the message.
        methods: the columns, in their order.
    """
    notes: dict[str, int] = {}
    lines = [f"| model | {' | '.join(methods)} |", "|---" * (len(methods) + 1) + "|"]
    for kind, row in found.items():
        cells = []
        for method in methods:
            result, message = row[method]
            number = notes.setdefault(message, len(notes) + 1) if message else 0
            shown = {"works": "works", "refused": "refused", "fails": "**fails**"}[result]
            cells.append(f"{shown} [{number}](#messages)" if number else shown)
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    count = {
        r: sum(row[m][0] == r for row in found.values() for m in methods)
        for r in ("works", "refused", "fails")
    }
    return "\n".join(
        [
            "# Models and methods",
            "",
            "Written by `python scripts/model_matrix.py`, which tries every pair. *Works*: the adapter is built (and",
            "prepared, where the method wants that), answers two batches with valid logits of the model's shape, updates",
            "itself if the method learns, and leaves the model that it was built on as it was. *Refused*: a `TypeError` or",
            "`ValueError` says what to do. *Fails*: anything else.",
            "",
            f"{count['works']} pairs work, {count['refused']} are refused, {count['fails']} fail (torch "
            f"{torch.__version__.split('+')[0]}, CPU, {CLASSES} classes, batches of {BATCH}).",
            "",
            *lines,
            "",
            "## Messages",
            "",
            *(f"{number}. {' '.join(message.split())}" for message, number in notes.items()),
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), metavar="KIND")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs" / "models.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    attempt(KINDS["BatchNorm"], "TENT")  # what torch imports at the first step is then there for every fork
    found = {}
    for kind in arguments.kinds:
        found[kind] = {method: attempt_apart(KINDS[kind], method) for method in METHODS}
        print(f"{kind:<40}", *(f"{result:<8}" for result, _ in found[kind].values()), flush=True)
    arguments.out.write_text(page(found, list(METHODS)))


if __name__ == "__main__":
    main()
