"""A wrapper that serves an adapter's predictions only where they are likely to be better than those of the shipped model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar, Literal, final

import torch
from torch import Tensor, nn

from testtime.adapter import Adapter
from testtime.intake.dense import refuse_dense
from testtime.intake.outputs import declares_tasks
from testtime.metrics.label_free import diversity
from testtime.parts.losses import entropy
from testtime.parts.randomness import generator
from testtime.prediction import Prediction, energy
from testtime.selection import disturbance
from testtime.wrap.competence import IMAGES, Calibration, Competence, Reference
from testtime.wrap.evidence import SURPRISE, Evidence, Healthy, Usual
from testtime.wrap.wrapper import Wrapper

__all__ = ["GuardEvent", "GuardOptions", "Guarded"]

Kind = Literal["skip", "restore", "partial_reset", "fallback", "recover", "alarm"]
Serving = Literal["adapter", "bn", "source"]
SERVING: tuple[Serving, ...] = ("adapter", "bn", "source")
DIAGNOSTICS = (
    *("estimated_accuracy", "estimated_accuracy_source", "agreement", "entropy", "diversity"),
    *("unknown_share", "statistics_drift", "update_norm"),
)
COMPETENT = 0.9  # probability from which the shipped model counts as competent about a sample
CONSISTENT, CHANGED = (
    0.95,
    0.4,
)  # the same before a calibration: its prediction stays under a disturbance, or changes
HOPELESS = 0.25  # share of a batch's predictions that are overruled, from which nothing is learned from it
COPIES = 0.25  # share of a batch that repeats the sample before, from which nothing is learned from it
FALLEN = 0.15  # estimated accuracy that the adapter has lost against BN, from which it is restored
CREDIT = 0.1  # estimated accuracy that learning may add to that of BN statistics
COLLAPSED = 0.5  # diversity of the adapter's predictions against those of BN
UNKNOWN = 0.5  # probability below which the shipped model does not know a sample
SLOTS = 4  # events of a step, at most
ENOUGH = 64  # samples for a judgement about the adapter itself


@final
@dataclass(frozen=True)
class GuardEvent:
    """What a guard did in a step.

    Attributes:
        kind: "skip" (nothing was learned from the batch), "restore" (of the last healthy state), "partial_reset" (of the upper
            half of the layers), "fallback" (to the shipped model), "recover" (from it) or "alarm".
        reason: sentence for people.
        step: number of the step, from 0.
    """

    kind: Kind
    reason: str
    step: int


@final
@dataclass(frozen=True)
class GuardOptions:
    """Settings of Guarded.

    Args:
        window: samples after which the weight of a sample as evidence is halved.
        check: share of the batches that are checked where the adapter is trusted; all are where it is not.
        exposure: share of the predictions on which the guard may prefer another one, up to which the adapter is trusted.
        margin: estimated accuracy that a candidate must have beyond the shipped model's to be served.
        patience: checks in a row that find the adapter unhealthy, before it is restored.

    Raises:
        ValueError: one of them is out of range.
    """

    window: int = 256
    check: float = 0.05
    exposure: float = 0.02
    margin: float = 0.05
    patience: int = 4

    def __post_init__(self) -> None:
        if self.window < 1 or self.patience < 1:
            raise ValueError(
                f"window counts samples and patience checks, 1 at least, got {self.window} and {self.patience}"
            )
        if not 0 < self.check <= 1 or not 0 < self.exposure < 1 or not 0 <= self.margin < 1:
            raise ValueError(
                "check is in (0, 1], exposure in (0, 1) and margin in [0, 1), got "
                f"{self.check}, {self.exposure} and {self.margin}"
            )


@dataclass(frozen=True)
class _Verdict:
    """What a check of a batch finds.

    Attributes:
        shipped: logits (N, C) of the shipped model.
        right: probability (N,) that it is right.
        chosen: logits (N, C) of the candidate.
        preferred: samples (N,) on which the candidate is preferred to the shipped model.
        candidate: name of the candidate.
        estimate: its estimated accuracy on the samples that the shipped model is not competent about.
        unhealthy: what is wrong with the adapter, empty for nothing.
    """

    shipped: Tensor
    right: Tensor
    chosen: Tensor
    preferred: Tensor
    candidate: Serving
    estimate: float
    unhealthy: str


@final
class Guarded(Wrapper):
    r"""An adapter that is served only where it is likely to be better than the shipped model, and is undone where it broke.

    For each sample, :math:`P(x)` is the probability that the shipped model is right, from the distance of the features to those
    of the predicted class (:mod:`testtime.metrics.competence`). On the samples that the model is not competent about, the
    accuracy of a candidate k, the adapter or BN statistics without learning, is estimated as

    .. math:: \hat a_k = 1 - \kappa \cdot \text{share of its predictions that a disturbance changes}

    A step:
        1. where the adapter is trusted and the batch is like those before, let it predict and learn, and answer that;
        2. else check: predict the batch with the shipped model and with BN statistics too, and a disturbed batch with the
           adapter and with BN statistics;
        3. answer the prediction of the candidate of the higher :math:`\hat a_k` where :math:`\hat a_k > P(x)` + ``margin``,
           elsewhere that of the shipped model; where the adapter predicts the same class, its logits;
        4. take the step back where a quarter of the batch was overruled, or repeats the sample before;
        5. trust the adapter while hardly any of its predictions are overruled, and then check one batch in 2, 4, ...,
           1 / ``check``;
        6. where the adapter has fallen below BN statistics, or collapsed to few classes, in ``patience`` checks in a row:
           restore the last healthy state; the second time reset the upper half of its layers, the third time all of it.

    ``prepare`` calibrates P and :math:`\kappa` on unlabelled source images under generic drifts, where the shipped model's
    predictions of the clean images stand for labels. Without it, the shipped model counts as competent wherever its
    prediction stays the same under the disturbance, so that little is gained where it is consistently wrong.

    Args:
        adapter: adapter of a classifier with logits (N, C), as it was built: it has processed nothing.
        source: the shipped model, as ``Source(model)``. Unless given, the network inside the adapter with the statistics of the
            source, which is the shipped model for methods that change parameters or statistics of the model and add no part.
        options: settings.

    Attributes:
        serving: whose answer most of the last batch got: "adapter", "bn" or "source".
        events: what the guard did in the last call.
        diagnostics: label-free diagnostics of the last call by name, NaN where unknown.

    Raises:
        ValueError: the adapter has processed batches.
        TypeError: the adapter answers several tasks or pixels.

    Cost: the adapter's, and for a checked batch a prediction of the adapter, two forwards of the model with BN statistics and
    one of the shipped model (two without ``prepare``).

    Reference: original to this library; the partial reset follows the selective reset of ASR (arXiv 2603.03796).

    >>> from testtime.methods import Tent
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2)).eval()
    >>> guarded = Guarded(Tent(net))
    >>> guarded.prepare([torch.rand(64, 3, 8, 8)])
    >>> y = guarded(torch.rand(8, 3, 8, 8))
    >>> guarded.serving in ("adapter", "bn", "source"), sorted(guarded.diagnostics)[:2]
    (True, ['agreement', 'diversity'])
    """

    kept_as: ClassVar = {
        "source": "shipped"
    }  # for testtime.save; the attribute "source" is a fact of the method
    waiting: Tensor
    interval: Tensor
    serves: Tensor
    failures: Tensor
    last: Tensor

    def __init__(
        self, adapter: Adapter, source: Adapter | None = None, options: GuardOptions = GuardOptions()
    ) -> None:
        super().__init__(adapter)
        if int(adapter.clock):
            raise ValueError(
                f"Guarded takes an adapter as it was built, and this one has processed {int(adapter.clock)} batches; "
                "call its reset() first"
            )
        inner = [m for m in adapter.modules() if isinstance(m, Adapter)]
        network = (inner[-1] if source is None else source).model
        assert isinstance(network, nn.Module)
        if declares_tasks(network):
            raise TypeError(
                "Guarded compares predicted classes (N, C), and this model declares several tasks"
            )
        refuse_dense("Guarded", network)
        self.options, self.shipped = options, source
        self._moving_parameters = [p for a in inner for p in a._adapted]
        self.reference = Reference(network, self._moving_parameters)
        self.disturb = _disturbance(network)
        self.competence, self.evidence, self.usual = Competence(), Evidence(options.window), Usual()
        self.healthy = Healthy(adapter.state_dict())
        self.healthy.remember(adapter.state_dict())
        for name, value in {"waiting": 0, "interval": 1, "serves": 2, "failures": 0}.items():
            self.register_buffer(name, torch.tensor(value))
        self.register_buffer("last", torch.zeros((), dtype=torch.float64))
        more = min(adapter.cost[0], 3.0) + (2 if self.reference.bn is None else 4)
        self.cost = (adapter.cost[0] + more, adapter.cost[1])
        self._slots: tuple[GuardEvent | None, ...] = (None,) * SLOTS
        self.diagnostics = dict.fromkeys(DIAGNOSTICS, math.nan)

    @property
    def events(self) -> tuple[GuardEvent, ...]:
        """What the guard did in the last call."""
        return tuple(event for event in self._slots if event is not None)

    @property
    def serving(self) -> Serving:
        """Whose answer most of the last batch got."""
        return SERVING[int(self.serves)]

    @property
    def trusted(self) -> bool:
        """Whether the adapter's answers are served without a check of every batch."""
        return int(self.interval) > 1

    def _prepare(self, batches: Iterable[Any]) -> None:
        arriving = iter(batches)
        kept: list[Any] = []
        while sum(len(_images(b)) for b in kept) < IMAGES and (batch := next(arriving, None)) is not None:
            kept.append(batch)
        self.adapter.prepare(chain(kept, arriving))
        x = torch.cat([_images(b) for b in kept])
        within = getattr(batches, "within", None) or tuple(map(float, x.aminmax()))
        self.competence.calibrate(x, Calibration(self.reference, self.disturb, within, self.seed))
        self.healthy.remember(self.adapter.state_dict())

    def _predict_batch(self, x: Tensor) -> Tensor:
        y = self._classified(self.adapter.predict(x))
        if self.trusted:
            return y
        logits, features = self.reference(x)
        right = self._probability(x, logits, features)
        bn = logits if self.reference.bn is None else self.reference.bn(x)
        candidate, estimate = self._candidate(self.evidence.estimates)
        preferred = estimate > right + self.options.margin
        return self._combined(y, logits, bn if candidate == "bn" else y.logits, preferred)

    def step(self, x: Tensor) -> Tensor:
        self._slots = (None,) * SLOTS
        copies = self._copies(x) > COPIES
        parameters = [p.detach().clone() for p in self._moving_parameters]
        checked = int(self.waiting) <= 0 or copies
        before = self.adapter.state_dict() if checked else None
        disturbed = self.adapter.predict(self.disturb(x)) if checked else None
        y = self._classified(self.adapter(x))
        values = _values(x, y.logits)
        surprise = self.usual.surprise(values)
        self.usual.take(values)
        self.diagnostics = dict.fromkeys(DIAGNOSTICS, math.nan) | {
            "entropy": float(entropy(y.logits.float()).nanmean()),
            "diversity": _diversity(y.logits),
            "statistics_drift": surprise if math.isfinite(surprise) else math.nan,
        }
        if not checked and surprise < SURPRISE:
            self.waiting -= 1
            self._serve("adapter", "")
        else:
            disturbed = self.adapter.predict(self.disturb(x)) if disturbed is None else disturbed
            y = self._check(x, y, disturbed, before, copies)
        moved = [
            (p.detach() - b).square().sum() for p, b in zip(self._moving_parameters, parameters, strict=True)
        ]
        self.diagnostics["update_norm"] = float(torch.stack(moved).sum().sqrt()) if moved else 0.0
        return y

    # The check of a batch -------------------------------------------------------------------------------------------------

    def _check(
        self, x: Tensor, y: Prediction, disturbed: Tensor, before: dict[str, Tensor] | None, copies: bool
    ) -> Prediction:
        """Decide who is served, whether the step counts and whether the adapter is trusted; return the answer."""
        verdict = self._judge(x, y, disturbed, copies)
        answer = self._combined(y, verdict.shipped, verdict.chosen, verdict.preferred)
        overruled = answer.argmax(dim=1) != y.logits.argmax(dim=1)
        share = float(overruled.float().mean())
        pooled = self.evidence.take_overruled(int(overruled.sum()), len(x))
        self._report(verdict, answer)
        self._serve(*self._served(verdict, share))
        if before is not None and (copies or share > HOPELESS):
            self.adapter._restore(before)
            answer.updated = False
            why = (
                "the batch repeats the same samples"
                if copies
                else f"{share:.0%} of its predictions were overruled"
            )
            self._event("skip", f"nothing was learned: {why}")
        trusted = not verdict.unhealthy and max(pooled, share / 3) <= self.options.exposure and not copies
        self.interval.fill_(
            min(2 * int(self.interval), max(1, round(1 / self.options.check))) if trusted else 1
        )
        self.waiting.copy_(self.interval - 1)
        if trusted and self.trusted:
            self.healthy.remember(self.adapter.state_dict())
        self._climb(verdict.unhealthy)
        return answer

    def _judge(self, x: Tensor, y: Prediction, disturbed: Tensor, copies: bool) -> _Verdict:
        logits, features = self.reference(x)
        shipped = logits.argmax(dim=1)
        right = self._probability(x, logits, features)
        adapter = y.logits.argmax(dim=1), disturbed.argmax(dim=1)
        model = self.reference.bn
        bn, bn_classes = logits, adapter
        if model is not None:
            bn = model(x)
            bn_classes = bn.argmax(dim=1), model(self.disturb(x)).argmax(dim=1)
        competent = right >= COMPETENT
        changes = self.evidence.take(competent, shipped, adapter, bn_classes)
        self.evidence.take_classes(adapter[0][~competent], bn_classes[0][~competent], logits.shape[1])
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
        candidate, estimate = self._candidate(estimates)
        preferred = (estimate > right + self.options.margin) & (not copies)
        chosen = bn if candidate == "bn" else y.logits
        return _Verdict(logits, right, chosen, preferred, candidate, estimate, unhealthy)

    def _unhealthy(self, estimates: Tensor, agreement: Tensor) -> str:
        """What is wrong with the adapter, in words; empty if nothing is known to be."""
        evidence, has_bn = self.evidence, self.reference.bn is not None
        if has_bn and evidence.other[0] >= ENOUGH:
            own, bn = (_spread(counts) for counts in (evidence.adapter_classes, evidence.bn_classes))
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

    def _candidate(self, estimates: Tensor) -> tuple[Serving, float]:
        """Whose predictions are preferred where the shipped model is not competent, and their estimated accuracy."""
        own, bn = estimates.tolist()
        return ("bn", bn) if bn > own + self.options.margin else ("adapter", own)

    def _probability(self, x: Tensor, logits: Tensor, features: Tensor) -> Tensor:
        """The probability (N,) that the shipped model is right."""
        predicted = logits.argmax(dim=1)
        if self.competence.known:
            return self.competence.probability(features, predicted)
        same = predicted == self.reference(self.disturb(x))[0].argmax(dim=1)
        return torch.where(same, CONSISTENT, CHANGED)

    def _combined(self, y: Prediction, shipped: Tensor, chosen: Tensor, preferred: Tensor) -> Prediction:
        """The chosen logits where they are preferred, else the shipped model's; the adapter's where it predicts the same."""
        z = torch.where(preferred[:, None], chosen, shipped)
        own = (z.argmax(dim=1) == y.logits.argmax(dim=1)) & y.valid
        z = torch.where(own[:, None], y.logits, z)
        score = torch.where(own, y.score, energy(z).to(y.score))
        return Prediction(z, score=score, selected=y.selected, updated=y.updated)

    # What it does about it ------------------------------------------------------------------------------------------------

    def _climb(self, unhealthy: str) -> None:
        """Undo more of what the adapter learned, the longer it is unhealthy."""
        if not unhealthy:
            self.failures.zero_()
            return
        self.failures += 1
        rung, rest = divmod(int(self.failures), self.options.patience)
        if rest or not rung:
            return
        if rung == 1:
            self.adapter._restore(self.healthy.known())
            self._event("restore", unhealthy)
        elif rung == 2:
            self.adapter._restore(_upper_half(self.adapter._initial_state()))
            self._event("partial_reset", unhealthy)
        else:
            self.adapter.reset()
            self.healthy.remember(self.adapter.state_dict())
            self.failures.zero_()
            self._event("alarm", f"the adapter was reset, for {unhealthy}")
        self.evidence.clear()

    def _served(self, verdict: _Verdict, overruled: float) -> tuple[Serving, str]:
        if overruled <= self.options.exposure:
            return "adapter", ""
        if float(verdict.preferred.float().mean()) >= 0.5:
            return verdict.candidate, ""
        return (
            "source",
            verdict.unhealthy or f"the shipped model is preferred on {overruled:.0%} of the batch",
        )

    def _serve(self, serving: Serving, reason: str) -> None:
        before = self.serving
        self.serves.fill_(SERVING.index(serving))
        if serving == "source" and before != "source":
            self._event("fallback", reason)
        elif serving != "source" and before == "source":
            self._event("recover", f"{serving} is preferred again")

    def _event(self, kind: Kind, reason: str) -> None:
        event = GuardEvent(kind, reason, int(self.clock))
        self._slots = (*self.events, event, *(None,) * SLOTS)[:SLOTS]

    def _report(self, verdict: _Verdict, answer: Prediction) -> None:
        right, agrees = verdict.right, answer.argmax(dim=1) == verdict.shipped.argmax(dim=1)
        served = torch.where(verdict.preferred, torch.full_like(right, verdict.estimate), right)
        self.diagnostics |= {
            "estimated_accuracy": 100 * float(served.mean()),
            "estimated_accuracy_source": 100 * float(right.mean()),
            "agreement": float(agrees.float().mean()),
            "unknown_share": float((right < UNKNOWN).float().mean()),
        }

    def _copies(self, x: Tensor) -> float:
        """The share of the batch that repeats the sample before it."""
        sums = x.flatten(1).double().sum(dim=1)
        before = torch.cat([self.last.to(sums)[None], sums[:-1]])
        repeats = (sums == before) & (torch.arange(len(x), device=x.device) + self.clock.to(x.device) > 0)
        self.last = sums[-1].to(self.last)
        return float(repeats.float().mean())

    @staticmethod
    def _classified(y: Any) -> Prediction:
        if not isinstance(y, Prediction) or y.dim() != 2:
            raise TypeError("Guarded compares predicted classes (N, C), and this adapter answers otherwise")
        return y


