"""Structured logs: one JSON object a line, through ``logging``; neither tokens nor inputs are in them."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any, Literal

__all__ = ["LOGGER", "JsonFormatter", "log", "write_logs"]

LOGGER = logging.getLogger("testtime.serve")
PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


class JsonFormatter(logging.Formatter):
    """Format records as JSON: time (UTC), level, logger, event, and what the record carries beside.

    >>> record = logging.makeLogRecord({"msg": "request", "levelname": "INFO", "name": "testtime.serve", "status": 200})
    >>> json.loads(JsonFormatter().format(record))["status"]
    200
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line of JSON."""
        then = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{then}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        line |= {name: value for name, value in vars(record).items() if name not in PLAIN}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def log(level: int, event: str, **facts: Any) -> None:
    """Log an event of the server with its facts.

    Args:
        level: level of :mod:`logging`.
        event: name of the event.
        facts: values that JSON has.
    """
    LOGGER.log(level, event, extra=facts)


def write_logs(form: Literal["json", "text"], level: int) -> None:
    """Write the log lines and warnings of the process on standard error.

    Args:
        form: form of the lines.
        level: least level of :mod:`logging` that is written.
    """
    handler = logging.StreamHandler(sys.stderr)
    plain = logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s")
    handler.setFormatter(JsonFormatter() if form == "json" else plain)
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    logging.captureWarnings(True)
