r"""Transfer: a pre-trained encoder and a new head learn a task from labelled images of other places, or from a few of this one.

.. math:: L = -\frac{1}{|\{p : y_p \text{ known}\}|} \sum_p \log p_\theta(y_p \mid x)

All parameters are fine-tuned, the deeper the faster: with decay :math:`\rho` the block :math:`i` of :math:`n` learns at
:math:`\rho^{n-i}` of the rate, the embedding at :math:`\rho^{n+1}`, final norm and head at the whole. The batch of a step is a
function of seed and step and of nothing else, so that two encoders are compared on the same images.

Label propagation is the same with :func:`few` labelled images of the test space. The baseline from scratch is the same with a
:class:`~testtime.space.segmenter.PatchEncoder`, which may also be given all modalities, at transfer and at test.

Departures: drop path lets whole blocks of foreign encoders go, and their two branches apart only where the block is
:class:`testtime.space.model.Block`. The paper says "flip and crop" without a scale; here enlargement up to 2.

Reference: Singh, Garjani et al., Multimodality as Supervision: Self-Supervised Specialization to the Test Environment via
Multimodality (TST-MM), table 11; layer decay as in BEiT (Bao et al., ICLR 2022).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from testtime.data.dense import IGNORE, DenseSet, collate, sized
from testtime.files import damaged, read_lines, write_lines
from testtime.metrics.dense import MeanIoU
from testtime.multitask.training import Recipe as Augmentation
from testtime.multitask.training import augmented
from testtime.parts.randomness import epochs, generator
from testtime.progress import progress
from testtime.space.model import Block
from testtime.space.segmenter import Encoder, Images, Segmenter
from testtime.training import checkpoint

__all__ = [
    "RECIPES",
    "TransferRecipe",
    "evaluate",
    "few",
    "fit",
    "parameter_groups",
    "rate",
    "transfer",
]

CHECKPOINT, WEIGHTS = "checkpoint.safetensors", "model.safetensors"


@dataclass(frozen=True)
class TransferRecipe:
    """How a pre-trained encoder is fine-tuned; AdamW, and a cosine to 0 after a linear warmup, step by step.

    Attributes:
        epochs: passes over the data; a step more where the batch does not divide them.
        warmup: epochs of it.
        batch: images per step.
        lr: of head and final norm, after the warmup, at this batch.
        weight_decay: of matrices; vectors (norms, biases) have none.
        betas: of AdamW.
        layer_decay: the factor of the rate from one layer to the one before it.
        drop_path: chance that the last block's branch is left out for a sample, from 0 in the first, linearly.
        flip: mirror half of the images.
        scale: range of a random enlargement, after which a window of the image's size is cut out.
        freeze_encoder: only the head learns.
        precision: "float32" or "bfloat16" (autocast).
        every: steps between two checkpoints.

    Raises:
        ValueError: a number is out of its range.
    """

    epochs: int = 64
    warmup: float = 1
    batch: int = 32
    lr: float = 1e-4
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    layer_decay: float = 0.75
    drop_path: float = 0.1
    flip: bool = True
    scale: tuple[float, float] = (1.0, 2.0)
    freeze_encoder: bool = False
    precision: Literal["float32", "bfloat16"] = "float32"
    every: int = 500

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch, self.every) < 1 or not 0 <= self.warmup < self.epochs:
            raise ValueError(
                "epochs, batch and every are at least 1, and warmup is from 0 to less than epochs"
            )
        if not (0 < self.layer_decay <= 1 and 0 <= self.drop_path < 1 and 0 < self.scale[0] <= self.scale[1]):
            raise ValueError("layer_decay is in (0, 1], drop_path in [0, 1), and scale a range above 0")

    def steps(self, samples: int) -> int:
        """Steps of the optimizer for so many samples.

        >>> TransferRecipe(epochs=10, batch=16).steps(200)
        125
        """
        return math.ceil(self.epochs * samples / self.batch)


RECIPES: Mapping[str, TransferRecipe] = {
    "tiny": TransferRecipe(
        epochs=60, warmup=2, batch=8, lr=2e-3, layer_decay=0.9, drop_path=0.0, scale=(1.0, 1.5)
    ),
    "paper_small": TransferRecipe(lr=1e-4),
    "paper_base": TransferRecipe(lr=2e-4),
}
"""By name; those of the paper are of its table 11.

