r"""ActMAD: match the activations of every normalisation layer, place by place, with those of the source.

With the output :math:`f_l(x)` of the l-th normalisation layer, for every channel at every place its mean
:math:`\mu_l` and variance :math:`\sigma_l^2` over the images of a batch, and :math:`\hat\mu_l, \hat\sigma_l^2` those over
the source,

.. math::
    \min_\theta \; \sum_l \frac{1}{2 D_l} \Big( \big\lVert \mu_l - \hat\mu_l \big\rVert_1
        + \big\lVert \sigma_l^2 - \hat\sigma_l^2 \big\rVert_1 \Big), \qquad D_l = C_l H_l W_l

A step, after ``prepare(batches)`` has summarised the source once:
    1. predict the batch, and record the output of every normalisation layer;
    2. take the gradient of the distance to the source with respect to all parameters;
    3. update them once, and answer with the prediction of 1.

Departures:
    The paper writes the L1 norms; the published code, whose learning rates are in use, averages over the elements of a
    layer and halves, and so does this. Its variances are unbiased (``unbiased=True``), and its source statistics are the mean
    over batches of the statistics of each batch (``batch_average=True``); here variances are biased, and the source statistics
    are those of all images together.
    The published CIFAR code takes several steps on the stream and reports the best by the labels; nothing here uses
    labels. The answer is the forward before the update: call ``predict``, or wrap in ``Repeat``, for the one after it.
    A batch of one image has no variance: its values alone are matched.
    The statistics of the source are those under the policy of ``norm`` while it only predicts; by default, and in the paper,
    BatchNorm uses those of training (``eval()``), there and at test time.

Cost: one forward, one backward through all weights. ``prepare`` costs one forward a batch, once.

Reference: Mirza, Jané Soneira, Lin, Kozinski, Possegger and Bischof, ActMAD: Activation Matching to Align Distributions for
Test-Time-Training, CVPR 2023.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import final

import torch
from torch import Tensor, nn

from testtime.adapter import Adapter
from testtime.intake.sharing import Stateful
from testtime.models.assisted import Assisted
from testtime.norm import NormPolicy, observing, source_statistics
from testtime.norm.layer import KINDS
from testtime.parts import sgd
from testtime.parts.optimizers import OptimizerFactory
from testtime.parts.taps import Tap, watched

__all__ = ["ActMAD", "SourceActivations"]


@final
class SourceActivations(Stateful):
    """Mean and variance over the source of what some layers give, place by place; empty until it has seen some.

    Args:
        names: names of the layers.
        unbiased: whether variances are the unbiased ones.
        batch_average: whether the statistics are the mean over batches of those of each batch, all batches counting alike,
            instead of those of all images together.

    Attributes:
        images: number of images seen, or of batches with ``batch_average``.

    ``update`` learns from one batch more, calling gives the distance of another batch, a scalar.
    """

    learned = True
    images: Tensor

    def __init__(self, names: Iterable[str], unbiased: bool = False, batch_average: bool = False) -> None:
        super().__init__()
        self.unbiased, self.batch_average = unbiased, batch_average
        self.keys = [name.replace(".", "/") for name in names]
        self.register_buffer("images", torch.zeros((), dtype=torch.int64))
        for key in self.keys:
            self.register_buffer(f"{key}/mean", torch.empty(0))
            self.register_buffer(f"{key}/var", torch.empty(0))

    def clear(self) -> None:
        """Forget the source."""
        self.images = torch.zeros_like(self.images)

    @torch.no_grad()
    def update(self, seen: Sequence[Tensor]) -> None:
        """Merge the moments of a batch into those so far (Chan et al., 1979).

        Args:
            seen: (N, ...) of each layer. A single image has no unbiased variance: with ``unbiased`` and
                ``batch_average`` such a batch is left out.

        Raises:
            ValueError: the places differ from those seen before.
        """
        old, new = int(self.images), 1 if self.batch_average else len(seen[0])
        if self.unbiased and self.batch_average and len(seen[0]) == 1:
            return
        for key, z in zip(self.keys, seen, strict=True):
            mean, var = moments(z, self.unbiased and self.batch_average)
            if old:
                m, v = self._known(key, mean)
                share, gap = new / (old + new), mean - m
                between = 0 if self.batch_average else share * gap.square()
                mean, var = m + share * gap, (1 - share) * (v + between) + share * var
            self._buffers[f"{key}/mean"], self._buffers[f"{key}/var"] = mean, var
        self.images = self.images + new

    def forward(self, seen: Sequence[Tensor]) -> Tensor:
        total, n = [], int(self.images)
        pooled = self.unbiased and not self.batch_average and n > 1  # the buffers hold biased variances
        for key, z in zip(self.keys, seen, strict=True):
            mean, var = moments(z, self.unbiased)
            m, v = self._known(key, mean)
            v = v * (n / (n - 1)) if pooled else v
            total.append((mean - m).abs().mean() / 2)
            if len(z) > 1:
                total.append((var - v).abs().mean() / 2)
        return torch.stack(total).sum()

    def _known(self, key: str, like: Tensor) -> tuple[Tensor, Tensor]:
        mean, var = self.get_buffer(f"{key}/mean"), self.get_buffer(f"{key}/var")
        if mean.shape != like.shape:
            raise ValueError(
                f"ActMAD compares activations place by place: {key} gives {tuple(like.shape)}, and gave "
                f"{tuple(mean.shape)} on the source; show images of the size of those that prepare() saw"
            )
        return mean, var


def moments(z: Tensor, unbiased: bool = False) -> tuple[Tensor, Tensor]:
    """Mean and variance over the images of (N, ...), each (...), at least in float32; that of one image is 0.

    >>> moments(torch.tensor([[1.0, 2.0], [3.0, 2.0]]))
    (tensor([2., 2.]), tensor([1., 0.]))
    """
    z = z.to(torch.promote_types(z.dtype, torch.float32))
    mean = z.mean(dim=0)
    return mean, (z - mean).square().sum(dim=0) / max(len(z) - unbiased, 1)


@final
class ActMAD(Adapter):
    """Match the activations of every normalisation layer, place by place, with those of the source.

    Args:
        model: a classifier or a multi-task network with normalisation layers of any kind.
        optimizer: moves all parameters; the published one is SGD with Nesterov momentum and weight decay, as here.
        skip: parts of dotted names of normalisation layers that are not watched.
        unbiased: whether variances are the unbiased ones, as in the published code.
        batch_average: whether the source statistics are the mean over batches of those of each batch, as in the published
            code, instead of those of all images together.
        norm: the policy of the BatchNorm layers.

    Raises:
        ValueError: the model has no normalisation layer to watch, or an image has another size than the source's.
        RuntimeError: it is called before ``prepare``.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    >>> actmad = ActMAD(net)
    >>> actmad.prepare(torch.rand(4, 8, 3, 8, 8).unbind())  # four unlabelled batches of the source
    >>> y = actmad(torch.rand(8, 3, 8, 8))
    >>> y.shape, y.updated
    (torch.Size([8, 2]), True)
    """

    name, label = "actmad", "ActMAD"
    needs = ("norm",)
    venue = "CVPR 2023"
    paper = (
        "Mirza, Jané Soneira, Lin, Kozinski, Possegger and Bischof, ActMAD: Activation Matching to Align "
        "Distributions for Test-Time-Training"
    )
    source = "statistics"

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerFactory = sgd(1e-3, weight_decay=5e-4, nesterov=True),  # noqa: B008
        skip: Sequence[str] = (),
        unbiased: bool = False,
        batch_average: bool = False,
        norm: Callable[[nn.Module], nn.Module] = source_statistics,
    ) -> None:
        super().__init__(norm(model))
        self.optimizer, self.skip, self.norm = optimizer, tuple(skip), norm
        self.unbiased, self.batch_average = unbiased, batch_average
        # Another method's branch takes no part in a prediction.
        network = next((m.network for m in self.model.modules() if isinstance(m, Assisted)), self.model)
        taps = _tap_norms(network, self.skip)
        if not taps:
            raise ValueError(
                f"ActMAD watches normalisation layers, and this model has none outside of skip={self.skip}; expected "
                "BatchNorm, LayerNorm, GroupNorm, RMSNorm or InstanceNorm layers"
            )
        self._taps = list(taps.values())
        self.activations = SourceActivations(taps, unbiased, batch_average)
        self.adapt(network.parameters(), optimizer)

    def _prepare(self, batches: Iterable[Tensor]) -> None:
        self.activations.clear()
        for x in batches:  # under gradients: without them torch's transformers go around their norms
            x = x.clone() if x.is_inference() else x
            self.activations.update(watched(self.model, self._taps, x)[1])
        if not int(self.activations.images):
            raise ValueError(
                "expected batches of source images (N, C, H, W) to summarise, got none"
                + (" of more than one image" if self.unbiased and self.batch_average else "")
            )

    def step(self, x: Tensor) -> Tensor | dict[str, Tensor]:
        if not int(self.activations.images):
            raise RuntimeError(
                "ActMAD has not seen its source: call adapter.prepare(batches) with unlabelled source batches first"
            )
        with observing(self.model):
            y, seen = watched(self.model, self._taps, x)
        self.update(self.activations(seen))
        return y


def _tap_norms(network: nn.Module, skip: Sequence[str]) -> dict[str, Tap]:
    """Put taps around the normalisation layers of a tree of one's own, whatever policy they follow."""
    kinds: tuple[type[nn.Module], ...] = (NormPolicy, *KINDS)
    taps = {}
    for prefix, parent in list(network.named_modules()):
        if isinstance(parent, NormPolicy):
            continue
        for leaf, child in list(parent.named_children()):
            name = f"{prefix}.{leaf}".removeprefix(".")
            skipped = any(f".{part}." in f".{name}." for part in skip)
            if isinstance(child, kinds) and not skipped:
                taps[name] = Tap(child)
                setattr(parent, leaf, taps[name])
    return taps
