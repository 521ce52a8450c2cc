r"""NHL: the first convolution learns from what it sees, by a soft Hebbian rule; a neuro-modulator behind it lowers the entropy.

With a patch x of the input, the responses :math:`u_k = \sum_i w_{ik} x_i` of the K neurons of the first convolution to it, and
a soft competition between them,

.. math::
    y_k &= \frac{\exp(u_k / \tau)}{\sum_l \exp(u_l / \tau)}, \qquad
    w_{ik} \leftarrow w_{ik} + \eta \operatorname*{mean}_{patches} y_k\, (x_i - u_k\, w_{ik}) \\
    \tilde u &= M u + b, \qquad \min_{M, b} \; \frac1N \sum_i H(f_\theta(x_i)), \qquad H = -\sum_c p_c \log p_c

A step:
    1. the first convolution processes the batch, learns from it by its own responses, and passes the new ones on;
    2. take the gradient of the mean entropy at the top with respect to the neuro-modulator M, b, and update that once;
    3. predict the batch again, and answer.

Departures:
    There is no official code, and the paper's full text was not at hand: this was written from its abstract, the caption of its
    overview ("the first convolution layer of the source model is finetuned by Hebbian learning rule and the neuro-modulator is
    further fine-tuned by the entropy loss before making a prediction"), and the rule of SoftHebb, which is taken for its soft
    Hebbian learning. Figures of the paper cannot be claimed. What was chosen:
    The neuro-modulator is a convolution of one pixel that mixes the responses, initially the identity. A scale and shift
    of each would do nothing, for the BatchNorm behind a first convolution undoes them where it follows the batch.
    Nothing else learns: the scale and shift of the normalisation layers stay, as the abstract names the modulator alone.
    The competition is between the neurons at one place; u leaves out the bias of the layer; the mean is over all places of all
    images, so that the rule does not depend on the size of batch and image; the values of rate and temperature are this
    library's. The rule draws every filter towards unit length, whatever length it was trained to, and where a network does not
    centre its images, towards the mean patch: a large rate does harm.

Cost: two forwards, one backward; and once more the first convolution and its gradient.

Reference: Tang, Zhang, Xu, Chen, Cheng, Leng, Guo and He, Neuro-Modulated Hebbian Learning for Fully Test-Time Adaptation,
CVPR 2023; Moraitis, Toichkin, Journé, Chua and Guo, SoftHebb: Bayesian Inference in Unsupervised Hebbian Soft
Winner-Take-All Networks, Neuromorphic Computing and Engineering 2022.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from testtime.adapter import Adapter
from testtime.intake.sharing import Stateful
from testtime.norm import batch_statistics, observing
from testtime.parts import adam, entropy
from testtime.parts.optimizers import OptimizerFactory

__all__ = ["NHL", "NeuroModulated", "soft_hebbian"]


def soft_hebbian(layer: nn.Conv2d, weight: Tensor, x: Tensor, temperature: float) -> Tensor:
    r"""What the soft Hebbian rule makes of a batch: the mean of :math:`y_k (x_i - u_k w_{ik})` over patches.

    Args:
        layer: layer whose patches are taken (stride, padding, dilation, groups).
        weight: w, of the layer's form (K, C, h, w).
        x: input of the layer, (N, C, H, W).
        temperature: tau, above 0; the nearer to it, the more a single neuron wins.

    Returns:
        of the form of ``weight``, at least in float32.

    Reference: Moraitis et al., SoftHebb, 2022.

    >>> x, w = torch.full((1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1), 0.5)  # one neuron wins all: x - u w = 2 - 1 * 0.5
    >>> soft_hebbian(nn.Conv2d(1, 1, 1), w, x, 1.0).item()
    1.5
    """
    dtype = torch.promote_types(weight.dtype, torch.float32)
    with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
        w = weight.detach().to(dtype).requires_grad_()
        given = {"weight": w}
        if layer.bias is not None:
            given["bias"] = w.new_zeros(len(w))
        u = functional_call(layer, given, (x.detach().to(dtype),))
        y = (u.detach() / temperature).softmax(dim=1)
        (drawn,) = torch.autograd.grad(u, w, y)  # the sum of y_k x_i over patches
    held = (y * u.detach()).sum(dim=(0, 2, 3))
    return (drawn - held[:, None, None, None] * w.detach()) * (u.shape[1] / u.numel())


@final
class NeuroModulated(Stateful):
    """A convolution that learns from what it sees while ``learning``, and a neuro-modulator behind it.

    Args:
        layer: the convolution; it is left as it is.
        rate: eta.
        temperature: tau.

    Attributes:
        weight: the filters (K, C, h, w); they set out from the layer's.
        mixing, shift: M (K, K), the identity initially, and b (K,), zero.
    """

    mixes_samples = True
    weight: Tensor

    def __init__(self, layer: nn.Conv2d, rate: float, temperature: float) -> None:
        super().__init__()
        self.layer, self.rate, self.temperature, self.learning = layer, rate, temperature, False
        w = layer.weight.detach()
        self.register_buffer("weight", w.clone())
        self.mixing = nn.Parameter(torch.eye(len(w), dtype=w.dtype, device=w.device))
        self.shift = nn.Parameter(w.new_zeros(len(w)))

    def forward(self, x: Tensor) -> Tensor:
        if self.learning:
            change = soft_hebbian(self.layer, self.weight, x, self.temperature)
            self.weight = self.weight + (self.rate * change).to(self.weight)
        u = functional_call(self.layer, {"weight": self.weight}, (x,))
        return F.conv2d(u, self.mixing[:, :, None, None], self.shift)


def _modulated(model: nn.Module, name: str | None, rate: float, temperature: float) -> NeuroModulated:
    """Put a neuro-modulator behind the named convolution of a tree of one's own, or behind the first."""
    found = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    named = [n for n in found if name is None or f".{n}".endswith(f".{name}")]
    if not named:
        wanted = "no torch.nn.Conv2d" if name is None else f"no torch.nn.Conv2d named {name!r}"
        raise ValueError(
            f"NHL adapts the first convolution, and this model has {wanted}; its convolutions are {list(found)[:10]}"
        )
    parent, _, leaf = named[0].rpartition(".")
    layer = NeuroModulated(found[named[0]], rate, temperature)
    setattr(model.get_submodule(parent), leaf, layer)
    return layer


