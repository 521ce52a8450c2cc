"""Warnings of an adapter that are given once: nothing was updated, or no sample of a batch was predicted."""

from __future__ import annotations

import warnings
from typing import final

from testtime.errors import AdapterWarning

__all__ = ["PATIENCE", "Notices"]

PATIENCE = 50
"""Batches without any update before a warning."""


@final
class Notices:
    """The warnings of one adapter.

    Args:
        name: name of its method.

    Attributes:
        idle: batches since the start without an update; -1 after the first update, or once it was reported.
        refused: whether a batch without any valid prediction was reported.
    """

    def __init__(self, name: str) -> None:
        self.name, self.idle, self.refused = name, 0, False

    def updated(self) -> None:
        """Note that the adapter has been updated."""
        self.idle = -1

    def not_updated(self, why: str) -> None:
        """Count a batch without an update; warn once at :data:`PATIENCE` of them from the start."""
        if self.idle < 0:
            return
        self.idle += 1
        if self.idle == PATIENCE:
            self.idle = -1
            self._warn(
                f"{self.name} has updated nothing in {PATIENCE} batches ({why}); it answers as the model does. Check "
                "that the images are as in training (range, size, colours) and that thresholds such as margin= fit"
            )

    def not_predicted(self, why: str) -> None:
        """Warn once that no sample of a batch was predicted."""
        if not self.refused:
            self.refused = True
            self._warn(
                f"{self.name} answered no image of a batch ({why}); such rows are NaN and not valid, and nothing is "
                "learned from them. This is reported once"
            )

    def _warn(self, text: str) -> None:
        warnings.warn(text, AdapterWarning, stacklevel=6)
