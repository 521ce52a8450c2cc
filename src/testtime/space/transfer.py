r"""Transfer: fine-tuning of a pre-trained encoder and a new head on labelled images of other places, or on a few of this one.

.. math:: L = -\frac{1}{|\{p : y_p \text{ known}\}|} \sum_p \log p_\theta(y_p \mid x)

All parameters are fine-tuned, with layer decay :math:`\rho`: block :math:`i` of :math:`n` has :math:`\rho^{n-i}` times the
learning rate, the embedding :math:`\rho^{n+1}` times, final norm and head the whole. The batch of a step is a function of seed
and step alone, so that two encoders are compared on the same images.

Label propagation is the same with :func:`few` labelled images of the test space. The baseline from scratch is the same with a
:class:`~testtime.space.segmenter.PatchEncoder`, which also accepts all modalities, at transfer and at test.

Departures: drop path leaves out whole blocks of encoders of other libraries, and the two branches separately only in a
:class:`testtime.space.model.Block`. The paper says "flip and crop" without a scale; here images are enlarged up to 2 times.

Reference: Singh, Garjani et al., Multimodality as Supervision: Self-Supervised Specialization to the Test Environment via
Multimodality (TST-MM), table 11; layer decay as in BEiT (Bao et al., ICLR 2022).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from testtime.data.dense import IGNORE, DenseSet, collate, sized
from testtime.metrics.dense import MeanIoU
from testtime.multitask.training import Recipe as Augmentation
from testtime.multitask.training import augmented
from testtime.parts.randomness import epochs, generator
from testtime.space.model import Block
from testtime.space.segmenter import Encoder, Images, Segmenter
from testtime.training import checkpoint
from testtime.training.loop import Plan, Training, folder_files

__all__ = [
    "RECIPES",
    "TransferRecipe",
    "batches",
    "evaluate",
    "few",
    "fit",
    "parameter_groups",
    "rate",
    "transfer",
]


@dataclass(frozen=True)
class TransferRecipe:
    """Recipe of fine-tuning: AdamW, and a cosine to 0 after a linear warmup, step by step.

    Attributes:
        epochs: number of passes over the data; a step more where the batch does not divide them.
        warmup: number of epochs of the warmup.
        batch: images per step.
        lr: learning rate of head and final norm, after the warmup, at this batch.
        weight_decay: weight decay of matrices; vectors (norms, biases) have none.
        betas: betas of AdamW.
        layer_decay: factor of the learning rate from one layer to the one before it.
        drop_path: probability that the last block's branch is left out of a sample; linear from 0 in the first block.
        flip: whether half of the images are mirrored.
        scale: range of a random enlargement, after which a window of the image's size is cropped.
        freeze_encoder: whether only the head is trained.
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
        """Return the number of steps of the optimizer.

        Args:
            samples: number of samples in the data.

        >>> TransferRecipe(epochs=10, batch=16).steps(200)
        125
        """
        return math.ceil(self.epochs * samples / self.batch)


RECIPES: Mapping[str, TransferRecipe] = {
    "tiny": TransferRecipe(
        epochs=60, warmup=2, batch=8, lr=2e-3, layer_decay=0.9, drop_path=0.0, scale=(1.0, 1.5)
    ),
    "tiny_slow": TransferRecipe(
        epochs=60, warmup=2, batch=8, lr=2e-3, layer_decay=0.3, drop_path=0.0, scale=(1.0, 1.5)
    ),
    "paper_small": TransferRecipe(lr=1e-4),
    "paper_base": TransferRecipe(lr=2e-4),
}
"""By name; those of the paper are of its table 11.

"tiny" is for 200 images of 64 x 64 and about a minute on one core, with ``ConvNeXtHead(width=48, sub=2, depth=2)``. It was
chosen for the baseline from scratch, by mIoU on houses not trained on (default style, seeds 60 to 79, so do not compare there):
12 after 10 epochs, 30 after 30, 35 after 60; 35 with twice the rate, 33 with half of it.

"tiny_slow" differs in the layer decay: the encoder moves slowly, as in the paper, whose fine-tuning has 0.002 to 0.02 times the
rate and steps of its pre-training.
"""


