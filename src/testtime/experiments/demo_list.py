"""The experiments of the family "demo", for lists."""

from testtime.experiments.registry import EVERY, Listed

LISTED = (
    Listed(
        "digits",
        "Handwritten digits under corruption: what adaptation is worth, and what the statistics alone give",
        "testtime.experiments.demo:DIGITS",
    ),
)
SHAPES = {"about": {"corruptions": [str]}, "adapt_to_digits": {"error": {EVERY: float}}}
"""What the results hold, see :func:`testtime.experiments.registry.result_shapes`."""