"tiny" is for 200 images of 64 x 64 and about a minute on one core, with ``ConvNeXtHead(width=48, sub=2, depth=2)``. It was
chosen for the baseline from scratch, by mIoU on houses not trained on (default style, seeds 60 to 79, so do not compare there):
12 after 10 epochs, 30 after 30, 35 after 60; 35 with twice the rate, 33 with half of it.
"""


def transfer(
    model: Segmenter,
    data: DenseSet,
    recipe: TransferRecipe,
    folder: str | Path,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> Segmenter:
    """Fine-tune for semantic segmentation; see :func:`fit` for what the folder holds and how a broken run goes on.

    Args:
        model: trained in place.
        data: images with "semseg", and with whatever else the encoder takes; brought to the encoder's size.
        recipe: how.
        folder: of this run alone.
        seed: of the order and of all chances.
        device: where to train.

    Returns:
        the model, in evaluation mode.

    Raises:
        ValueError: the data have no samples, no "semseg", other classes than the head, or not what the encoder takes; or
            the folder belongs to another run.
        ArithmeticError: the loss is not finite.
    """
    _fitting(model, data)
    tasks = _tasks(model)
    change = Augmentation(flip=recipe.flip, scale=recipe.scale)

    def loss(step: int) -> Tensor:
        rng = generator(seed, step, "batch")
        indices = epochs(len(data), recipe.batch, seed, step)
        samples = (augmented(sized(data[i], model.encoder.size), change, rng) for i in indices)
        images, labels = collate(samples, tasks)
        return model.loss(_inputs(model, images, labels, device), labels["semseg"].to(device))

    what = {"task": "semseg", "data": data.name, "samples": len(data)}
    fit(model, loss, recipe, len(data), folder, what, seed, device)
    return model


def evaluate(
    model: Segmenter, data: DenseSet, batch: int = 32, device: str | torch.device = "cpu"
) -> dict[str, Any]:
    """Mean intersection over union, in percent, by accumulated confusion, at the encoder's size.

    Returns:
        ``{"mIoU": percent, "IoU": {class: percent}}``; NaN for a class that no label showed.

    Raises:
        ValueError: as :func:`transfer`.
    """
    _fitting(model, data)
    meter = MeanIoU(len(data.classes))
    training = model.training
    model.to(device).eval()
    with torch.no_grad():
        for first in range(0, len(data), batch):
            indices = range(first, min(first + batch, len(data)))
            samples = (sized(data[i], model.encoder.size) for i in indices)
            images, labels = collate(samples, _tasks(model))
            meter.update(model(_inputs(model, images, labels, device)).float().cpu(), labels["semseg"])
    model.train(training)
    by_class = dict(zip(data.classes, meter.by_class.tolist(), strict=True))
    return {"mIoU": meter.value(), "IoU": by_class}


def few(data: DenseSet, count: int, seed: int = 0) -> DenseSet:
    """So many images that together show as many classes as a greedy choice finds: what label propagation is given.

    The next image is the one with most classes that were not yet shown (the first of them in an order of the seed's); when no
    image adds one, the count begins anew, so that classes are shown twice before thrice.

    Raises:
        ValueError: the data have fewer images, or no "semseg".
    """
    if not 0 < count <= len(data) or "semseg" not in data.tasks:
        raise ValueError(f"{data.name}: expected at least {count} images with semseg, found {len(data)}")
    shuffled = torch.randperm(len(data), generator=generator(seed, 0, "few")).tolist()
    left = {i: set(data[i].labels["semseg"].unique().tolist()) - {IGNORE} for i in shuffled}
    chosen: list[int] = []
    seen: set[int] = set()
    while len(chosen) < count:
        best = max(left, key=lambda i: len(left[i] - seen))
        if seen and not left[best] - seen:
            seen = set()
            continue
        seen |= left.pop(best)
        chosen.append(best)
    return data.subset(chosen)


def fit(
    model: nn.Module,
    loss: Callable[[int], Tensor],
    recipe: TransferRecipe,
    samples: int,
    folder: str | Path,
    what: Mapping[str, Any],
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> None:
    """Train a module that has an ``encoder`` and something on it; the loop of every transfer.

    The folder holds a checkpoint, from which the same call goes on as if it had never stopped; a line of losses for every
    tenth step and the last (``losses.jsonl``); and at the end the weights, from which the same call takes the answer. The
    global random generators are left as they were.

    Args:
        model: trained in place, left in evaluation mode.
        loss: of a step's batch, a scalar that is a function of the step, the seed and the model only.
        recipe: how.
        samples: in the data.
        folder: of this run alone.
        what: is learned, in values of JSON; with recipe, seed and first weights it tells one run from another.
        seed: of what the model itself leaves to chance (drop path, dropout).
        device: where to train.

    Raises:
        ValueError: there are no samples, or the folder belongs to another run.
        ArithmeticError: the loss is not finite; the checkpoint of the last good step is kept.
    """
    if samples < 1:
        raise ValueError("there are no samples to learn from")
    folder, steps = Path(folder), recipe.steps(samples)
    folder.mkdir(parents=True, exist_ok=True)
    described = {**what, "recipe": asdict(recipe), "seed": seed, "born": _digest(model)}
    model.to(device)
    if (folder / WEIGHTS).exists():
        checkpoint.load(_own(folder / WEIGHTS, described), model)
        model.eval()
        return
    groups = parameter_groups(model, recipe)
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=recipe.betas)
    start = 0
    if (folder / CHECKPOINT).exists():
        start = checkpoint.load(_own(folder / CHECKPOINT, described), model, optimizer)
    lines = _kept(folder / "losses.jsonl", start)
    encoder = cast(Encoder, model.encoder)
    warm = recipe.warmup * samples / recipe.batch
    where = torch.device(device)
    cast_to: Any = (
        torch.autocast(where.type, torch.bfloat16) if recipe.precision == "bfloat16" else nullcontext()
    )
    learning = [p for p in encoder.parameters() if p.requires_grad]
    model.train()
    if recipe.freeze_encoder:
        encoder.train(False)
    try:
        for p in learning:
            p.requires_grad_(not recipe.freeze_encoder)
        for step in progress(range(start, steps), steps, f"transfer {folder.name}", start):
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr * group["scale"] * rate(step, steps, warm)
            with _chances(seed, step, where), torch.enable_grad(), cast_to:
                with nullcontext() if recipe.freeze_encoder else dropped(encoder.blocks, recipe.drop_path):
                    value = loss(step)
                if not bool(torch.isfinite(value)):
                    raise ArithmeticError(
                        f"step {step}: the loss is {value.item()}; lower lr (it is {recipe.lr})"
                    )
                optimizer.zero_grad(set_to_none=True)
                value.backward()
            optimizer.step()
            if step % 10 == 0 or step + 1 == steps:
                lines.append({"step": step, "loss": value.item()})
                write_lines(folder / "losses.jsonl", lines)
            if (step + 1) % recipe.every == 0 and step + 1 < steps:
                checkpoint.save(folder / CHECKPOINT, model, optimizer, step + 1, described)
    finally:
        for p in learning:
            p.requires_grad_(True)
    checkpoint.save(folder / WEIGHTS, model, None, steps, described)
    (folder / CHECKPOINT).unlink(missing_ok=True)
    model.eval()


def rate(step: int, steps: int, warm: float) -> float:
    """The share of the learning rate at a step: linear over ``warm`` steps, then a cosine that would be 0 at ``steps``."""
    if step < warm:
        return min(1.0, (step + 1) / warm)
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))


def parameter_groups(model: nn.Module, recipe: TransferRecipe) -> list[dict[str, Any]]:
    """What learns how fast: groups for AdamW, each with its ``scale`` of the rate, its ``weight_decay`` and its ``names``.

    Embedding = layer 0, block i = i + 1, everything after the blocks = the last; the scale is layer_decay to the power of the
    distance to the last. A frozen encoder has no group.
    """
    encoder = cast(Encoder, model.encoder)
    last = len(encoder.blocks) + 1
    norm = getattr(encoder, "norm", None)
    layers = {id(p): 0 for p in encoder.parameters()}
    layers |= {id(p): i + 1 for i, block in enumerate(encoder.blocks) for p in block.parameters()}
    layers |= {id(p): last for p in (norm.parameters() if norm is not None else ())}
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, p in model.named_parameters():
        if not p.requires_grad or (recipe.freeze_encoder and id(p) in layers):
            continue
        layer, matrix = layers.get(id(p), last), p.dim() > 1
        new = {
            "params": [],
            "names": [],
            "scale": recipe.layer_decay ** (last - layer),
            "weight_decay": recipe.weight_decay if matrix else 0.0,
        }
        group = groups.setdefault((layer, matrix), new)
        group["params"].append(p)
        group["names"].append(name)
    return [groups[key] for key in sorted(groups)]


@contextmanager
def dropped(blocks: nn.ModuleList, chance: float) -> Iterator[None]:
    """Within, every sample goes past a block's branches with a chance that grows linearly to ``chance`` at the last block.

    What is kept is divided by the chance of being kept (Huang et al., Deep Networks with Stochastic Depth, ECCV 2016).
    """

    def kept(x: Tensor, gone: float) -> Tensor:
        return (torch.rand(len(x), *[1] * (x.dim() - 1), device=x.device) >= gone).to(x.dtype) / (1 - gone)

    with ExitStack() as hooks:
        for number, block in enumerate(blocks):
            gone = chance * number / max(len(blocks) - 1, 1)
            if not gone:
                continue

            def branch(_m: nn.Module, _x: Any, y: Tensor, gone: float = gone) -> Tensor:
                return y * kept(y, gone)

            def whole(_m: nn.Module, x: Any, y: Any, gone: float = gone) -> Any:
                first = y[0] if isinstance(y, tuple) else y
                mixed = x[0] + (first - x[0]) * kept(first, gone)
                return (mixed, *y[1:]) if isinstance(y, tuple) else mixed

            if isinstance(block, Block):
                handles = [part.register_forward_hook(branch) for part in (block.attn, block.mlp)]
            else:
                handles = [block.register_forward_hook(whole)]
            for handle in handles:
                hooks.callback(handle.remove)
        yield


@contextmanager
def _chances(seed: int, step: int, device: torch.device) -> Iterator[None]:
    """The global generators as a function of seed and step, and afterwards as they were."""
    purpose, others = (seed, step, "model"), [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(others, device_type="cuda" if device.type == "cpu" else device.type):
        # Not torch.manual_seed, which would seed every other device as well.
        torch.set_rng_state(generator(*purpose).get_state())
        for other in others:
            state = generator(*purpose, device=other).get_state()
            torch.get_device_module(other).set_rng_state(state, other)
        yield


def _tasks(model: Segmenter) -> list[str]:
    return ["semseg", *(name for name in model.modalities if name != "rgb")]


def _inputs(
    model: Segmenter, images: Tensor, labels: Mapping[str, Tensor], device: str | torch.device
) -> Images:
    images = images.to(device)
    if model.modalities == ("rgb",):
        return images
    others = {name: labels[name].to(device) for name in model.modalities if name != "rgb"}
    return {"rgb": images, **others}


def _fitting(model: Segmenter, data: DenseSet) -> None:
    missing = [name for name in _tasks(model) if name not in data.tasks]
    if missing:
        raise ValueError(
            f"{data.name} has no {', '.join(missing)}; expected images with semseg and what the encoder takes"
        )
    channels = getattr(model.head, "classes", len(data.classes))
    if channels != len(data.classes):
        raise ValueError(f"the head has {channels} classes, {data.name} has {len(data.classes)}")
    if len(data) == 0:
        raise ValueError(f"{data.name} has no samples")


def _digest(model: nn.Module) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(model.state_dict().items()):
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest.update(f"{name}:{value.dtype}:{tuple(value.shape)}".encode())
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _kept(path: Path, start: int) -> list[dict[str, Any]]:
    """The lines of the steps before this one: a killed run has written some that will be made again."""
    lines = read_lines(path, "delete it", torn=True) if path.is_file() else []
    with damaged(path, "delete it and run the same command again"):
        return [line for line in lines if line["step"] < start]


def _own(path: Path, described: Mapping[str, Any]) -> Path:
    """The path, if the file belongs to this run."""
    was, now = checkpoint.described_in(path), json.loads(json.dumps(described))
    differ = sorted(k for k in was.keys() | now.keys() if was.get(k) != now.get(k))
    if differ:
        raise ValueError(
            f"{path} belongs to another run (it differs in {', '.join(differ)}; born: the first weights); "
            "choose another folder, or delete it"
        )
    return path
