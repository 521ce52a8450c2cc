"""The server: the Open Inference Protocol and images of streams over HTTP, with tokens, limits, metrics and logs.

It needs ``testtime[serve]``.
"""

from typing import TYPE_CHECKING

from testtime.errors import need_packages
from testtime.lazy import lazily

if TYPE_CHECKING:
    from testtime.serve.server.app import create_app
    from testtime.serve.server.logs import JsonFormatter
    from testtime.serve.server.opening import open_served, open_session, session_options
    from testtime.serve.server.options import Limits, ServerOptions
    from testtime.serve.server.running import listening, run
    from testtime.serve.server.served import Configuration, ServedModel
    from testtime.serve.server.tokens import Tokens

__all__ = [
    "Configuration",
    "JsonFormatter",
    "Limits",
    "ServedModel",
    "ServerOptions",
    "Tokens",
    "create_app",
    "listening",
    "open_served",
    "open_session",
    "run",
    "session_options",
]

need_packages(fastapi="serve", uvicorn="serve", prometheus_client="serve", PIL="serve")

__getattr__, __dir__ = lazily(
    __name__,
    {
        "app": "create_app",
        "logs": "JsonFormatter",
        "opening": "open_served open_session session_options",
        "options": "Limits ServerOptions",
        "running": "listening run",
        "served": "Configuration ServedModel",
        "tokens": "Tokens",
    },
)
