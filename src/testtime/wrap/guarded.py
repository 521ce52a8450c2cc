"""A wrapper that serves an adapter's predictions only where they are likely to be better than those of the shipped model."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any, ClassVar, Literal, Self, final

import torch
from torch import Tensor, nn

from testtime.adapter import Adapter
from testtime.errors import AdapterWarning
from testtime.gate import batch_of
from testtime.intake.dense import refuse_dense
from testtime.intake.journal import Before, Journal
from testtime.intake.outputs import declares_tasks
from testtime.intake.sharing import Stateful
from testtime.intake.trees import modules_of
from testtime.norm.layer import advance
from testtime.parts.losses import entropy
from testtime.prediction import Prediction
from testtime.wrap.checks import Checks, Verdict, combined
from testtime.wrap.competence import IMAGES, Calibration, Competence, Reference
from testtime.wrap.disturbance import Disturbance, source_samples
from testtime.wrap.evidence import (
    FAIR,
    SURPRISE,
    Evidence,
    Healthy,
    Usual,
    batch_values,
    input_moments,
    predicted_diversity,
    spread_rows,
)
from testtime.wrap.guard_options import GuardEvent, GuardOptions, Kind, Serving
from testtime.wrap.parameters import copied, distance, upper_half
from testtime.wrap.repeats import repeated
from testtime.wrap.rest import Rest
from testtime.wrap.wrapper import Wrapper

__all__ = ["Guarded"]

Due = Literal["none", "part", "light", "full"]
SERVING: tuple[Serving, ...] = ("adapter", "bn", "source")
DEFAULTS = GuardOptions()
DIAGNOSTICS = (
    *("estimated_accuracy", "estimated_accuracy_source", "agreement", "entropy", "diversity"),
    *("unknown_share", "statistics_drift", "update_norm", "resting"),
)
UNCALIBRATED = (
    "this guard is not calibrated, so that it serves the adapter less often than it could; call prepare(batches) with "
    "unlabelled images as in training before the first batch, or testtime.adapt(model, guarded=True, source=batches)"
)
HOPELESS = 0.25  # share of a batch's predictions that are overruled, from which nothing is learned from it
COPIES = 0.25  # share of a batch that repeats the sample before, from which nothing is learned from it
LIGHT = 3  # batches without disturbed predictions after a full check, at least
LEAST = 8  # samples from one full check to the next, at least
LOSING = 2.0  # times the exposure that is overruled, from which an adapter loses
SAMPLES = 2000  # between two checks of a trusted adapter, at most
BURST = 4  # times the exposure that the share in a single batch may be
SLOTS = 4  # events of a step, at most
DOUBT = 3.0  # gain of the bet against the adapter, from which it is not trusted


@final
class Guarded(Wrapper):
    r"""An adapter that is served only where it is likely to be better than the shipped model, and is undone where it broke.

    For each sample, :math:`P(x)` is the probability that the shipped model is right, from how typical its features and those of
    recent samples are of the predicted class (:mod:`testtime.metrics.competence`). On the samples that the model is not
    competent about, the accuracy of a candidate k, the adapter or BN statistics without learning, is estimated as

    .. math:: \hat a_k = 1 - \kappa \cdot \text{share of its predictions that a disturbance changes}

    Where the adapter corrects a probably right prediction of the shipped model and BN statistics confirm it, P(x) is the wrong
    measure, since errors of the shipped model are frequent among such samples. Such corrections are credible while they are no
    more than the expected errors :math:`\sum 1 - P(x)` (:meth:`testtime.wrap.evidence.Evidence.take_corrections`) and not
    inconsistent, or where they are consistent: where :math:`\kappa`, or its default if that is larger, times the share of
    them that the disturbance changes is below a half less ``margin``, and the disturbance changes fewer predictions of the
    adapter than of the shipped model among those on which both agree and the shipped model is probably right.

    A step:
        1. where the adapter is trusted and the batch is like those before, let it predict and learn, and answer that;
        2. else check: predict the batch with the shipped model too; in one batch of four, and where anything is unusual,
           also with BN statistics, and a disturbed batch with the adapter and with BN statistics;
        3. answer the prediction of the candidate of the higher :math:`\hat a_k` where :math:`\hat a_k > P(x)` + ``margin``,
           elsewhere that of the shipped model; where the adapter predicts the same class, its logits; where the adapter would
           be preferred and predicts another class than the shipped model, BN statistics have a vote: two against one, unless
           they confirmed half of those lately and P(x) is below a half; credible corrections are answered too; the shipped
           model is never contradicted where :meth:`testtime.wrap.competence.Competence.credit` is below a half;
        4. take the step back where a quarter of the batch was overruled, or repeats the sample before;
        5. trust the adapter while hardly any of its predictions are overruled for each sample that the shipped model probably
           knows, and most of those votes are for it, and then check 64 samples of one batch in 2, 4, ..., 1 / ``check``, at
           least once in 2,000 samples, and in 2 where there is any evidence against it;
        6. where the adapter loses the votes for long, has fallen below BN statistics, or collapsed to few classes, in
           ``patience`` checks in a row: restore the last healthy state; reset the upper half of its layers if that comes again
           before it is trusted; then all of it;
        7. where an untrusted adapter has lost at least three predictions lately, and more than twice ``exposure`` of those
           that the shipped model probably knows, while the mean P(x) of the last samples is at least that of the source images
           less ``margin``: restore the last healthy state and let the adapter rest. For 8, 16, 32, then 64 samples the shipped
           model answers alone, unless it meets a sample of P(x) below a half, or that mean falls. Batches of more than 32
           samples begin no rest, and no guard without ``prepare`` does.

    That it loses the votes is a bet against it (:meth:`testtime.wrap.evidence.Evidence.take_votes`), which adds up over all
    checks, so that a slow decay is noticed: not trusted at a gain of 3, unhealthy at 100.

    ``prepare`` calibrates P and :math:`\kappa` on unlabelled source images under generic drifts, where the shipped model's
    predictions of the clean images stand for labels. Without it, the shipped model counts as competent wherever its
    prediction stays the same under the disturbance, so that little is gained where it is consistently wrong.

    Args:
        adapter: adapter of a classifier with logits (N, C), as it was built: it has processed nothing.
        source: the shipped model, as ``Source(model)``. Unless given, the network inside the adapter with the statistics of the
            source, which is the shipped model for methods that change parameters or statistics of the model and add no part.
        options: settings.
        disturb: function that changes a batch, a tensor or :class:`testtime.intake.named.NamedTensors`, and keeps the classes
            and the order of its samples; the same for the same batch. Unless given, images change as the model declares, and
            other floating-point tensors get a little noise, in a dictionary all but masks; token ids need it.

    Attributes:
        serving: model that answered most of the last batch: "adapter", "bn" or "source".
        events: actions of the guard in the last call.
        diagnostics: label-free diagnostics of the last call by name, NaN where unknown.
        resting: whether the adapter rests: it neither predicts nor learns.

    Raises:
        ValueError: the adapter has processed batches.
        TypeError: the adapter answers several tasks or pixels.

    A batch with token ids, or without floating-point tensors, is refused with a ValueError unless ``disturb`` is given, in a
    call before anything is learned, and in ``prepare``. The consistency of predictions is the only measure of a candidate's
    accuracy here, and noise in the numbers beside words says nothing of the words (tests/wrap/test_guarded_words.py). For the
    calibration, up to half of the token ids are replaced by those of other samples. It joins the source batches, whose samples
    have one length.

    Cost: the adapter's, and for a checked batch a prediction of the adapter, two forwards of the model with BN statistics and
    one of the shipped model (two without ``prepare``; with it, one more of some samples where it is corrected). In a rest, a
    forward of the shipped model alone.

    Reference: original to this library; the partial reset follows the selective reset of ASR (arXiv 2603.03796).

    >>> from testtime.methods import Tent
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2)).eval()
    >>> guarded = Guarded(Tent(net))
    >>> guarded.prepare([torch.rand(64, 3, 8, 8)])
    >>> y = guarded(torch.rand(8, 3, 8, 8))
    >>> guarded.serving in ("adapter", "bn", "source"), sorted(guarded.diagnostics)[:2]
    (True, ['agreement', 'diversity'])
    """

    # For testtime.save; the attribute "source" is a fact of the method.
    kept_as: ClassVar = {"source": "shipped", "disturb": "own_disturb"}
    answers_with = "the predictions of three models, each sample with those of the likeliest to be right"
    waiting: Tensor
    interval: Tensor
    serves: Tensor
    failures: Tensor
    last: Tensor

    def __init__(
        self,
        adapter: Adapter,
        source: Adapter | None = None,
        options: GuardOptions = DEFAULTS,
        disturb: Callable[[Any], Any] | None = None,
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
        self.options, self.shipped, self.own_disturb = options, source, disturb
        self._moving_parameters = [p for a in inner for p in a._adapted]
        self.reference = Reference(network, self._moving_parameters)
        self.disturb = Disturbance(network, disturb)
        self.competence, self.evidence, self.usual = Competence(), Evidence(options.window), Usual()
        self.rest = Rest(options.window)
        self.checks = Checks(self.reference, self.disturb, self.competence, self.evidence, options.margin)
        self.healthy = Healthy(adapter.state_dict())
        self.healthy.remember(adapter.state_dict())
        for name, value in {"waiting": 0, "interval": 1, "serves": 2, "failures": 0}.items():
            self.register_buffer(name, torch.tensor(value))
        self.register_buffer("last", torch.zeros((), dtype=torch.float64))
        more = min(adapter.cost[0], 3.0) + (2 if self.reference.bn is None else 4)
        self.cost = (adapter.cost[0] + more, adapter.cost[1])
        self._slots: tuple[GuardEvent | None, ...] = (None,) * SLOTS
        self._steps = Journal()
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

    @property
    def resting(self) -> bool:
        """Whether the shipped model answers alone, until it meets a sample that it does not know or the rest is over."""
        return self.rest.active

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self._steps = Journal()
        return self

    def _admit(self, x: Any, learn: bool) -> tuple[Any, Tensor]:
        x = batch_of(x)
        self.disturb.check(x)
        return super()._admit(x, learn)

    def _explain(self, error: BaseException, x: Any) -> None:
        if cause := self.disturb.refused(self.reference.shipped, x, error):
            advance(self, accept=False)
            raise cause from error
        super()._explain(error, x)

    def shipped_prediction(self, x: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Return what the guard knows about the shipped model's predictions of a batch; the state stays the same.

        Args:
            x: batch (N, ...).

        Returns:
            which samples were admitted (N,) bool, the predicted classes (N,) int64, and the probabilities (N,) that they are
            right; 0 where a sample was refused.

        Raises:
            TypeError, ValueError: x is no batch, or one that the guard cannot disturb.
        """
        with self._lock, torch.inference_mode(False), torch.no_grad():
            admitted, good = self._admit(x, learn=False)
            classes = torch.zeros(len(good), dtype=torch.int64, device=good.device)
            right = torch.zeros(len(good), device=good.device)
            if len(admitted):
                logits, features = self.reference(admitted)
                classes[good] = logits.argmax(dim=1)
                right[good] = self.checks.probability(admitted, logits, features)
        return good, classes, right

    def _prepare(self, batches: Iterable[Any]) -> None:
        arriving = iter(batches)
        kept: list[Any] = []
        while sum(len(_inputs(b)) for b in kept) < IMAGES and (batch := next(arriving, None)) is not None:
            self.disturb.check(_inputs(batch))
            kept.append(batch)
        x = source_samples([_inputs(b) for b in kept])
        self.adapter.prepare(chain(kept, arriving))
        within = getattr(batches, "within", None)
        if within is None and isinstance(x, Tensor):
            within = tuple(map(float, x.aminmax()))
        self.competence.calibrate(x, Calibration(self.reference, self.disturb, within, self.seed))
        self.healthy.remember(self.adapter.state_dict())

    def _predict_batch(self, x: Any) -> Tensor:
        if (known := self._known_in_rest(x)) is not None:
            return known[0]
        y = self._classified(self.adapter.predict(x))
        if self.trusted:
            return y
        logits, features = self.reference(x)
        right = self.checks.probability(x, logits, features)
        bn = None if self.reference.bn is None else self.reference.bn(x)
        preferred = self.checks.preferred(right, y.logits.argmax(dim=1), logits.argmax(dim=1), bn)
        chosen = y.logits if bn is None or self.checks.candidate()[0] == "adapter" else bn
        return combined(y, logits, chosen, preferred)

    def step(self, x: Any) -> Tensor:
        self._slots = (None,) * SLOTS
        if not self.competence.known and not int(self.clock):
            warnings.warn(UNCALIBRATED, AdapterWarning, stacklevel=6)
        repeats, last = repeated(x, self.last if int(self.clock) else None)
        self.last, copies = last.to(self.last), repeats > COPIES
        if (known := self._known_in_rest(x)) is not None:
            return self._rested(*known)
        self.rest.end()
        start = copied(self._moving_parameters)
        due = self._due(copies)
        before = None if due == "none" else self._steps.before(modules_of(self.adapter, Stateful))
        moments = input_moments(x)  # before the step, while the batch is in the caches of the processor
        disturbed = self.adapter.predict(self.disturb(x)) if due == "full" else None
        y = self._classified(self.adapter(x))
        values = batch_values(moments, y.logits)
        surprise = self.usual.surprise(values)
        self.usual.take(values)
        self.diagnostics = dict.fromkeys(DIAGNOSTICS, math.nan) | {
            "resting": 0.0,
            "entropy": float(entropy(y.logits.float()).nanmean()),
            "diversity": predicted_diversity(y.logits),
            "statistics_drift": surprise if math.isfinite(surprise) else math.nan,
        }
        if surprise >= SURPRISE and due != "full":
            due = "full"
        if due == "part":
            due = "none" if self._still_trusted(x, y) else "full"
        answer = self._unchecked(y) if due == "none" else self._check(x, y, due, disturbed, before, copies)
        self.diagnostics["update_norm"] = distance(self._moving_parameters, start)
        return answer

    # The check of a batch -------------------------------------------------------------------------------------------------

    def _due(self, copies: bool) -> Due:
        if copies or (not self.trusted and int(self.waiting) <= 0):
            return "full"
        if not self.trusted:
            return "light"
        if int(self.waiting) > 0:
            return "none"
        return "full" if self.evidence.excessive() else "part"

    def _unchecked(self, y: Prediction) -> Prediction:
        self.waiting -= 1
        self._serve("adapter", "")
        return y

    def _still_trusted(self, x: Any, y: Prediction) -> bool:
        """Check a part of a batch; unless it confirms the trust, the whole batch is checked."""
        rows, counted = spread_rows(x), self.evidence.moving()
        verdict = self.checks.judge(x[rows], y.at(rows), None, copies=False)
        trusted = verdict.overruled <= BURST * self.options.exposure and self._trusts(verdict, len(x))
        if not trusted:
            self.evidence.restore_all(counted)  # the check of the whole batch is what counts
        self.diagnostics |= verdict.diagnostics()
        return trusted

    def _check(
        self, x: Any, y: Prediction, due: Due, disturbed: Tensor | None, before: Before | None, copies: bool
    ) -> Prediction:
        """Decide who is served, whether the step counts and whether the adapter is trusted; return the answer."""
        if due == "light":
            counted = self.evidence.moving()
            verdict = self.checks.judge(x, y, None, copies)
            if verdict.strange:
                self.evidence.restore_all(counted)
                due = "full"
        if due == "full":
            if disturbed is None:
                disturbed = self.adapter.predict(self.disturb(x))
            verdict = self.checks.judge(x, y, disturbed, copies)
        answer = verdict.answer
        self.diagnostics |= verdict.diagnostics()
        self._serve(*self._served(verdict))
        if before is not None and (copies or verdict.overruled > HOPELESS):
            self.adapter._undo(before)
            answer.updated = False
            share = f"{verdict.overruled:.0%} of its predictions were overruled"
            self._event("skip", f"nothing was learned: {'samples repeat' if copies else share}")
        if due == "full":
            if not self._trusts(verdict, len(x)) or copies:
                self.interval.fill_(1)
                self.waiting.fill_(max(LIGHT, LEAST // len(x) - 1))
            self._climb(verdict.unhealthy)
        else:
            self.waiting -= 1
        self._let_rest(verdict, len(x))
        return answer

    def _trusts(self, verdict: Verdict, size: int) -> bool:
        """Count the overruled predictions; if they are few, lengthen the interval and remember the adapter's state.

        They are few against the samples that the shipped model probably knows, since samples that it does not know are hardly
        ever overruled, however wrong the adapter is. A batch without known samples leaves the trust as it was, unless one of
        them is overruled.

        Args:
            verdict: on the batch, or on a part of it.
            size: samples of the batch.
        """
        known = int((verdict.right >= FAIR).sum())
        count = round(verdict.overruled * len(verdict.right))
        pooled = self.evidence.take_overruled(count, known)
        exposed = max(pooled, count / max(known, 1) / BURST) > self.options.exposure
        if verdict.unhealthy or exposed or self.evidence.doubt() > DOUBT:
            return False
        longest = 2 if self.evidence.suspicious() else min(round(1 / self.options.check), SAMPLES // size)
        self.interval.fill_(max(2, min(2 * int(self.interval), longest)))
        self.waiting.copy_(self.interval)
        self.failures.zero_()
        self.healthy.remember(self.adapter.state_dict())
        return True

    # The rest of an adapter -----------------------------------------------------------------------------------------------

    def _known_in_rest(self, x: Any) -> tuple[Tensor, Tensor] | None:
        """The shipped model's logits and the probability (N,) that it is right, unless the adapter is awake or has to wake.

        The probability is that of each sample alone here: that of recent ones would delay the end of a rest.
        """
        if not self.rest.active:
            return None
        logits, features = self.reference(x)
        alone = self.competence.probability(logits, features)
        return (logits, alone) if self.rest.goes_on(alone, self._usual()) else None

    def _usual(self) -> float:
        """The mean probability to be right from which the shipped model knows samples as well as those of the source."""
        return float(self.competence.usual) - self.options.margin

    def _rested(self, logits: Tensor, alone: Tensor) -> Prediction:
        self.rest.take_batch(alone)
        self.checks.count(alone, right := self.checks.among(alone))
        accuracy = 100 * float(right.mean())
        self.diagnostics = dict.fromkeys(DIAGNOSTICS, math.nan) | {
            "estimated_accuracy": accuracy,
            "estimated_accuracy_source": accuracy,
            "unknown_share": 0.0,
            "update_norm": 0.0,
            "resting": 1.0,
        }
        self._serve("source", "the adapter rests: it loses, and the shipped model knows the samples")
        return Prediction(logits)

    def _let_rest(self, verdict: Verdict, size: int) -> None:
        """Let an adapter rest that is not trusted, and that loses where the shipped model knows the samples.

        A rest begins from the last healthy state, since no check finds the damage of an adapter that rests.
        """
        if not self.competence.known:
            return
        self.rest.take_check(verdict.alone, verdict.overruled)
        if not self.trusted and self.rest.decide(size, self._usual(), LOSING * self.options.exposure):
            self.adapter._restore(self.healthy.known())
            verdict.answer.updated = False
            self.waiting.zero_()  # the batch that ends the rest is checked in full

    # What it does about it ------------------------------------------------------------------------------------------------

    def _climb(self, unhealthy: str) -> None:
        """Undo more of what the adapter learned, each time it is unhealthy again before it was trusted."""
        if not unhealthy:
            self.failures -= self.failures % self.options.patience
            return
        self.failures += 1
        rung, rest = divmod(int(self.failures), self.options.patience)
        if rest or not rung:
            return
        if rung == 1:
            self.adapter._restore(self.healthy.known())
            self._event("restore", unhealthy)
        elif rung == 2:
            self.adapter._restore(upper_half(self.adapter._initial_state()))
            self._event("partial_reset", unhealthy)
        else:
            self.adapter.reset()
            self.healthy.remember(self.adapter.state_dict())
            self.failures.zero_()
            self._event("alarm", f"the adapter was reset, for {unhealthy}")
        self.evidence.clear()
        self.rest.clear()

    def _served(self, verdict: Verdict) -> tuple[Serving, str]:
        if verdict.overruled <= self.options.exposure:
            return "adapter", ""
        if float(verdict.preferred.float().mean()) >= 0.5:
            return verdict.candidate, ""
        share = f"the shipped model is preferred on {verdict.overruled:.0%} of the batch"
        return "source", verdict.unhealthy or share

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

    @staticmethod
    def _classified(y: Any) -> Prediction:
        if not isinstance(y, Prediction) or y.dim() != 2:
            raise TypeError("Guarded compares predicted classes (N, C), and this adapter answers otherwise")
        return y


def _inputs(batch: Any) -> Any:
    return batch[0] if isinstance(batch, tuple) else batch  # of a pair of inputs and labels
