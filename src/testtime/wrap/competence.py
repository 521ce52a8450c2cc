"""What a guard knows of the shipped model: where it is right, calibrated on unlabelled source images and drifts of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import torch
from torch import Tensor, nn

from testtime.intake.sharing import AtLeastFloat32, Stateful, twin
from testtime.metrics.competence import competence_table, errors_per_change, logistic_weights
from testtime.norm import has_batch_norm
from testtime.norm.batch import BatchStatistics
from testtime.norm.layer import swap_policy
from testtime.norm.source import SourceStatistics
from testtime.parts.features import linear_head
from testtime.parts.taps import tap, watched
from testtime.wrap.disturbance import drifts
from testtime.wrap.evidence import confident

__all__ = ["Calibration", "Competence", "Recent", "Reference", "logits_of"]

ERRORS_PER_CHANGE, WINDOWS = 2.5, 10  # where fewer windows than that have errors in the calibration
NEVER = 2.0  # above any probability
TINY, FAR = 1e-9, 30.0  # added before a logarithm; the largest quantity
IMAGES, BATCH = 320, 64  # images of a calibration, and in a batch of it
LEAST = 0.05  # share of errors of a window from which it says how many a changed prediction stands for
DISPUTES = 32  # disputed samples from which it is known who is right about them
WEIGHTS = 8  # of the credit
RARE = 0.02  # added to the share of a class before its logarithm is taken
CERTAIN = (0.01, 0.995)  # of a probability whose logit is taken


class Reference(nn.Module):
    """The shipped model and the same model normalised by the batch, which learn nothing, as two trees over shared weights.

    Args:
        model: network inside an adapter in its initial state.
        adapted: parameters of it that move, which are copied.
    """

    def __init__(self, model: nn.Module, adapted: list[nn.Parameter]) -> None:
        super().__init__()
        shipped = swap_policy(twin(model, own=adapted), SourceStatistics, again=True)
        self.bn = swap_policy(twin(shipped), BatchStatistics, again=True) if has_batch_norm(shipped) else None
        try:
            self.taps = [tap(shipped, linear_head(shipped)[0], given=True)]
        except ValueError:
            self.taps = []  # no linear layer: the logits are the features
        self.shipped = shipped

    @torch.no_grad()
    def forward(self, x: Any) -> tuple[Tensor, Tensor]:
        """Return the logits (N, C) of the shipped model, and the features (N, F) from which it read them."""
        logits, seen = watched(self.shipped, self.taps, x)
        features = seen[0] if seen and seen[0].dim() == 2 and len(seen[0]) == len(x) else logits
        return logits, features.float()


@dataclass(frozen=True)
class Calibration:
    """What :meth:`Competence.calibrate` works with: the models, a disturbance that keeps the class, a random seed."""

    reference: Reference
    disturb: Callable[[Any], Any]
    within: tuple[float, float] | None
    seed: int


@dataclass(frozen=True)
class Recent:
    """What is known of recent samples.

    Attributes:
        right: mean probability that the shipped model is right about them.
        disputed: share of them that BN statistics and the shipped model predict differently.
        confidence: mean of the largest probability that BN statistics predict.
        classes: (C,) share of them that BN statistics predict to be of each class.
    """

    right: Tensor
    disputed: Tensor
    confidence: Tensor
    classes: Tensor


class Competence(AtLeastFloat32, Stateful):
    """The probability that the shipped model is right about a sample, by how typical its features are of the predicted class.

    ``prepare`` of a guard fits it; a reset keeps it.

    Attributes:
        centres: mean features of the classes, (C, F), infinite for a class without samples; empty before a calibration.
        scale: mean squared distance of a source sample to the mean of its class.
        weights: weights of the quantities of a sample in its score, (4,).
        ends, shares: table of :func:`testtime.metrics.competence_table`.
        ratio: errors of a model that learns for one prediction that a disturbance changes.
        usual: mean of :meth:`probability` over the source samples; above 1, which no samples reach, where it is not known.
        among: weights (3,) of :meth:`probability_among`; empty before a calibration.
        disputes: weights (8,) of :meth:`credit`; empty where it is not known, as without BN statistics.
    """

    learned = True
    writes = False
    centres: Tensor
    scale: Tensor
    weights: Tensor
    ends: Tensor
    shares: Tensor
    ratio: Tensor
    usual: Tensor
    among: Tensor
    disputes: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("centres", "weights", "ends", "shares", "among", "disputes"):
            self.register_buffer(name, torch.empty(0))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("ratio", torch.tensor(ERRORS_PER_CHANGE))
        self.register_buffer("usual", torch.tensor(NEVER))

    @property
    def known(self) -> bool:
        """Whether it has been calibrated."""
        return bool(self.shares.numel())

    def quantities(self, logits: Tensor, features: Tensor) -> Tensor:
        """Return what the score of a sample is made of, (N, 4).

        They are the logarithm of the distance of the features to the mean of the predicted class, the margin of the logits, and
        the logarithm of the relative squared norm of the features, and its square.

        Args:
            logits, features: outputs (N, C) and (N, F) of the shipped model.
        """
        predicted = logits.argmax(dim=1)
        centres = self.centres[predicted]
        distance = (features.float() - centres).square().sum(dim=1) / self.scale
        margin = logits.float().topk(2, dim=1).values.diff(dim=1)[:, 0].neg()
        norm = (features.float().square().sum(dim=1) + TINY).log() - (
            centres.square().sum(dim=1) + TINY
        ).log()
        found = torch.stack([(distance + TINY).log(), margin, norm, norm.square()], dim=1)
        return found.nan_to_num(nan=FAR, posinf=FAR, neginf=-FAR).clamp(-FAR, FAR)

    def probability(self, logits: Tensor, features: Tensor) -> Tensor:
        """Return the probability (N,) that the predictions are right; arguments as of :meth:`quantities`."""
        found = self._share(self.quantities(logits, features))
        unseen = self.centres[logits.argmax(dim=1)].isinf().any(dim=1)  # a class without source samples
        return torch.where(unseen, self.shares[-1], found)

    def probability_among(self, right: Tensor, recent: float) -> Tensor:
        r"""Return the probability (N,) that predictions are right, given how typical recent samples were.

        .. math:: l(q) = w_0 + w_1\, l(p) + w_2\, \bar l, \qquad l(p) = \log \frac{p}{1 - p}

        A probability p is a mean over all drifts of the calibration: too small among images as those of the source, and too
        large under a strong drift. The mean of l(p) tells them apart.

        Args:
            right: p (N,), from :meth:`probability`.
            recent: mean of l(p) over recent samples.

        Returns:
            q, or p where the weights are not known.
        """
        if not self.among.numel():
            return right
        constant, own, others = self.among.to(right).unbind()
        return (constant + own * logits_of(right) + others * recent).sigmoid()

    def credit(self, right: Tensor, shipped: Tensor, plain: Tensor, recent: Recent) -> Tensor | None:
        r"""Return the probability (N,) that BN statistics are right rather than the shipped model, where both differ.

        It is a logistic function of the logits of p, of its mean over recent samples, of the share of those that both predict
        differently, of the confidence c of BN statistics and of its mean, and of the logarithms of the shares of recent
        samples for which BN statistics predict the class of the shipped model, and their own. BN statistics of batches of few
        classes spread their predictions over others: they are less confident, and predict each class about as often.

        Args:
            right: p (N,), from :meth:`probability_among`.
            shipped: classes (N,) that the shipped model predicts.
            plain: logits (N, C) with BN statistics.
            recent: recent samples, these included.

        Returns:
            that probability, or None where it is not known.
        """
        if not self.disputes.numel():
            return None
        confidence, predicted = confident(plain)
        known = _disputed(right, shipped, predicted, confidence, recent)
        return (self.disputes[0] + known @ self.disputes[1:]).to(right).sigmoid()

    def _share(self, quantities: Tensor) -> Tensor:
        """The share of right predictions among samples with such quantities (N, 4)."""
        return self.shares[torch.searchsorted(self.ends, -(quantities @ self.weights))]

    def present(self, saved: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A saved state in the present form; earlier ones hold no usual probability and no credit, or that of four weights."""
        first = {"usual": torch.tensor(NEVER), "among": torch.empty(0), "disputes": torch.empty(0)}
        return {**first, **{k: v for k, v in saved.items() if k != "disputes" or len(v) == WEIGHTS}}

    @torch.no_grad()
    def calibrate(self, x: Any, by: Calibration) -> None:
        """Fit to unlabelled source images: the shipped model's predictions of the images stand for labels under every drift.

        Args:
            x: source samples (N, ...), of which the first 320 are used; every second drift sees them sorted by class.
            by: models and disturbance.
        """
        x = x[:IMAGES]
        logits, features = _forward(by.reference, x)
        truth = logits.argmax(dim=1)
        counts = torch.bincount(truth, minlength=logits.shape[1]).to(features)
        sums = features.new_zeros(logits.shape[1], features.shape[1]).index_add_(0, truth, features)
        self.centres = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], torch.inf)
        # A sample took part in the mean of its class: its distance to the mean of the others is larger by n / (n - 1).
        n = counts[truth]
        spread = (features - self.centres[truth]).square().sum(dim=1) * (n / (n - 1).clamp(min=1)).square()
        self.scale = spread[n > 1].mean() if bool((n > 1).any()) else spread.new_ones(())
        self.scale = self.scale.clamp(min=1e-12)
        # The distances of these samples to their own mean are too small; they take the place of unseen ones.
        own = self.quantities(logits, features)
        own[:, 0] = (spread / self.scale + TINY).log().clamp(-FAR, FAR)
        known, right = [own], [torch.ones_like(truth, dtype=torch.bool)]
        windows: list[_Window] = []
        orders = cycle(
            ((torch.arange(len(x), device=x.device), BATCH), (truth.argsort(stable=True), BATCH // 2))
        )
        for drifted, (order, size) in zip(drifts(x, by.within, by.seed), orders, strict=False):
            logits, features = _forward(by.reference, drifted)
            found, shipped = self.quantities(logits, features), logits.argmax(dim=1)
            known.append(found)
            right.append(shipped == truth)
            windows += _windows(by, size, drifted[order], truth[order], shipped[order], found[order])
        quantities, good = torch.cat(known).cpu().numpy(), torch.cat(right).cpu().numpy()
        weights = logistic_weights(quantities, good)[1:]
        ends, shares = competence_table(-(quantities @ weights), good)
        for name, values in (("weights", weights), ("ends", ends), ("shares", shares)):
            setattr(self, name, torch.as_tensor(values, dtype=torch.float32, device=x.device))
        self.usual = self._share(own).mean()
        self.among = self._fit_among(torch.cat(known).split(len(x)), torch.cat(right))
        rates = [rate for window in windows if (rate := window.rates())[0] > LEAST]
        if len(rates) >= WINDOWS:
            errors, changed = zip(*rates, strict=True)
            self.ratio = self.ratio.new_tensor(errors_per_change(errors, changed, share=0.5))
        self.disputes = self._fit_disputes(windows) if by.reference.bn is not None else torch.empty(0)

    def _fit_among(self, drifted: Sequence[Tensor], right: Tensor) -> Tensor:
        """Fit :meth:`probability_among` to the quantities (N, 4) of each drift, and whether the predictions are right."""
        own = [logits_of(self._share(quantities)) for quantities in drifted]
        others = torch.cat([values.mean().expand(len(values)) for values in own])
        known = torch.stack([torch.cat(own), others], dim=1)
        weights = logistic_weights(known.cpu().numpy(), right.cpu().numpy())
        return torch.as_tensor(weights, dtype=torch.float32, device=right.device)

    def _fit_disputes(self, windows: list[_Window]) -> Tensor:
        """Fit :meth:`credit` to the samples of windows on which one of both is right; empty for too few."""
        rows, good = [], []
        for window in windows:
            right = self._share(window.quantities)
            right = self.probability_among(right, float(logits_of(right).mean()))
            known = _disputed(right, window.shipped, window.plain, window.confidence, window.recent(right))
            decided = (window.plain == window.truth) != (window.shipped == window.truth)
            rows.append(known[decided])
            good.append((window.plain == window.truth)[decided])
        if sum(map(len, good)) < DISPUTES:
            return torch.empty(0)
        weights = logistic_weights(torch.cat(rows).cpu().numpy(), torch.cat(good).cpu().numpy(), ridge=1.0)
        return torch.as_tensor(weights, dtype=torch.float32, device=self.shares.device)


def _disputed(right: Tensor, shipped: Tensor, plain: Tensor, confidence: Tensor, recent: Recent) -> Tensor:
    """What the credit of BN statistics is made of, (N, 7); see :meth:`Competence.credit`."""
    means = torch.stack([recent.right, recent.disputed, recent.confidence]).to(right).expand(len(right), 3)
    shares = torch.stack([recent.classes[shipped], recent.classes[plain]], dim=1).to(right)
    chances = torch.cat([right[:, None], means, confidence[:, None].to(right)], dim=1)
    return torch.cat([logits_of(chances), (shares + RARE).log()], dim=1)


def logits_of(p: Tensor) -> Tensor:
    """Return the logits of probabilities, which are taken as 0.01 at least and 0.995 at most."""
    return p.clamp(*CERTAIN).logit()


def _forward(reference: Reference, x: Any) -> tuple[Tensor, Tensor]:
    logits, features = zip(*(reference(part) for part in x.split(BATCH)), strict=True)
    return torch.cat(logits), torch.cat(features)


@dataclass(frozen=True)
class _Window:
    """Samples of a drift.

    Attributes:
        truth: classes (N,) that the shipped model predicts without the drift.
        shipped: classes (N,) that it predicts under the drift.
        plain, disturbed: classes (N,) that the model predicts which normalises by the batch, the shipped one where there is
            none, under the drift and under a disturbance as well.
        confidence: (N,) its largest probabilities under the drift.
        quantities: (N, 4), as of :meth:`Competence.quantities`.
        classes: number of classes.
    """

    truth: Tensor
    shipped: Tensor
    plain: Tensor
    disturbed: Tensor
    confidence: Tensor
    quantities: Tensor
    classes: int

    def recent(self, right: Tensor) -> Recent:
        """These samples as recent ones, about which the shipped model is right with some probabilities (N,)."""
        disputed = (self.plain != self.shipped).float().mean()
        classes = torch.bincount(self.plain, minlength=self.classes).to(right) / len(right)
        return Recent(right.mean(), disputed, self.confidence.mean(), classes)

    def rates(self) -> tuple[float, float]:
        """Errors and changed predictions of the model that normalises by the batch."""
        errors, changes = self.plain != self.truth, self.plain != self.disturbed
        return float(errors.float().mean()), float(changes.float().mean())


def _windows(by: Calibration, size: int, x: Any, *known: Tensor) -> Iterator[_Window]:
    model = by.reference.bn or by.reference.shipped
    for part, truth, shipped, quantities in zip(x.split(size), *(k.split(size) for k in known), strict=True):
        if len(part) >= BATCH // 2:
            logits = model(part)
            confidence, plain = confident(logits)
            other = model(by.disturb(part)).argmax(dim=1)
            yield _Window(truth, shipped, plain, other, confidence, quantities, logits.shape[1])
