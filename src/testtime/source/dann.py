r"""DANN: train on a labelled source and an unlabelled target, so that the features do not depend on the domain of an image.

With features :math:`G_f`, the classes :math:`G_y` read from them, the probability :math:`G_d` that they are of the target,
source images :math:`x_i` of labels :math:`y_i` and target images :math:`x_j`, the cross-entropy :math:`\ell`, and the learning
rate :math:`\mu_p`,

.. math::
    &\min_{\theta_f, \theta_y} \; L_y - \lambda_p L_d, \qquad \min_{\theta_d} \; L_d, \qquad
    L_y = \operatorname*{mean}_i \ell\big(G_y(G_f(x_i)), y_i\big) \\
    & L_d = -\operatorname*{mean}_i \log\big(1 - G_d(G_f(x_i))\big) - \operatorname*{mean}_j \log G_d(G_f(x_j)) \\
    &\lambda_p = \frac{2}{1 + e^{-\gamma p}} - 1, \qquad \mu_p = \frac{\mu_0}{(1 + \alpha p)^\beta}

where p goes from 0 to 1 in the course of training. One backward does both, through a layer that passes features on as they are
and turns their gradient around, :math:`-\lambda_p` times.

This is the yardstick of training time, not an :class:`testtime.Adapter`: it sees the target at leisure and in any order, with
the source's labels beside it, and what it gives is a network, which adapts no more. Any adapter can be put upon that:
``Tent(train_dann(...))``, or ``Source(train_dann(...))`` for it alone.

Departures:
    The paper's full text was not at hand: objective, schedules, momentum and the form of :math:`G_d` are as they are reproduced
    in public of it; figures of the paper cannot be claimed.
    The network is the caller's, trained already or not, in place of the paper's own: :math:`G_y` is its linear head,
    :math:`G_f` all before. Every layer learns at the same rate.
    :math:`G_d` has two hidden layers of 1024 with ReLU, as the paper's but for MNIST (one of 100), and one output.
    Source and target go through the network as one batch, so that BatchNorm, which the paper's networks do not have, follows
    both together.
    Images are shown as they come: normalising them is up to the network. How long to train is up to the caller: ``passes``.
    L_d is the sum of the two domains' means; code that takes one mean over both has half of it.

Cost: one forward and one backward of a source and a target batch a step. The network given back costs what the caller's did.

Reference: Ganin, Ustinova, Ajakan, Germain, Larochelle, Laviolette, Marchand and Lempitsky, Domain-Adversarial Training of
Neural Networks, JMLR 2016.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from testtime.intake.sharing import duplicate
from testtime.moved import takes_former
from testtime.parts import generator
from testtime.parts.features import linear_head, with_features
from testtime.parts.taps import tapped
from testtime.source.passes import passes_over

__all__ = ["DANNOptions", "learning_rate", "reversal", "reverse_gradient", "train_dann"]

T = TypeVar("T")


def reverse_gradient(z: Tensor, strength: float) -> Tensor:
    """The tensor as it is, whose gradient comes back turned around, times ``strength`` (the gradient reversal layer).

    >>> z = torch.tensor([3.0], requires_grad=True)
    >>> y = 5 * reverse_gradient(z, 0.5)
    >>> y.item(), torch.autograd.grad(y, z)[0].item()
    (15.0, -2.5)
    """
    return z.detach() - strength * (z - z.detach())


def reversal(progress: float, gamma: float = 10.0) -> float:
    r"""How strongly the gradient is reversed, :math:`\lambda_p = 2 / (1 + e^{-\gamma p}) - 1`: from 0 towards 1.

    >>> [round(reversal(p), 3) for p in (0.0, 0.1, 0.5, 1.0)]
    [0.0, 0.462, 0.987, 1.0]
    """
    return 2 / (1 + math.exp(-gamma * progress)) - 1


def learning_rate(progress: float, first: float = 0.01, alpha: float = 10.0, beta: float = 0.75) -> float:
    r"""The learning rate :math:`\mu_p = \mu_0 / (1 + \alpha p)^\beta`.

    >>> round(learning_rate(0.0), 5), round(learning_rate(1.0), 5)
    (0.01, 0.00166)
    """
    return first / (1 + alpha * progress) ** beta


@final
class _Pairs(Collection[tuple[Tensor, Tensor, Tensor]]):
    """Source batches beside target batches, as many as the longer of the two has; the shorter restarts."""

    def __init__(self, source: Collection[tuple[Tensor, Tensor]], target: Collection[Tensor]) -> None:
        if not len(source) or not len(target):
            raise ValueError(
                f"expected batches of both domains, got {len(source)} of the source and {len(target)} of the target"
            )
        self.source, self.target = source, target

    def __len__(self) -> int:
        return max(len(self.source), len(self.target))

    def __contains__(self, pair: object) -> bool:
        return any(pair is p for p in self)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for _, (x, y), other in zip(
            range(len(self)), _forever(self.source), _forever(self.target), strict=False
        ):
            if not isinstance(other, Tensor):
                raise TypeError(
                    f"expected unlabelled target batches (N, C, H, W) as tensors, got {type(other).__name__}; give the images "
                    "alone: [x for x, _ in loader]"
                )
            if x.shape[1:] != other.shape[1:]:
                raise ValueError(
                    f"expected images of one form, got {tuple(x.shape[1:])} from the source and {tuple(other.shape[1:])} from "
                    "the target; resize them"
                )
            yield x, y, other


def _forever(batches: Iterable[T]) -> Iterator[T]:
    while True:
        yield from batches


@final
class _Adversaries(nn.Module):
    """A network, and the domain classifier on its features.

    Attributes:
        steps: (), how many were done.
    """

    steps: Tensor

    def __init__(self, network: nn.Module, features: int, hidden: int, seed: int) -> None:
        super().__init__()
        self.network = network
        like = next(network.parameters())
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(generator(seed, 0, "critic").initial_seed())
            self.critic = nn.Sequential(
                nn.Linear(features, hidden),
                nn.ReLU(),
                nn.Linear(hidden, hidden),
                nn.ReLU(),
                nn.Linear(hidden, 1),
            ).to(like)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))


@final
@dataclass(frozen=True)
class DANNOptions:
    """Schedule, domain classifier and head of :func:`train_dann`.

    Args:
        alpha, beta: parameters of the schedule of the learning rate.
        hidden: number of units in each hidden layer of the domain classifier.
        head: name of the linear head; the last linear layer unless given.
    """

    alpha: float = 10.0
    beta: float = 0.75
    hidden: int = 1024
    head: str | None = None


@takes_former
def train_dann(
    model: nn.Module,
    source: Collection[tuple[Tensor, Tensor]],
    target: Collection[Tensor],
    passes: int = 10,
    rate: float = 0.01,
    gamma: float = 10.0,
    options: DANNOptions = DANNOptions(),
    seed: int = 0,
    file: str | Path | None = None,
    title: str | None = "DANN",
) -> nn.Module:
    """A network with the same features for source and target, trained by SGD with momentum 0.9.

    Args:
        model: a classifier that ends in a linear head, trained or not; it is left as it is.
        source: batches of images (N, C, H, W) and labels (N,); a loader that shuffles works too.
        target: batches of unlabelled images (M, C, H, W).
        passes: number of passes over the longer of the two; the shorter restarts meanwhile.
        rate: initial learning rate mu_0.
        gamma: speed at which the reversal gets its full strength; 0 switches it off, which is training on the source alone,
            but for the target's part in BatchNorm.
        options: schedule, domain classifier and head.
        seed: random seed of the domain classifier's first weights, and of dropout on the CPU.
        file: path of a checkpoint after every pass, from which the same call continues; None for none.
        title: title of the progress bar; None for none.

    Returns:
        a network of the form of ``model``, in evaluation mode; the domain classifier is gone.

    Raises:
        TypeError: a target batch is not a tensor.
        ValueError: there are no batches of either, their images differ in form, the model has no linear head, a loss is not
            finite, or the file belongs to another training.

    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> source = [(torch.rand(8, 3, 2, 2), torch.randint(2, (8,)))] * 3
    >>> target = [torch.rand(8, 3, 2, 2) + 1] * 5
    >>> train_dann(net, source, target, passes=2, title=None)(target[0]).shape
    torch.Size([8, 2])
    """
    pairs = _Pairs(source, target)
    network = duplicate(model).train().requires_grad_(True)
    name, last = linear_head(network, options.head)
    both = _Adversaries(network, last.in_features, options.hidden, seed)
    optimizer = torch.optim.SGD(both.parameters(), rate, momentum=0.9)

    def loss(x: Tensor, y: Tensor, other: Tensor) -> Tensor:
        step = int(both.steps)
        progress, both.steps = step / (passes * len(pairs)), both.steps + 1
        for group in optimizer.param_groups:  # by the step, where a training has one rate for a pass
            group["lr"] = learning_rate(progress, rate, options.alpha, options.beta)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(generator(seed, step, "dropout").initial_seed())
            logits, z = with_features(network, at_head, torch.cat([x, other]))
        domain = both.critic(reverse_gradient(z, reversal(progress, gamma))).squeeze(1)
        # -log(1 - G_d) = softplus(domain), -log G_d = softplus(-domain)
        confusion = F.softplus(domain[: len(x)]).mean() + F.softplus(-domain[len(x) :]).mean()
        return F.cross_entropy(logits[: len(x)], y) + confusion

    described = {"kind": "train_dann", "passes": passes, "steps": len(pairs), "rate": rate, "gamma": gamma}
    described |= {"alpha": options.alpha, "beta": options.beta, "hidden": options.hidden, "seed": seed}
    with tapped(network, [name], given=True) as (at_head,):
        for _ in passes_over(
            pairs,
            passes,
            both,
            optimizer,
            loss,
            lambda _: rate,
            title,
            None if file is None else Path(file),
            described,
            seed,
        ):
            pass
    for p, theirs in zip(network.parameters(), model.parameters(), strict=True):
        p.requires_grad_(theirs.requires_grad).grad = None
    return network.eval()
