"""Settings of a session."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import NoneType

from testtime.serve.checks import need_kinds, need_number, need_whole, refused_field
from testtime.serve.gate import GateOptions
from testtime.serve.snapshots import Retention

__all__ = ["SessionOptions"]


@dataclass(frozen=True)
class SessionOptions:
    """Settings of a session.

    Attributes:
        snapshot_every: steps of a stream between two snapshots; 0: only when asked, and when the session is closed.
        asynchronous: whether a thread writes the snapshots that are taken while serving.
        retention: which snapshots are kept.
        gate: settings of the input gate.
        history: number of requests of which a record is kept for each stream.
        streams: largest number of streams, those that are on the disk alone included.
        resident: largest number of streams whose state stays in memory; above it, the ones that were used first leave. While
            their snapshots are written, up to 16 more are in memory; then requests wait for the disk.
        idle: seconds without a request after which a stream leaves the memory, when another one is served; 0: never. Its state
            is then in its last snapshot alone, from which its next request continues bit for bit; its history is lost.
        backlog: number of samples of each stream that are kept in memory, to be learned later, where a deadline left no time;
            0: none. A resumed session has lost them.
        audit_rotate: bytes after which a new file of the audit log begins.
        audit_keep: number of files of the audit log that are kept; 0: all.
        mirror: URL of a folder to which acknowledged snapshots are copied by a thread, of any kind that fsspec knows
            (``testtime[fsspec]``); None: none. See :func:`testtime.serve.fetch_session`.
        model: name for :func:`testtime.models.load_model`, with which :meth:`Session.resume` finds the model by itself.
        clock: monotonic time in seconds, with which deadlines are kept.
        now: time in seconds since 1970.

    Raises:
        ValueError: a value is of another type, or out of range.
    """

    snapshot_every: int = 100
    asynchronous: bool = True
    retention: Retention = field(default_factory=Retention)
    gate: GateOptions = field(default_factory=GateOptions)
    history: int = 256
    streams: int = 1024
    resident: int = 1024
    idle: float = 0.0
    backlog: int = 0
    audit_rotate: int = 2**24
    audit_keep: int = 0
    mirror: str | None = None
    model: str | None = None
    clock: Callable[[], float] = field(default=time.monotonic, compare=False)
    now: Callable[[], float] = field(default=time.time, compare=False)

    def __post_init__(self) -> None:
        need_whole(
            self, snapshot_every=0, history=1, streams=1, resident=1, backlog=0, audit_rotate=1, audit_keep=0
        )
        need_number(self, "idle")
        need_kinds(
            self,
            {
                "asynchronous": bool,
                "retention": Retention,
                "gate": GateOptions,
                "mirror": (str, NoneType),
                "model": (str, NoneType),
            },
        )
        for name in ("clock", "now"):
            if not callable(getattr(self, name)):
                raise refused_field(self, name, "a function")
