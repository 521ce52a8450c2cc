r"""Malicious images of a batch, optimised against the other images of the batch or against the adaptation.

With the benign images x, the malicious images m, the logits z of the batch [x, m] (under batch statistics every row depends on
all images) and the classes y that the model predicts for x where m are ordinary images, projected gradient ascent on

.. math:: \text{"flip": } \tfrac1N \sum_i \operatorname{CE}(z_i, y_i) \qquad
    \text{"entropy": } \tfrac1M \sum_j H(\operatorname{softmax}(z_{N+j}))

"flip" is the indiscriminate aim of DIA: benign images of the same batch are predicted as another class. "entropy" is the aim of
TePA: images whose loss, the entropy that adaptation minimises, is as high as can be, so that the step they cause is harmful.

Departures: DIA takes up to 500 steps of the gradient, here the number is an argument; of its aims the indiscriminate one is
here, and the update of the parameters within the attack is ignored (its single-level form). TePA distils a surrogate and
perturbs by mix-up at first; here the images start as ordinary ones and the given model serves as the surrogate.

Reference: Wu et al., Uncovering Adversarial Risks of Test-Time Adaptation (DIA), ICML 2023; Cong et al., Test-Time Poisoning
Attacks Against Test-Time Adaptation Models (TePA), IEEE S&P 2024.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["poisoned"]


def poisoned(
    logits: Callable[[Tensor], Tensor],
    benign: Tensor,
    malicious: Tensor,
    aim: Literal["flip", "entropy"] = "flip",
    steps: int = 20,
    rate: float = 0.1,
    radius: float = 1.0,
) -> Tensor:
    """Return the malicious images of a batch after gradient ascent on an aim.

    Args:
        logits: differentiable function from images (N + M, C, H, W) to logits (N + M, K).
        benign: images of others, (N, C, H, W) in [0, 1]; they stay.
        malicious: images to begin with, (M, C, H, W) in [0, 1].
        aim: aim of the attack, see the module.
        steps: number of steps.
        rate: change of a pixel in the first step; it falls linearly to the last.
        radius: largest change of a pixel; 1 is no bound.

    Returns:
        images (M, C, H, W) in [0, 1].

    Raises:
        ValueError: there is no such aim.
    """
    if aim not in ("flip", "entropy"):
        raise ValueError(f"the aim of an attack is 'flip' or 'entropy', got {aim!r}")
    low, high = (malicious - radius).clamp(min=0), (malicious + radius).clamp(max=1)
    count, x = len(benign), malicious.detach()
    with torch.no_grad():
        before = logits(torch.cat([benign, x]))[:count].argmax(dim=1)
    for step in range(steps):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            z = logits(torch.cat([benign, x]))
            p = z[count:].log_softmax(dim=1)
            gain = F.cross_entropy(z[:count], before) if aim == "flip" else -(p.exp() * p).sum(dim=1).mean()
            (slope,) = torch.autograd.grad(gain, x)
        x = torch.minimum(torch.maximum(x.detach() + rate * (1 - step / steps) * slope.sign(), low), high)
    return x.detach()
