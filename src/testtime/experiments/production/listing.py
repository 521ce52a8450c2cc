"""The experiments of the family "production", for lists."""

from testtime.experiments.registry import Listed

__all__ = ["LISTED"]

LOAD = "testtime.experiments.production.experiment:Production"
LISTED = (
    Listed("failure-zoo", "Twelve streams that break adapters, with and without a guard", LOAD),
    Listed("poisoning", "Malicious images in every batch: what others lose, with and without a guard", LOAD),
    Listed(
        "soak", "A million samples of a changing stream: accuracy, time and memory from tenth to tenth", LOAD
    ),
)
