"""Streams of batches: composable, seeded, rendered on demand, and equal for any number of workers.

>>> import numpy as np
>>> from testtime.data import from_arrays
>>> known = from_arrays("known", np.zeros((40, 8, 8), np.uint8), [0, 1] * 20, ("a", "b"))
>>> unknown = from_arrays("unknown", np.zeros((5, 16, 16), np.uint8))
>>> stream = open_set(continual(known, ["fog", "contrast"], batch_size=20), unknown, ratio=1.0)
>>> len(stream), tuple(stream[0].x.shape), int((stream[0].y < 0).sum())
(8, (20, 3, 8, 8), 10)
"""

from testtime.moved import renamed
from testtime.streams.ccc import CCCStream, Difficulty
from testtime.streams.domain import Blend, Condition, Domain, clean, corrupted, fingerprint, published
from testtime.streams.faults import noise_images, rebatched, stuck
from testtime.streams.orders import (
    GRADUAL_SEVERITIES,
    continual,
    correlated,
    gradual,
    label_shift,
    mixed,
    open_set,
    recorded,
)
from testtime.streams.poisoning import poisoned
from testtime.streams.stream import Batch, Plan, Stream

__all__ = [
    "GRADUAL_SEVERITIES",
    "Batch",
    "Blend",
    "CCCStream",
    "Condition",
    "Difficulty",
    "Domain",
    "Plan",
    "Stream",
    "clean",
    "continual",
    "correlated",
    "corrupted",
    "fingerprint",
    "gradual",
    "label_shift",
    "mixed",
    "noise_images",
    "open_set",
    "poisoned",
    "published",
    "rebatched",
    "recorded",
    "stuck",
]

__getattr__ = renamed(__name__, {"LADDER": "GRADUAL_SEVERITIES", "Wandering": "CCCStream"})
