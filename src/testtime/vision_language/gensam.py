r"""GenSAM: masks of what words name, by points for a promptable segmenter from the local tokens of an image-text pair.

With local tokens :math:`z_p`, embeddings :math:`t` of words for the foreground F and the background B, and N, the scaling
of a map to [0, 1] over the patches of an image,

.. math:: h_p = N\big( \max( a_F - a_B, 0 ) \big), \qquad a_S = \frac1{|S|} \sum_{t \in S} N(z_p^\top t)

A step, for each image, in each of R rounds:
    1. the words are those that a vision-language model answers for the image, a callable;
    2. the patches of the highest h are points on the object, those of the lowest are points beside it;
    3. the segmenter's logits for these points and the image itself are the round's mask :math:`m_r`;
    4. the next round reads the image weighted by it, :math:`x_{r+1} = w \, \sigma(m_r) \odot x + (1 - w) \, x_r`.
    The answer is the mask of the rounds that differs in the fewest pixels from the mask of their mean logits.

All networks are fixed, and nothing is carried from image to image.

Departures:
    The published heat maps are those of CLIP Surgery: here they are the similarities of the pair's local tokens, which may come
    from :func:`testtime.vision_language.value_attention`.
    The published code weighs the image by the heat map, ``reweigh="heat"``, and gives the segmenter the box of the last mask.
    Published points have a heat above or below thresholds; here their number is fixed.

Cost: R forwards of the image encoder and of the segmenter.

Reference: Hu, Lin, Gong and Cheng, Relax Image-Specific Prompt Requirement in SAM: A Single Generic Prompt for Segmenting
Camouflaged Objects, AAAI 2024; github.com/jyLin8100/GenSAM (MIT).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from testtime.adapter import Adapter
from testtime.intake.arguments import Positive
from testtime.vision_language.local_tokens import patches_of
from testtime.vision_language.point_segmenter import Promptable

__all__ = ["GenSAM", "Words", "heat_map", "heat_points", "nearest_to_mean"]

Words = Callable[[Tensor], Sequence[tuple[Sequence[str], Sequence[str]]]]
"""A stand-in for a vision-language model: images (N, 3, H, W) -> words for the foreground and the background of each."""


def unit_range(values: Tensor) -> Tensor:
    """Scale values (N, P) to [0, 1] in each row; zeros where all are equal."""
    low, high = values.amin(1, keepdim=True), values.amax(1, keepdim=True)
    return (values - low) / (high - low).clamp(min=1e-12)


def heat_map(tokens: Tensor, foreground: Tensor, background: Tensor) -> Tensor:
    """Return the heat of patches of one image.

    Args:
        tokens: (P, D).
        foreground: embeddings of the words for the foreground (K, D), at least one.
        background: embeddings of those for the background (M, D); may be empty.

    Returns:
        (P,) in [0, 1].

    >>> heat_map(torch.eye(3), torch.eye(3)[:1], torch.eye(3)[2:])
    tensor([1., 0., 0.])
    """
    heat = unit_range(foreground @ tokens.T).mean(0)
    if len(background):
        heat = (heat - unit_range(background @ tokens.T).mean(0)).clamp(min=0)
    return unit_range(heat[None])[0]


def heat_points(heat: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the centres of the hottest patches of a square grid, as points on the object, and of the coldest, beside it.

    Args:
        heat: (N, P).
        count: number of each, at most half of the patches.

    Returns:
        Points (N, 2 count, 2), x and y in [0, 1], and labels (N, 2 count), 1 and 0.

    Raises:
        ValueError: the patches form no square.

    >>> points, labels = heat_points(torch.tensor([[0.1, 0.9, 0.5, 0.0]]), 1)
    >>> points.tolist(), labels.tolist()
    ([[[0.75, 0.25], [0.75, 0.75]]], [[1, 0]])
    """
    n, p = heat.shape
    side = round(p**0.5)
    if side * side != p:
        raise ValueError(f"expected the patches of a square grid, got {p}; resize images to a square")
    count = max(1, min(count, p // 2))
    order = heat.argsort(dim=1, descending=True, stable=True)
    chosen = torch.cat([order[:, :count], order[:, p - count :]], 1)
    points = torch.stack([chosen % side, chosen // side], -1).to(heat.dtype).add(0.5) / side
    labels = torch.tensor([1] * count + [0] * count, device=heat.device).expand(n, -1)
    return points, labels


def nearest_to_mean(logits: Tensor) -> Tensor:
    """Return, of each image, the round whose mask differs in the fewest pixels from the mask of the mean logits, (N,).

    Args:
        logits: (R, N, H, W).

    >>> nearest_to_mean(torch.tensor([[[[4.0, -1.0]]], [[[1.0, 2.0]]], [[[1.0, -3.0]]]]))
    tensor([0])
    """
    mean = logits.mean(0) > 0
    return ((logits > 0) != mean).flatten(2).sum(2).argmin(0)


def _is_pair(words: Any) -> bool:
    """Whether words are two lists of texts, of which the first has one at least."""
    if not isinstance(words, list | tuple) or len(words) != 2:
        return False
    if not all(isinstance(part, list | tuple) for part in words) or not words[0]:
        return False
    return all(isinstance(word, str) and word.strip() for part in words for word in part)


@final
class GenSAM(Adapter):
    """Masks of what words name, by points for a promptable segmenter from the local tokens of an image-text pair.

    Args:
        model: :class:`testtime.vision_language.ImageText` whose image encoder has local tokens of a square grid; or a module
            with ``patches(x)`` -> (N, P, D) and ``encode_texts(words)`` -> (K, D).
        segmenter: function of images, points and labels, see :class:`testtime.vision_language.Promptable`.
        words: function of images that returns words for foreground and background of each, in place of a vision-language model.
        rounds: R, number of rounds.
        points: number of points on the object, and of those beside it.
        weight: w, weight of the weighted image, in [0, 1].
        reweigh: "mask" or "heat", what the image is weighted by.
        seed: not used: nothing is drawn.

    Returns:
        A call returns ``{"mask": (N, H, W)}``, logits that are positive on the object.

    Raises:
        TypeError: segmenter or words is no function, or the model encodes no texts.
        ValueError: the model has no local tokens, or weight is not in [0, 1].

    >>> class Colours(nn.Module):
    ...     def patches(self, x):
    ...         return torch.nn.functional.avg_pool2d(x, 4).flatten(2).transpose(1, 2)
    ...     def encode_texts(self, words):
    ...         return torch.eye(3)[["red", "green", "blue"].index(words[0])][None]
    ...     def forward(self, x):
    ...         return x.mean((2, 3))
    >>> def alike(images, points, labels):  # pixels of the colour of the first point
    ...     column, row = (points[0, 0] * 16).int().tolist()
    ...     return 0.5 - (images - images[:, :, row, column, None, None]).abs().sum(1)
    >>> x = torch.zeros(1, 3, 16, 16)
    >>> x[:, 0], x[:, :, 4:8, 4:12] = 1, torch.tensor([0.0, 1.0, 0.0]).view(3, 1, 1)
    >>> adapter = GenSAM(Colours(), alike, lambda x: [(["green"], ["red"])] * len(x), points=1)
    >>> int((adapter(x)["mask"] > 0).sum())  # 4 x 8 pixels are green
    32
    """

    name, label = "gensam", "GenSAM"
    needs = ("images",)
    answers_with = "masks that its own heat maps prompt"
    venue = "AAAI 2024"
    paper = "Hu, Lin, Gong and Cheng, Relax Image-Specific Prompt Requirement in SAM"
    code = "github.com/jyLin8100/GenSAM"
    episodic = True
    cost = (3, 0)

    def __init__(
        self,
        model: nn.Module,
        segmenter: Promptable,
        words: Words,
        rounds: Positive = 3,
        points: Annotated[int, 1] = 3,
        weight: float = 0.3,
        reweigh: Literal["mask", "heat"] = "mask",
        seed: int = 0,
    ) -> None:
        for name, part in {"segmenter": segmenter, "words": words}.items():
            if not callable(part):
                raise TypeError(f"{name} is a function, got {type(part).__name__}")
        if not 0 <= weight <= 1:
            raise ValueError(f"weight: expected a share in [0, 1], got {weight}")
        super().__init__(model, seed)
        self._pair = [patches_of(self.model)]  # in a list: part of the model already
        if not callable(getattr(self._pair[0], "encode_texts", None)):
            raise TypeError(
                f"{type(self._pair[0]).__name__} has local tokens and no encode_texts(words) -> (K, D); expected an ImageText"
            )
        self.segmenter, self.words = segmenter, words
        self.rounds, self.points, self.weight, self.reweigh = rounds, points, weight, reweigh
        self.cost = (rounds, 0)

    def _embedded(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        found, pair = self.words(x), self._pair[0]
        if not isinstance(found, list | tuple) or len(found) != len(x) or not all(map(_is_pair, found)):
            raise ValueError(
                f"words(images) returns a pair for each of the {len(x)} images: words for the foreground, at least one, and "
                f"words for the background, which may be []; got {found!r}"
            )
        known = {
            key: pair.encode_texts(list(key)) for key in {tuple(w) for both in found for w in both} if key
        }
        return [(known[tuple(f)], known[tuple(b)] if b else known[tuple(f)][:0]) for f, b in found]

    @torch.no_grad()
    def step(self, x: Tensor) -> dict[str, Tensor]:
        pair = self._pair[0]
        texts, current, rounds = self._embedded(x), x, []
        for _ in range(self.rounds):
            tokens = pair.patches(current)
            heat = torch.stack([heat_map(z, *both) for z, both in zip(tokens, texts, strict=True)])
            logits = self.segmenter(x, *heat_points(heat, self.points))
            if not isinstance(logits, Tensor) or not logits.is_floating_point():
                got = logits.dtype if isinstance(logits, Tensor) else type(logits).__name__
                raise TypeError(
                    f"the segmenter returned {got}, expected a floating-point tensor of logits (N, H, W)"
                )
            if logits.shape != (len(x), *x.shape[2:]):
                raise ValueError(
                    f"the segmenter returned {tuple(logits.shape)}, expected {(len(x), *x.shape[2:])}: one mask of each image"
                )
            rounds.append(logits)
            by = logits.sigmoid().to(x.dtype)
            if self.reweigh == "heat":
                side = round(heat.shape[1] ** 0.5)
                by = F.interpolate(heat.view(-1, 1, side, side), x.shape[2:], mode="bilinear")[:, 0]
            current = self.weight * by[:, None] * x + (1 - self.weight) * current
        together = torch.stack(rounds)
        chosen = nearest_to_mean(together)
        return {"mask": together[chosen, torch.arange(len(x), device=x.device)]}

    def _predict_batch(self, x: Tensor) -> dict[str, Tensor]:
        return self.step(x)
