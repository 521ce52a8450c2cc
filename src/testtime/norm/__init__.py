"""Normalisation policies, model -> model: which statistics a BatchNorm layer normalises with.

A policy returns a new tree on the memory of the given model and replaces its BatchNorm layers, found by kind. Layers
that already follow a policy are left alone, so ``Tent(alpha_statistics(model, 0.2))`` keeps alpha statistics.
"""

from typing import TYPE_CHECKING

from testtime.lazy import lazily

if TYPE_CHECKING:
    from testtime.norm.alpha import AlphaStatistics, alpha_statistics
    from testtime.norm.batch import BatchStatistics, batch_statistics
    from testtime.norm.ema import EMAStatistics, ema_statistics
    from testtime.norm.instance_aware import InstanceAwareStatistics, iabn
    from testtime.norm.layer import (
        TOP_LAYERS,
        NormPolicy,
        advance,
        has_batch_norm,
        norm_affine,
        norm_layers,
        observing,
        swap_policy,
    )
    from testtime.norm.robust import RobustStatistics, robust_statistics
    from testtime.norm.running import RunningStatistics, running_statistics
    from testtime.norm.source import SourceStatistics, source_statistics
    from testtime.norm.unmix import UnMixStatistics, unmix_tns

__all__ = [
    "TOP_LAYERS",
    "AlphaStatistics",
    "BatchStatistics",
    "EMAStatistics",
    "InstanceAwareStatistics",
    "NormPolicy",
    "RobustStatistics",
    "RunningStatistics",
    "SourceStatistics",
    "UnMixStatistics",
    "advance",
    "alpha_statistics",
    "batch_statistics",
    "ema_statistics",
    "has_batch_norm",
    "iabn",
    "norm_affine",
    "norm_layers",
    "observing",
    "robust_statistics",
    "running_statistics",
    "source_statistics",
    "swap_policy",
    "unmix_tns",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "alpha": "AlphaStatistics alpha_statistics",
        "batch": "BatchStatistics batch_statistics",
        "ema": "EMAStatistics ema_statistics",
        "instance_aware": "InstanceAwareStatistics iabn",
        "layer": "TOP_LAYERS NormPolicy advance has_batch_norm norm_affine norm_layers observing swap_policy",
        "robust": "RobustStatistics robust_statistics",
        "running": "RunningStatistics running_statistics",
        "source": "SourceStatistics source_statistics",
        "unmix": "UnMixStatistics unmix_tns",
    },
)