def transfer(
    model: Segmenter,
    data: DenseSet,
    recipe: TransferRecipe,
    folder: str | Path,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> Segmenter:
    """Fine-tune for semantic segmentation; see :func:`fit` for the folder's content and how an interrupted run continues.

    Args:
        model: model that is trained in place.
        data: images with "semseg" and the other modalities of the encoder; resized to the encoder's size.
        recipe: recipe of the training.
        folder: folder of this run alone.
        seed: random seed of the order, the augmentations and the model.
        device: device of the training.

    Returns:
        the model, in evaluation mode.

    Raises:
        ValueError: the data have no samples, no "semseg", other classes than the head, or lack a modality of the encoder; or
            the folder belongs to another run.
        NonFiniteError: a loss, a gradient or a weight is not finite.
    """
    _fitting(model, data)
    drawn = batches(data, recipe, model.encoder.size, _tasks(model), seed)

    def loss(step: int) -> Tensor:
        images, labels = drawn(step)
        return model.loss(_inputs(model, images, labels, device), labels["semseg"].to(device))

    what = {"task": "semseg", "data": data.name, "samples": len(data)}
    fit(model, loss, recipe, len(data), folder, what, seed, device)
    return model


def batches(
    data: DenseSet, recipe: TransferRecipe, size: tuple[int, int], tasks: Sequence[str], seed: int
) -> Callable[[int], tuple[Tensor, dict[str, Tensor]]]:
    """Return the function from a step to its batch, which depends on the seed and the step alone.

    Args:
        data: images with labels.
        recipe: recipe of the training, with the augmentations.
        size: height and width of the images in pixels.
        tasks: tasks whose labels are returned.
        seed: random seed of the order and the augmentations.

    Returns:
        function from a step to images (N, 3, H, W) in [0, 1] and labels (N, ...) by task.
    """
    change = Augmentation(flip=recipe.flip, scale=recipe.scale)

    def drawn(step: int) -> tuple[Tensor, dict[str, Tensor]]:
        rng = generator(seed, step, "batch")
        indices = epochs(len(data), recipe.batch, seed, step)
        return collate((augmented(sized(data[i], size), change, rng) for i in indices), list(tasks))

    return drawn


def evaluate(
    model: Segmenter, data: DenseSet, batch: int = 32, device: str | torch.device = "cpu"
) -> dict[str, Any]:
    """Compute the mean intersection over union from the accumulated confusion, at the encoder's size.

    Args:
        model: the model.
        data: images with "semseg" and the other modalities of the encoder.
        batch: images per forward pass.
        device: device of the evaluation.

    Returns:
        ``{"mIoU": percent, "IoU": {class: percent}}``; NaN for a class without labels.

    Raises:
        ValueError: see :func:`transfer`.
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
    """Choose a few images that together show many classes, greedily; the labelled images of label propagation.

    The next image is the one with most classes that no chosen image shows (the first of them in a random order). When no image
    adds a class, the count starts again, so that every class is shown twice before any is shown three times.

    Args:
        data: images with "semseg".
        count: number of images.
        seed: random seed of the order.

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
    """Train a module that consists of an ``encoder`` and a head.

    The folder holds a checkpoint, from which the same call continues, the log (``losses.jsonl``, every tenth step) and at the
    end the weights, which the same call loads; see :class:`testtime.training.loop.Training`.

    Args:
        model: module that is trained in place, and left in evaluation mode.
        loss: scalar loss of a step's batch, which depends on the step, the seed and the model only.
        recipe: recipe of the training.
        samples: number of samples in the data.
        folder: folder of this run alone.
        what: task and data in values of JSON; with recipe, seed and initial weights they identify the run.
        seed: random seed of the model (drop path, dropout).
        device: device of the training.

    Raises:
        ValueError: there are no samples, or the folder belongs to another run.
        NonFiniteError: a loss, a gradient or a weight is not finite; the last checkpoint is kept.
    """
    if samples < 1:
        raise ValueError("there are no samples to learn from")
    steps = recipe.steps(samples)
    described = {**what, "recipe": asdict(recipe), "seed": seed, "initial_weights": checkpoint.digest(model)}
    model.to(device)
    warm = recipe.warmup * samples / recipe.batch
    plan = Plan(
        steps, lambda step: rate(step, steps, warm), recipe.precision, log_every=10, save_every=recipe.every
    )
    optimizer = torch.optim.AdamW(parameter_groups(model, recipe), lr=recipe.lr, betas=recipe.betas)
    files, title = folder_files(folder), f"transfer {Path(folder).name}"
    training = Training(model, optimizer, plan, title, files, described, seed)
    encoder = cast(Encoder, model.encoder)
    learning = [p for p in encoder.parameters() if p.requires_grad]

    def losses(step: int) -> dict[str, Tensor]:
        with nullcontext() if recipe.freeze_encoder else dropped(encoder.blocks, recipe.drop_path):
            return {"loss": loss(step)}

    model.train()
    if recipe.freeze_encoder:
        encoder.train(False)
    try:
        for p in learning:
            p.requires_grad_(not recipe.freeze_encoder)
        training.run(losses)
    finally:
        for p in learning:
            p.requires_grad_(True)
    model.eval()


def rate(step: int, steps: int, warm: float) -> float:
    """Return the factor of the learning rate at a step: linear over ``warm`` steps, then a cosine that is 0 at ``steps``.

    Args:
        step: number of the step.
        steps: number of all steps.
        warm: number of steps of the warmup.
    """
    if step < warm:
        return min(1.0, (step + 1) / warm)
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))


def parameter_groups(model: nn.Module, recipe: TransferRecipe) -> list[dict[str, Any]]:
    """Return parameter groups for AdamW, each with its ``lr``, its ``weight_decay`` and its ``names``.

    The embedding is layer 0, block i is layer i + 1, and everything after the blocks is the last layer. The learning rate is
    that of the recipe times ``scale``, layer_decay to the power of the distance to the last layer. A frozen encoder has no
    group.

    Args:
        model: module with an ``encoder``.
        recipe: recipe of the training.
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
            "lr": recipe.lr * recipe.layer_decay ** (last - layer),
            "weight_decay": recipe.weight_decay if matrix else 0.0,
        }
        group = groups.setdefault((layer, matrix), new)
        group["params"].append(p)
        group["names"].append(name)
    return [groups[key] for key in sorted(groups)]


@contextmanager
def dropped(blocks: nn.ModuleList, chance: float) -> Iterator[None]:
    """Apply drop path inside the context: the branches of a block are left out of a sample at random.

    The probability grows linearly to that of the last block. Branches that are kept are divided by the probability of being
    kept (Huang et al., Deep Networks with Stochastic Depth, ECCV 2016).

    Args:
        blocks: blocks of the encoder.
        chance: probability of the last block.
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