@final
class NHL(Adapter):
    """The first convolution learns from what it sees, by a soft Hebbian rule; a neuro-modulator behind it lowers the entropy.

    Args:
        model: any classifier with a two-dimensional convolution.
        rate: eta, of the Hebbian rule; 0 switches it off.
        temperature: tau, of the competition between neurons.
        optimizer: moves the neuro-modulator.
        layer: the dotted name of the convolution; the first one unless given.
        norm: the policy of the BatchNorm layers.

    Raises:
        ValueError: the model has no such convolution, rate is below 0, or temperature not above.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    >>> nhl = NHL(net)
    >>> y = nhl(torch.rand(8, 3, 8, 8))
    >>> y.shape, y.updated
    (torch.Size([8, 2]), True)
    """

    name, label = "nhl", "NHL"
    needs = ("classifier", "convolution")
    venue = "CVPR 2023"
    paper = (
        "Tang, Zhang, Xu, Chen, Cheng, Leng, Guo and He, Neuro-Modulated Hebbian Learning for Fully Test-"
        "Time Adaptation"
    )
    output = "after"
    cost = (2, 1)

    def __init__(
        self,
        model: nn.Module,
        rate: float = 1e-2,
        temperature: float = 1.0,
        optimizer: OptimizerFactory = adam(1e-3),  # noqa: B008 - a frozen value
        layer: str | None = None,
        norm: Callable[[nn.Module], nn.Module] = batch_statistics,
    ) -> None:
        if rate < 0 or temperature <= 0:
            raise ValueError(f"expected rate >= 0 and temperature > 0, got {rate} and {temperature}")
        super().__init__(norm(model))
        self.rate, self.temperature, self.optimizer, self.layer, self.norm = (
            rate,
            temperature,
            optimizer,
            layer,
            norm,
        )
        self.hebbian = _modulated(self.model, layer, rate, temperature)
        self.adapt([self.hebbian.mixing, self.hebbian.shift], optimizer)

    def step(self, x: Tensor) -> Tensor:
        self.hebbian.learning = True
        try:
            with observing(self.model):
                logits = self.model(x)
        finally:
            self.hebbian.learning = False
        self.update(entropy(logits).mean())
        with torch.no_grad():
            return self.model(x)
