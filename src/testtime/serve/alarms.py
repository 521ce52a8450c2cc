"""The alarm of each stream: a share of the traffic is answered by the shipped model too, beside the requests."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Self, final

from torch import Tensor, nn

from testtime.adapter import Adapter
from testtime.methods import Source
from testtime.serve.background import Background
from testtime.serve.guards import AlarmOptions, Guarded, ShadowAlarm, risk_excess

__all__ = ["AlarmState", "StreamAlarms"]

LOGGER = logging.getLogger("testtime.serve")
DEFAULTS = AlarmOptions()


@dataclass(frozen=True)
class AlarmState:
    """The alarm of a stream.

    Attributes:
        raised: whether it was raised.
        samples: number of samples of shadow traffic since the alarm was cleared.
        evidence: evidence against a risk within the tolerance; it is raised at 1 / probability.
        time: when it was raised, in seconds since 1970; None: it was not.
    """

    raised: bool = False
    samples: int = 0
    evidence: float = 1.0
    time: float | None = None


@final
class StreamAlarms:
    """A :class:`testtime.serve.ShadowAlarm` for each stream, in a thread of its own.

    A share of the batches of each stream, chosen by their numbers alone, goes through the shipped model after it was answered.
    What does not fit into the queue is left out and counted. How likely the shipped model is right is judged by the
    batch alone. The alarms are in memory: a restart begins the test again.

    Args:
        reference: guard whose calibration says how likely the shipped model is right; see :meth:`reference_of`.
        options: probability of a false alarm in a whole stream, tolerance, share and seed.
        waiting: number of batches that may wait.
        now: time in seconds since 1970.

    Attributes:
        options: the options.
        dropped: number of batches that were left out.
        raised: function of the stream and its state that is called, in the thread, when an alarm is raised.

    >>> import torch
    >>> from testtime.laws.worlds import WORLDS
    >>> guard = Guarded(Source(WORLDS["batchnorm"].network()))
    >>> with StreamAlarms(guard, AlarmOptions(share=1.0)) as alarms:
    ...     alarms.offer(torch.rand(8, 3, 8, 8), torch.rand(8, 5), "camera")
    ...     alarms.settle()
    >>> alarms.state("camera").samples
    8
    """

    def __init__(
        self,
        reference: Guarded,
        options: AlarmOptions = DEFAULTS,
        *,
        waiting: int = 8,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.options, self.dropped = options, 0
        self.raised: Callable[[str, AlarmState], None] = lambda stream, state: None
        self.thread = Background[tuple[str, Tensor, Tensor]]("testtime-alarm", self._process, waiting)
        self._reference, self._now, self._lock = reference, now, threading.Lock()
        self._alarms: dict[str, ShadowAlarm] = {}
        self._times: dict[str, float] = {}
        self._batches: Counter[str] = Counter()

    @staticmethod
    def reference_of(network: nn.Module, adapter: Adapter, source: Iterable[Tensor] = ()) -> Guarded:
        """Return a guard of the shipped model, with the calibration of an adapter that is guarded.

        Args:
            network: the shipped model.
            adapter: adapter that serves; if it is guarded, what its guard learned of the shipped model is used.
            source: source images for the calibration otherwise; without any, what a small change does not move counts as right.
        """
        reference = Guarded(Source(network))
        if isinstance(adapter, Guarded):
            reference.competence.restore_all(adapter.competence.moving())
        elif batches := tuple(source):
            reference.prepare(batches)
        return reference

    def __enter__(self) -> Self:
        self.thread.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.thread.__exit__()

    def offer(self, x: Tensor, logits: Tensor, stream: str) -> None:
        """Take an answered batch if it belongs to the share; this takes no longer than a copy.

        Args:
            x: admitted samples (N, ...).
            logits: their served logits (N, C).
            stream: name of their stream.
        """
        with self._lock:
            alarm = self._alarms.setdefault(stream, ShadowAlarm(self.options))
            batch, self._batches[stream] = self._batches[stream], self._batches[stream] + 1
        if not len(x) or not alarm.due(batch):
            return
        if not self.thread.offer((stream, x.detach().clone(), logits)):
            with self._lock:
                self.dropped += 1

    def state(self, stream: str) -> AlarmState:
        """Return the alarm of a stream."""
        with self._lock:
            alarm = self._alarms.get(stream)
            if alarm is None:
                return AlarmState()
            return AlarmState(alarm.raised, alarm.samples, alarm.evidence, self._times.get(stream))

    def clear(self, stream: str | None = None) -> None:
        """Begin again for a stream, or for all, after an alarm was dealt with."""
        with self._lock:
            for name in tuple(self._alarms) if stream is None else (stream,):
                self._alarms.pop(name, None)
                self._times.pop(name, None)
                self._batches.pop(name, None)

    def settle(self) -> None:
        """Wait until the batches that were taken are processed."""
        self.thread.settle()

    def _process(self, taken: tuple[str, Tensor, Tensor]) -> None:
        stream, x, logits = taken
        alarm = self._alarms.get(stream)
        if alarm is None:  # cleared meanwhile
            return
        try:
            excess = risk_excess(self._reference, x, logits.to(x.device))
        except Exception as error:  # noqa: BLE001 - the shipped model may fail in any way; the alarm goes on without the batch
            LOGGER.warning("the alarm of stream %s left a batch out: %s", stream, error)
            return
        with self._lock:
            before = alarm.raised
            rising = alarm.observe(excess) and not before and self._alarms.get(stream) is alarm
            if rising:
                self._times[stream] = self._now()
        if rising:
            self.raised(stream, self.state(stream))
