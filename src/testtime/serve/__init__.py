"""Serve an adapter in production: sessions with snapshots, rollback, an input gate, deadlines and an audit log.

The server (``testtime.serve.server``) and its clients need ``testtime[serve]``; the rest needs nothing more than torch.
"""

from typing import TYPE_CHECKING

from testtime.lazy import lazily

if TYPE_CHECKING:
    from testtime.serve.client import AsyncClient, Client
    from testtime.serve.engine import Answer
    from testtime.serve.gate import GateOptions, read_image
    from testtime.serve.guards import AlarmOptions, Guarded, ShadowAlarm
    from testtime.serve.mirror import fetch_session
    from testtime.serve.options import SessionOptions
    from testtime.serve.replaying import Replayed, replay, verify_session
    from testtime.serve.session import Session
    from testtime.serve.snapshots import Retention, SnapshotInfo
    from testtime.serve.streams import StreamStatus

__all__ = [
    "AlarmOptions",
    "Answer",
    "AsyncClient",
    "Client",
    "GateOptions",
    "Guarded",
    "Replayed",
    "Retention",
    "Session",
    "SessionOptions",
    "ShadowAlarm",
    "SnapshotInfo",
    "StreamStatus",
    "fetch_session",
    "read_image",
    "replay",
    "verify_session",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "client": "AsyncClient Client",
        "engine": "Answer",
        "gate": "GateOptions read_image",
        "guards": "AlarmOptions Guarded ShadowAlarm",
        "mirror": "fetch_session",
        "options": "SessionOptions",
        "replaying": "Replayed replay verify_session",
        "session": "Session",
        "snapshots": "Retention SnapshotInfo",
        "streams": "StreamStatus",
    },
)
