"""What is measured: closed set, open set, calibration, forgetting, dense tasks, their synchronisation, cost.

Scores and errors are in percent, except where a metric has a unit of its own.
"""

from testtime.metrics.calibration import CalibrationError, brier, calibration_error, nll
from testtime.metrics.cost import Cost, milliseconds, peak_memory, state_bytes
from testtime.metrics.dense import RMSE, MeanAngle, MeanIoU
from testtime.metrics.edges import BCE, AveragePrecision, EdgeF
from testtime.metrics.label_free import aetta, consistency, diversity, dropout_disagreement
from testtime.metrics.looks import alike, looks
from testtime.metrics.open_set import accuracy, auroc, fpr_at, h_score, oscr
from testtime.metrics.summary import Samples, forgetting, summarise
from testtime.metrics.synchronisation import cosine_similarity, delta_ttt, dtw, step_variance

__all__ = [
    "BCE",
    "RMSE",
    "AveragePrecision",
    "CalibrationError",
    "Cost",
    "EdgeF",
    "MeanAngle",
    "MeanIoU",
    "Samples",
    "accuracy",
    "aetta",
    "alike",
    "auroc",
    "brier",
    "calibration_error",
    "consistency",
    "cosine_similarity",
    "delta_ttt",
    "diversity",
    "dropout_disagreement",
    "dtw",
    "forgetting",
    "fpr_at",
    "h_score",
    "looks",
    "milliseconds",
    "nll",
    "oscr",
    "peak_memory",
    "state_bytes",
    "step_variance",
    "summarise",
]
