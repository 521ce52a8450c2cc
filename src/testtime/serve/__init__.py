"""Serve an adapter in production: sessions with snapshots, rollback, an input gate, deadlines and an audit log.

Nothing here needs more than torch; the server needs ``testtime[serve]``.
"""

from testtime.lazy import lazily

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
