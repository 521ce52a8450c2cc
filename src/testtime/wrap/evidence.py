"""What a guard has counted: pools of recent samples, in which old ones weigh less, and usual values of a batch."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from testtime.intake.named import Inputs
from testtime.intake.sharing import AtLeastFloat32, InitialState, Stateful
from testtime.metrics.label_free import diversity

__all__ = [
    "Evidence",
    "Healthy",
    "Usual",
    "batch_values",
    "confident",
    "count_diversity",
    "input_moments",
    "predicted_diversity",
    "spread_rows",
]

PART = 64  # samples of a batch that a check confirms the trust with
SHARE = 16  # samples of a batch from which its own share counts beside that of the pool
LONGER = 4  # the pool of overruled predictions is this many windows long
SURPRISE = 4.0  # standard deviations from the usual value
SIZES = {
    "other": 3,
    "competent": 3,
    "overruled": 2,
    "estimates": 2,
    "excess": 2,
    "corrections": 2,
    "steady": 2,
    "votes": 2,
    "recent": 4,
}
USUAL = 0.9  # weight of the past in the usual values
FAIR = 0.5  # probability from which the shipped model is probably right about a sample
COMPETENT = 0.9  # probability from which it counts as competent
EXCESS = math.log(20)  # gain from which it is corrected too often
STAKE = 0.5  # share of the capital of a bet
FEW = 8  # contested samples, too few for a judgement
EVERY = 7  # every so many values of a sample are enough for its mean and deviation
WARM = 5  # batches before values are usual


class Healthy(InitialState):
    """The last state of the adapter that a check approved of; a reset forgets it."""

    learned = False


class Usual(AtLeastFloat32, Stateful):
    """Mean and variance of a few values of a batch that cost nothing, and whether those of a batch are unusual.

    Attributes:
        mean, var: moving mean and variance of the values, (K,); empty before the first batch.
        count: number of batches.
    """

    writes = False
    mean: Tensor
    var: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.empty(0))
        self.register_buffer("var", torch.empty(0))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def surprise(self, values: Tensor) -> float:
        """Return the largest distance of values (K,) from the mean, in deviations; infinite before five batches of K."""
        if int(self.count) < WARM or values.shape != self.mean.shape:
            return math.inf
        return float(((values - self.mean).abs() / (self.var.sqrt() + 1e-3)).max())

    def take(self, values: Tensor) -> None:
        """Count a batch."""
        values = values.to(self.mean.device)
        if values.shape != self.mean.shape:  # the first batch, or one with other entries
            self.mean, self.var = values.clone(), torch.zeros_like(values)
            self.count = torch.zeros_like(self.count)
        off = values - self.mean
        weight = max(1 - USUAL, 1 / (int(self.count) + 1))
        self.mean = self.mean + weight * off
        self.var = (1 - weight) * (self.var + weight * off.square())
        self.count = self.count + 1


class Evidence(AtLeastFloat32, Stateful):
    """Counts of recent samples, in which a sample weighs half as much after ``window`` others.

    Samples on which the shipped model is competent are separated from the others: on the first kind candidates are compared
    with the shipped model, on the second by the consistency of their predictions.

    Args:
        window: samples after which the weight of a sample is halved.

    Attributes:
        other: (3,) samples of the second kind; those of them whose prediction by the adapter, and by BN, changes under a
            disturbance.
        competent: (3,) samples of the first kind; those of them on which the adapter, and BN, predict as the shipped model.
        overruled: (2,) samples that the shipped model is probably right about; samples, of any kind, on which the guard prefers
            another prediction to the adapter's.
        adapter_classes, bn_classes: samples of the second kind by predicted class, (C,); empty before the first batch.
        estimates: (2,) estimated accuracy of adapter and BN on samples of the second kind.
        bet: logarithm of the gain of a bet that BN contradicts the adapter where that contradicts the shipped model.
        excess: (2,) logarithm of the gain of a bet that adapter and BN correct the shipped model more often than that is wrong,
            on samples where that is probably right, and on those that it is competent about.
        corrections: (2,) samples on which adapter and BN together contradict the shipped model where that is probably right;
            those of them whose prediction by the adapter changes under a disturbance.
        unsure: (2,) share of these as of the last check, with one more, or 1 if that did not tell; and in the pool.
        steady: (2,) samples that adapter and shipped model predict the same, where that is probably right: those whose
            prediction by the adapter, and by the shipped model, changes under a disturbance.
        votes: (2,) samples on which the adapter would be preferred to the shipped model, and predicts another class; those of
            them on which BN predicts the same class as the adapter.
        recent: (4,) samples, sums of the logits of the probabilities p that the shipped model is right about them and of q,
            these probabilities given how typical recent samples are, and samples that BN predicts differently; a sample weighs
            half as much after 64 others.
        plain: (2 + C,) samples that BN statistics predicted, the sum of their largest probabilities, and the samples by
            predicted class; weights as in ``recent``, empty before the first batch.
    """

    writes = False
    other: Tensor
    competent: Tensor
    overruled: Tensor
    adapter_classes: Tensor
    bn_classes: Tensor
    estimates: Tensor
    bet: Tensor
    excess: Tensor
    corrections: Tensor
    unsure: Tensor
    steady: Tensor
    votes: Tensor
    recent: Tensor
    plain: Tensor

    def __init__(self, window: int) -> None:
        super().__init__()
        self.window = window
        for name, size in SIZES.items():
            self.register_buffer(name, torch.zeros(size))
        self.register_buffer("bet", torch.zeros(()))
        self.register_buffer("unsure", torch.tensor([1.0, 0.0]))
        self.register_buffer("adapter_classes", torch.empty(0))
        self.register_buffer("bn_classes", torch.empty(0))
        self.register_buffer("plain", torch.empty(0))

    def take(
        self, competent: Tensor, shipped: Tensor, adapter: tuple[Tensor, Tensor], bn: tuple[Tensor, Tensor]
    ) -> Tensor:
        """Count a batch.

        Args:
            competent: samples on which the shipped model is competent, (N,) bool.
            shipped: its predicted classes, (N,).
            adapter, bn: predicted classes of the batch and of the disturbed batch by a candidate, (N,) each.

        Returns:
            (2,) share of the predictions of adapter and BN that change: the larger of that in the pool and in the batch.
        """
        n, strange = len(competent), ~competent
        fade = 0.5 ** (n / self.window)
        changed = torch.stack([strange, strange & (adapter[0] != adapter[1]), strange & (bn[0] != bn[1])])
        agrees = torch.stack([competent, competent & (adapter[0] == shipped), competent & (bn[0] == shipped)])
        now = changed.sum(dim=1).to(self.other)
        self.other = fade * self.other + now
        self.competent = fade * self.competent + agrees.sum(dim=1).to(self.competent)
        pooled = (self.other[1:] + 1) / (self.other[0] + 1)
        if now[0] < SHARE:
            return pooled
        return torch.maximum(pooled, now[1:] / now[0])

    def take_classes(self, adapter: Tensor, bn: Tensor, classes: int) -> None:
        """Count the predicted classes (M,) of adapter and BN on samples of the second kind."""
        if not self.adapter_classes.numel():
            self.adapter_classes = self.other.new_zeros(classes)
            self.bn_classes = self.other.new_zeros(classes)
        fade = 0.5 ** (len(adapter) / self.window)
        for name, predicted in (("adapter_classes", adapter), ("bn_classes", bn)):
            counts = torch.bincount(predicted, minlength=classes).to(self.other)
            setattr(self, name, fade * getattr(self, name) + counts)

    def take_overruled(self, count: int, of: int) -> float:
        """Count predictions of the adapter that the guard overrules.

        Args:
            count: number of overruled predictions in a check.
            of: number of its samples that the shipped model is probably right about.

        Returns:
            overruled predictions for one such sample in the pool, with one more of both.
        """
        fade = 0.5 ** (of / (LONGER * self.window))
        self.overruled = fade * self.overruled + self.overruled.new_tensor([of, count])
        return float((self.overruled[1] + 1) / (self.overruled[0] + 1))

    def take_votes(self, contested: Tensor, confirmed: Tensor) -> None:
        r"""Count on which contested samples BN confirms the adapter.

        A bet of half the capital at even odds is placed on each sample that BN predicts another class than the adapter. A
        capital below its start is replaced, so that the evidence of many checks adds up, and a good past does not count.

        Args:
            contested: samples (N,) on which the adapter would be preferred to the shipped model, and predicts another class.
            confirmed: samples (N,) on which BN predicts the same class as the adapter.
        """
        won, lost = int((contested & ~confirmed).sum()), int((contested & confirmed).sum())
        self.bet = (self.bet + won * math.log(1 + STAKE) + lost * math.log(1 - STAKE)).clamp(min=0)
        fade = 0.5 ** ((won + lost) / PART)
        self.votes = fade * self.votes + self.votes.new_tensor([won + lost, lost])

    def confirmed(self) -> bool:
        """Whether BN confirms the adapter on half of the contested samples of the last checks, eight others included."""
        return bool(self.votes[1] >= 0.5 * (self.votes[0] + FEW))

    def doubt(self) -> float:
        """Return the gain of the bet against the adapter: 1 without evidence against it."""
        return math.exp(min(float(self.bet), 50.0))

    def take_corrections(self, right: Tensor, corrected: Tensor, changed: Tensor | None) -> None:
        r"""Count how often adapter and BN together correct the shipped model, against how often that is expected to be wrong.

        With the probability p that the shipped model is right, the capital is multiplied by 1 + p where it is corrected, else
        by p: where it is corrected no more often than it is wrong, no capital is expected to grow. A capital below its
        start is replaced.

        Args:
            right: probability (N,) that the shipped model is right.
            corrected: samples (N,) on which both predict the same other class.
            changed: samples (N,) whose prediction by the adapter changes under a disturbance; None if not known.
        """
        gain = torch.where(corrected, (1 + right).log(), right.clamp(min=0.01).log())
        level = torch.stack([(right >= FAIR) & (right < COMPETENT), right >= COMPETENT])
        self.excess = (self.excess + (gain * level).sum(dim=1)).clamp(0, 2 * EXCESS)
        unsure = torch.ones_like(self.bet)
        if changed is not None:
            corrected = corrected & (right >= FAIR)
            now = torch.stack([corrected.sum(), (corrected & changed).sum()]).to(self.corrections)
            self.corrections = 0.5 ** (float(now[0]) / PART) * self.corrections + now
            unsure = (self.corrections[1] + 1) / (self.corrections[0] + 1)
            if now[0] >= SHARE:
                unsure = torch.maximum(unsure, now[1] / now[0])
        pooled = self.corrections[1] / self.corrections[0].clamp(min=SHARE / 2)
        self.unsure = torch.stack([unsure, pooled])

    def corrects(self, right: Tensor) -> Tensor:
        """Return the samples (N,) on which the shipped model is corrected no more often than it is expected to be wrong.

        Where it is corrected too often on samples that it is competent about, the others do not count either.

        Args:
            right: probability (N,) that the shipped model is right.
        """
        low, high = (self.excess < EXCESS).unbind()
        return high & (low | (right >= COMPETENT)) & (right >= FAIR)

    def with_batch(self, *counted: Tensor) -> Tensor:
        """Return ``recent`` with a batch, (4,).

        Args:
            counted: values (N,) to add to the first, the second and the third of its sums; those that are left out are 0.
        """
        now = self.recent.new_zeros(4)
        now[0] = len(counted[0])
        for i, values in enumerate(counted, start=1):
            now[i] = values.sum()
        return 0.5 ** (len(counted[0]) / PART) * self.recent + now

    def with_plain(self, logits: Tensor) -> Tensor:
        """Return ``plain`` with logits (N, C) of a batch with BN statistics, (2 + C,)."""
        confidence, predicted = confident(logits)
        counts = torch.bincount(predicted, minlength=logits.shape[1])
        now = torch.cat([torch.stack([counts.sum(), confidence.sum()]), counts]).to(self.recent)
        return 0.5 ** (len(logits) / PART) * self.plain + now if self.plain.numel() else now

    def take_steady(self, adapter: Tensor, shipped: Tensor) -> None:
        """Count whose predictions change under a disturbance, where both were the same before and probably right.

        Args:
            adapter, shipped: samples (M,) whose prediction by the adapter, and by the shipped model, changes.
        """
        fade = 0.5 ** (len(adapter) / self.window)
        self.steady = fade * self.steady + torch.stack([adapter.sum(), shipped.sum()]).to(self.steady)

    def steadier(self) -> bool:
        """Whether fewer predictions of the adapter than of the shipped model change where both agree; False without any."""
        return bool(self.steady[0] < self.steady[1])

    def suspicious(self) -> bool:
        """Whether there is any evidence against the adapter, too little for a judgement."""
        return bool(self.bet > 0) or bool((self.excess > EXCESS / 2).any())

    def excessive(self) -> bool:
        """Whether adapter and BN contradict the shipped model more often than that is expected to be wrong."""
        return bool((self.excess >= EXCESS).any())

    def share_competent(self) -> float:
        """Return the share of the samples that the shipped model is competent about; 1 without any."""
        samples = self.competent[0] + self.other[0]
        return float(self.competent[0] / samples) if samples > 0 else 1.0

    def agreement(self) -> Tensor:
        """Return the share of competent samples on which adapter and BN agree with the shipped model, (2,); 1 without any."""
        if self.competent[0] < SHARE:
            return torch.ones_like(self.estimates)
        return self.competent[1:] / self.competent[0]

    def clear(self) -> None:
        """Forget the samples: the adapter is no longer the one they were counted for."""
        for name in self.moving().keys() - {"recent", "plain"}:  # those say nothing of it
            setattr(self, name, torch.zeros_like(getattr(self, name)))
        self.unsure = self.unsure.new_tensor([1.0, 0.0])

    def present(self, saved: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A saved state in the present form; until November 2026 there were no bets, and no counts of corrections."""
        first = Evidence(self.window).moving()
        later = ("bet", "excess", "corrections", "unsure", "steady", "votes", "recent", "plain")
        return {**{k: first[k] for k in later}, **saved}


