"""What is measured: closed set, open set, calibration, forgetting, cost. Scores and errors are in percent."""

from testtime.metrics.calibration import CalibrationError, brier, calibration_error, nll
from testtime.metrics.cost import Cost, milliseconds, peak_memory, state_bytes
from testtime.metrics.open_set import accuracy, auroc, fpr_at, h_score, oscr
from testtime.metrics.summary import Samples, forgetting, summarise

__all__ = [
    "CalibrationError",
    "Cost",
    "Samples",
    "accuracy",
    "auroc",
    "brier",
    "calibration_error",
    "forgetting",
    "fpr_at",
    "h_score",
    "milliseconds",
    "nll",
    "oscr",
    "peak_memory",
    "state_bytes",
    "summarise",
]
