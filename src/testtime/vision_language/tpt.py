r"""TPT: a prompt for each image, tuned so that confident views of it are predicted alike and with confidence.

With views :math:`a_1, \dots, a_B` of an image x, the first of which is x, the set C of the share :math:`\rho` of them of lowest
entropy under the template, and a soft prompt v in place of the words before the name,

.. math:: \min_v \; H\Big( \frac{1}{|C|} \sum_{b \in C} p_v(a_b) \Big)

A step, for each image of the batch:
    1. start from the embedded words of the template;
    2. embed the views, and choose the confident ones;
    3. take a step of the optimizer down the entropy of their mean prediction;
    4. predict the image itself under the new prompt, and drop it.

So an answer depends on no image before or beside it (law ``each_alone``), and ``predict`` is the zero-shot classifier.

Departures:
    Written from descriptions of the paper and of its public code, of which nothing is copied. The crops have the same places in
    all images, as a function of the seed alone, so that an image is answered the same wherever it comes; published code draws
    for each image. The published crops are of the decoded photograph; here they are of the images that the model is given.
    The paper uses AugMix for its fine-grained data sets; ``augment=`` takes any function of (images, number, generator).

Cost: B forwards of the image encoder, no backward through it; a forward and a backward of the text encoder on K prompts for
each image, and another forward for the answer.

Reference: Shu et al., Test-Time Prompt Tuning for Zero-Shot Generalization in Vision-Language Models, NeurIPS 2022.
"""

from __future__ import annotations

from typing import Annotated, final

import torch
from torch import Tensor, nn

from testtime.adapter import Adapter
from testtime.intake.arguments import Positive
from testtime.parts.optimizers import OptimizerFactory, adamw
from testtime.vision_language.prompted import (
    Prompted,
    each_prompt,
    embedded_views,
    entropies,
    logits_of,
    soft_prompts,
)
from testtime.vision_language.views import ViewMaker, checked_share, confident
from testtime.vision_language.zero_shot import zero_shot_of

__all__ = ["TPT", "mean_entropy"]


def mean_entropy(logits: Tensor) -> Tensor:
    """Return the entropy (N,) of the mean prediction over the views of each image, of logits (N, B, K).

    >>> mean_entropy(torch.tensor([[[9.0, -9.0], [-9.0, 9.0]]]))  # log 2
    tensor([0.6931])
    """
    p = logits.float().softmax(-1) if logits.dtype in (torch.float16, torch.bfloat16) else logits.softmax(-1)
    p = p.mean(1)
    return -(p * p.clamp_min(torch.finfo(p.dtype).tiny).log()).sum(-1)


@final
class TPT(Adapter):
    """Tune a soft prompt for each image, so that confident views of it are predicted alike and with confidence.

    Args:
        model: a :class:`testtime.vision_language.ZeroShot` with words before the name in its template.
        optimizer: moves the prompt.
        views: B, number of views with the image itself.
        share: rho, share of the views that are confident.
        steps: number of steps for each image.
        augment: function of (images, number, generator) that yields batches of views; random resized crops and mirroring, if
            None.
        seed: random seed of the views.

    Raises:
        ValueError: the model is no zero-shot classifier, has several templates, or no words before the name.

    >>> from testtime.laws.worlds import WORLDS
    >>> adapter = TPT(WORLDS["image-text"].network(), views=8, share=0.5)
    >>> y = adapter(torch.rand(3, 3, 8, 8))
    >>> y.shape, y.updated, adapter.cost
    (torch.Size([3, 5]), True, (8, 0))
    """

    name, label = "tpt", "TPT"
    needs = ("classifier", "image-text", "images")
    venue = "NeurIPS 2022"
    paper = "Shu et al., Test-Time Prompt Tuning for Zero-Shot Generalization in Vision-Language Models"
    code = "github.com/azshue/TPT"
    output = "after"
    stochastic = True
    episodic = True
    cost = (64, 0)

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerFactory = adamw(5e-3),  # noqa: B008 - a value
        views: Positive = 64,
        share: Annotated[float, 0] = 0.1,
        steps: Positive = 1,
        augment: ViewMaker | None = None,
        seed: int = 0,
    ) -> None:
        checked_share(share, type(self).__name__)
        super().__init__(Prompted(model), seed)
        self.optimizer, self.views, self.share, self.steps = optimizer, views, share, steps
        self.augment, self.cost = augment, (views, 0)
        self.adapt([self.model.get_parameter("network.context")], optimizer)

    def step(self, x: Tensor) -> Tensor:
        model = zero_shot_of(self.model)
        features = embedded_views(self.model, x, self.views, self.seed, self.augment)
        with torch.no_grad():
            chosen = confident(entropies(logits_of(model, features)), self.share)
        kept = features.take_along_dim(chosen[..., None], 1)

        def loss(contexts: Tensor, rows: slice) -> Tensor:
            return mean_entropy(logits_of(model, kept[rows], contexts))

        contexts = each_prompt(self, len(x), self.steps, loss)
        return soft_prompts(model, features[:, 0], contexts)
