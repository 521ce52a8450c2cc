"""Settings of Ray for machines on which a process takes minutes to start; imported before ray, which reads them then."""

import os
import socket
import time
from contextlib import ExitStack
from importlib import import_module
from types import SimpleNamespace

PATIENCE = {
    "RAY_agent_register_timeout_ms": "300000",
    "RAY_worker_register_timeout_seconds": "600",
    "RAY_gcs_server_request_timeout_seconds": "300",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "300",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "300",
}
SLOWER = 10
PORTS = ("metrics_agent_port", "metrics_export_port", "runtime_env_agent_port", "dashboard_agent_listen_port")

for name, value in PATIENCE.items():
    os.environ.setdefault(name, value)


def wait_longer() -> None:
    """Let a node start within 300 s and the proxy of Ray Serve within 600; Ray has no settings for its 30 and 60."""
    clock = SimpleNamespace(**{**vars(time), "monotonic": lambda: time.monotonic() / SLOWER})
    import_module("ray._private.node").time = clock  # type: ignore[attr-defined]
    import_module("ray.serve._private.api").HTTP_PROXY_TIMEOUT = 60 * SLOWER  # type: ignore[attr-defined]


def ports() -> dict[str, int]:
    """Free ports for a node: where it has to choose them, it ends if its agent does not say within 15 s which they are."""
    with ExitStack() as stack:
        found = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in PORTS]
        return dict(zip(PORTS, (one.getsockname()[1] for one in found), strict=True))
