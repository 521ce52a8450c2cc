"""What the paper assumes, measured: the affinity of tasks, what a mask costs, and whether learning goes where labels would."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from testtime.adapter import Adapter
from testtime.data.dense import DenseSet
from testtime.models.assisted import Assisted
from testtime.models.synchronizer import Synchronizer
from testtime.multitask.ceiling import network_of
from testtime.multitask.protocol import loaded
from testtime.parts.randomness import generator
from testtime.parts.taps import tapped, watched
from testtime.tasks import Tasks

__all__ = ["affinity", "affinity_gap", "direction", "masked_losses", "step_times", "synchronized"]


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
    assisted, branch = synchronized(model)
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


def direction(
    adapter: Adapter, source: nn.Module, target: DenseSet, tasks: Tasks, batch: int = 25
) -> dict[str, float]:
    r"""Whether an adapter went where labels would have sent it, :math:`\cos(\theta - \theta_0, -\nabla_\theta L_i)` by task.

    The gradient of the labelled loss on the whole target is taken at the source's weights, with the statistics that the adapter
    has estimated: what is measured is the learning, not the statistics. Only parameters of the encoder that have moved count.
    1 is steepest descent, 0 what a random direction gives, below 0 it learns what it should not.

    Args:
        adapter: after its steps.
        source: the network before them.
        target: samples with labels.
        tasks: tasks by name.
        batch: images at once.

    Returns:
        by task, and for ``"all"`` of them weighted as in training; NaN where nothing moved.
    """
    before = list(network_of(source).encoder.parameters())
    adapted = network_of(adapter)
    step = torch.cat(
        [(a - b).flatten() for a, b in zip(adapted.encoder.parameters(), before, strict=True)]
    ).detach()
    probe = copy.deepcopy(adapted).eval().requires_grad_(True)
    places = list(probe.encoder.parameters())
    for place, value in zip(places, before, strict=True):
        place.data.copy_(value)
    slopes = {name: torch.zeros_like(step) for name in tasks}
    with torch.enable_grad():
        for x, labels in loaded(target, tasks, batch, step.device):
            outputs = probe(x)
            for name, task in tasks.items():
                if name in labels:
                    loss = task.weight * task.loss(outputs[name], labels[name]) * len(x)
                    found = torch.autograd.grad(loss, places, retain_graph=True, allow_unused=True)
                    slopes[name] += torch.cat(
                        [
                            (torch.zeros_like(p) if g is None else g).flatten()
                            for g, p in zip(found, places, strict=True)
                        ]
                    )
    moved = step != 0
    if not bool(moved.any()):
        return dict.fromkeys((*tasks, "all"), float("nan"))
    slopes["all"] = torch.stack(list(slopes.values())).sum(0)
    return {
        name: nn.functional.cosine_similarity(step[moved], -slope[moved], dim=0).item()
        for name, slope in slopes.items()
    }


def masked_losses(
    model: nn.Module, data: DenseSet, ratios: Iterable[float], batch: int = 16, seed: int = 0
) -> dict[float, dict[str, float]]:
    """The loss of every task's synchronised output against the labels, for each mask ratio (figure 7).

    Args:
        model: an :class:`Assisted` with a :class:`Synchronizer` inside.
        data: labelled samples of the source.
        ratios: masked shares to try.
        batch: images at once.
        seed: random seed of the masks.

    Raises:
        TypeError: there is no synchronizer.
    """
    assisted, branch = synchronized(model)
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


def step_times(
    base: nn.Module,
    adapters: Mapping[str, Adapter],
    x: Tensor,
    rounds: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, float]:
    """Time steps as multiples of a plain prediction: the median over rounds in which all adapters take turns (table 9).

    Args:
        base: network of the plain prediction.
        adapters: adapters by name.
        x: images (N, 3, H, W).
        rounds: number of rounds, after two that do not count.
        progress: function that takes the number of rounds that are done, and of all.
    """
    times: dict[str, list[float]] = {name: [] for name in adapters}
    for turn in range(rounds + 2):
        with torch.no_grad():
            plain = _seconds(base, x)
        for name, adapter in adapters.items():
            times[name].append(_seconds(adapter, x) / plain)
        progress(turn + 1, rounds + 2)
    return {name: statistics.median(found[2:]) for name, found in times.items()}


def _seconds(call: Callable[[Tensor], object], x: Tensor) -> float:
    begin = time.perf_counter()
    call(x)
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return time.perf_counter() - begin


def synchronized(model: nn.Module) -> tuple[Assisted, Synchronizer]:
    """Return the network with its synchronizer in a model or an adapter, and the synchronizer.

    Raises:
        TypeError: there is none.
    """
    for module in model.modules():
        if isinstance(module, Assisted) and isinstance(module.branch, Synchronizer):
            return module, module.branch
    raise TypeError(f"expected Assisted(network, Synchronizer(...)), got {type(model).__name__}")


def _latent(assisted: Assisted, branch: Synchronizer, x: Tensor) -> Tensor:
    with tapped(assisted.network, branch.layers) as taps:
        _, (z,) = watched(assisted.network, taps, x)
    return z