def spread_rows(x: Inputs) -> Tensor:
    """Return the indices of at most 64 samples, spread over the batch."""
    return torch.arange(len(x), device=x.device)[:: max(1, len(x) // PART)][:PART]


def input_moments(x: Inputs) -> list[Tensor]:
    """Return mean and deviation of a seventh of each input: 2 scalars for one tensor, 2 K for K tensors that are no masks."""
    found = []
    named = {"": x} if isinstance(x, Tensor) else x.entries
    for _, value in sorted((n, v) for n, v in named.items() if not n.endswith("mask")):
        part = value.reshape(len(value), -1)[:, ::EVERY].float()
        found += [part.mean(), part.std(correction=0)]
    return found


def batch_values(moments: list[Tensor], logits: Tensor) -> Tensor:
    """Return confidence and diversity of the predictions, and the moments of the inputs, (2 + 2 K,).

    Args:
        moments: 2 K scalars of :func:`input_moments`.
        logits: logits (N, C).
    """
    p = logits.float().softmax(dim=1)
    mean = p.mean(dim=0)
    spread = -(mean * mean.clamp(min=1e-12).log()).sum() / math.log(len(mean))
    return torch.stack([p.amax(dim=1).mean(), spread, *moments]).nan_to_num().cpu()


def confident(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest probability of each row of logits (N, C), 0 where one is not finite, and its class, (N,) each."""
    confidence, predicted = logits.float().softmax(dim=1).max(dim=1)
    return confidence.nan_to_num(nan=0.0), predicted


def predicted_diversity(logits: Tensor) -> float:
    """Return the diversity of the predicted classes of logits (N, C)."""
    return count_diversity(torch.bincount(logits.argmax(dim=1), minlength=logits.shape[1]))


def count_diversity(counts: Tensor) -> float:
    """Return the diversity of counts (C,); 0 without any."""
    return diversity(counts.cpu().numpy()) if bool(counts.any()) else 0.0
