r"""TDA: two caches of features that the stream fills, one of what images are and one of what they are not; nothing is trained.

With the embedding f of an image and its zero-shot logits z, and for each cached embedding :math:`F_j` with class
:math:`y_j` (positive cache) or a mask :math:`m_j \in \{0, 1\}^C` of classes (negative cache),

.. math::
    z'_c = z_c + \alpha_+ \sum_{j \in P,\, y_j = c} e^{-\beta_+ (1 - f^\top F_j)}
        - \alpha_- \sum_{j \in N} m_{jc} \, e^{-\beta_- (1 - f^\top F_j)}

A step, for one image after the other:
    1. put it into the positive cache of its predicted class, which keeps the images of lowest entropy;
    2. where its entropy, as a share of log C, lies between 0.2 and 0.5, put it into the negative cache of that class, with the
       mask of the classes that have a probability above 0.03: those of which it is not known which one it is;
    3. answer with both caches.

It is a cheap control of prompt tuning: one forward and no gradient. Other than a prompt, its caches are the memory of a stream.

Departures:
    Written from the description of the paper; the published code was not read. The mask holds the classes whose
    logits the cache lowers. The paper's image is the mean of confident views on ImageNet's variants; here it is the image.

Cost: one forward, no backward.

Reference: Karmanov et al., Efficient Test-Time Adaptation of Vision-Language Models, CVPR 2024.
"""

from __future__ import annotations

import math
from typing import NamedTuple, final

import torch
from torch import Tensor, nn

from testtime.adapter import Adapter
from testtime.intake.arguments import Positive
from testtime.intake.sharing import Stateful
from testtime.parts import entropy
from testtime.vision_language.zero_shot import ZeroShot, zero_shot_of

__all__ = ["TDA", "Cache", "CacheOptions", "Corrected"]


class CacheOptions(NamedTuple):
    """Numbers of one cache.

    Args:
        capacity: number of images that are kept for each class.
        weight: alpha, weight of the cache in the logits.
        sharpness: beta, sharpness of its similarities.
    """

    capacity: int
    weight: float
    sharpness: float


@final
class Cache(Stateful):
    """For each class the embeddings of the images of lowest entropy, each with a row of weights over the classes.

    Args:
        classes: C.
        options: numbers of the cache.
        features: D, size of an embedding.
        masked: whether the rows are masks that are given; one-hot rows of the class otherwise.
    """

    features: Tensor
    entropies: Tensor
    filled: Tensor

    def __init__(self, classes: int, options: CacheOptions, features: int, masked: bool = False) -> None:
        super().__init__()
        self.options, self.masked = options, masked
        size = (classes, options.capacity)
        self.register_buffer("features", torch.zeros(*size, features))
        self.register_buffer("entropies", torch.zeros(size))
        self.register_buffer("filled", torch.zeros(size, dtype=torch.bool))
        self.register_buffer("rows", torch.zeros(*size, classes if masked else 0, dtype=torch.bool))

    def keep(self, feature: Tensor, label: int, value: float, row: Tensor | None = None) -> None:
        """Keep an embedding (D,) of a class, unless the class has as many of lower entropy already.

        Args:
            feature: embedding.
            label: class.
            value: entropy.
            row: (C,) mask of the classes.
        """
        entropies = torch.where(self.filled[label], self.entropies[label].float(), math.inf)
        slot = int(entropies.argmax())
        if float(entropies[slot]) <= value:
            return
        for name, new in (("features", feature), ("entropies", value), ("filled", True), ("rows", row)):
            if new is not None:
                buffer = self.get_buffer(name).clone()
                buffer[label, slot] = new.to(buffer.dtype) if isinstance(new, Tensor) else new
                setattr(self, name, buffer)

    def scores(self, feature: Tensor) -> Tensor:
        """Return the sums (N, C) of the similarities with embeddings (N, D), weighted by alpha."""
        near = (-self.options.sharpness * (1 - feature @ self.features.flatten(0, 1).T)).exp()
        near = near * self.filled.flatten()
        if self.masked:
            summed = near @ self.get_buffer("rows").flatten(0, 1).to(near.dtype)
        else:
            summed = near.unflatten(1, self.filled.shape).sum(2)
        return self.options.weight * summed


