r"""The ceiling of test-time training: the encoder learns from the true labels of the batch.

.. math:: \min_\theta \; \sum_i w_i \, L_i\big(y_i, \hat y_i\big), \qquad y_i = M_i(E_\theta(x))

A step:
    1. predict every task, normalised as the policy says;
    2. look up the labels of the images, and move the encoder once along the losses of training.

The heads stay, as in S4T, where no gradient reaches them. No method can do this in deployment: where these rows gain nothing
over statistics alone, a protocol cannot rank methods. The labels come from the experiment, by an argument; ``step`` receives
inputs only.

Departures: not from a paper.

Cost: one forward, one backward.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import final

import torch
from torch import Tensor, nn

from testtime.adapter import Adapter
from testtime.data.dense import DenseSet
from testtime.models.multitask import MultiTaskNet
from testtime.norm import observing, running_statistics
from testtime.parts.optimizers import OptimizerFactory, adam
from testtime.tasks import tasks_of

__all__ = ["Answers", "Labelled", "network_of"]


@final
class Answers:
    """Labels by image: a function from images of a data set, in any batches, to their labels.

    Args:
        data: samples with labels; of equal images the last one's labels count.
    """

    def __init__(self, data: DenseSet) -> None:
        self.data, self._places = data, {_key(data[i].image): i for i in range(len(data))}

    def __call__(self, x: Tensor) -> dict[str, Tensor]:
        """Return the labels of images (N, 3, H, W) by task.

        Raises:
            KeyError: an image is none of the data set.
        """
        found = [self._places.get(_key(image)) for image in x]
        if None in found:
            raise KeyError(f"image {found.index(None)} of the batch is none of {self.data.name}")
        _, labels = self.data.batch([place for place in found if place is not None])
        return {name: y.to(x.device) for name, y in labels.items()}


@final
class Labelled(Adapter):
    """Adapt the encoder of a multi-task model to the labels of the batch: a ceiling, no method.

    Args:
        model: a multi-task network, alone or with a branch.
        answers: function from images (N, 3, H, W) to labels by task, such as :class:`Answers`.
        optimizer: moves the encoder.
        norm: policy of the BatchNorm layers.
    """

    name, label = "labelled", "labels of the batch"
    needs = ()

    def __init__(
        self,
        model: nn.Module,
        answers: Callable[[Tensor], Mapping[str, Tensor]],
        optimizer: OptimizerFactory = adam(1e-4),  # noqa: B008 - a frozen value
        norm: Callable[[nn.Module], nn.Module] = running_statistics,
    ) -> None:
        super().__init__(norm(model))
        self.answers, self.optimizer, self.norm, self.tasks = answers, optimizer, norm, tasks_of(self.model)
        self.adapt(list(network_of(self.model).encoder.parameters()), optimizer)

    def step(self, x: Tensor) -> dict[str, Tensor]:
        with observing(self.model):
            y: dict[str, Tensor] = self.model(x)
        labels = self.answers(x)
        known = [(task, y[name], labels[name]) for name, task in self.tasks.items() if name in labels]
        self.update(torch.stack([task.weight * task.loss(*pair) for task, *pair in known]).sum())
        return y


def network_of(model: nn.Module) -> MultiTaskNet:
    """Return the multi-task network in a model or an adapter.

    Raises:
        TypeError: there is none.
    """
    for module in model.modules():
        if isinstance(module, MultiTaskNet):
            return module
    raise TypeError(f"expected a MultiTaskNet somewhere in the model, got {type(model).__name__}")


def _key(image: Tensor) -> bytes:
    return image.detach().cpu().numpy().tobytes()
