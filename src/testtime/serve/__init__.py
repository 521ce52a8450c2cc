"""Serve an adapter in production: sessions with snapshots, rollback, an input gate, deadlines and an audit log.

Nothing here needs more than torch; the server needs ``testtime[serve]``.
"""

from typing import TYPE_CHECKING

from testtime.lazy import lazily

if TYPE_CHECKING:
    from testtime.serve.engine import Answer
    from testtime.serve.gate import GateOptions
    from testtime.serve.session import Session, SessionOptions
    from testtime.serve.snapshots import Retention, SnapshotInfo
    from testtime.serve.streams import StreamStatus

__all__ = [
    "Answer",
    "GateOptions",
    "Retention",
    "Session",
    "SessionOptions",
    "SnapshotInfo",
    "StreamStatus",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "engine": "Answer",
        "gate": "GateOptions",
        "session": "Session SessionOptions",
        "snapshots": "Retention SnapshotInfo",
        "streams": "StreamStatus",
    },
)
