"""The streams of a session: their names, their state while another stream is served, their counts."""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from testtime.serve.gate import Screening
from testtime.serve.swapping import Parked, Ranges

if TYPE_CHECKING:
    from testtime.serve.snapshots import SnapshotInfo

__all__ = ["Counts", "Stream", "StreamStatus", "check_stream", "folder_of", "name_of"]

FALLEN = 0.5  # share of the samples above which a fallback makes a snapshot unhealthy
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")


def check_stream(name: Any) -> str:
    """Return the name of a stream: 1 to 64 letters, digits, ``.``, ``_`` and ``-``, of which ``.`` and ``-`` do not come first.

    Raises:
        TypeError: it is no text.
        ValueError: it holds other characters, or is too long.

    >>> check_stream("camera-1")
    'camera-1'
    """
    if not isinstance(name, str):
        raise TypeError(f"expected the name of a stream as a text, got {type(name).__name__}")
    if not NAME.fullmatch(name):
        raise ValueError(
            f"expected the name of a stream, 1 to 64 of letters, digits, '.', '_' and '-' with a letter, a digit or '_' "
            f"first, got {name[:80]!r}"
        )
    return name


def folder_of(name: str) -> str:
    """Name of the folder of a stream, also where the file system ignores case.

    >>> folder_of("Hall.2"), name_of("+hall.2")
    ('+hall.2', 'Hall.2')
    """
    return "".join(f"+{c.lower()}" if c.isupper() else c for c in check_stream(name))


def name_of(folder: str) -> str | None:
    """Name of the stream that a folder belongs to; None if it belongs to none."""
    if folder.islower() and NAME.fullmatch(folder):  # as most are
        return folder
    name = re.sub(r"\+([a-z])", lambda found: found[1].upper(), folder)
    return name if NAME.fullmatch(name) and folder_of(name) == folder else None


@dataclass
class Counts:
    """Counts of a stream, in samples, since it began.

    Attributes:
        requests: requests, not samples.
        learned: samples of requests that moved the state.
        shed: samples that were answered without learning because a deadline would have been missed.
        unlearned: samples that were answered without learning because learning was off.
        caught_up: shed samples that were learned later.
        refused: samples without an answer.
        quarantined: samples that were answered and never learned from.
    """

    requests: int = 0
    learned: int = 0
    shed: int = 0
    unlearned: int = 0
    caught_up: int = 0
    refused: int = 0
    quarantined: int = 0


@dataclass(frozen=True)
class StreamStatus:
    """What a stream is and has done.

    Attributes:
        stream: name.
        offset: number of samples so far.
        step: steps of its adapter.
        state: hash of its state, 16 hexadecimal digits.
        paused: whether learning is off.
        serving: model that answered the last request: "adapter", "bn" or "source".
        configuration: hash of the configuration that serves it.
        counts: counts, see :class:`Counts`.
        snapshots: number of acknowledged snapshots that are kept.
        snapshot: number of the last one; None without.
        snapshot_offset: its offset.
        pending: samples that are to be learned later.
        bytes: size of its state in memory.
        error: the last failure of a snapshot or of the audit log; empty if the last attempt succeeded.
    """

    stream: str
    offset: int
    step: int
    state: str
    paused: bool
    serving: str
    configuration: str
    counts: Counts
    snapshots: int
    snapshot: int | None
    snapshot_offset: int | None
    pending: int
    bytes: int
    error: str

    @classmethod
    def of(cls, one: Stream, infos: Sequence[SnapshotInfo], size: int) -> StreamStatus:
        """The status of a stream.

        Args:
            one: the stream.
            infos: its acknowledged snapshots, oldest first.
            size: bytes of its state in memory.
        """
        return cls(
            stream=one.name,
            offset=one.offset,
            step=one.step,
            state=one.hash,
            paused=one.paused,
            serving=one.serving,
            configuration=one.configuration,
            counts=replace(one.counts),
            snapshots=len(infos),
            snapshot=infos[-1].number if infos else None,
            snapshot_offset=infos[-1].offset if infos else None,
            pending=sum(late.admitted for late in tuple(one.backlog)),
            bytes=size,
            error=one.error,
        )


