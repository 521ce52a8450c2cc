r"""Label Shift Adapter: a head whose weights are a function of the label distribution, trained on the source.

With the label distribution of the source :math:`\pi_s`, the expected one :math:`\pi`, features z, a head (W, b), and a
perceptron g of two layers whose input is a code of :math:`\pi`,

.. math::
    (\gamma, \beta, \Delta W, \Delta b) &= g\big(m(\pi)\big), \qquad
    f(z; \pi) = (W + \Delta W) \big( (1 + \gamma) \odot z + \beta \big) + b + \Delta b \\
    \min_g \; & \operatorname{E}_{\pi}\, \operatorname{CE}\big( f(z; \pi) + \tau (\log \pi_s - \log \pi),\, y \big)
    && \text{on the source, all else frozen} \\
    m(\pi) &= \frac{\langle \ell(\pi), \ell(\pi_s) \rangle}{\lVert \ell(\pi_s) \rVert^2}, \qquad
    \ell(\pi) = \log \pi - \tfrac1C \sum_c \log \pi_c

so that f is trained to be right where the label distribution is :math:`\pi`. The degree of imbalance m is 1 for the source, 0
for balanced classes, and -1 for the reversed imbalance of the source; it is clamped to [-1, 1], the range of training.

Use: ``model = with_label_shift(model, frequencies(labels, classes))``, then ``train_label_shift(model, data, recipe, folder)``
once (or ``load_label_shift(model, folder)``), and any method around it in :class:`testtime.wrap.LabelShift`, which estimates
:math:`\pi` from the stream: ``LabelShift(EATA(model, classes=10))``.

Departures:
    There is no official code, and only the abstract and an outline of the paper's method were available: an adapter, trained on
    the frozen source model with a generalised logit-adjusted loss, turns an estimate of the target's label distribution,
    mapped to a scalar degree of imbalance, into changes of the classifier and of the scale of its features. The rest is this
    library's: the form of m and of the change, the perceptron's width, and that training draws :math:`\pi \propto \pi_s^e`, e
    uniform in [-1, 1]. No figure of the paper can be claimed for it.
    A source with balanced classes has no degree of imbalance: with ``of="distribution"`` the input of g is the whole of
    :math:`\ell(\pi)`, which training draws from a standard normal.

Cost: negligible at test time; g has :math:`H (C D + C + 2 D)` weights for H hidden units. Training costs one forward
of the model a step, and the backward of the head.

Reference: Park, Yang, Choo and Yun, Label Shift Adapter for Test-Time Adaptation under Covariate and Label Shifts, ICCV 2023.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from testtime.data.imageset import ImageSet
from testtime.intake.sharing import Stateful, share
from testtime.parts.features import linear_head
from testtime.parts.randomness import epochs, generator
from testtime.training import checkpoint
from testtime.training.loop import Plan, Training, folder_files

__all__ = [
    "ShiftRecipe",
    "ShiftedHead",
    "frequencies",
    "load_label_shift",
    "shifted_heads",
    "train_label_shift",
    "with_label_shift",
]

WEIGHTS = "label_shift.safetensors"
LEAST = 1e-4
"""Lower bound of frequencies, so that a class without samples has a finite logarithm."""


def frequencies(labels: Tensor, classes: int) -> Tensor:
    """Return the distribution (C,) of labels.

    Args:
        labels: labels (N,).
        classes: C, number of classes.

    >>> frequencies(torch.tensor([0, 0, 1, 0]), 2)
    tensor([0.7500, 0.2500])
    """
    return labels.bincount(minlength=classes) / len(labels)


def _log(distribution: Tensor) -> Tensor:
    """Return the logarithm of frequencies (..., C), minus its mean over the classes."""
    log = distribution.clamp_min(LEAST).log()
    return log - log.mean(dim=-1, keepdim=True)


@final
class ShiftedHead(nn.Linear, Stateful):
    """A linear head whose weights are a function of the label distribution.

    Args:
        head: linear head of a source model; its weights are frozen.
        prior: label distribution of the source pi_s, (C,).
        hidden: H, number of units of the perceptron.
        of: input of the perceptron, the "degree" of imbalance or the whole "distribution".
        seed: random seed of the perceptron's first layer; the second is zero at first, and the untrained head the source's.

    Attributes:
        distribution: label distribution pi, (C,), which is state; pi_s at first.

    Raises:
        ValueError: prior is no distribution over the head's classes, or has no degree of imbalance while ``of`` is "degree".
    """

    prior: Tensor
    distribution: Tensor

    def __init__(
        self,
        head: nn.Linear,
        prior: Tensor,
        hidden: int = 100,
        of: Literal["degree", "distribution"] = "degree",
        seed: int = 0,
    ) -> None:
        nn.Module.__init__(self)
        classes, width = head.weight.shape
        wide = torch.promote_types(head.weight.dtype, torch.float32)
        prior = prior.detach().to(head.weight.device, wide)
        if (
            prior.shape != (classes,)
            or bool((prior < 0).any())
            or not math.isclose(prior.sum(), 1, abs_tol=1e-3)
        ):
            raise ValueError(
                f"prior is how frequent each of the head's {classes} classes is in the source, a distribution ({classes},); "
                f"got {tuple(prior.shape)} of sum {prior.sum().item():.4g}"
            )
        if of not in ("degree", "distribution"):
            raise ValueError(f"of is 'degree' or 'distribution', got {of!r}")
        if of == "degree" and _log(prior).norm() < 1e-3:
            raise ValueError(
                "the classes of this source are equally frequent, so that no distribution has a degree of its imbalance; pass "
                "of='distribution'"
            )
        self.in_features, self.out_features, self.of = width, classes, of
        self.weight, self.bias = head.weight, head.bias
        reads, writes = 1 if of == "degree" else classes, classes * width + classes + 2 * width
        first = torch.randn(
            hidden, reads + 1, generator=generator(seed, 0, "label shift"), dtype=torch.float64
        )
        like = head.weight.detach()
        self.reading = nn.Parameter((first / math.sqrt(reads + 1)).to(like), requires_grad=False)
        self.writing = nn.Parameter(like.new_zeros(writes, hidden), requires_grad=False)
        self.register_buffer("prior", prior)
        self.register_buffer("distribution", prior.clone())

    @property
    def learnable(self) -> list[nn.Parameter]:
        """The perceptron's weights."""
        return [self.reading, self.writing]

    def moving(self) -> dict[str, Tensor]:
        return {"distribution": self.distribution}

    def code(self, distribution: Tensor) -> Tensor:
        """Return the input of the perceptron, (1,) or (C,), for a distribution (C,)."""
        log, of_source = _log(distribution), _log(self.prior)
        if self.of == "distribution":
            return log
        return (log @ of_source / of_source.square().sum()).clamp(-1, 1)[None]

    def shifted(self, distribution: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return scale (D,) and shift (D,) of the features, and weight (C, D) and bias (C,), for a distribution (C,)."""
        code = self.code(distribution)
        with torch.autocast(code.device.type, enabled=False):
            inner = self.reading @ torch.cat([code, code.new_ones(1)]).to(self.reading)
            written = self.writing @ inner.relu()
        d, c = self.in_features, self.out_features
        scale, shift, weight, bias = written.split([d, d, c * d, c])
        bias = bias if self.bias is None else self.bias + bias
        return 1 + scale, shift, self.weight + weight.view(c, d), bias

    def forward(self, z: Tensor) -> Tensor:
        return self.under(z, self.distribution)

    def under(self, z: Tensor, distribution: Tensor) -> Tensor:
        """Return the logits of features (..., D) for a label distribution (C,)."""
        scale, shift, weight, bias = self.shifted(distribution)
        return F.linear(z * scale + shift, weight, bias)


def with_label_shift(
    model: nn.Module,
    prior: Tensor,
    hidden: int = 100,
    of: Literal["degree", "distribution"] = "degree",
    head: str | None = None,
    seed: int = 0,
) -> nn.Module:
    """Return the model with a :class:`ShiftedHead` in place of its linear head; it shares the memory of the given one.

    Args:
        model: classifier with a linear head.
        prior: label distribution of the source pi_s, (C,).
        hidden: H, number of units of the perceptron.
        of: input of the perceptron, "degree" or "distribution".
        head: name of the linear head; the last linear layer unless given.
        seed: random seed of the perceptron.

    Raises:
        ValueError: see :class:`ShiftedHead` and :func:`testtime.parts.features.linear_head`.

    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    >>> x = torch.rand(5, 3, 2, 2)
    >>> bool((with_label_shift(net, torch.tensor([0.9, 0.1]))(x) == net(x)).all())
    True
    """
    with torch.inference_mode(False):
        tree = share(model)
        name, linear = linear_head(tree, head)
        parent, _, leaf = name.rpartition(".")
        setattr(tree.get_submodule(parent), leaf, ShiftedHead(linear, prior, hidden, of, seed))
        return tree.eval()


def shifted_heads(model: nn.Module) -> list[ShiftedHead]:
    """Return the heads of a model (and of its teachers, inside an adapter) that depend on a label distribution.

    Args:
        model: the model.
    """
    return [m for m in model.modules() if isinstance(m, ShiftedHead)]


def _head(model: nn.Module) -> ShiftedHead:
    heads = shifted_heads(model)
    if len(heads) != 1:
        raise ValueError(
            f"expected a model with one head that depends on a label distribution, got {len(heads)}; build it by "
            "with_label_shift(model, prior)"
        )
    return heads[0]


@dataclass(frozen=True)
class ShiftRecipe:
    """Recipe of the training of a head.

    Attributes:
        iterations: number of steps of the optimizer.
        batch: images per step.
        lr: learning rate of Adam.
        tau: weight of the logit adjustment.
        every: steps between two checkpoints.
    """

    iterations: int = 2000
    batch: int = 64
    lr: float = 1e-3
    tau: float = 1.0
    every: int = 500

    def __post_init__(self) -> None:
        if self.iterations < 1 or self.batch < 1 or self.every < 1:
            raise ValueError("iterations, batch and every are at least 1")


def adjusted_loss(
    logits: Tensor, label: Tensor, prior: Tensor, distribution: Tensor, tau: float = 1.0
) -> Tensor:
    """Compute the generalised logit-adjusted cross-entropy, a scalar in nats.

    Args:
        logits: logits (N, C) for the distribution.
        label: labels (N,), drawn from the prior.
        prior: label distribution of the source pi_s, (C,).
        distribution: label distribution pi, (C,).
        tau: weight of the adjustment.
    """
    return F.cross_entropy(logits + tau * (_log(prior) - _log(distribution)).to(logits.dtype), label)


def drawn_distribution(head: ShiftedHead, rng: torch.Generator) -> Tensor:
    """Draw a label distribution (C,) for one step of training.

    Args:
        head: the head.
        rng: generator of the draw.
    """
    if head.of == "degree":
        log = _log(head.prior) * (2 * torch.rand((), generator=rng, dtype=torch.float64).item() - 1)
    else:
        log = torch.randn(head.out_features, generator=rng, dtype=torch.float64).to(head.prior)
    return log.softmax(dim=0)


def train_label_shift(
    model: nn.Module,
    data: ImageSet,
    recipe: ShiftRecipe,
    folder: str | Path,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> nn.Module:
    """Train the head of a model for all label distributions, on labelled source images; all else is frozen.

    The folder holds a checkpoint, from which the same call continues, the log (``losses.jsonl``, every hundredth step) and at
    the end the weights of the head, which the same call loads; see :class:`testtime.training.loop.Training`.

    Args:
        model: model made by :func:`with_label_shift`; trained in place.
        data: labelled source images of the head's classes.
        recipe: recipe of the training.
        folder: folder of checkpoint, log and weights.
        seed: random seed of the order and of the distributions.
        device: device of the training.

    Returns:
        the model, in evaluation mode, on the device.

    Raises:
        ValueError: the model has no such head, the data no labels of its classes, or the folder belongs to another training.
        NonFiniteError: a loss, a gradient or a weight is not finite; the last checkpoint is kept.
    """
    head = _head(model)
    if data.labels is None or len(data) == 0 or len(data.classes) != head.out_features:
        raise ValueError(
            f"expected labelled images of the head's {head.out_features} classes; {data.name} has {len(data)} images, "
            f"{'no labels' if data.labels is None else 'labels'} and {len(data.classes)} classes"
        )
    if (data.labels < 0).any():
        raise ValueError(f"{data.name} has images with the label -1, unknown; leave them out with subset()")
    described = {
        "recipe": asdict(recipe), "seed": seed, "data": data.digest(), "of": head.of, "prior": head.prior.tolist(),
    }  # fmt: skip
    model.to(device)
    plan = Plan(recipe.iterations, save_every=recipe.every)
    files, title = folder_files(folder, WEIGHTS), f"training {Path(folder).name}"
    training = Training(
        head, torch.optim.Adam(head.learnable, lr=recipe.lr), plan, title, files, described, seed
    )

    def loss(step: int) -> dict[str, Tensor]:
        indices = epochs(len(data), recipe.batch, seed, step)
        head.distribution = drawn_distribution(head, generator(seed, step, "distribution"))
        logits = model(data.batch(indices).to(device))
        label = torch.as_tensor(data.targets(indices)).to(device)
        return {"loss": adjusted_loss(logits, label, head.prior, head.distribution, recipe.tau)}

    try:
        for p in head.learnable:
            p.requires_grad_(True)
        for _ in training.iterate(loss):
            head.distribution = head.prior.clone()  # a checkpoint holds that of the source
    finally:
        head.distribution = head.prior.clone()
        for p in head.learnable:
            p.requires_grad_(False)
            p.grad = None
    return model.eval()


def load_label_shift(model: nn.Module, folder: str | Path) -> nn.Module:
    """Load the head that :func:`train_label_shift` wrote into a folder.

    Args:
        model: model made by :func:`with_label_shift`.
        folder: folder of :func:`train_label_shift`.

    Returns:
        the model, in evaluation mode.

    Raises:
        FileNotFoundError: the folder holds no weights.
        WeightsError: they are of a head of another shape; nothing was changed.
    """
    path, head = Path(folder) / WEIGHTS, _head(model)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; expected a folder in which train_label_shift has ended")
    checkpoint.load(path, head)
    head.distribution = head.prior.clone()
    return model.eval()