@final
class Corrected(nn.Module):
    """A zero-shot classifier with two caches: what TDA predicts while they stay the same.

    Args:
        model: the zero-shot classifier.
        positive: cache whose scores are added to the logits.
        excluded: cache whose scores are subtracted.
    """

    def __init__(self, model: ZeroShot, positive: Cache, excluded: Cache) -> None:
        super().__init__()
        self.model, self.positive, self.excluded = model, positive, excluded

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, K) of images (N, 3, H, W)."""
        features = self.model.pair(x)
        return self.model.head(features) + self.scores(features)

    def scores(self, features: Tensor) -> Tensor:
        """Return what the caches add to the logits (N, K) of embeddings (N, D)."""
        return self.positive.scores(features) - self.excluded.scores(features)


@final
class TDA(Adapter):
    """Add to the logits what cached embeddings of the stream vote for, and subtract what they exclude.

    Args:
        model: a :class:`testtime.vision_language.ZeroShot`.
        capacity: number of images of a class in the positive cache.
        weight: alpha, weight of the positive cache.
        sharpness: beta of the positive cache.
        negative: capacity, alpha and beta of the negative cache.
        uncertain: least and greatest entropy, as a share of log C, of an image in the negative cache.
        likely: least probability of a class in its mask.

    Raises:
        ValueError: the model is no zero-shot classifier, a capacity is below 1, or bounds of ``uncertain`` are not in order.

    >>> from testtime.laws.worlds import WORLDS
    >>> adapter = TDA(WORLDS["image-text"].network())
    >>> _ = adapter(torch.rand(9, 3, 8, 8))
    >>> int(adapter.positive.filled.sum()) > 0
    True
    """

    name, label = "tda", "TDA"
    needs = ("classifier", "image-text", "images")
    venue = "CVPR 2024"
    paper = "Karmanov et al., Efficient Test-Time Adaptation of Vision-Language Models"
    code = "github.com/kdiAAA/TDA"
    cost = (1, 0)

    def __init__(
        self,
        model: nn.Module,
        capacity: Positive = 3,
        weight: float = 2.0,
        sharpness: float = 5.0,
        negative: tuple[int, float, float] = (2, 0.117, 1.0),
        uncertain: tuple[float, float] = (0.2, 0.5),
        likely: float = 0.03,
    ) -> None:
        head = zero_shot_of(model).head
        if negative[0] < 1:
            raise ValueError(
                f"negative: expected a capacity from 1 (without this cache: alpha 0), got {negative[0]}"
            )
        if not uncertain[0] < uncertain[1]:
            raise ValueError(f"uncertain: expected the lower bound first, as (0.2, 0.5), got {uncertain}")
        super().__init__(model)
        self.capacity, self.weight, self.sharpness = capacity, weight, sharpness
        self.negative, self.uncertain, self.likely = negative, uncertain, likely
        size = (head.out_features, head.in_features)
        self.positive = Cache(size[0], CacheOptions(capacity, weight, sharpness), size[1]).to(head.weight)
        self.excluded = Cache(size[0], CacheOptions(*negative), size[1], masked=True).to(head.weight)

    def _answering(self) -> Corrected:
        return Corrected(zero_shot_of(self.model), self.positive, self.excluded)

    def _predict_batch(self, x: Tensor) -> Tensor:
        return self._answering()(x)

    def step(self, x: Tensor) -> Tensor:
        cached, answers = self._answering(), []
        model = cached.model
        with torch.no_grad():
            features = model.pair(x)
            logits = model.head(features)
            doubt = entropy(logits).double() / math.log(logits.shape[1])
            mask = logits.float().softmax(1) > self.likely
            for i, (feature, label, value) in enumerate(
                zip(features, logits.argmax(1).tolist(), doubt.tolist(), strict=True)
            ):
                self.positive.keep(feature, label, value)
                if self.uncertain[0] < value < self.uncertain[1]:
                    self.excluded.keep(feature, label, value, mask[i])
                answers.append(logits[i] + cached.scores(feature[None])[0])
        return torch.stack(answers)