@dataclass(frozen=True)
class Late:
    """Samples that are to be learned later.

    Attributes:
        offset: place of their request in the stream.
        x: the admitted samples, a copy.
        digests: digest of each.
    """

    offset: int
    x: Tensor
    digests: tuple[bytes, ...]

    @property
    def admitted(self) -> int:
        """Number of samples."""
        return len(self.digests)

    def without(self, known: Collection[bytes]) -> Late:
        """Leave out the samples whose digests are known: copies of them were learned from meanwhile."""
        rows = [i for i, digest in enumerate(self.digests) if digest not in known]
        if len(rows) == self.admitted:
            return self
        return Late(self.offset, self.x[rows], tuple(self.digests[i] for i in rows))


@dataclass
class Stream:
    """A stream while its session is open.

    Attributes:
        name: name.
        configuration: hash of the configuration that its state belongs to.
        state: moving tensors, by name where they came from elsewhere; None while the adapter holds it.
        ranges: range of the inputs of each adapter in the tree, by name.
        offset: number of samples so far.
        step: steps of its adapter.
        hash: hash of the state, 16 hexadecimal digits.
        paused: whether learning is off.
        healthy: whether no guard undid anything since the last snapshot.
        judged: samples that the adapter took a step on since the last snapshot.
        fallen: those of them that the shipped model answered.
        recent: digests of the samples that were admitted last.
        history: records of the last requests.
        backlog: samples to be learned later, oldest first.
        saved_step: step of the adapter when the last snapshot was captured.
        saved_offset: offset of the last acknowledged snapshot; -1 without.
        saved_hash: hash of the state in it.
        used: monotonic time of the last request.
        leaving: whether it leaves the memory once its state is durable, unless a request comes before.
        writing: number of snapshots that are captured and not written yet.
        gone: whether it was forgotten, or left the memory; a request that waited for it begins again.
    """

    name: str
    configuration: str
    state: Parked | dict[str, Tensor] | None
    ranges: Ranges
    recent: deque[bytes]
    history: deque[dict[str, Any]]
    backlog: deque[Late] = field(default_factory=deque)
    hash: str = ""
    offset: int = 0
    step: int = 0
    paused: bool = False
    serving: str = "adapter"
    healthy: bool = True
    judged: int = 0
    fallen: int = 0
    counts: Counts = field(default_factory=Counts)
    saved_step: int = 0
    saved_offset: int = -1
    saved_hash: str = ""
    used: float = 0.0
    leaving: bool = False
    writing: int = 0
    error: str = ""
    gone: bool = False
    lock: threading.RLock = field(default_factory=threading.RLock)

    def postpone(self, x: Tensor, screening: Screening, most: int) -> None:
        """Keep a copy of the admitted samples of a request, which are to be learned later; the oldest leave for new ones.

        Args:
            x: samples (N, ...).
            screening: findings of the gate.
            most: number of samples that may wait.
        """
        rows = screening.admitted
        if not rows or len(rows) > most:
            return
        self.backlog.append(Late(self.offset, x[rows].detach(), tuple(screening.digests[i] for i in rows)))
        while sum(late.admitted for late in self.backlog) > most:
            self.backlog.popleft()

    @property
    def sound(self) -> bool:
        """Whether a snapshot of now is healthy: nothing was undone, and the shipped model answered at most half."""
        return self.healthy and self.fallen <= FALLEN * self.judged

    @property
    def saved(self) -> bool:
        """Whether the last snapshot is acknowledged, and the present state."""
        return not self.writing and (self.saved_offset, self.saved_hash) == (self.offset, self.hash)

    def facts(self) -> dict[str, Any]:
        """What a snapshot holds beside the state, in values of JSON."""
        return {
            "stream": self.name,
            "configuration": self.configuration,
            "offset": self.offset,
            "step": self.step,
            "state": self.hash,
            "healthy": self.sound,
            "serving": self.serving,
            "ranges": {k: None if v is None else list(v) for k, v in self.ranges.items()},
            "counts": asdict(self.counts),
        }
