"""Metrics: closed set, open set, calibration, forgetting, accuracy without labels, dense tasks, their synchronisation, cost.

Scores and errors are in percent, except where the docstring of a metric names its unit.
"""

from typing import TYPE_CHECKING

from testtime.lazy import lazily

if TYPE_CHECKING:
    from testtime.metrics.appearance import appearance_clusters, appearance_features
    from testtime.metrics.boundaries import BoundaryF
    from testtime.metrics.calibration import CalibrationError, brier, calibration_error, nll
    from testtime.metrics.competence import (
        competence_table,
        errors_per_change,
        logistic_weights,
        never_rising,
    )
    from testtime.metrics.cost import Cost, median_milliseconds, milliseconds, peak_memory, state_bytes
    from testtime.metrics.dense import RMSE, MeanAngle, MeanIoU
    from testtime.metrics.edges import BCE, AveragePrecision, EdgeF
    from testtime.metrics.label_free import aetta, consistency, diversity, dropout_disagreement
    from testtime.metrics.open_set import accuracy, auroc, fpr_at, h_score, oscr, score_shares
    from testtime.metrics.sequences import confidence_sequence
    from testtime.metrics.summary import Samples, forgetting, summarise
    from testtime.metrics.synchronisation import cosine_similarity, delta_ttt, dtw, step_variance

__all__ = [
    "BCE",
    "RMSE",
    "AveragePrecision",
    "BoundaryF",
    "CalibrationError",
    "Cost",
    "EdgeF",
    "MeanAngle",
    "MeanIoU",
    "Samples",
    "accuracy",
    "aetta",
    "appearance_clusters",
    "appearance_features",
    "auroc",
    "brier",
    "calibration_error",
    "competence_table",
    "confidence_sequence",
    "consistency",
    "cosine_similarity",
    "delta_ttt",
    "diversity",
    "dropout_disagreement",
    "dtw",
    "errors_per_change",
    "forgetting",
    "fpr_at",
    "h_score",
    "logistic_weights",
    "median_milliseconds",
    "milliseconds",
    "never_rising",
    "nll",
    "oscr",
    "peak_memory",
    "score_shares",
    "state_bytes",
    "step_variance",
    "summarise",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "appearance": "appearance_clusters appearance_features",
        "calibration": "CalibrationError brier calibration_error nll",
        "competence": "competence_table errors_per_change logistic_weights never_rising",
        "cost": "Cost median_milliseconds milliseconds peak_memory state_bytes",
        "boundaries": "BoundaryF",
        "dense": "RMSE MeanAngle MeanIoU",
        "edges": "BCE AveragePrecision EdgeF",
        "label_free": "aetta consistency diversity dropout_disagreement",
        "open_set": "accuracy auroc fpr_at h_score oscr score_shares",
        "sequences": "confidence_sequence",
        "summary": "Samples forgetting summarise",
        "synchronisation": "cosine_similarity delta_ttt dtw step_variance",
    },
    {"alike": "appearance_clusters", "looks": "appearance_features"},
)
