r"""Two rows beside S4T that say what its loss lacks: labels in place of its pseudo-labels, and its loss reversed.

.. math:: \sum_i w_i L_i\big(y_i^{TBS}, \hat y_i\big) \qquad\text{and}\qquad
          \sum_i \frac{w_i}{n_i} L_i\big(y_i^{main}, \operatorname{sg}[y_i^{TBS}]\big)

S4T (equation 6) lets the synchronizer learn the predictions of the heads. The first row lets it learn the labels of the batch:
a ceiling of what can pass it. The second lets the heads learn the predictions of the synchronizer, which sees all tokens; n_i
is 1, or the length of the task's gradient over the encoder, so that no task drives the step by its weight.

Departures: not from a paper. :mod:`testtime.multitask.gradients` measures why they are here.

Cost: one forward, one backward (and the small branch); with equal lengths one more backward for each task.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import final

import torch
from torch import Tensor, nn

from testtime.adapter import Adapter
from testtime.multitask.analysis import synchronized
from testtime.norm import observing, running_statistics
from testtime.parts.optimizers import OptimizerFactory, sgd
from testtime.parts.randomness import generator
from testtime.parts.taps import tap, watched

__all__ = ["LabelledSynchronizer", "Reversed"]


@final
class LabelledSynchronizer(Adapter):
    """Adapt as S4T, with the labels of the batch in place of the predictions of the heads: a ceiling, no method.

    Args:
        model: a multi-task network and its synchronizer, ``Assisted(network, synchronizer)``.
        answers: function from images (N, 3, H, W) to labels by task, such as :class:`testtime.multitask.ceiling.Answers`.
        optimizer: moves encoder, projection and synchronizer.
        scale: weight of the whole loss, as in S4T.
        norm: policy of the BatchNorm layers.
        seed: random seed of the masks.

    Raises:
        TypeError: the model comes without a synchronizer.
    """

    name, label = "labelled-synchronizer", "labels through the synchronizer"
    needs = ("branch",)
    stochastic = True

    def __init__(
        self,
        model: nn.Module,
        answers: Callable[[Tensor], Mapping[str, Tensor]],
        optimizer: OptimizerFactory = sgd(1e-3, weight_decay=1e-6),  # noqa: B008 - a frozen value
        scale: float = 0.01,
        norm: Callable[[nn.Module], nn.Module] = running_statistics,
        seed: int = 0,
    ) -> None:
        super().__init__(norm(model), seed)
        assisted, self._branch = synchronized(self.model)
        self.answers, self.optimizer, self.scale, self.norm = answers, optimizer, scale, norm
        self._tap = tap(assisted.network, self._branch.layers[0])
        learning = [p for name, p in self._branch.named_parameters() if not name.startswith("read.")]
        self.adapt([*self._tap.layer.parameters(), *learning], optimizer)

    def step(self, x: Tensor) -> dict[str, Tensor]:
        with observing(self.model):
            y, (z,) = watched(self.model, [self._tap], x)
        seen = self._branch.draw(len(x), generator(self.seed, int(self.clock), "mask"))
        _, synchronised = self._branch(z, x.shape[-2:], seen)
        labels = self.answers(x)
        losses = [
            task.weight * task.loss(synchronised[name], labels[name])
            for name, task in self._branch.tasks.items()
            if name in labels
        ]
        self.update(self.scale * torch.stack(losses).sum())
        answered: dict[str, Tensor] = y
        return answered


@final
class Reversed(Adapter):
    """Adapt the encoder so that the heads agree with the synchronizer, which stays as it is.

    Args:
        model: a multi-task network and its synchronizer, ``Assisted(network, synchronizer)``.
        optimizer: moves the encoder.
        equal: whether the gradient of every task is brought to length 1 before they are added; otherwise tasks have the
            weights of training.
        scale: weight of the whole loss, as in S4T; 1 where the lengths are equal.
        norm: policy of the BatchNorm layers.

    Raises:
        TypeError: the model comes without a synchronizer.
    """

    name, label = "s4t-reversed", "S4T, reversed"
    needs = ("branch",)

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerFactory = sgd(1e-3, weight_decay=1e-6),  # noqa: B008 - a frozen value
        equal: bool = False,
        scale: float = 0.01,
        norm: Callable[[nn.Module], nn.Module] = running_statistics,
    ) -> None:
        super().__init__(norm(model))
        assisted, self._branch = synchronized(self.model)
        self.optimizer, self.equal, self.scale, self.norm = optimizer, equal, scale, norm
        self._tap = tap(assisted.network, self._branch.layers[0])
        self.adapt([*self._tap.layer.parameters()], optimizer)

    def step(self, x: Tensor) -> dict[str, Tensor]:
        with observing(self.model):
            y, (z,) = watched(self.model, [self._tap], x)
        with torch.no_grad():
            _, taught = self._branch(z, x.shape[-2:], None)
        losses = [
            task.weight * task.agreement(y[name], taught[name]) for name, task in self._branch.tasks.items()
        ]
        if self.equal:
            moving = [p for p in self._tap.layer.parameters() if p.requires_grad]
            lengths = [_length(torch.autograd.grad(one, moving, retain_graph=True)) for one in losses]
            losses = [one / length for one, length in zip(losses, lengths, strict=True)]
        self.update((1.0 if self.equal else self.scale) * torch.stack(losses).sum())
        answered: dict[str, Tensor] = y
        return answered


def _length(slopes: tuple[Tensor, ...]) -> Tensor:
    """The length of a gradient, at least 1e-12."""
    return torch.stack([slope.square().sum() for slope in slopes]).sum().sqrt().clamp(min=1e-12)
