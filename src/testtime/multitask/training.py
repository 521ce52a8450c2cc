r"""Joint training on the source: the tasks' losses and the branch's, with checkpoints that continue exactly.

.. math:: L = \sum_i w_i L_i(y_i, \hat y_i) + L_{branch}
    \qquad\text{or}\qquad \sum_i \tfrac{1}{2 s_i^2} L_i + \log(1 + s_i^2)

The second form learns the weights (Liebel and Körner, Auxiliary Tasks in Multi-task Learning, 2018), as the released code of
S4T does where Taskonomy is the source.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from testtime.data.dense import DenseSet, Sample, collate, sized
from testtime.models.assisted import Assisted, Branch
from testtime.parts.randomness import epochs, generator
from testtime.parts.taps import tapped, watched
from testtime.progress import progress
from testtime.tasks import Task, tasks_of
from testtime.training import checkpoint

__all__ = [
    "AutomaticWeights",
    "Joint",
    "Recipe",
    "augmented",
    "batches",
    "load_trained",
    "started_precision",
    "train",
]

CHECKPOINT, WEIGHTS = "checkpoint.safetensors", "model.safetensors"
LEARNED = "weights."
"""How the names of learned task weights begin, which a network does without after training."""


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        iterations: steps of the optimizer.
        batch: images per step.
        size: (H, W) of the images, None for the samples' own.
        lr: of Adam, at the first step; it falls as (1 - t/T)^0.9.
        weight_decay: of Adam (L2).
        weighting: "fixed" (each task's ``weight``) or "automatic" (learned).
        flip: mirror half of the images; the x of a normal changes its sign.
        scale: range of a random enlargement, after which a window of the image's size is cut out; depth is divided by it.
        photometric: strength of random changes of brightness, contrast and saturation; 0 for none.
        precision: "float32" or "bfloat16" (autocast).
        every: steps between two checkpoints.
    """

    iterations: int = 60_000
    batch: int = 8
    size: tuple[int, int] | None = None
    lr: float = 2e-5
    weight_decay: float = 1e-6
    weighting: Literal["fixed", "automatic"] = "fixed"
    flip: bool = True
    scale: tuple[float, float] = (1.0, 1.0)
    photometric: float = 0.0
    precision: Literal["float32", "bfloat16"] = "float32"
    every: int = 1000

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale is a range of enlargements above 0, got {self.scale}")
        if self.iterations < 1 or self.batch < 1 or self.every < 1:
            raise ValueError("iterations, batch and every are at least 1")


@final
class AutomaticWeights(nn.Module):
    r"""Learned weights of the tasks: :math:`\sum_i \frac{1}{2 s_i^2} L_i + \log(1 + s_i^2)`, every s born as 1.

    >>> AutomaticWeights(["depth"])({"depth": torch.tensor(2.0)}).item() == 1 + torch.tensor(2.0).log().item()
    True
    """

    def __init__(self, tasks: Iterator[str] | list[str]) -> None:
        super().__init__()
        self.s = nn.ParameterDict({name: nn.Parameter(torch.ones(())) for name in tasks})

    def forward(self, losses: Mapping[str, Tensor]) -> Tensor:
        terms = [0.5 / self.s[k] ** 2 * loss + torch.log(1 + self.s[k] ** 2) for k, loss in losses.items()]
        return torch.stack(terms).sum()


