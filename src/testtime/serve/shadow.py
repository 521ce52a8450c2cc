"""Other methods beside the one that serves, on a share of the traffic: their answers are judged, and never served."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Self, final

import torch
from torch import Tensor

from testtime.adapter import Adapter
from testtime.metrics.appearance import appearance_features
from testtime.selection import NEAR, Advice, Diagnostics, monitor, recommend
from testtime.serve.background import Background

__all__ = ["Judgement", "Shadow"]

LOGGER = logging.getLogger("testtime.serve")
SMALLEST = 4  # pixels of a side whose appearance has features


@dataclass(frozen=True)
class Judgement:
    """What is known of the candidates.

    Attributes:
        stream: the stream whose images they get; None before the first.
        images: images that the judgement rests on.
        dropped: images of the share that were left out because the queue was full.
        advice: the recommendation; None before the first.
        errors: why candidates were stopped, or could not be judged, by name.
    """

    stream: str | None = None
    images: int = 0
    dropped: int = 0
    advice: Advice | None = None
    errors: Mapping[str, str] = field(default_factory=dict)


@final
class Shadow:
    """A thread in which candidates adapt to a share of the requests of one stream.

    All candidates get the same images, of one size, those of the first stream that is offered, and adapt in their own states,
    in memory alone. The thread waits while the server is busy; what does not fit into its queue is left out and counted.

    Args:
        candidates: adapters by name, as they were built.
        source: adapter that answers as the shipped model does, for the agreement.
        share: share of the requests, in (0, 1].
        window: number of the last batches that a judgement rests on.
        least: number of images for a first judgement.
        every: number of batches between two judgements.
        waiting: number of batches that may wait.

    Raises:
        ValueError: there is no candidate, or a number is out of range.

    >>> from testtime.methods import Source, Tent
    >>> from torch.nn import BatchNorm2d, Conv2d, Flatten, Linear, Sequential
    >>> net = Sequential(Conv2d(3, 4, 3), BatchNorm2d(4), Flatten(), Linear(144, 2)).eval()
    >>> with Shadow({"tent": Tent(net)}, Source(net), share=1.0, least=8, every=1) as shadow:
    ...     shadow.offer(torch.rand(8, 3, 8, 8), "camera")
    ...     shadow.settle()
    >>> shadow.judgement.images, shadow.judgement.advice.name
    (8, 'tent')
    """

    def __init__(
        self,
        candidates: Mapping[str, Adapter],
        source: Adapter,
        *,
        share: float = 0.05,
        window: int = 256,
        least: int = 256,
        every: int = 8,
        waiting: int = 8,
    ) -> None:
        if not candidates:
            raise ValueError("expected candidates by name, got none")
        if not 0 < share <= 1:
            raise ValueError(f"share is a share of the requests in (0, 1], got {share}")
        if min(window, least, every, waiting) < 1:
            raise ValueError("window, least, every and waiting are numbers of at least 1")
        self.share, self.least = share, least
        self.names = tuple(candidates)
        self.judgement = Judgement()
        self.serving: str | None = self.names[0]
        self._every, self._batches = every, 0
        self._seen: dict[str, deque[Diagnostics]] = {name: deque(maxlen=window) for name in candidates}
        self._looks: deque[Tensor] = deque(maxlen=window)
        self._errors: dict[str, str] = {}
        self._unjudged = ""  # why no candidate could be judged
        self._first: tuple[str, torch.Size] | None = None
        self._owed, self._dropped = 0.0, 0
        self._lock = threading.Lock()
        self._now = torch.empty(0)
        self._monitors = {name: monitor(one, self._arriving(), source) for name, one in candidates.items()}
        self.thread = Background("testtime-shadow", self._process, waiting)

    def __enter__(self) -> Self:
        self.thread.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.thread.__exit__()

    def offer(self, x: Tensor, stream: str) -> None:
        """Give the candidates a batch if it belongs to their share; this takes no longer than a copy.

        Args:
            x: admitted samples (N, ...).
            stream: name of its stream.
        """
        with self._lock:
            images = len(x) > 0 and x.dim() == 4 and min(x.shape[2:]) >= SMALLEST
            if not images or (stream, x.shape[1:]) != (self._first or (stream, x.shape[1:])):
                return
            self._first = stream, x.shape[1:]
            self._owed += self.share
            if self._owed < 1:
                return
            self._owed -= 1
        if not self.thread.offer(x.detach().clone()):
            with self._lock:
                self._dropped += len(x)

    def settle(self) -> None:
        """Wait until the batches that were offered are processed."""
        self.thread.settle()

    # In the thread ------------------------------------------------------------------------------------------------------

    def _arriving(self) -> Iterator[Tensor]:
        while True:
            yield self._now

    def _process(self, x: Tensor) -> None:
        """Let all candidates adapt to a batch, and judge them from time to time."""
        look = appearance_features(x)  # where that fails, no candidate gets the batch
        self._now = x
        for name in [name for name in self.names if name not in self._errors]:
            self.thread.pause()
            try:
                self._seen[name].append(next(self._monitors[name]))
            except Exception as error:  # noqa: BLE001 - a method may fail in any way; it is stopped, and the page says why
                self._errors[name] = f"stopped: {type(error).__name__}: {error}"[:500]
                LOGGER.warning("candidate %s %s", name, self._errors[name])
        self._looks.append(look)
        self._batches += 1
        advice = self.judgement.advice
        try:
            if self._images >= self.least and (advice is None or self._batches % self._every == 0):
                advice, self._unjudged = self._advice(), ""
        except Exception as error:  # noqa: BLE001 - answers may be of any kind; the page says why there is no advice
            before, self._unjudged = self._unjudged, f"not judged: {type(error).__name__}: {error}"[:500]
            if self._unjudged != before:
                LOGGER.warning("the candidates were %s", self._unjudged)
        errors = {**(dict.fromkeys(self.names, self._unjudged) if self._unjudged else {}), **self._errors}
        stream = None if self._first is None else self._first[0]
        self.judgement = Judgement(stream, self._images, self._dropped, advice, errors)

    @property
    def _images(self) -> int:
        return sum(map(len, self._looks))

    def _advice(self) -> Advice | None:
        """The recommendation: the method that serves, unless another one is estimated better by a point or more."""
        order = sorted(self.names, key=lambda name: name != self.serving)
        seen = {name: tuple(self._seen[name]) for name in order if name not in self._errors}
        if not seen:
            return None
        advice = recommend(seen, torch.cat(tuple(self._looks)))
        found = {one.name: one for one in advice.candidates}
        best, own = found[advice.name], found.get(self.serving or "")
        if own is None or own.alarms or best is own or best.accuracy - own.accuracy >= NEAR:
            return advice
        near = f"{best.name} is estimated {best.accuracy - own.accuracy:.1f} points better, too little for a change."
        return replace(advice, name=own.name, reasons=(near, *advice.reasons))
