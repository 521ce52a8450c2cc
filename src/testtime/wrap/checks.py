"""What a guard finds when it checks a batch: who is preferred on which sample, and whether the adapter is healthy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from testtime.prediction import Prediction, energy
from testtime.wrap.competence import ERRORS_PER_CHANGE, Competence, Recent, Reference, logits_of
from testtime.wrap.evidence import COMPETENT, FAIR, SHARE, Evidence, count_diversity
from testtime.wrap.guard_options import Serving

__all__ = ["Checks", "Verdict", "combined"]

CONSISTENT, CHANGED = (
    0.95,
    0.4,
)  # the same before a calibration: its prediction stays, or changes, when disturbed
FALLEN = 0.15  # estimated accuracy that the adapter has lost against BN, from which it is restored
CREDIT = 0.1  # estimated accuracy that learning may add to that of BN statistics
COLLAPSED = 0.5  # diversity of the adapter's predictions against those of BN
STRANGE = 0.25  # change of the share of samples that the shipped model is competent about
ENOUGH = 64  # samples for a judgement about the adapter itself
LOST = 100.0  # gain of the bet against the adapter, from which it is unhealthy


@dataclass(frozen=True)
class Verdict:
    """What a check of a batch finds.

    Attributes:
        answer: prediction of the candidate where it is preferred, elsewhere of the shipped model.
        shipped: classes (N,) that the shipped model predicts.
        right: probability (N,) that it is right.
        alone: the same from the outputs of each sample alone.
        preferred: samples (N,) on which the candidate is preferred to the shipped model.
        candidate: name of the candidate.
        estimate: its estimated accuracy on the samples that the shipped model is not competent about.
        overruled: share of the adapter's predictions that are not served.
        strange: whether the share of samples that the shipped model is competent about is not that of recent batches.
        unhealthy: fault of the adapter, empty for none.
    """

    answer: Prediction
    shipped: Tensor
    right: Tensor
    alone: Tensor
    preferred: Tensor
    candidate: Serving
    estimate: float
    overruled: float
    strange: bool
    unhealthy: str

    def diagnostics(self) -> dict[str, float]:
        """Return label-free diagnostics of the batch by name."""
        agrees = self.answer.argmax(dim=1) == self.shipped
        served = torch.where(self.preferred, torch.full_like(self.right, self.estimate), self.right)
        return {
            "estimated_accuracy": 100 * float(served.mean()),
            "estimated_accuracy_source": 100 * float(self.right.mean()),
            "agreement": float(agrees.float().mean()),
            "unknown_share": float((self.right < FAIR).float().mean()),
        }


@dataclass(frozen=True)
class Checks:
    """Compare an adapter and BN statistics with the shipped model, sample by sample.

    Args:
        reference: shipped model and BN statistics.
        disturb: change of samples that keeps their class.
        competence: probability that the shipped model is right.
        evidence: counts of recent samples, which a check adds to.
        margin: estimated accuracy that a candidate must have beyond the shipped model's.
    """

    reference: Reference
    disturb: Callable[[Any], Any]
    competence: Competence
    evidence: Evidence
    margin: float

    def judge(self, x: Any, y: Prediction, disturbed: Tensor | None, copies: bool) -> Verdict:
        """Compare the candidates with the shipped model.

        Args:
            x: batch (N, ...).
            y: the adapter's prediction of it.
            disturbed: its logits (N, C) of the disturbed batch; None to go by the last estimates.
            copies: whether the batch repeats samples, so that only the shipped model is served.
        """
        logits, features = self.reference(x)
        shipped = logits.argmax(dim=1)
        alone = self._alone(x, logits, features)
        right = self.among(alone)
        competent = right >= COMPETENT
        usual = self.evidence.share_competent()
        strange = len(x) >= SHARE and abs(float(competent.float().mean()) - usual) > STRANGE
        unhealthy, bn = "", None
        if disturbed is not None:
            bn, unhealthy = self._estimate(x, y, disturbed.argmax(dim=1), shipped, competent)
        own = y.logits.argmax(dim=1)
        candidate, estimate = self.candidate()
        model = self.reference.bn
        if model is not None and bn is None and (candidate == "bn" or bool((own != shipped).any())):
            bn = model(x)
        if bn is not None and not copies:
            differs, confirmed = own != shipped, own == bn.argmax(dim=1)
            changed = None if disturbed is None else disturbed.argmax(dim=1) != own
            self.evidence.take_corrections(right, differs & confirmed, changed)
            fair = right >= FAIR
            corrected, agreed = differs & confirmed & fair, ~differs & fair
            if changed is not None and self.competence.known and bool(corrected.any() & agreed.any()):
                others = self.reference(self.disturb(x)[agreed])[0].argmax(dim=1) != shipped[agreed]
                self.evidence.take_steady(changed[agreed], others)
            claimed = (float(self.evidence.estimates[0]) > right + self.margin) | self._corrects(right)
            self.evidence.take_votes(differs & claimed, confirmed)
        preferred = self.preferred(right, own, shipped, bn) & (not copies)
        if self.competence.known:
            self.count(alone, right, shipped, bn)
        answer = combined(y, logits, bn if bn is not None and candidate == "bn" else y.logits, preferred)
        overruled = float((answer.argmax(dim=1) != own).float().mean())
        return Verdict(
            answer, shipped, right, alone, preferred, candidate, estimate, overruled, strange, unhealthy
        )

    def candidate(self) -> tuple[Serving, float]:
        """Return whose predictions are preferred where the shipped model is not competent, and their estimated accuracy."""
        own, bn = self.evidence.estimates.tolist()
        return ("bn", bn) if bn > own + self.margin else ("adapter", own)

    def preferred(self, right: Tensor, own: Tensor, shipped: Tensor, bn: Tensor | None) -> Tensor:
        """Return the samples (N,) on which the candidate is preferred to the shipped model.

        Args:
            right: probability (N,) that the shipped model is right.
            own, shipped: classes (N,) that the adapter and the shipped model predict.
            bn: logits (N, C) with BN statistics; None for no opinion.
        """
        candidate, estimate = self.candidate()
        better = estimate > right + self.margin
        if bn is None:
            return better
        third, differs = bn.argmax(dim=1), own != shipped
        if candidate == "adapter":
            outvoted = differs & (third == shipped)
            if self.competence.known and self.evidence.confirmed():
                outvoted &= right >= FAIR  # elsewhere both are probably wrong
            better &= ~outvoted
        better |= differs & (third == own) & self._corrects(right)
        other = differs if candidate == "adapter" else third != shipped
        return better & ~(other & self._discredited(right, shipped, bn))

    def among(self, own: Tensor) -> Tensor:
        """Return the probability (N,) that the shipped model is right, given how typical the batch and recent samples are.

        Args:
            own: probability (N,), from the outputs of each sample alone.
        """
        count, typical = self.evidence.with_batch(logits_of(own)).tolist()[:2]
        return self.competence.probability_among(own, typical / count)

    def count(
        self, own: Tensor, right: Tensor, shipped: Tensor | None = None, bn: Tensor | None = None
    ) -> None:
        """Count a batch among the recent samples.

        Args:
            own: probability (N,) that the shipped model is right, from the outputs of each sample alone.
            right: that of :meth:`among`.
            shipped: classes (N,) that it predicts, which are not needed without ``bn``.
            bn: logits (N, C) with BN statistics, if known.
        """
        disputed = () if bn is None else (bn.argmax(dim=1) != shipped,)
        self.evidence.recent = self.evidence.with_batch(logits_of(own), right, *disputed)
        if bn is not None:
            self.evidence.plain = self.evidence.with_plain(bn)

    def _discredited(self, right: Tensor, shipped: Tensor, bn: Tensor) -> Tensor:
        """The samples (N,) on which the shipped model is probably right where BN predicts another class."""
        disputed = bn.argmax(dim=1) != shipped
        count, _, total, differing = self.evidence.with_batch(right, right, disputed)
        plain = self.evidence.with_plain(bn)
        recent = Recent(total / count, differing / count, plain[1] / plain[0], plain[2:] / plain[0])
        credit = self.competence.credit(right, shipped, bn, recent)
        return torch.zeros_like(disputed) if credit is None else credit < FAIR

    def _corrects(self, right: Tensor) -> Tensor:
        """The samples (N,) on which the adapter's corrections of the shipped model are credible if BN confirms them."""
        if not self.competence.known or float(self.evidence.estimates[0]) <= 0:
            return torch.zeros_like(right, dtype=torch.bool)
        ratio = self.competence.ratio.clamp(min=ERRORS_PER_CHANGE)
        fresh, pooled = (1 - ratio * self.evidence.unsure).tolist()
        if fresh > 0.5 + self.margin and self.evidence.steadier():
            return right >= FAIR
        return self.evidence.corrects(right) & (pooled >= 0.5)

    def probability(self, x: Any, logits: Tensor, features: Tensor) -> Tensor:
        """Return the probability (N,) that the shipped model is right, from its outputs and those of recent samples."""
        return self.among(self._alone(x, logits, features))

    def _alone(self, x: Any, logits: Tensor, features: Tensor) -> Tensor:
        """The probability (N,) that the shipped model is right, from its outputs alone."""
        if self.competence.known:
            return self.competence.probability(logits, features)
        predicted = logits.argmax(dim=1)
        same = predicted == self.reference(self.disturb(x))[0].argmax(dim=1)
        return torch.where(same, CONSISTENT, CHANGED)

    def _estimate(
        self, x: Any, y: Prediction, disturbed: Tensor, shipped: Tensor, competent: Tensor
    ) -> tuple[Tensor | None, str]:
        """Estimate the accuracy of adapter and BN; return the logits of BN, and what is wrong with the adapter."""
        adapter = y.logits.argmax(dim=1), disturbed
        model, bn, bn_classes = self.reference.bn, None, adapter
        if model is not None:
            bn = model(x)
            bn_classes = bn.argmax(dim=1), model(self.disturb(x)).argmax(dim=1)
        changes = self.evidence.take(competent, shipped, adapter, bn_classes)
        self.evidence.take_classes(adapter[0][~competent], bn_classes[0][~competent], y.shape[1])
        agreement = self.evidence.agreement()
        estimates = torch.minimum(1 - self.competence.ratio * changes, agreement).clamp(min=0)
        unhealthy = self._unhealthy(estimates, agreement)
        if unhealthy:
            estimates[0] = 0
        if model is not None:
            estimates[0] = estimates[0].clamp(max=float(estimates[1]) + CREDIT)
        else:
            estimates[1] = 0
        self.evidence.estimates = estimates
        return bn, unhealthy

    def _unhealthy(self, estimates: Tensor, agreement: Tensor) -> str:
        """What is wrong with the adapter, in words; empty for nothing known.

        Args:
            estimates: estimated accuracy of adapter and BN, (2,).
            agreement: share of competent samples on which they agree with the shipped model, (2,).
        """
        evidence, has_bn = self.evidence, self.reference.bn is not None
        if (odds := evidence.doubt()) > LOST:
            return f"BN statistics contradict what it predicts otherwise than the shipped model (odds {odds:.0f})"
        if has_bn and evidence.other[0] >= ENOUGH:
            own, bn = (count_diversity(counts) for counts in (evidence.adapter_classes, evidence.bn_classes))
            if own < COLLAPSED * bn:
                return f"its predictions collapse to few classes (diversity {own:.2f}, that of BN {bn:.2f})"
            if estimates[0] < estimates[1] - FALLEN:
                return f"its estimated accuracy is {estimates[0]:.0%}, that of BN {estimates[1]:.0%}"
        if evidence.competent[0] >= ENOUGH:
            floor = float(agreement[1]) - FALLEN if has_bn else COLLAPSED
            if agreement[0] < floor:
                return (
                    f"it agrees with the shipped model on {agreement[0]:.0%} of the samples that that knows"
                )
        return ""


def combined(y: Prediction, shipped: Tensor, chosen: Tensor, preferred: Tensor) -> Prediction:
    """Return the chosen logits where they are preferred, else the shipped model's; the adapter's where it predicts the same.

    Args:
        y: the adapter's prediction (N, C).
        shipped, chosen: logits (N, C) of the shipped model and of the candidate.
        preferred: samples (N,) on which the candidate is preferred.
    """
    z = torch.where(preferred[:, None], chosen, shipped)
    own = (z.argmax(dim=1) == y.logits.argmax(dim=1)) & y.valid
    z = torch.where(own[:, None], y.logits, z)
    score = torch.where(own, y.score, energy(z).to(y.score))
    return Prediction(z, score=score, selected=y.selected, updated=y.updated)
