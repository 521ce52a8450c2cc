"""The rest of an adapter that loses against a shipped model which knows its inputs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from testtime.intake.sharing import AtLeastFloat32, Stateful
from testtime.wrap.evidence import FAIR, SHARE

__all__ = ["Rest"]

LONGEST, SHORTEST = 64, 8  # samples of a rest
RECENT = 32  # samples after which the weight of a sample in the mean probability is halved
LOSSES = 3  # overruled predictions from which an adapter may count as one that loses


class Rest(AtLeastFloat32, Stateful):
    """Whether an adapter rests: the shipped model answers alone, and the adapter neither predicts nor learns.

    A rest of 8 samples, then of 16, 32 and 64 while nothing changes, begins after a check where

    - the adapter loses: three of its predictions at least, and more than a share of those that the shipped model is probably
      right about, were overruled;
    - the shipped model knows the samples: the mean of its probabilities to be right is that of the source samples, less a
      margin.

    It ends early at a sample that the shipped model is probably wrong about, where the mean falls, and at a batch longer
    than what is left of it. It has two batches at least, so that a batch of more than 32 samples never begins one.

    Args:
        window: samples after which the weight of a sample as evidence is halved.

    Attributes:
        left: samples that are left of the rest, an int64 scalar.
        length: samples of the last rest; 0 where the next is a first one.
        sure: (2,) the last samples; the sum of the probabilities that the shipped model is right about them.
        lost: (2,) samples that the shipped model is probably right about; those whose prediction by the adapter was overruled.
    """

    writes = False
    added = True
    left: Tensor
    length: Tensor
    sure: Tensor
    lost: Tensor

    def __init__(self, window: int) -> None:
        super().__init__()
        self.window = window
        for name in ("left", "length"):
            self.register_buffer(name, torch.zeros((), dtype=torch.int64))
        for name in ("sure", "lost"):
            self.register_buffer(name, torch.zeros(2))

    def present(self, saved: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A saved state in the present form; until December 2026 no adapter rested."""
        return {**Rest(self.window).moving(), **saved}

    def goes_on(self, right: Tensor, usual: float) -> bool:
        """Whether a batch leaves the adapter at rest; False where it does not rest.

        Args:
            right: probability (N,) that the shipped model is right.
            usual: mean probability from which it knows the samples.
        """
        if len(right) > int(self.left) or float(right.min()) < FAIR:
            return False
        return _mean(self._sure_with(right)) >= usual

    def take_batch(self, right: Tensor) -> None:
        """Count a batch of the rest, for whose samples the shipped model is right with these probabilities (N,)."""
        self.sure, self.left = self._sure_with(right), self.left - len(right)

    def take_check(self, right: Tensor, overruled: float) -> None:
        """Count a check of a whole batch.

        Args:
            right: probability (N,) that the shipped model is right.
            overruled: share of the adapter's predictions that are overruled.
        """
        known, count = int((right >= FAIR).sum()), round(overruled * len(right))
        self.sure = self._sure_with(right)
        self.lost = 0.5 ** (known / self.window) * self.lost + self.lost.new_tensor([known, count])

    def decide(self, size: int, usual: float, exposure: float) -> bool:
        """Begin a rest where the adapter loses and the shipped model knows the samples; return whether one began.

        Args:
            size: samples of a batch.
            usual: mean probability from which the shipped model knows the samples.
            exposure: share of overruled predictions from which the adapter loses.
        """
        known, overruled = self.lost.tolist()
        loses = overruled >= LOSSES and overruled > exposure * known
        if not loses or 2 * size > LONGEST or _mean(self.sure) < usual:
            self.length = torch.zeros_like(self.length)
            return False
        self.length = (2 * self.length).clamp(max(SHORTEST, 2 * size), LONGEST)
        self.left = self.length.clone()
        return True

    @property
    def active(self) -> bool:
        """Whether the adapter rests."""
        return int(self.left) > 0

    def end(self) -> None:
        """Wake the adapter."""
        self.left = torch.zeros_like(self.left)

    def clear(self) -> None:
        """Forget how the adapter did: it is no longer the same."""
        self.lost = torch.zeros_like(self.lost)

    def _sure_with(self, right: Tensor) -> Tensor:
        now = torch.stack([right.new_tensor(len(right)), right.sum()]).to(self.sure)
        return 0.5 ** (len(right) / RECENT) * self.sure + now


def _mean(sure: Tensor) -> float:
    """The mean probability that the shipped model is right about the last samples; 0 for few."""
    samples, total = sure.tolist()
    return total / samples if samples >= SHARE else 0.0