@final
class Joint(nn.Module):
    """The whole objective as one module, so that a launcher can wrap it: images and labels to a scalar."""

    def __init__(self, model: nn.Module, weighting: Literal["fixed", "automatic"] = "fixed") -> None:
        super().__init__()
        self.model = model
        self.tasks: dict[str, Task] = tasks_of(model)
        if not self.tasks:
            raise ValueError(
                "the model declares no tasks; expected a MultiTaskNet, an Assisted one, or an attribute `tasks` by name"
            )
        self.weights = AutomaticWeights(list(self.tasks)) if weighting == "automatic" else None

    @property
    def network(self) -> nn.Module:
        """The network without its branch."""
        return self.model.network if isinstance(self.model, Assisted) else self.model

    @property
    def branch(self) -> Branch | None:
        """What test-time training adds, if the network has it."""
        return self.model.branch if isinstance(self.model, Assisted) else None

    def forward(
        self, x: Tensor, labels: Mapping[str, Tensor], rng: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and its parts by name (detached)."""
        known = {name: task for name, task in self.tasks.items() if name in labels}
        with tapped(self.network, () if self.branch is None else self.branch.layers) as taps:
            outputs, seen = watched(self.network, taps, x)
        losses = {name: task.loss(outputs[name], labels[name]) for name, task in known.items()}
        extra: dict[str, Tensor] = {}
        if self.branch is not None:
            for name, loss in self.branch.source_loss(self.network, x, seen, labels, rng).items():
                if name in losses:
                    losses[name] = losses[name] + loss
                else:
                    extra[name] = loss
        parts = {name: loss.detach() for name, loss in {**losses, **extra}.items()}
        total = (
            self.weights(losses)
            if self.weights is not None
            else torch.stack([known[name].weight * loss for name, loss in losses.items()]).sum()
        )
        return total + sum(extra.values(), torch.zeros_like(total)), parts


def train(
    model: nn.Module,
    data: DenseSet,
    recipe: Recipe,
    folder: str | Path,
    seed: int = 0,
    device: str | torch.device = "cpu",
    fabric: Any = None,
    say: Callable[[dict[str, float]], None] | None = None,
) -> nn.Module:
    """Train a multi-task network, and its branch if it has one, on labelled source data.

    The folder holds a checkpoint, from which the same call continues as if it had never stopped (the order of the data is
    a function of seed and step), a line of losses for every hundredth step (``losses.jsonl``), and at the end the weights.

    Args:
        model: a :class:`MultiTaskNet` or :class:`Assisted`; trained in place.
        data: samples with labels of all or some of the tasks.
        recipe: how.
        folder: where checkpoint, losses and weights are written.
        seed: of order, augmentation and masks.
        device: where to train; not used with ``fabric``.
        fabric: a launched ``lightning.fabric.Fabric`` for several devices or nodes; every process takes its share of each
            batch, which must be divisible among them.
        say: is told the losses of every hundredth step.

    Returns:
        the model, in evaluation mode.

    Raises:
        ValueError: the model declares no tasks, the data are empty, or the folder holds the checkpoint of another recipe.
        ArithmeticError: the loss is not finite; the checkpoint of the last good step is kept.
    """
    if len(data) == 0:
        raise ValueError(f"{data.name} has no samples to train on")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    described = {"recipe": asdict(recipe), "seed": seed, "data": data.name, "samples": len(data)}
    joint = Joint(model, recipe.weighting).train()
    if (folder / WEIGHTS).exists() and checkpoint.belongs(folder / WEIGHTS, described):
        checkpoint.load(folder / WEIGHTS, joint, optional=LEARNED)
        return model.eval()
    rank, ranks = (0, 1) if fabric is None else (fabric.global_rank, fabric.world_size)
    if recipe.batch % ranks:
        raise ValueError(f"a batch of {recipe.batch} cannot be shared by {ranks} processes")
    joint.to(device if fabric is None else fabric.device)
    optimizer = torch.optim.Adam(joint.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    start = 0
    if (folder / CHECKPOINT).exists():
        if not checkpoint.belongs(folder / CHECKPOINT, described):
            raise ValueError(
                f"{folder / CHECKPOINT} belongs to another recipe, seed or data; choose another folder, or delete it"
            )
        start = checkpoint.load(folder / CHECKPOINT, joint, optimizer)
    wrapped: Any = joint
    optimizing: Any = optimizer
    if fabric is not None:
        wrapped, optimizing = fabric.setup(joint, optimizer)
    where = next(joint.parameters()).device
    cast: Any = (
        torch.autocast(where.type, torch.bfloat16)
        if recipe.precision == "bfloat16" and fabric is None
        else nullcontext()
    )
    steps = range(start, recipe.iterations)
    with torch.enable_grad():
        for step in (
            progress(steps, recipe.iterations, f"training {folder.name}", start) if rank == 0 else steps
        ):
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr * (1 - step / recipe.iterations) ** 0.9
            x, labels = batches(data, joint.tasks, recipe, seed, step, rank, ranks)
            x, labels = x.to(where), {name: y.to(where) for name, y in labels.items()}
            optimizing.zero_grad(set_to_none=True)
            with cast:
                loss, parts = wrapped(x, labels, generator(seed, step, f"branch/{rank}"))
            if not bool(torch.isfinite(loss)):
                raise ArithmeticError(f"step {step}: the loss is {loss.item()}; lower lr (it is {recipe.lr})")
            loss.backward() if fabric is None else fabric.backward(loss)
            optimizing.step()
            if rank == 0 and (step % 100 == 0 or step + 1 == recipe.iterations):
                line = {"step": step, "loss": loss.item(), **{k: v.item() for k, v in parts.items()}}
                with (folder / "losses.jsonl").open("a") as file:
                    file.write(json.dumps(line) + "\n")
                if say is not None:
                    say(line)
            if rank == 0 and (step + 1) % recipe.every == 0 and step + 1 < recipe.iterations:
                checkpoint.save(folder / CHECKPOINT, joint, optimizer, step + 1, described)
    if rank == 0:
        checkpoint.save(folder / WEIGHTS, joint, None, recipe.iterations, described)
        (folder / CHECKPOINT).unlink(missing_ok=True)
    return model.eval()


def batches(
    data: DenseSet,
    tasks: Mapping[str, Task],
    recipe: Recipe,
    seed: int,
    step: int,
    rank: int = 0,
    ranks: int = 1,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The augmented batch of a step (or a process's share of it): images (N, 3, H, W) and labels, a function of the seed."""
    rng = generator(seed, step, "batch")
    samples = []
    for i in epochs(len(data), recipe.batch, seed, step):
        sample = data[i] if recipe.size is None else sized(data[i], recipe.size)
        samples.append(augmented(sample, recipe, rng))
    x, labels = collate(samples, [name for name in tasks if name in data.tasks])
    return x[rank::ranks], {name: y[rank::ranks] for name, y in labels.items()}


def augmented(sample: Sample, recipe: Recipe, rng: torch.Generator) -> Sample:
    """The sample flipped, enlarged and cut, and its colours changed, at random."""
    chance, zoom, top, left, *colour = torch.rand(7, generator=rng).tolist()
    image, labels = sample.image, dict(sample.labels)
    low, high = recipe.scale
    factor = low + (high - low) * zoom
    if factor != 1:
        height, width = image.shape[-2:]
        big = sized(Sample(image, labels), (max(1, round(height * factor)), max(1, round(width * factor))))
        image, labels = _window(big, height, width, top, left)
        if "depth" in labels:
            labels["depth"] = labels["depth"] / factor
    if recipe.flip and chance < 0.5:
        image = image.flip(-1)
        labels = {name: y.flip(-1) for name, y in labels.items()}
        if "normals" in labels:
            labels["normals"] = labels["normals"] * torch.tensor([-1.0, 1.0, 1.0]).view(3, 1, 1)
    if recipe.photometric:
        bright, contrast, saturation = (1 + recipe.photometric * (2 * c - 1) for c in colour)
        image = image * bright
        image = (image - image.mean()) * contrast + image.mean()
        grey = image.mean(0, keepdim=True)
        image = ((image - grey) * saturation + grey).clamp(0, 1)
    return Sample(image, labels, sample.name)


def _window(
    sample: Sample, height: int, width: int, top: float, left: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """A window of this size somewhere in the sample; where the sample is smaller, black and ignored around it."""
    h, w = sample.image.shape[-2:]
    pad = (0, max(0, width - w), 0, max(0, height - h))
    y, x = int(top * (max(h, height) - height + 1)), int(left * (max(w, width) - width + 1))

    def cut(plane: Tensor, nothing: float) -> Tensor:
        return F.pad(plane, pad, value=nothing)[..., y : y + height, x : x + width]

    labels = {name: cut(p, torch.nan if p.is_floating_point() else 255) for name, p in sample.labels.items()}
    return cut(sample.image, 0), labels


def started_precision(folder: str | Path) -> Literal["float32", "bfloat16"] | None:
    """Return the precision of the training that began in a folder; None where there is none."""
    for name in (CHECKPOINT, WEIGHTS):
        if (path := Path(folder) / name).exists():
            precision: Literal["float32", "bfloat16"] = checkpoint.described_in(path)["recipe"]["precision"]
            return precision
    return None


def load_trained(model: nn.Module, folder: str | Path) -> nn.Module:
    """Give a model the weights that :func:`train` wrote into a folder.

    Raises:
        FileNotFoundError: the folder holds no weights.
        ValueError: the weights are of another model; names are compared, so that no task takes another's place.
    """
    path = Path(folder) / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing; expected a folder in which testtime.multitask.train has ended"
        )
    checkpoint.load(path, Joint(model), optional=LEARNED)
    return model.eval()
