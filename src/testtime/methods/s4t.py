r"""S4T: adapt all tasks of a multi-task model together, through what a synchronizer knows of their relations.

.. math::
    \min_\theta \; \lambda \sum_i w_i \, L_i\big(y_i^{TBS}, \operatorname{sg}[y_i^{main}]\big), \qquad
    \{y_i^{TBS}\} = T\big(\{M_i(P_i(z))\}\big), \qquad z = E_\theta(x)

A step:
    1. encode the batch, normalised by its own statistics, towards which the running ones move; predict every task;
    2. project z into one latent for each task, mask most of it, and let the synchronizer predict every task from the rest;
    3. move encoder, projection and synchronizer once, so that the synchronizer agrees with the predictions of 1.

The paper takes up to 40 steps on a batch: call the adapter as often, and measure with ``predict`` between; ``predict`` uses the
running statistics, as the paper's evaluation does. The synchronizer is trained with the network on the source
(:func:`testtime.multitask.train`); it takes no part in a prediction.

Departures:
    ``preset="paper"``: L_i are the tasks' own losses, the predictions of 1 as soft labels (eq. 6). ``preset="released"``, the
    published code: L1 between raw outputs, and every task weight applied twice; where the target is Taskonomy that code
    instead weights by a freshly learned factor, of 1/2 for every task initially.
    The published code silences segmentation when the *labels* of a batch are all ignored; no label reaches this.
    The published code optimises the heads too, which no gradient reaches; here they stay out.

Cost: one forward, one backward (and the small branch).

Reference: Jeong, Cho, Yoon and Yoon, Synchronizing Task Behavior: Aligning Multiple Tasks during Test-Time Training, ICCV 2025.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from testtime.adapter import Adapter
from testtime.models.assisted import Assisted
from testtime.models.synchronizer import Synchronizer
from testtime.norm import observing, running_statistics
from testtime.parts.optimizers import OptimizerFactory, sgd
from testtime.parts.randomness import generator
from testtime.parts.taps import tap, watched
from testtime.tasks import Reconstruction

__all__ = ["S4T"]


@final
class S4T(Adapter):
    """Adapt all tasks together through a synchronizer of their predictions.

    Args:
        model: a multi-task network and the :class:`~testtime.multitask.Synchronizer` it was trained with,
            ``Assisted(network, synchronizer)``.
        optimizer: moves encoder, projection and synchronizer; the paper's is ``sgd(2e-5, weight_decay=1e-6)``.
        preset: "paper" (the tasks' losses) or "released" (the published code's).
        scale: lambda, the weight of the whole loss.
        norm: the policy of the BatchNorm layers.
        seed: random seed of the masks.

    Raises:
        ValueError: the model comes without its synchronizer, or there is no such preset.

    >>> from torch import nn
    >>> from testtime.models.assisted import Assisted
    >>> from testtime.models.multitask import MultiTaskNet
    >>> from testtime.models.synchronizer import Synchronizer
    >>> from testtime.tasks import Depth, Edges
    >>> tasks = {"depth": Depth(), "edge": Edges()}
    >>> encoder = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU())
    >>> net = MultiTaskNet(encoder, {name: nn.Conv2d(8, 1, 1) for name in tasks}, tasks)
    >>> s4t = S4T(Assisted(net, Synchronizer(tasks, 8, size=32, patch=8, width=16, depth=1, decoder_depth=1)))
    >>> y = s4t(torch.rand(4, 3, 32, 32))
    >>> y["depth"].shape, y.updated
    (torch.Size([4, 1, 32, 32]), True)
    """

    name, label = "s4t", "S4T"
    needs = ("branch",)
    venue = "ICCV 2025"
    paper = "Jeong, Cho, Yoon and Yoon, Synchronizing Task Behavior: Aligning Multiple Tasks during Test-Time Training"
    stochastic = True

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerFactory = sgd(2e-5, weight_decay=1e-6),  # noqa: B008 - a frozen value
        preset: Literal["paper", "released"] = "paper",
        scale: float = 0.01,
        norm: Callable[[nn.Module], nn.Module] = running_statistics,
        seed: int = 0,
    ) -> None:
        super().__init__(norm(model), seed)
        found = [
            m for m in self.model.modules() if isinstance(m, Assisted) and isinstance(m.branch, Synchronizer)
        ]
        if not found:
            raise ValueError(
                "S4T needs the synchronizer that was trained with the network: expected "
                f"Assisted(network, Synchronizer(...)), got {type(model).__name__} (testtime.multitask.train makes one)"
            )
        self.optimizer, self.preset, self.scale, self.norm = optimizer, preset, scale, norm
        self._branch: Any = found[0].branch
        self._tap = tap(found[0].network, self._branch.layers[0])
        learning = [p for name, p in self._branch.named_parameters() if not name.startswith("read.")]
        self.adapt([*self._tap.layer.parameters(), *learning], optimizer)

    def step(self, x: Tensor) -> dict[str, Tensor]:
        with observing(self.model):
            y, (z,) = watched(self.model, [self._tap], x)
        seen = self._branch.draw(len(x), generator(self.seed, int(self.clock), "mask"))
        _, synchronised = self._branch(z, x.shape[-2:], seen)
        self.update(self.scale * self._disagreement(x, y, synchronised))
        return y

    def _disagreement(self, x: Tensor, y: dict[str, Tensor], synchronised: dict[str, Tensor]) -> Tensor:
        """The pseudo-label prediction loss (eq. 6, 8)."""
        if self._branch.options.reconstruct:
            return Reconstruction().loss(synchronised["image"], x)
        losses = []
        for name, task in self._branch.tasks.items():
            if self.preset == "paper":
                losses.append(task.weight * task.agreement(synchronised[name], y[name]))
            else:
                distance = (synchronised[name] - y[name].detach()).abs().sum(1).mean()
                losses.append(task.weight**2 * distance)
        return torch.stack(losses).sum()
