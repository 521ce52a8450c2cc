"""The experiments of the family "production", for lists."""

from types import NoneType

from testtime.experiments.registry import EVERY, Listed

__all__ = ["LISTED", "SHAPES"]

LOAD = "testtime.experiments.production.experiment:Production"
LISTED = (
    Listed("failure-zoo", "Twelve streams that break adapters, with and without a guard", LOAD),
    Listed("poisoning", "Malicious images in every batch: what others lose, with and without a guard", LOAD),
    Listed(
        "soak", "A million samples of a changing stream: accuracy, time and memory from tenth to tenth", LOAD
    ),
)
NUMBER = (float, NoneType)
SHAPES = {
    "about": {"streams": [str], "length": int},
    "follow": {
        **{"window": int, **dict.fromkeys(("accuracy", "last_fifth", "worst_window"), NUMBER)},
        "less": {EVERY: {"mean": NUMBER, "worst": NUMBER}},
        "tenths": {**dict.fromkeys(("accuracy", "median_ms", "p99_ms", "memory"), list), EVERY: [NUMBER]},
    },
}
"""What the results hold, see :func:`testtime.experiments.registry.result_shapes`."""