def _images(batch: Any) -> Tensor:
    return batch if isinstance(batch, Tensor) else batch[0]


def _values(x: Tensor, logits: Tensor) -> Tensor:
    """What is usual or not about a batch: confidence and diversity of the predictions, mean and deviation of the input."""
    p = logits.float().softmax(dim=1)
    mean = p.mean(dim=0)
    spread = -(mean * mean.clamp(min=1e-12).log()).sum() / math.log(len(mean))
    part = x.float()
    return torch.stack([p.amax(dim=1).mean(), spread, part.mean(), part.std(correction=0)]).nan_to_num().cpu()


def _diversity(logits: Tensor) -> float:
    return _spread(torch.bincount(logits.argmax(dim=1), minlength=logits.shape[1]))


def _spread(counts: Tensor) -> float:
    return diversity(counts.cpu().numpy()) if bool(counts.any()) else 0.0


def _upper_half(initial: dict[str, Tensor]) -> dict[str, Tensor]:
    """The entries of the upper half of the adapted parameters, in the order of the layers."""
    names = [name for name in initial if name.startswith("model.")]
    upper = {name.removeprefix("model.") for name in names[len(names) // 2 :]}
    return {k: v for k, v in initial.items() if any(name in k for name in upper)}


def _disturbance(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """The change of images that keeps their class; samples of another form get a little noise."""
    change = disturbance(network)

    def disturb(x: Tensor) -> Tensor:
        if x.dim() == 4 and min(x.shape[2:]) > 1:
            return change(x)
        rng = generator(0, x.numel(), "disturbance")
        return x + 0.05 * x.float().std() * torch.randn(x.shape, generator=rng).to(x)

    return disturb
