"""What the paper's assumptions say of a trained synchronizer, measured: the affinity of tasks, and how much a mask costs."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from testtime.data.dense import DenseSet
from testtime.multitask.network import Assisted
from testtime.multitask.protocol import loaded
from testtime.multitask.synchronizer import Synchronizer
from testtime.parts.randomness import generator
from testtime.parts.taps import tapped, watched

__all__ = ["affinity", "affinity_gap", "masked_losses"]


def affinity(model: nn.Module, data: DenseSet, batch: int = 16) -> Tensor:
    r"""How alike the latents of the tasks are: the mean cosine similarity between :math:`z_i` and :math:`z_j`.

    Every image's latent of a task is taken as one vector; the cosines are averaged over the images (appendix C of the S4T
    paper says no more than "cosine similarity between task-specific latents").

    Args:
        model: an :class:`Assisted` with a :class:`Synchronizer` inside, or an adapter over one.
        data: the images; labels are not used.
        batch: images at once.

    Returns:
        (tasks, tasks), in the order of the synchronizer's tasks.

    Raises:
        TypeError: there is no synchronizer.
    """
    assisted, branch = _synchronized(model)
    total, count = torch.zeros(len(branch.project), len(branch.project)), 0
    with torch.no_grad():
        for x, _ in loaded(data, {}, batch, next(model.parameters()).device):
            z = _latent(assisted, branch, x)
            vectors = torch.stack(
                [nn.functional.normalize(conv(z).flatten(1), dim=1) for conv in branch.project.values()], 1
            )
            total += (vectors @ vectors.transpose(1, 2)).sum(0).cpu()
            count += len(x)
    return total / count


def affinity_gap(one: Tensor, other: Tensor) -> Tensor:
    """The absolute difference of two affinity matrices (figure 6); its mean off the diagonal is the gap."""
    return (one - other).abs()


def masked_losses(
    model: nn.Module, data: DenseSet, ratios: Iterable[float], batch: int = 16, seed: int = 0
) -> dict[float, dict[str, float]]:
    """The loss of every task's synchronised output against the labels, for each mask ratio (figure 7).

    Args:
        model: an :class:`Assisted` with a :class:`Synchronizer` inside.
        data: labelled samples of the source.
        ratios: masked shares to try.
        batch: images at once.
        seed: of the masks.

    Raises:
        TypeError: there is no synchronizer.
    """
    assisted, branch = _synchronized(model)
    trained, found = branch.ratio, {}
    try:
        for ratio in ratios:
            branch.ratio, sums, count = ratio, dict.fromkeys(branch.tasks, 0.0), 0
            with torch.no_grad():
                for i, (x, labels) in enumerate(
                    loaded(data, branch.tasks, batch, next(model.parameters()).device)
                ):
                    z = _latent(assisted, branch, x)
                    _, outputs = branch(z, x.shape[-2:], branch.draw(len(x), generator(seed, i, "mask")))
                    for name, task in branch.tasks.items():
                        if name in labels:
                            sums[name] += task.loss(outputs[name], labels[name]).item() * len(x)
                    count += len(x)
            found[ratio] = {name: total / count for name, total in sums.items()}
    finally:
        branch.ratio = trained
    return found


def _synchronized(model: nn.Module) -> tuple[Assisted, Synchronizer]:
    for module in model.modules():
        if isinstance(module, Assisted) and isinstance(module.branch, Synchronizer):
            return module, module.branch
    raise TypeError(f"expected Assisted(network, Synchronizer(...)), got {type(model).__name__}")


def _latent(assisted: Assisted, branch: Synchronizer, x: Tensor) -> Tensor:
    with tapped(assisted.network, branch.layers) as taps:
        _, (z,) = watched(assisted.network, taps, x)
    return z
