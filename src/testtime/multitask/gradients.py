r"""Why S4T's loss gains where labels do, or does not: its gradient against that of the labelled loss, on the same batch.

For every loss of a batch, the gradient over the encoder is taken by task, with the statistics of the normalisation layers
frozen, :math:`g_i = \nabla_\theta w_i L_i`, and compared with that of the labelled loss of training, :math:`h_i`:

.. math:: \cos(g_i, h_i), \qquad \cos\big(\textstyle\sum_i g_i, \sum_i h_i\big), \qquad
          s_i = \frac{\langle g_i, \sum_j g_j \rangle}{\|\sum_j g_j\|^2}

1 is what labels would do, 0 what a random direction does; the shares s_i sum to 1 and say which task drives the step. "equal"
is the second cosine where every :math:`g_i` has length 1.

Departures: not from a paper.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from testtime.data.dense import DenseSet
from testtime.models.assisted import Assisted
from testtime.models.synchronizer import Synchronizer
from testtime.multitask.analysis import synchronized
from testtime.multitask.protocol import loaded, measure
from testtime.parts.randomness import generator
from testtime.parts.taps import tapped, watched
from testtime.tasks import Tasks

__all__ = ["LOSSES", "PREDICTIONS", "alignment", "gradients", "losses_of", "pulls", "qualities"]

LOSSES = {
    "S4T": "the synchronizer learns the predictions of the heads (equation 6)",
    "S4T, released loss": "L1 between raw outputs, task weights applied twice",
    "S4T, nothing masked": "as S4T, with all tokens visible",
    "S4T, mean of 8 masks": "as S4T, the loss averaged over eight masks",
    "labels through the synchronizer": "the synchronizer learns the labels",
    "heads learn the synchronizer": "the heads learn the predictions of the synchronizer, with all tokens visible",
    "labels of the next batch": "the labelled loss on other images of the target",
}
"""Losses that are compared with the labelled loss, by name, with what they are."""
PREDICTIONS = ("heads", "synchronizer", "synchronizer, nothing masked")
MASKS = 8


def losses_of(
    assisted: Assisted, branch: Synchronizer, x: Tensor, labels: Mapping[str, Tensor], seed: int = 0
) -> dict[str, dict[str, Tensor]]:
    """Return the losses of a batch by name and task, weighted as in training: "labels", and :data:`LOSSES` but the last.

    Args:
        assisted: network with its synchronizer, in evaluation mode.
        branch: the synchronizer.
        x: images (N, 3, H, W).
        labels: labels by task; tasks without one are left out.
        seed: random seed of the masks.
    """
    with tapped(assisted.network, branch.layers) as taps:
        y, (z,) = watched(assisted.network, taps, x)
    size = x.shape[-2:]
    masked = [branch(z, size, branch.draw(len(x), generator(seed, i, "mask")))[1] for i in range(MASKS)]
    _, whole = branch(z, size, None)
    found: dict[str, dict[str, Tensor]] = {name: {} for name in ("labels", *LOSSES)}
    del found["labels of the next batch"]
    for name, task in branch.tasks.items():
        if name not in labels:
            continue
        one, w = masked[0][name], task.weight
        found["labels"][name] = w * task.loss(y[name], labels[name])
        found["S4T"][name] = w * task.agreement(one, y[name])
        found["S4T, released loss"][name] = w**2 * (one - y[name].detach()).abs().sum(1).mean()
        found["S4T, nothing masked"][name] = w * task.agreement(whole[name], y[name])
        several = torch.stack([task.agreement(each[name], y[name]) for each in masked])
        found["S4T, mean of 8 masks"][name] = w * several.mean()
        found["labels through the synchronizer"][name] = w * task.loss(one, labels[name])
        found["heads learn the synchronizer"][name] = w * task.agreement(y[name], whole[name])
    return found


def gradients(losses: Mapping[str, Tensor], parameters: Sequence[nn.Parameter]) -> dict[str, Tensor]:
    """Return the gradient of each loss over parameters, as one vector in float64; zeros where a loss does not reach one."""
    found = {}
    for name, loss in losses.items():
        slopes = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        parts = [torch.zeros_like(p) if g is None else g for g, p in zip(slopes, parameters, strict=True)]
        found[name] = torch.cat([part.flatten() for part in parts]).double()
    return found


def alignment(pull: Mapping[str, Tensor], labelled: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
    """Return the cosines of gradients with those of labels by task, for "all" and "equal", and the tasks' shares in their sum.

    Args:
        pull: gradients of a loss by task.
        labelled: gradients of the labelled loss by task.

    >>> two = {"a": torch.tensor([1.0, 0.0]), "b": torch.tensor([0.0, 3.0])}
    >>> found = alignment(two, {"a": torch.tensor([1.0, 1.0]), "b": torch.tensor([0.0, -1.0])})
    >>> round(found["cosines"]["a"], 3), found["cosines"]["b"], round(found["shares"]["b"], 3)
    (0.707, -1.0, 0.9)
    """
    whole, target = (torch.stack(list(one.values())).sum(0) for one in (pull, labelled))
    cosine = nn.functional.cosine_similarity
    cosines = {name: cosine(pull[name], labelled[name], dim=0).item() for name in pull}
    length = whole.square().sum().clamp(min=1e-30)
    alike = torch.stack([nn.functional.normalize(one, dim=0) for one in pull.values()]).sum(0)
    both = {"all": cosine(whole, target, dim=0).item(), "equal": cosine(alike, target, dim=0).item()}
    return {
        "cosines": {**cosines, **both},
        "shares": {name: (one @ whole / length).item() for name, one in pull.items()},
    }


def pulls(
    model: nn.Module, target: DenseSet, batch: int = 8, batches: int = 6, seed: int = 0
) -> dict[str, dict[str, dict[str, float]]]:
    """Return the mean :func:`alignment` of every loss over batches of a target: by loss, "cosines" and "shares" by task.

    Args:
        model: an :class:`Assisted` with a synchronizer, or an adapter over one, with the statistics to be frozen.
        target: samples with labels.
        batch: images of a batch.
        batches: number of batches, at most; the labels of one more serve as "labels of the next batch".
        seed: random seed of the masks.

    Raises:
        TypeError: there is no synchronizer.
        ValueError: the target holds fewer than two batches.
    """
    assisted, branch = synchronized(model)
    assisted.eval()
    learning = [p.requires_grad for p in assisted.parameters()]
    assisted.requires_grad_(True)
    parameters = list(assisted.network.encoder.parameters())  # type: ignore[union-attr]
    device, rows = parameters[0].device, list[dict[str, dict[str, dict[str, float]]]]()
    before: dict[str, dict[str, Tensor]] = {}
    try:
        with torch.enable_grad():
            for i, (x, labels) in enumerate(loaded(target, branch.tasks, batch, device)):
                if i > batches:
                    break
                losses = losses_of(assisted, branch, x, labels, seed + i)
                if i == batches:
                    losses = {"labels": losses["labels"]}
                now = {name: gradients(one, parameters) for name, one in losses.items()}
                if before:
                    compared = {**before, "labels of the next batch": now["labels"]}
                    del compared["labels"]
                    rows.append({name: alignment(one, before["labels"]) for name, one in compared.items()})
                before = now
    finally:
        for parameter, before_ in zip(assisted.parameters(), learning, strict=True):
            parameter.requires_grad_(before_)
    if not rows:
        raise ValueError(
            f"{target.name}: expected at least two batches of {batch} images, got {len(target)} images"
        )
    return {
        loss: {
            kind: {name: sum(row[loss][kind][name] for row in rows) / len(rows) for name in first}
            for kind, first in rows[0][loss].items()
        }
        for loss in rows[0]
    }


def qualities(
    model: nn.Module, target: DenseSet, tasks: Tasks, batch: int = 8, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Return the metric of every task of the heads' predictions and of the synchronizer's, with and without masks.

    Args:
        model: an :class:`Assisted` with a synchronizer, or an adapter over one.
        target: samples with labels.
        tasks: tasks by name.
        batch: images at once.
        seed: random seed of the masks.

    Raises:
        TypeError: there is no synchronizer.
    """
    assisted, branch = synchronized(model)
    known = {name: task for name, task in tasks.items() if name in branch.tasks}
    meters = {kind: {name: task.meter() for name, task in known.items()} for kind in PREDICTIONS}
    with torch.no_grad():
        for i, (x, labels) in enumerate(loaded(target, known, batch, next(model.parameters()).device)):
            with tapped(assisted.network, branch.layers) as taps:
                y, (z,) = watched(assisted.network, taps, x)
            seen = branch.draw(len(x), generator(seed, i, "mask"))
            answers = y, *(branch(z, x.shape[-2:], tokens)[1] for tokens in (seen, None))
            for kind, outputs in zip(PREDICTIONS, answers, strict=True):
                measure(meters[kind], outputs, labels)
    return {kind: {name: meter.value() for name, meter in one.items()} for kind, one in meters.items()}
