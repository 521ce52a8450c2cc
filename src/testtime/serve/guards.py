"""An alarm on shadow traffic: served answers have become worse than the shipped model's, at a stated error rate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from testtime.metrics.sequences import BETS, reserve, wealth_after
from testtime.parts.randomness import generator
from testtime.wrap import Guarded, GuardEvent, GuardOptions

__all__ = ["AlarmOptions", "GuardEvent", "GuardOptions", "Guarded", "ShadowAlarm", "risk_excess"]


@final
@dataclass(frozen=True)
class AlarmOptions:
    """Settings of ShadowAlarm.

    Args:
        probability: probability, at most, of an alarm in a whole stream in which the risk stays within the tolerance.
        tolerance: excess of the risk over the shipped model's that is tolerated, as a share of the samples.
        share: share of the batches that are shadow traffic.
        seed: random seed of their choice.

    Raises:
        ValueError: one of them is out of range.
    """

    probability: float = 0.05
    tolerance: float = 0.01
    share: float = 0.02
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.probability < 1 or not 0 <= self.tolerance < 1 or not 0 < self.share <= 1:
            raise ValueError(
                "probability is in (0, 1), tolerance in [0, 1) and share in (0, 1], got "
                f"{self.probability}, {self.tolerance} and {self.share}"
            )


DEFAULTS = AlarmOptions()


@final
class ShadowAlarm:
    r"""Raises an alarm when the answers that are served have a higher risk than the shipped model's.

    Each sample of the shadow traffic yields an excess :math:`x_t \in [-1, 1]`, a proxy of its loss under the served answer less
    that under the shipped model's (:func:`risk_excess`). The alarm is raised when the evidence E of
    :mod:`testtime.metrics.sequences` against :math:`E[x_t \mid \text{past}] \le` ``tolerance`` reaches 1 / ``probability``: as
    long as that holds, it is raised with at most this probability in the whole stream, however long it is and however often one
    looks.

    Args:
        options: settings.

    Attributes:
        samples: number of samples of shadow traffic.
        evidence: the evidence E, 1 in the beginning.
        raised: whether an alarm has been raised; it stays until :meth:`clear`.

    Departures: Monitoring Risks calibrates thresholds of loss proxies on a small labelled source set; here the shipped model on
    the same samples is what the risk is compared with, and no labels are needed.

    Reference: Schirmer, Jazbec, Naesseth and Nalisnick, Monitoring Risks in Test-Time Adaptation, arXiv 2507.08721.

    >>> alarm = ShadowAlarm(AlarmOptions(tolerance=0.05))
    >>> alarm.observe(torch.zeros(1000)), alarm.observe(torch.full((100,), 0.4))
    (False, True)
    """

    def __init__(self, options: AlarmOptions = DEFAULTS) -> None:
        self.options = options
        self.clear()

    def clear(self) -> None:
        """Begin again without evidence, after an alarm was dealt with; the error rate holds from one such call to the next."""
        self.samples, self.raised = 0, False
        self._wealth = np.zeros(len(BETS))

    @property
    def evidence(self) -> float:
        """The evidence against a risk within the tolerance."""
        return float(self._wealth.sum()) + reserve(self.samples)

    def due(self, batch: int) -> bool:
        """Return whether a batch is shadow traffic; a function of the seed and the number of the batch.

        Args:
            batch: number of the batch in its stream.
        """
        draw = torch.rand((), generator=generator(self.options.seed, batch, "shadow traffic"))
        return bool(draw < self.options.share)

    def observe(self, excess: Tensor) -> bool:
        """Count samples of shadow traffic, and return whether an alarm has been raised.

        Args:
            excess: excess of the risk of each sample (N,), in [-1, 1].

        Raises:
            ValueError: a value is outside of that.
        """
        values = excess.detach().double().cpu().numpy()
        if not (np.abs(values) <= 1).all():
            raise ValueError("expected excesses of the risk in [-1, 1], as risk_excess returns them")
        for value in values:
            self._wealth = wealth_after(self._wealth, self.samples, [value], self.options.tolerance)
            self.samples += 1
            self.raised = self.raised or self.evidence >= 1 / self.options.probability
        return self.raised

    def state_dict(self) -> dict[str, Tensor]:
        """Return what :meth:`load_state_dict` takes: evidence, number of samples, alarm."""
        return {
            "wealth": torch.from_numpy(self._wealth.copy()),
            "samples": torch.tensor(self.samples),
            "raised": torch.tensor(self.raised),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state.

        Raises:
            ValueError: it is not that of an alarm.
        """
        if set(state) != {"wealth", "samples", "raised"} or state["wealth"].shape != (len(BETS),):
            raise ValueError(f"expected the state of a ShadowAlarm, got entries {', '.join(sorted(state))}")
        self._wealth = state["wealth"].double().numpy().copy()
        self.samples, self.raised = int(state["samples"]), bool(state["raised"])


def risk_excess(guarded: Guarded, x: Tensor, answer: Tensor) -> Tensor:
    r"""Return a proxy of the excess of the risk of served answers over the shipped model's, for each sample.

    With the probability P that the shipped model is right, it is at least

    .. math:: x = \begin{cases} 0 & \text{both predict the same class} \\ 2 P - 1 & \text{otherwise} \end{cases}

    because at most one of two classes is right. Samples without a valid answer count 0.

    Args:
        guarded: guard whose calibration P comes from.
        x: batch (N, ...).
        answer: served logits (N, C).

    Returns:
        (N,) float, in [-1, 1].

    Cost: one forward of the shipped model (two without ``prepare``).
    """
    known, shipped, right = guarded.shipped_prediction(x)
    differs = answer.argmax(dim=1) != shipped
    valid = torch.isfinite(answer).all(dim=1) & known
    return torch.where(differs & valid, 2 * right.float() - 1, 0.0)
