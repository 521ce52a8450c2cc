"""The experiments of the family "demo", for lists."""

from testtime.experiments.registry import Listed

LISTED = (
    Listed(
        "digits",
        "Handwritten digits under corruption: what adaptation is worth, and what the statistics alone give",
        "testtime.experiments.demo:DIGITS",
    ),
)
