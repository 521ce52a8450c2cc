r"""RLCF: a prompt or an encoder, adapted to each input by the reward of another image-text model for sampled classes.

For each of the confident views :math:`b \in C` of an image, the K most probable classes :math:`c_1, \dots, c_K` are its
samples. With the embeddings :math:`f_R, g_R` of the reward model and the text :math:`t_c` of a class,

.. math::
    R(b, c) = 2.5 \max\big(\cos(f_R(a_b), g_R(t_c)),\, 0\big), \qquad
    \mathcal L = \frac{1}{|C| K} \sum_{b \in C} \sum_{k} \Big( R(b, c_k) - \frac1K \sum_j R(b, c_j) \Big)
        \big(-\log p(c_k \mid a_b)\big)

A step, for each image of the batch:
    1. start from the source: the words of the template, or the weights of the image encoder;
    2. embed the views, and choose the confident ones;
    3. take three steps of the optimizer down the loss;
    4. predict the image itself, and return to the source.

So an answer depends on no image before or beside it (law ``each_alone``), and ``predict`` is the zero-shot classifier.

*Retrieval*, image to text: the classes are the captions of the gallery, the encoder is adapted, without views:
``RLCF(ZeroShot(pair, captions, "{}"), reward, tunes="encoder", views=1, samples=20)``. Text to image: the classes are the
images of the gallery, whose embeddings stay fixed, a batch is the token ids of the queries, and the text encoder is adapted:
``RLCF(ImageGallery(pair, images), ImageGallery(reward, images), tunes="encoder", views=1, samples=20)``.

Departures:
    Written from a description of the method; nothing is copied. One reward model, where the paper also averages several.
    Without the momentum that the paper adds for retrieval. Captioning is not built.

Cost: for a prompt, B forwards of the image encoder, and three forwards and backwards of the text encoder on K prompts for each
image, and a last forward. For the encoder, B + 3 :math:`|C|` + 1 forwards and 3 :math:`|C|` backwards, one image after the
other. And :math:`|C|` forwards of the reward model. For a query by text, 4 forwards and 3 backwards of the text encoder.

Reference: Zhao, Wang, Zhu, Chen and Yang, Test-Time Adaptation with CLIP Reward for Zero-Shot Generalization in Vision-Language
Models, ICLR 2024.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, final

import torch
from torch import Tensor, nn

from testtime.adapter import Adapter
from testtime.intake.arguments import Positive
from testtime.intake.sharing import share as shared
from testtime.parts.optimizers import OptimizerFactory, adamw
from testtime.vision_language.gallery import ImageGallery, gallery_of
from testtime.vision_language.pair import ImageText
from testtime.vision_language.prompted import (
    Prompted,
    each_prompt,
    entropies,
    logits_of,
    restored,
    soft_prompts,
    views_with,
)
from testtime.vision_language.views import ViewMaker, checked_share, confident
from testtime.vision_language.zero_shot import ZeroShot, zero_shot_of

__all__ = ["RLCF", "reward_loss"]

WEIGHT = 2.5
"""Factor of CLIPScore."""
RATES = {"prompt": 7e-3, "encoder": 1e-5}


def reward_loss(logits: Tensor, scores: Tensor, samples: int) -> Tensor:
    """Return the loss (N,) of the most probable classes by their rewards less the mean reward of the view's samples.

    Args:
        logits: (N, B, K).
        scores: rewards of all classes (N, B, K).
        samples: number of classes that are sampled for each view.

    >>> z = torch.tensor([[[1.0, 0.0, -9.0]]])
    >>> reward_loss(z, torch.tensor([[[0.0, 1.0, 5.0]]]), 2)  # (-.5 * .3133 + .5 * 1.3133) / 2
    tensor([0.2500])
    """
    log_p = (logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits).log_softmax(-1)
    index = log_p.detach().topk(min(samples, logits.shape[-1]), dim=-1).indices
    reward = scores.to(log_p.dtype).gather(-1, index)
    reward = reward - reward.mean(-1, keepdim=True)
    return -(reward * log_p.gather(-1, index)).mean((1, 2))


@final
class RLCF(Adapter):
    """Adapt a prompt or an encoder to each image, or each query by text, by the reward of another image-text model.

    Args:
        model: a :class:`testtime.vision_language.ZeroShot`; or a :class:`testtime.vision_language.ImageGallery`, whose batches
            are token ids (N, T).
        reward: the reward model, a :class:`testtime.vision_language.ImageText`, larger than the model in the paper; for a
            gallery, the gallery of the same images under the reward model.
        tunes: adapted part: "prompt", the words before the name, or "encoder", all weights of the encoder of the query.
        optimizer: moves it; AdamW at 7e-3 for a prompt and 1e-5 for the encoder, if None.
        views: B, number of views with the image itself.
        share: share of the views that are confident.
        samples: K, number of classes that are sampled for each view.
        steps: number of steps for each image.
        augment: function of (images, number, generator) that yields batches of views; random resized crops and mirroring, if
            None.
        seed: random seed of the views.

    Raises:
        TypeError: ``reward`` is no pair of encoders, or no gallery where the model is one.
        ValueError: the model is no zero-shot classifier; for a prompt, it has several templates or no words before the name;
            for a gallery, it is not the encoder without views that is adapted, or the reward's gallery has other images.

    >>> from testtime.laws.worlds import WORLDS, zero_shot
    >>> adapter = RLCF(WORLDS["image-text"].network(), reward=zero_shot().pair, views=8, share=0.5)
    >>> y = adapter(torch.rand(3, 3, 8, 8))
    >>> y.shape, y.updated, adapter.cost
    (torch.Size([3, 5]), True, (8, 0))
    """

    name, label = "rlcf", "RLCF"
    needs = ("classifier", "image-text", "images")
    venue = "ICLR 2024"
    paper = (
        "Zhao, Wang, Zhu, Chen and Yang, Test-Time Adaptation with CLIP Reward for Zero-Shot Generalization in "
        "Vision-Language Models"
    )
    code = "github.com/mzhaoshuai/RLCF"
    output = "after"
    stochastic = True
    episodic = True
    cost = (64, 0)

    def __init__(
        self,
        model: nn.Module,
        reward: ImageText | ImageGallery,
        tunes: Literal["prompt", "encoder"] = "prompt",
        optimizer: OptimizerFactory | None = None,
        views: Positive = 64,
        share: Annotated[float, 0] = 0.1,
        samples: Positive = 3,
        steps: Positive = 3,
        augment: ViewMaker | None = None,
        seed: int = 0,
    ) -> None:
        checked_share(share, type(self).__name__)
        gallery = gallery_of(model) if isinstance(model, nn.Module) else None
        _check(gallery, reward, tunes, views)
        zero = zero_shot_of(model) if gallery is None else None
        super().__init__(Prompted(model) if tunes == "prompt" else model, seed)
        self.reward = shared(reward)
        self.tunes, self.optimizer, self.views, self.share = tunes, optimizer, views, share
        self.samples, self.steps, self.augment = samples, steps, augment
        kept = max(1, int(share * views + 1e-9))
        self.cost = (views, 0) if tunes == "prompt" else (views + 1 + steps * kept, steps * kept)
        if isinstance(reward, ImageGallery):
            self.needs = ("classifier", "image-text", "tensor")  # type: ignore[misc,assignment]
            self.cost, self.scale = (steps + 1, steps), float(reward.pair.scale)
        elif zero is not None:
            texts = torch.stack([reward.encode_texts(zero.prompts(t)) for t in zero.templates]).mean(0)
            self.register_buffer("texts", nn.functional.normalize(texts, dim=1), persistent=False)
        self.adapt(self._tuned(), optimizer or adamw(RATES[tunes]))

    def _tuned(self) -> list[nn.Parameter]:
        if self.tunes == "prompt":
            return [self.model.get_parameter("network.context")]
        gallery = gallery_of(self.model)
        return (
            zero_shot_of(self.model).pair.image_parameters()
            if gallery is None
            else gallery.pair.text_parameters()
        )

    def step(self, x: Tensor) -> Tensor:
        if (gallery := gallery_of(self.model)) is not None:
            return self._by_encoder(gallery, x, [x], x.new_zeros(len(x), 1), self._searched(x))
        model = zero_shot_of(self.model)
        with torch.no_grad():
            features = torch.stack([model.pair(view) for view in self._views(x)], dim=1)
            chosen = confident(entropies(logits_of(model, features)), self.share)
        scores = self._scores(x, chosen)
        if self.tunes == "encoder":
            return self._by_encoder(model, x, self._views(x), chosen, scores)
        kept = features.take_along_dim(chosen[..., None], 1)

        def loss(contexts: Tensor, rows: slice) -> Tensor:
            return reward_loss(logits_of(model, kept[rows], contexts), scores[rows], self.samples)

        contexts = each_prompt(self, len(x), self.steps, loss)
        return soft_prompts(model, features[:, 0], contexts)

    def _views(self, x: Tensor) -> list[Tensor]:
        return list(views_with(self.model, x, self.views, self.seed, self.augment, (0.08, 1.0)))

    def _scores(self, x: Tensor, chosen: Tensor) -> Tensor:
        """The rewards (N, k, K) of all classes for the chosen views of each image."""
        texts: Tensor = self.texts  # type: ignore[assignment]
        scores = texts.new_zeros(*chosen.shape, len(texts))
        with torch.no_grad():
            for b, view in enumerate(self._views(x)):
                images, places = (chosen == b).nonzero(as_tuple=True)
                if len(images):
                    seen = self.reward(view[images].to(texts.dtype))
                    scores[images, places] = (WEIGHT * (seen @ texts.T).clamp_min(0)).to(scores.dtype)
        return scores

    @torch.no_grad()
    def _searched(self, x: Tensor) -> Tensor:
        """The rewards (N, 1, M) of all images of the gallery for each query."""
        return WEIGHT * (self.reward(x) / self.scale).clamp_min(0)[:, None]

    def _by_encoder(
        self, model: ZeroShot | ImageGallery, x: Tensor, views: list[Tensor], chosen: Tensor, scores: Tensor
    ) -> Tensor:
        """The answers of the encoder as adapted to each input, one after the other."""
        initial, answers = self._initial_state(), []
        for i, kept in enumerate(chosen.tolist()):
            mine = torch.stack([views[b][i] for b in kept])
            for _ in range(self.steps):
                self.update(reward_loss(model(mine)[None], scores[i : i + 1], self.samples)[0])
            with torch.no_grad():
                answers.append(model(x[i : i + 1]))
            restored(self, initial)
        return torch.cat(answers)


def _check(gallery: ImageGallery | None, reward: Any, tunes: str, views: int) -> None:
    """Refuse a reward model of another kind than the model, and views or a prompt of a query by text."""
    if gallery is None:
        if not isinstance(reward, ImageText):
            raise TypeError(
                f"reward is a pair of encoders, testtime.vision_language.ImageText, got {type(reward).__name__}"
            )
        return
    if not isinstance(reward, ImageGallery):
        raise TypeError(
            "reward is a gallery of the same images, as the model is one, testtime.vision_language.ImageGallery, got "
            f"{type(reward).__name__}"
        )
    if tunes != "encoder" or views != 1:
        raise ValueError(
            f'a query by text adapts the encoder and has no views: tunes="encoder", views=1, got {tunes!r}, {views}'
        )
    gallery.check_alike(reward)
