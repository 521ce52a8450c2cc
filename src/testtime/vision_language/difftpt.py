r"""DiffTPT: prompt tuning on crops and on views that a generative model makes of the image, filtered by their similarity to it.

With crops :math:`a_b` and generated views :math:`d_j` of an image x, and its embedding f of norm 1,

.. math::
    S = C \cup \{ d_j : f(d_j)^\top f(x) \ge \tau \}, \qquad \min_v \; H\Big( \frac{1}{|S|} \sum_{s \in S} p_v(s) \Big)

where C holds the share :math:`\rho` of the image and its crops of lowest entropy, as in TPT.

A step, for each image of the batch:
    1. start from the embedded words of the template;
    2. embed crops and generated views; choose the confident crops, and the generated views that are similar to the image;
    3. take steps of the optimizer down the entropy of their mean prediction;
    4. predict the image itself under the new prompt, and drop it.

Departures:
    Written from the abstract and from descriptions; its public code has no licence and was not read. The paper's views are made
    by Stable Diffusion before the test; here ``generate`` is any function of (images, number, generator). The paper selects by
    entropy among generated views as well; here they are filtered by similarity alone, and all similar ones count.

Cost: B + J forwards of the image encoder, the generator's own, and those of TPT through the text encoder.

Reference: Feng et al., Diverse Data Augmentation with Diffusions for Effective Test-time Prompt Tuning, ICCV 2023.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Annotated, final

import torch
from torch import Tensor, nn

from testtime.adapter import Adapter
from testtime.intake.arguments import Natural, Positive
from testtime.parts.optimizers import OptimizerFactory, adamw
from testtime.parts.randomness import generator
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

__all__ = ["DiffTPT", "weighted_entropy"]


def weighted_entropy(logits: Tensor, weights: Tensor) -> Tensor:
    """Return the entropy (N,) of the weighted mean prediction over the views of each image.

    Args:
        logits: (N, B, K).
        weights: (N, B), some of each image above 0.

    >>> weighted_entropy(torch.tensor([[[9.0, -9.0], [-9.0, 9.0]]]), torch.tensor([[1.0, 1.0]]))  # log 2
    tensor([0.6931])
    """
    p = logits.float().softmax(-1) if logits.dtype in (torch.float16, torch.bfloat16) else logits.softmax(-1)
    share = (weights / weights.sum(1, keepdim=True)).to(p.dtype)
    p = (share[..., None] * p).sum(1)
    return -(p * p.clamp_min(torch.finfo(p.dtype).tiny).log()).sum(-1)


@final
class DiffTPT(Adapter):
    """Tune a soft prompt for each image on crops and on views that a generative model makes of it.

    Args:
        model: a :class:`testtime.vision_language.ZeroShot` with words before the name in its template.
        generate: function of (images (N, C, H, W), number, generator) that yields so many batches of generated views, such as
            variations by a diffusion model, or files that it made before.
        optimizer: moves the prompt.
        views: B, number of views with the image itself and without the generated ones.
        generated: J, number of generated views of an image.
        share: rho, share of image and crops that are confident.
        similarity: tau, least cosine of a generated view and its image.
        steps: number of steps for each image.
        seed: random seed of the views.

    Raises:
        TypeError: ``generate`` is no function, or yields what are no floating-point tensors.
        ValueError: the model is no zero-shot classifier, has several templates, or no words before the name; ``generate``
            yields another number of views, or views of another form.

    >>> from testtime.laws.worlds import WORLDS
    >>> def noisy(x, number, rng):
    ...     for _ in range(number):
    ...         yield x + 0.05 * torch.randn(x.shape, generator=rng)
    >>> adapter = DiffTPT(WORLDS["image-text"].network(), noisy, views=8, generated=4, share=0.5)
    >>> y = adapter(torch.rand(3, 3, 8, 8))
    >>> y.shape, y.updated, adapter.cost
    (torch.Size([3, 5]), True, (12, 0))
    """

    name, label = "difftpt", "DiffTPT"
    needs = ("classifier", "image-text", "images")
    venue = "ICCV 2023"
    paper = "Feng et al., Diverse Data Augmentation with Diffusions for Effective Test-time Prompt Tuning"
    code = "github.com/chunmeifeng/DiffTPT"
    output = "after"
    stochastic = True
    episodic = True
    cost = (128, 0)

    def __init__(
        self,
        model: nn.Module,
        generate: ViewMaker,
        optimizer: OptimizerFactory = adamw(5e-3),  # noqa: B008 - a value
        views: Positive = 64,
        generated: Natural = 64,
        share: Annotated[float, 0] = 0.1,
        similarity: float = 0.8,
        steps: Positive = 1,
        seed: int = 0,
    ) -> None:
        if not callable(generate):
            raise TypeError(
                "generate is a function of (images, number, generator) that yields batches of generated views, got "
                f"{type(generate).__name__}"
            )
        checked_share(share, type(self).__name__)
        super().__init__(Prompted(model), seed)
        self.generate, self.optimizer, self.steps = generate, optimizer, steps
        self.views, self.generated, self.share, self.similarity = views, generated, share, similarity
        self.cost = (views + generated, 0)
        self.adapt([self.model.get_parameter("network.context")], optimizer)

    def step(self, x: Tensor) -> Tensor:
        model = zero_shot_of(self.model)
        features = embedded_views(self.model, x, self.views, self.seed)
        made = self._made(x)
        with torch.no_grad():
            chosen = confident(entropies(logits_of(model, features)), self.share)
            similar = (made @ features[:, 0, :, None])[..., 0] >= self.similarity
        kept = torch.cat([features.take_along_dim(chosen[..., None], 1), made], dim=1)
        weights = torch.cat([torch.ones_like(chosen), similar.long()], dim=1)

        def loss(contexts: Tensor, rows: slice) -> Tensor:
            return weighted_entropy(logits_of(model, kept[rows], contexts), weights[rows])

        contexts = each_prompt(self, len(x), self.steps, loss)
        return soft_prompts(model, features[:, 0], contexts)

    def _made(self, x: Tensor) -> Tensor:
        """The embeddings (N, J, D) of the generated views."""
        pair, found = zero_shot_of(self.model).pair, []
        with torch.no_grad():
            made = self.generate(x, self.generated, generator(self.seed, 0, "generated"))
            if not isinstance(made, Iterable):
                raise TypeError(
                    f"generate returned {type(made).__name__}, expected {self.generated} batches of views of the images, which "
                    "it yields or returns as a list"
                )
            for view in islice(made, self.generated + 1):  # one more tells too many from enough
                if not isinstance(view, Tensor) or not view.is_floating_point():
                    got = view.dtype if isinstance(view, Tensor) else type(view).__name__
                    raise TypeError(
                        f"generate yielded {got}, expected views as floating-point tensors in the range of the images; convert "
                        "them (uint8: view / 255)"
                    )
                if view.shape != x.shape:
                    raise ValueError(
                        f"generate yielded views of shape {tuple(view.shape)} for images {tuple(x.shape)}; expected one view "
                        "of each image at a time, of its form"
                    )
                found.append(pair(view.to(x)))
        if len(found) != self.generated:
            count = "more" if len(found) > self.generated else len(found)
            raise ValueError(f"generate yielded {count} batches of views, expected {self.generated}")
        return torch.stack(found, dim=1) if found else pair(x)[:, None][:, :0]
