r"""ZERO: the vote of the confident views, without any learning.

With views :math:`a_1, \dots, a_B` of an image, the first of which is the image, and the set C of the share :math:`\rho` of them
of lowest entropy, the temperature of the softmax goes to zero, so that each confident view votes for its class:

.. math:: \bar p_c = \frac{1}{|C|} \sum_{b \in C} \lim_{T \to 0} \operatorname{softmax}(z(a_b) / T)_c

It is the cheap control of prompt tuning: views and their selection, and no gradient.

A step, for each image of the batch:
    1. embed the views, and choose the confident ones;
    2. answer with the log of their votes.

Departures:
    Written from the description of the paper; the published code was not read. A tie is decided by the mean prediction of the
    confident views, which has a weight of less than a vote; so a class without a vote has a little probability, and
    its logarithm is finite.

Cost: B forwards of the image encoder, no backward.

Reference: Farina et al., Frustratingly Easy Test-Time Adaptation of Vision-Language Models, NeurIPS 2024.
"""

from __future__ import annotations

from typing import Annotated, final

import torch
from torch import Tensor, nn

from testtime.adapter import Adapter
from testtime.intake.arguments import Positive
from testtime.vision_language.prompted import embedded_views, entropies, logits_of
from testtime.vision_language.views import ViewMaker, checked_share, confident
from testtime.vision_language.zero_shot import zero_shot_of

__all__ = ["ZERO", "votes"]

TIE = 0.01
"""Weight of the mean prediction against one vote."""


def votes(logits: Tensor) -> Tensor:
    """Return the log of the share of votes (N, K) of the views of each image, ties decided by the mean prediction.

    Args:
        logits: (N, B, K).

    >>> votes(torch.tensor([[[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]]])).exp().round(decimals=3)
    tensor([[0.5000, 0.4990, 0.0010]])
    """
    wide = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    ballots = torch.zeros_like(wide).scatter_(2, wide.argmax(2, keepdim=True), 1.0).mean(1)
    tie = TIE / logits.shape[1]
    mixed = (1 - tie) * ballots + tie * wide.softmax(2).mean(1)
    return mixed.clamp_min(1e-7).log().to(logits.dtype)


@final
class ZERO(Adapter):
    """Answer with the vote of the confident views.

    Args:
        model: a :class:`testtime.vision_language.ZeroShot`.
        views: B, number of views with the image itself.
        share: rho, share of the views that are confident.
        augment: function of (images, number, generator) that yields batches of views; random resized crops and mirroring, if
            None.
        seed: random seed of the views.

    Raises:
        ValueError: the model is no zero-shot classifier.

    >>> from testtime.laws.worlds import WORLDS
    >>> y = ZERO(WORLDS["image-text"].network(), views=8, share=0.5)(torch.rand(3, 3, 8, 8))
    >>> y.shape, y.updated
    (torch.Size([3, 5]), False)
    """

    name, label = "zero", "ZERO"
    needs = ("classifier", "image-text", "images")
    answers_with = "the votes of views that it draws from its seed"
    venue = "NeurIPS 2024"
    paper = "Farina et al., Frustratingly Easy Test-Time Adaptation of Vision-Language Models"
    code = "github.com/FarinaMatteo/zero"
    stochastic = True
    episodic = True
    cost = (64, 0)

    def __init__(
        self,
        model: nn.Module,
        views: Positive = 64,
        share: Annotated[float, 0] = 0.1,
        augment: ViewMaker | None = None,
        seed: int = 0,
    ) -> None:
        checked_share(share, type(self).__name__)
        zero_shot_of(model)
        super().__init__(model, seed)
        self.views, self.share, self.augment, self.cost = views, share, augment, (views, 0)

    def _predict_batch(self, x: Tensor) -> Tensor:
        model = zero_shot_of(self.model)
        features = embedded_views(self.model, x, self.views, self.seed, self.augment)
        with torch.no_grad():
            logits = logits_of(model, features)
            chosen = confident(entropies(logits), self.share)
            return votes(logits.take_along_dim(chosen[..., None], 1))

    def step(self, x: Tensor) -> Tensor:
        return self._predict_batch(x)
