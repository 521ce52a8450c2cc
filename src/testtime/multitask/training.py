r"""Joint training on the source: the losses of the tasks and of the branch, with checkpoints that continue exactly.

.. math:: L = \sum_i w_i L_i(y_i, \hat y_i) + L_{branch}
    \qquad\text{or}\qquad \sum_i \tfrac{1}{2 s_i^2} L_i + \log(1 + s_i^2)

The second form learns the weights (Liebel and Körner, Auxiliary Tasks in Multi-task Learning, 2018), as the released code of
S4T does where Taskonomy is the source.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from testtime.data.dense import DenseSet, Sample, collate, sized
from testtime.models.assisted import Assisted, Branch
from testtime.models.multitask import resized
from testtime.parts.randomness import epochs, generator
from testtime.parts.taps import tapped, watched
from testtime.tasks import Task, tasks_of
from testtime.training import checkpoint
from testtime.training.loop import Plan, Training, folder_files

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

LEARNED = "weights."
"""Prefix of the names of learned task weights, which are not needed after training."""


@dataclass(frozen=True)
class Recipe:
    """Recipe of joint training.

    Attributes:
        iterations: number of steps of the optimizer.
        batch: images per step.
        size: (H, W) of the images; None for the size of the samples.
        lr: learning rate of Adam at the first step; it falls as (1 - t/T)^0.9.
        weight_decay: weight decay of Adam (L2).
        weighting: "fixed" (the ``weight`` of each task) or "automatic" (learned).
        flip: whether half of the images are mirrored; the x component of normals changes its sign.
        scale: range of a random enlargement, after which a window of the image's size is cropped; depth is divided by it.
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
    r"""Learned weights of the tasks: :math:`\sum_i \frac{1}{2 s_i^2} L_i + \log(1 + s_i^2)`; every s is 1 at first.

    Args:
        tasks: names of the tasks.

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
    """The whole objective as one module, so that a launcher can wrap it: images and labels to a scalar.

    Args:
        model: network that declares its tasks, alone or in an :class:`Assisted`.
        weighting: "fixed" or "automatic", as in :class:`Recipe`.

    Raises:
        ValueError: the model declares no tasks.
    """

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
        """The branch that test-time training adds, or None."""
        return self.model.branch if isinstance(self.model, Assisted) else None

    def forward(
        self, x: Tensor, labels: Mapping[str, Tensor], rng: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss, and its parts by name (detached).

        Args:
            x: images (N, 3, H, W).
            labels: labels of some or all tasks by name.
            rng: generator of the branch.
        """
        known = {name: task for name, task in self.tasks.items() if name in labels}
        decoder = getattr(self.network, "decoder", None)
        layers = () if self.branch is None else self.branch.layers
        with tapped(self.network, (*layers, *(["encoder"] if decoder is not None else []))) as taps:
            outputs, seen = watched(self.network, taps, x)
        losses = {name: task.loss(outputs[name], labels[name]) for name, task in known.items()}
        if decoder is not None:
            *seen, z = seen
            for guesses in decoder.initial(z):
                for name, task in known.items():
                    guess = resized(guesses[name], labels[name].shape[-2:])
                    losses[name] = losses[name] + task.loss(guess, labels[name])
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
) -> nn.Module:
    """Train a multi-task network, and its branch if it has one, on labelled source data.

    The folder holds a checkpoint, from which the same call continues, the log (``losses.jsonl``, every hundredth step) and at
    the end the weights, which the same call loads; see :class:`testtime.training.loop.Training`.

    Args:
        model: a :class:`MultiTaskNet` or :class:`Assisted`; trained in place.
        data: samples with labels of all or some of the tasks.
        recipe: recipe of the training.
        folder: folder of checkpoint, log and weights.
        seed: random seed of order, augmentation and masks.
        device: device of the training; not used with ``fabric``.
        fabric: launched ``lightning.fabric.Fabric`` for several devices or nodes; every process takes its share of each
            batch, which must be divisible among them.

    Returns:
        the model, in evaluation mode.

    Raises:
        ValueError: the model declares no tasks, the data are empty, or the folder belongs to another training.
        NonFiniteError: a loss, a gradient or a weight is not finite; the last checkpoint is kept.
    """
    if len(data) == 0:
        raise ValueError(f"{data.name} has no samples to train on")
    described = {"recipe": asdict(recipe), "seed": seed, "data": data.name, "samples": len(data)}
    joint = Joint(model, recipe.weighting).train()
    ranks = 1 if fabric is None else fabric.world_size
    if recipe.batch % ranks:
        raise ValueError(f"a batch of {recipe.batch} cannot be shared by {ranks} processes")
    joint.to(device if fabric is None else fabric.device)
    optimizer = torch.optim.Adam(joint.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    plan = Plan(
        recipe.iterations,
        lambda step: (1 - step / recipe.iterations) ** 0.9,
        recipe.precision,
        save_every=recipe.every,
    )
    title = f"training {Path(folder).name}"
    training = Training(joint, optimizer, plan, title, folder_files(folder), described, seed, fabric)
    where = next(joint.parameters()).device

    def loss(step: int) -> dict[str, Tensor]:
        rank = training.rank
        x, labels = batches(data, joint.tasks, recipe, seed, step, rank, ranks)
        x, labels = x.to(where), {name: y.to(where) for name, y in labels.items()}
        total, parts = training.module(x, labels, generator(seed, step, f"branch/{rank}"))
        return {"loss": total, **parts}

    training.run(loss)
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
    """Return the augmented batch of a step, or a process's share of it: images (N, 3, H, W) and labels.

    Args:
        data: samples with labels.
        tasks: tasks by name.
        recipe: recipe of the training.
        seed: random seed of the order and the augmentations.
        step: number of the step.
        rank: index of the process.
        ranks: number of processes.
    """
    rng = generator(seed, step, "batch")
    samples = []
    for i in epochs(len(data), recipe.batch, seed, step):
        sample = data[i] if recipe.size is None else sized(data[i], recipe.size)
        samples.append(augmented(sample, recipe, rng))
    x, labels = collate(samples, [name for name in tasks if name in data.tasks])
    return x[rank::ranks], {name: y[rank::ranks] for name, y in labels.items()}


def augmented(sample: Sample, recipe: Recipe, rng: torch.Generator) -> Sample:
    """Return a sample that is mirrored, enlarged and cropped, and whose colours are changed, at random.

    Args:
        sample: image and labels.
        recipe: recipe with the strengths.
        rng: generator of the augmentation.
    """
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
    """Crop a window; where the sample is smaller, the rest is black and ignored.

    Args:
        sample: image and labels.
        height: height of the window.
        width: width of the window.
        top: vertical position in [0, 1).
        left: horizontal position in [0, 1).
    """
    h, w = sample.image.shape[-2:]
    pad = (0, max(0, width - w), 0, max(0, height - h))
    y, x = int(top * (max(h, height) - height + 1)), int(left * (max(w, width) - width + 1))

    def cut(plane: Tensor, nothing: float) -> Tensor:
        return F.pad(plane, pad, value=nothing)[..., y : y + height, x : x + width]

    labels = {name: cut(p, torch.nan if p.is_floating_point() else 255) for name, p in sample.labels.items()}
    return cut(sample.image, 0), labels


def started_precision(folder: str | Path) -> Literal["float32", "bfloat16"] | None:
    """Return the precision of the training that was started in a folder; None if there is none.

    Args:
        folder: folder of :func:`train`.
    """
    files = folder_files(folder)
    for path in (files.checkpoint, files.weights):
        if path is not None and path.exists():
            precision: Literal["float32", "bfloat16"] = checkpoint.described_in(path)["recipe"]["precision"]
            return precision
    return None


def load_trained(model: nn.Module, folder: str | Path) -> nn.Module:
    """Load the weights that :func:`train` wrote into a folder.

    Args:
        model: model with the architecture of the trained one.
        folder: folder of :func:`train`.

    Returns:
        the model, in evaluation mode.

    Raises:
        FileNotFoundError: the folder holds no weights.
        ValueError: the weights are of another model.
    """
    path = Path(folder) / "model.safetensors"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing; expected a folder in which testtime.multitask.train has ended"
        )
    checkpoint.load(path, Joint(model), optional=LEARNED)
    return model.eval()
