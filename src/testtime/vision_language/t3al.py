r"""T3AL: find when an action takes place in a video, by words, with the encoders adapted to that video alone.

With unit embeddings :math:`f_i` of the frames and :math:`t_k` of the classes, and linear maps P and Q behind the encoders, the
identity at first,

.. math:: y = \arg\max_k \cos\!\big(\bar f, t_k\big), \qquad s_i = \cos(P f_i, Q t_y)

A step, for one video:
    1. its pseudo-label y is the class of the mean frame;
    2. the frames of the highest similarity s are positives, those of the lowest are negatives;
    3. "bce": positives are called 1 and negatives 0, by :math:`\sigma(\kappa (s_i - \bar s))`; "byol": P of a positive nears
       Q of the text and the mean of the positives, whose gradients are stopped, and the other way round; "both": their sum;
    4. repeat 2 and 3; then s, smoothed by a moving mean, above its mean over the video gives the segments;
    5. with a captioner, embed the captions of the frames of each segment, :math:`d_m` their mean of norm 1, and reject the
       segments whose captions agree too little with those of the M - 1 others,

       .. math:: a_m = \frac{1}{M - 1} \sum_{n \ne m} d_m^\top d_n < \beta

A batch is one video, its frames in order. The maps return to the identity with every call.

Departures:
    The published method adapts the projections and the text encoder of CoCa; here they are linear maps behind any pair.
    Written from a description, which says that captions reject segments: the measure of agreement and its threshold
    :math:`\beta`, which depends on the text encoder, are ours. Captions are those of a captioner of yours, embedded by the text
    encoder as it is. A single segment is kept: there is no other to agree with.
    The centred similarity of "bce", its factor and the number of steps are ours.

Cost: one forward of the image encoder; the maps' steps are small. With a captioner, a caption of each frame in a segment.

Reference: Liberatori, Conti, Rota, Wang and Ricci, Test-Time Zero-Shot Temporal Action Localization, CVPR 2024.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from testtime.adapter import Adapter
from testtime.intake.arguments import Natural, Positive
from testtime.metrics.temporal import Segment, runs
from testtime.parts import adam
from testtime.parts.optimizers import OptimizerFactory
from testtime.vision_language.local_tokens import checked_embeddings

__all__ = [
    "T3AL",
    "Captioner",
    "Maps",
    "agreements",
    "extremes",
    "moving_mean",
    "segments_of",
    "uniform_segments",
]

Captioner = Callable[[Tensor], Sequence[str]]
"""A captioning model: frames (T, 3, H, W) -> a text for each."""


def moving_mean(values: Tensor, width: int) -> Tensor:
    """Return the mean of the frames within ``width // 2`` of each, fewer at both ends.

    Args:
        values: (T,).
        width: number of frames, odd.

    >>> moving_mean(torch.tensor([0.0, 3.0, 6.0, 0.0]), 3)
    tensor([1.5000, 3.0000, 3.0000, 3.0000])
    """
    half = width // 2
    if width < 1 or not width % 2:
        raise ValueError(f"expected an odd number of frames, got {width}")
    kernel = values.new_ones(1, 1, width)
    total = F.conv1d(values[None, None], kernel, padding=half)
    count = F.conv1d(torch.ones_like(values)[None, None], kernel, padding=half)
    return (total / count)[0, 0]


def extremes(similarity: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the indices of the frames of the highest and of the lowest similarity.

    Args:
        similarity: (T,).
        count: number of each, at most half of the frames.

    >>> [v.tolist() for v in extremes(torch.tensor([0.1, 0.9, 0.5, 0.3]), 1)]
    [[1], [0]]
    """
    count = max(1, min(count, len(similarity) // 2))
    order = similarity.argsort(dim=0, descending=True, stable=True)
    return order[:count], order[len(order) - count :]


def segments_of(
    similarity: Tensor,
    label: int | str,
    video: int | str = 0,
    least: int = 1,
    width: int = 1,
    inside: Tensor | None = None,
) -> list[Segment]:
    """Return the segments in which the smoothed similarity is above its mean, with their mean similarity as the score.

    Frames without a finite similarity, which were not predicted, are outside of every segment and count in no mean.

    Args:
        similarity: (T,).
        label: class of the segments.
        video: number or name of the video.
        least: least number of frames of a segment.
        width: number of frames of the moving mean, odd.
        inside: 1 for the frames of a segment and 0 for others (T,), as :class:`T3AL` returns it, without the segments that it
            has rejected; frames of a similarity above the mean, if None.

    >>> [(s.start, s.end) for s in segments_of(torch.tensor([0.1, 0.9, 0.8, 0.1, 0.1, 0.9]), "dance")]
    [(1, 3), (5, 6)]
    """
    if not isinstance(similarity, Tensor) or similarity.dim() != 1:
        got = tuple(similarity.shape) if isinstance(similarity, Tensor) else type(similarity).__name__
        raise ValueError(f"expected the similarity of each frame as a tensor (T,), got {got}")
    valid = similarity.isfinite()
    if not bool(valid.any()):
        return []
    seen = moving_mean(valid.to(similarity.dtype), width)
    s = moving_mean(similarity.where(valid, torch.zeros_like(similarity)), width) / seen
    inside = (s > s[valid].mean() if inside is None else inside > 0.5) & valid
    found = [(a, b) for a, b in runs(inside.cpu().numpy()) if b - a >= least]
    return [Segment(video, label, a, b, float(s[a:b].mean())) for a, b in found]


def agreements(captions: Tensor) -> Tensor:
    """Return the mean cosine (M,) of the captions of each segment with those of the others.

    Args:
        captions: embeddings of the captions of M segments (M, D), of norm 1; two at least.

    >>> agreements(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    tensor([0.5000, 0.5000, 0.0000])
    """
    near = captions @ captions.T
    return (near.sum(1) - near.diagonal()) / (len(captions) - 1)


@final
class Maps(nn.Module):
    """Linear maps behind the two encoders, the identity at first.

    Args:
        network: the image encoder.
        texts: embeddings of the classes (K, D).
    """

    def __init__(self, network: nn.Module, texts: Tensor) -> None:
        super().__init__()
        self.network = network
        eye = torch.eye(texts.shape[1], dtype=texts.dtype, device=texts.device)
        self.frames, self.texts = nn.Parameter(eye.clone()), nn.Parameter(eye.clone())
        self.register_buffer("classes", F.normalize(texts.detach(), dim=-1), persistent=False)

    classes: Tensor

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return the mapped unit embeddings of frames, ``{"frames": (T, D)}``."""
        return {"frames": F.normalize(self.network(x) @ self.frames.T, dim=-1)}


def bce_loss(similarity: Tensor, positive: Tensor, negative: Tensor, sharpness: float) -> Tensor:
    r"""Return the cross-entropy of :math:`\sigma(\kappa (s - \bar s))` with 1 for positive and 0 for negative frames."""
    z = sharpness * (similarity - similarity.mean().detach())
    return F.softplus(-z[positive]).mean() + F.softplus(z[negative]).mean()


def byol_loss(frames: Tensor, text: Tensor, positive: Tensor) -> Tensor:
    """Return two minus the cosines of positive frames with targets without gradient, and of the text with their mean.

    Args:
        frames: unit embeddings (T, D).
        text: unit embedding (D,).
        positive: indices of frames.
    """
    chosen = frames[positive]
    mean = F.normalize(chosen.mean(0), dim=-1).detach()
    towards = F.normalize(text.detach() + mean, dim=-1)
    return 2 - (chosen @ towards).mean() - text @ mean


@final
class T3AL(Adapter):
    """Find when an action takes place in a video, by words, with linear maps adapted to that video alone.

    Args:
        model: image encoder (T, 3, H, W) -> (T, D), such as :class:`testtime.vision_language.ImageText`.
        texts: embeddings of the classes (K, D).
        optimizer: moves the two maps.
        steps: number of steps on a video; 0 is the pair as it is.
        loss: "bce", "byol" or "both".
        share: number of positive frames as a share of the video, in (0, 0.5]; negatives are as many.
        sharpness: kappa, factor of the similarity in "bce".
        width: number of frames of the moving mean, odd.
        captioner: function of frames that returns a text for each, by which segments are rejected; None rejects none.
        agreement: beta, least mean cosine of the captions of a segment with those of the others.
        seed: not used: nothing is drawn.

    Returns:
        A call returns ``{"similarity": (T,), "class": (T,), "inside": (T,)}``: the smoothed similarity of the frames to the
        pseudo-label, the pseudo-label of the video, and 1 where the similarity is above its mean and the segment was not
        rejected, otherwise 0. :func:`segments_of` makes segments of the similarity, and of ``inside``.

    Raises:
        ValueError: the texts are not (K, D), share is not in (0, 0.5], width is even, or agreement is no cosine.
        TypeError: there is a captioner, and it is no function or the model encodes no texts.

    >>> video = torch.tensor([[1.0, 0.2], [0.9, 0.1], [0.3, 0.5], [0.2, 0.6]])
    >>> adapter = T3AL(nn.Identity(), texts=torch.eye(2), width=1)
    >>> y = adapter(video)
    >>> y["class"].tolist(), y["inside"].tolist()
    ([0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0])
    """

    name, label = "t3al", "T3AL"
    needs = ()
    answers_with = "segments of a whole video"
    venue = "CVPR 2024"
    paper = "Liberatori, Conti, Rota, Wang and Ricci, Test-Time Zero-Shot Temporal Action Localization"
    output = "after"
    cost = (1, 0)

    def __init__(
        self,
        model: nn.Module,
        texts: Tensor,
        optimizer: OptimizerFactory = adam(1e-3),  # noqa: B008 - a frozen value
        steps: Natural = 10,
        loss: Literal["bce", "byol", "both"] = "both",
        share: float = 0.2,
        sharpness: float = 10.0,
        width: Positive = 5,
        captioner: Captioner | None = None,
        agreement: float = 0.5,
        seed: int = 0,
    ) -> None:
        checked_embeddings("the classes", texts)
        if not 0 < share <= 0.5:
            raise ValueError(f"share: expected a share of the frames in (0, 0.5], got {share}")
        if not width % 2:
            raise ValueError(f"width: expected an odd number of frames, got {width}")
        if not -1 <= agreement <= 1:
            raise ValueError(f"agreement: expected a cosine in [-1, 1], got {agreement}")
        if captioner is not None:
            _check_captioner(captioner, model)
        super().__init__(Maps(model, texts), seed)
        self.captioner, self.agreement = captioner, agreement
        self.texts, self.optimizer, self.steps, self.loss = texts, optimizer, steps, loss
        self.share, self.sharpness, self.width = share, sharpness, width
        self._maps = [next(m for m in self.model.modules() if isinstance(m, Maps))]
        self.adapt([self._maps[0].frames, self._maps[0].texts], optimizer)

    def _frames(self, x: Tensor) -> Tensor:
        maps = self._maps[0]
        with torch.no_grad():
            found = maps.network(x)
        if not isinstance(found, Tensor) or found.dim() != 2 or found.shape[1] != maps.classes.shape[1]:
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(
                f"the image encoder returned {got}, expected ({len(x)}, {maps.classes.shape[1]}), as wide as the texts"
            )
        return F.normalize(found.to(maps.classes.dtype), dim=-1)

    def _mapped(self, frames: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        maps = self._maps[0]
        text = F.normalize(maps.classes[label] @ maps.texts.T, dim=-1)
        return F.normalize(frames @ maps.frames.T, dim=-1), text

    @torch.no_grad()
    def _answer(self, x: Tensor, frames: Tensor, label: Tensor) -> dict[str, Tensor]:
        mapped, text = self._mapped(frames, label)
        similarity = moving_mean(mapped @ text, self.width)
        inside = (similarity > similarity.mean()).to(similarity.dtype)
        found = runs((inside > 0.5).cpu().numpy())
        if self.captioner is not None and len(found) > 1:
            captions = torch.stack([self._captions(x[a:b]) for a, b in found])
            for (a, b), agreed in zip(found, agreements(captions).tolist(), strict=True):
                inside[a:b] *= agreed >= self.agreement
        labels = label.to(similarity.dtype).expand(len(frames))
        return {"similarity": similarity, "class": labels, "inside": inside}

    def _captions(self, x: Tensor) -> Tensor:
        """The mean embedding (D,) of the captions of frames, of norm 1.

        Raises:
            ValueError: the captioner did not return a text for each frame.
        """
        network: Any = self._maps[0].network
        texts: Any = self.captioner(x)  # type: ignore[misc]
        listed = isinstance(texts, list | tuple) and all(isinstance(text, str) for text in texts)
        if not listed or len(texts) != len(x):
            raise ValueError(
                f"captioner(frames) returns a list with a text for each of the {len(x)} frames, got {texts!r}"
            )
        return F.normalize(F.normalize(network.encode_texts(list(texts)), dim=-1).mean(0), dim=-1)

    def _label(self, frames: Tensor) -> Tensor:
        return (self._maps[0].classes @ frames.mean(0)).argmax()

    def _predict_batch(self, x: Tensor) -> dict[str, Tensor]:
        frames = self._frames(x)
        return self._answer(x, frames, self._label(frames))

    def step(self, x: Tensor) -> dict[str, Tensor]:
        initial = self._initial_state()
        self._restore({name: initial[name] for name in self.moving() if name != "clock"})
        frames = self._frames(x)
        label = self._label(frames)
        for _ in range(self.steps if len(frames) > 1 else 0):
            mapped, text = self._mapped(frames, label)
            similarity = mapped @ text
            positive, negative = extremes(similarity.detach(), round(self.share * len(frames)))
            loss = similarity.new_zeros(())
            if self.loss != "byol":
                loss = loss + bce_loss(similarity, positive, negative, self.sharpness)
            if self.loss != "bce":
                loss = loss + byol_loss(mapped, text, positive)
            self.update(loss)
        return self._answer(x, frames, label)


def _check_captioner(captioner: Any, model: nn.Module) -> None:
    """Refuse with a TypeError what is no function, and a model that encodes no texts."""
    if not callable(captioner):
        raise TypeError(
            f"captioner is a function of frames that returns a text for each, got {type(captioner).__name__}"
        )
    if not callable(getattr(model, "encode_texts", None)):
        raise TypeError(
            f"captions are embedded by the model, and {type(model).__name__} has no encode_texts(texts) -> (T, D); expected an "
            "ImageText"
        )


def uniform_segments(
    frames: int, count: int, label: int | str, video: int | str = 0, share: float = 0.5
) -> Sequence[Segment]:
    """Return segments of one length at equal distances that cover a share of a video: a control.

    >>> [(s.start, s.end) for s in uniform_segments(12, 2, "dance")]
    [(1.5, 4.5), (7.5, 10.5)]
    """
    length, period = share * frames / count, frames / count
    starts = [k * period + (period - length) / 2 for k in range(count)]
    return [Segment(video, label, a, a + length, 0.5) for a in starts]
