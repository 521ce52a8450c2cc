"""Settings of Ray for machines on which a process takes minutes to start; imported before ray, which reads them then."""

import os

PATIENCE = {
    "RAY_worker_register_timeout_seconds": "600",
    "RAY_gcs_server_request_timeout_seconds": "300",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "300",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "300",
}
START = 300  # seconds until the proxy of Ray Serve answers; Ray has no setting for it

for name, value in PATIENCE.items():
    os.environ.setdefault(name, value)
