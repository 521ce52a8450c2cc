"""Options of the server: what it serves, where, to whom, and within which limits."""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from testtime.serve.server.opening import Kept
from testtime.serve.server.served import Configuration, ServedModel
from testtime.serve.server.tokens import Tokens

if TYPE_CHECKING:
    from testtime.serve.alarms import StreamAlarms
    from testtime.serve.shadow import Shadow

__all__ = ["Limits", "ServerOptions", "check_access", "is_loopback"]


@dataclass(frozen=True)
class Limits:
    """Limits of requests; a request beyond one is refused before any work.

    Args:
        body: largest body of a request, in bytes; otherwise 413.
        batch: largest number of samples in a request; otherwise 413.
        pixels: largest number of pixels of an image, by its header, before memory is allocated; otherwise 413.
        batch_pixels: largest number of pixels of all images of a request, by their headers; otherwise 413.
        rate: requests per second of one client, on average; otherwise 429. None: no limit.
        burst: number of requests that a client may send at once.
        queue: largest number of requests that wait for the model; otherwise 503.
        wait: longest time that a request waits for the model, in seconds; otherwise 503.
        streams: largest number of streams; a request that would begin another gets 429.
        receive: longest time in which the header, and the body, of a request arrive, in seconds; otherwise 408.
        connections: largest number of open connections; otherwise 503.
        shutdown: longest time for the requests in progress when the server ends, in seconds.

    Raises:
        ValueError: a limit is not a number above 0.
    """

    body: int = 16 * 2**20
    batch: int = 256
    pixels: int = 9_000_000
    batch_pixels: int = 90_000_000
    rate: float | None = 1000.0
    burst: int = 2000
    queue: int = 64
    wait: float = 10.0
    streams: int = 1000
    receive: float = 15.0
    connections: int = 512
    shutdown: float = 20.0

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            value: Any = getattr(self, name)
            whole = isinstance(getattr(Limits, name), int)
            if value is None and name == "rate":
                continue
            kinds: tuple[type, ...] = (int,) if whole else (int, float)
            if type(value) not in kinds or not 0 < value < math.inf:
                kind = "whole number" if whole else "number"
                raise ValueError(f"Limits: expected {name} as a {kind} above 0, got {value!r}")


@dataclass(frozen=True)
class ServerOptions:
    """Options of :func:`testtime.serve.server.create_app`.

    Args:
        model: the model that is served.
        configuration: the configuration of the session's adapter.
        tokens: tokens of clients and of managers; without any, only this machine is answered.
        limits: limits of requests.
        host: address at which the server listens.
        deadline: time in which a request is to be answered if it names none, in seconds; the session sheds adaptation for it.
            None: no deadline.
        kept: file in which a change of the configuration is kept; None: it is not.
        candidates: configurations of the methods in shadow by name, among them the one that serves.
        shadow: the methods in shadow, running; None: there are none.
        alarms: the alarms on shadow traffic, running; None: there are none.
        labelled_streams: number of streams with series of their own in the metrics; the others share "other".

    Raises:
        ValueError: the host is no loopback address and there are no tokens, or a number is out of range.
    """

    model: ServedModel
    configuration: Configuration
    tokens: Tokens = field(default_factory=Tokens)
    limits: Limits = field(default_factory=Limits)
    host: str = "127.0.0.1"
    deadline: float | None = None
    kept: Kept | None = None
    candidates: Mapping[str, Configuration] = field(default_factory=dict)
    shadow: Shadow | None = None
    alarms: StreamAlarms | None = None
    labelled_streams: int = 50

    def __post_init__(self) -> None:
        check_access(self.host, self.tokens)
        if self.deadline is not None and not 0 < self.deadline < math.inf:
            raise ValueError(f"expected a deadline above 0 seconds, or None, got {self.deadline!r}")
        if self.labelled_streams < 0:
            raise ValueError(f"expected labelled_streams from 0, got {self.labelled_streams}")


def check_access(host: str, tokens: Tokens) -> None:
    """Refuse a server that other machines reach without a token.

    Raises:
        ValueError: the host is no loopback address and there are no tokens.
    """
    if tokens.use is None and not is_loopback(host):
        raise ValueError(
            f"the address {host} is reached from other machines, and there is no token; set TESTTIME_TOKEN (and "
            "TESTTIME_MANAGE_TOKEN for management), name files of them, or listen on 127.0.0.1"
        )


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone.

    >>> is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("localhost"), is_loopback("0.0.0.0")
    (True, True, True, False)
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
