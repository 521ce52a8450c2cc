"""What a curve of test-time training is worth against a base, and how far its tasks move together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

from testtime.metrics.synchronisation import cosine_similarity, dtw, step_variance
from testtime.multitask.protocol import Curve

__all__ = ["Outcome"]


@final
@dataclass(frozen=True)
class Outcome:
    """A curve, judged against the metrics of a base.

    Attributes:
        curve: metrics of the tasks, step by step.
        gains: Delta_TTT in percent, step by step.
        last: Delta_TTT at the last step.
        oracle: Delta_TTT at the step that is best by the test labels, which are not known in deployment.
        own: Delta_TTT at the last step against the row's own network before any step: what adapting alone changed.
        beyond: Delta_TTT at the last step less that of the controls on the same network: what the loss adds; NaN without.
        step_variance, warping, similarity: measures of :mod:`testtime.metrics.synchronisation`; NaN unless two tasks were
            measured and a metric changed.
        millions: parameters of the model, in millions.
        seconds: duration of the adaptation, its measurements included.
    """

    curve: Curve
    gains: list[float]
    last: float
    oracle: float
    own: float
    beyond: float
    step_variance: float
    warping: float
    similarity: float
    millions: float
    seconds: float

    @property
    def before(self) -> float:
        """Delta_TTT before the steps on a batch: online, what the batches before it have taught; no label of it has counted."""
        return self.gains[0]

    @classmethod
    def of(
        cls,
        curve: Curve,
        base: Mapping[str, float],
        controls: Sequence[Curve] = (),
        parameters: int = 0,
        seconds: float = math.nan,
    ) -> Outcome:
        """Judge a curve.

        Args:
            curve: metrics of the tasks, step by step.
            base: metrics by task that Delta_TTT is measured against.
            controls: curves of the same network under methods that only estimate its statistics.
            parameters: number of parameters of the model.
            seconds: duration of the adaptation.
        """
        gains, values, higher = curve.gains(base), curve.values, curve.higher_is_better
        measured = [series for series in values.values() if not all(map(math.isnan, series))]
        changed = any(value != series[0] for series in measured for value in series if not math.isnan(value))
        moves = changed and len(measured) > 1
        control = [other.gains(base)[-1] for other in controls]
        return cls(
            curve,
            gains,
            gains[-1],
            gains[curve.oracle(base)],
            curve.gains(curve.at(0))[-1],
            gains[-1] - sum(control) / len(control) if control else math.nan,
            step_variance(values, higher, steps=curve.steps) if moves else math.nan,
            dtw(values, curve.at(0), higher) if moves else math.nan,
            cosine_similarity(values, higher) if moves else math.nan,
            parameters / 1e6,
            seconds,
        )
