"""Metrics for Prometheus, in a registry of the server's own; the number of their series is bounded."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.process_collector import ProcessCollector

if TYPE_CHECKING:
    from testtime.serve import Answer
    from testtime.serve.mirror import Mirror

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
VALUES = 32  # values of a label that comes from inputs; further ones are "other"
METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"))
OTHER = "other"


class Metrics:
    """Counters, histograms and gauges of a server.

    Args:
        streams: number of streams with series of their own; the others share "other".
    """

    def __init__(self, streams: int) -> None:
        self.streams = streams
        self.registry = CollectorRegistry(auto_describe=True)
        ProcessCollector(registry=self.registry)
        own: dict[str, Any] = {"registry": self.registry, "namespace": "testtime"}
        self._requests = Counter("requests", "Requests answered", ("route", "method", "status"), **own)
        self._seconds = Histogram("request_seconds", "Time of a request", ("route",), buckets=SECONDS, **own)
        self._refused = Counter("requests_refused", "Requests refused", ("reason",), **own)
        self._samples = Counter("samples", "Samples by what became of them", ("stream", "outcome"), **own)
        self._gate = Counter("samples_refused", "Samples that the gate refused", ("reason",), **own)
        self._answers = Counter("answers", "Answered batches", ("stream", "serving", "adapted"), **own)
        self._shed = Counter(
            "adaptation_shed", "Batches answered from the last state", ("stream", "reason"), **own
        )
        self._events = Counter("guard_events", "Events of the guards", ("stream", "kind"), **own)
        self._waited = Histogram("queue_seconds", "Time in the queue of the model", buckets=SECONDS, **own)
        self._queue = Gauge("queue_length", "Requests that wait for the model", **own)
        self._changes = Counter("configuration_changes", "Changes of the configuration", ("result",), **own)
        self._actions = Counter("stream_actions", "Management of streams", ("action",), **own)
        self._count = Gauge("streams", "Streams with a state", **own)
        self._estimates = Gauge(
            "estimate", "Estimates of the last step of a stream", ("stream", "name"), **own
        )
        self._alarms = Gauge("alarm", "Whether the alarm on shadow traffic is raised", ("stream",), **own)
        self._copied = Gauge("mirror_snapshots", "Snapshots that were copied to the mirror", **own)
        self._failing = Gauge("mirror_failing", "Whether the last copy to the mirror failed", **own)
        self._lock = threading.Lock()
        self._labels: dict[str, set[str]] = {}
        self._seen: dict[str, int] = {}  # offset of the last record of each stream that was counted

    # Requests ---------------------------------------------------------------------------------------------------------

    def answered(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count a request and its time; route is the route's pattern, not the path."""
        method = method if method in METHODS else OTHER
        self._requests.labels(route, method, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def refused(self, reason: str) -> None:
        """Count a request that was refused, by the code of its problem."""
        self._refused.labels(self._bounded("reason", reason, 4 * VALUES)).inc()

    # Streams ----------------------------------------------------------------------------------------------------------

    def samples(self, stream: str, answer: Answer, waited: float) -> None:
        """Count the samples of an answer.

        Args:
            stream: identity of the stream.
            answer: the answer.
            waited: time in the queue, in seconds.
        """
        label, admitted = self._stream(stream), 0
        for reason in answer.refused:
            if reason is None:
                admitted += 1
                continue
            self._samples.labels(label, "refused").inc()
            word = reason.partition(":")[0].partition(";")[0].strip()[:60]
            self._gate.labels(self._bounded("gate", word, VALUES)).inc()
        self._samples.labels(label, "adapted" if answer.adapted else "answered").inc(admitted)
        self._answers.labels(label, answer.serving, str(answer.adapted).lower()).inc()
        if answer.skipped:
            self._shed.labels(label, self._bounded("skipped", answer.skipped, VALUES)).inc()
        self._waited.observe(waited)

    def events(self, stream: str, history: Sequence[Mapping[str, Any]]) -> None:
        """Count events of the guards of a stream.

        Args:
            stream: identity of the stream.
            history: records of its last requests, oldest first; those that were counted before are left out.
        """
        with self._lock:
            seen = self._seen.get(stream, -1)
            new = [record for record in history if record["offset"] > seen]
            if new:
                self._seen[stream] = new[-1]["offset"]
        for event in (event for record in new for event in record["events"]):
            self.event(stream, event["kind"])

    def event(self, stream: str, kind: str) -> None:
        """Count an event of the guards, or an alarm on shadow traffic."""
        self._events.labels(self._stream(stream), self._bounded("kind", kind, VALUES)).inc()

    def forget(self, stream: str) -> None:
        """Remove the series of a stream that was deleted."""
        with self._lock:
            self._seen.pop(stream, None)
            self._labels.get("stream", set()).discard(stream)
        for family in (self._samples, self._answers, self._shed, self._events):
            family.remove_by_labels({"stream": stream})

    def changed(self, result: str) -> None:
        """Count a change of the configuration: "accepted" or "refused"."""
        self._changes.labels(result).inc()

    def action(self, name: str) -> None:
        """Count an action of management: "snapshot", "rollback", "pause", "resume" or "delete"."""
        self._actions.labels(name).inc()

    def text(
        self,
        streams: int,
        waiting: int,
        estimates: Mapping[str, Mapping[str, float]],
        alarms: Mapping[str, bool] | None = None,
        mirror: Mirror | None = None,
    ) -> bytes:
        """Return all metrics in the text format of Prometheus.

        Args:
            streams: number of streams.
            waiting: number of requests that wait for the model.
            estimates: estimates by name, for the streams with series of their own.
            alarms: whether the alarm on shadow traffic is raised, for the same streams; None without alarms.
            mirror: mirror of the snapshots; None without.
        """
        with self._lock:
            self._count.set(streams)
            self._queue.set(waiting)
            if mirror is not None:
                self._copied.set(mirror.copied)
                self._failing.set(bool(mirror.error))
            self._estimates.clear()
            self._alarms.clear()
            for stream, raised in (alarms or {}).items():
                self._alarms.labels(stream).set(raised)
            for stream, values in estimates.items():
                for name, value in values.items():
                    self._estimates.labels(stream, name).set(math.nan if value is None else value)
            return generate_latest(self.registry)

    def labelled(self, streams: Iterable[str]) -> list[str]:
        """Return the streams that have series of their own."""
        return [stream for stream in streams if self._stream(stream) == stream]

    def _stream(self, stream: str) -> str:
        return self._bounded("stream", stream, self.streams)

    def _bounded(self, label: str, value: str, most: int) -> str:
        """The value, or "other" when there are already so many of the label."""
        with self._lock:
            known = self._labels.setdefault(label, set())
            if value not in known and len(known) >= most:
                return OTHER
            known.add(value)
            return value
