"""What a session notes of a request: counts, history, quarantine and the record in the audit log."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from testtime.adapter import Adapter
from testtime.serve.audit import LONGEST, Audit
from testtime.serve.engine import Answer
from testtime.serve.gate import Quarantine, Screening
from testtime.serve.streams import Late, Stream

__all__ = ["Recorder", "check_note", "digest_of"]

OWN = frozenset(
    {"open", "close", "continued", "left out", "configure", "forget", "resume", "unload", "pause", "unpause"}
    | {"learn", "answer", "catch up", "rollback", "rollback failed", "snapshot", "snapshot failed", "damaged"}
)
"""Events that a session notes itself, and that a replay may read."""
CHAINED = ("seq", "time", "event", "hash")  # entries that every record has
UNHEALTHY = ("restore", "partial_reset", "alarm")
"""Events of a guard after which the state was not good; a fallback of a batch is how a guard does its work."""


class Recorder:
    """Notes requests.

    Args:
        audit: the audit log.
        quarantine: samples that were not learned from.
        now: time in seconds since 1970.
    """

    def __init__(self, audit: Audit, quarantine: Quarantine, now: Callable[[], float]) -> None:
        self._audit, self._quarantine, self._now = audit, quarantine, now

    def note(
        self, one: Stream, x: Tensor, screening: Screening, answer: Answer, adapter: Adapter, **more: Any
    ) -> None:
        """Note a request that was answered.

        Args:
            one: its stream.
            x: the samples (N, ...).
            screening: findings of the gate.
            answer: the answer.
            adapter: the adapter; its ``events`` and ``diagnostics``, which guards have, are noted too.
            more: further entries of the record.
        """
        size, now, counts = len(screening.admitted), self._now(), one.counts
        self._quarantine.note(screening, x, one.name, one.offset, now)
        events = [_event(event) for event in getattr(adapter, "events", ())] if answer.adapted else []
        refused = sum(reason is not None for reason in answer.refused)
        quarantined = sum(reason is not None for reason in screening.quarantined)
        counts.requests += 1
        counts.refused += refused
        counts.quarantined += quarantined
        counts.learned += size if answer.learned else 0
        counts.shed += size if answer.skipped == "deadline" else 0
        counts.unlearned += size if answer.skipped not in ("", "deadline") else 0
        one.offset, one.serving = one.offset + len(x), answer.serving
        one.healthy = one.healthy and not any(event["kind"] in UNHEALTHY for event in events)
        if answer.adapted:
            one.judged += size
            one.fallen += size if answer.serving == "source" else 0
        record: dict[str, Any] = {
            "stream": one.name,
            "offset": answer.offset,
            "samples": len(x),
            "digest": screening.digest,
            "admitted": size,
            "refused": refused,
            "quarantined": quarantined,
            "learned": answer.learned,
            "skipped": answer.skipped,
            "serving": answer.serving,
            "answer": digest_of(answer.logits),
            "state": answer.state,
            **more,
        }
        if events:
            record["events"] = events
        self._audit.add("learn" if answer.adapted else "answer", **record)
        diagnostics = {k: float(v) for k, v in getattr(adapter, "diagnostics", {}).items()}
        one.history.append(
            {
                "time": now,
                **record,
                "adapted": answer.adapted,
                "events": events,
                "diagnostics": diagnostics if answer.adapted else {},
            }
        )

    def note_late(
        self, one: Stream, late: Late, waiting: int, learned: bool, moved: float, distance: float
    ) -> None:
        """Note that the adapter took its step on samples later than they were answered.

        Args:
            one: their stream.
            late: the samples.
            waiting: number of samples that waited; those left out repeat samples that were learned meanwhile.
            learned: whether the state moved.
            moved: distance that the adapted parameters moved.
            distance: their distance from the shipped model's.
        """
        repeated = waiting - late.admitted
        one.counts.quarantined += repeated
        one.counts.caught_up += late.admitted if learned else 0
        one.counts.learned += late.admitted if learned else 0
        record = {
            "stream": one.name,
            "offset": late.offset,
            "samples": late.admitted,
            "repeated": repeated,
            "learned": learned,
            "moved": moved,
            "distance": distance,
            "state": one.hash,
        }
        self._audit.add("catch up", **record)


def check_note(event: Any, facts: Mapping[str, Any]) -> None:
    """Check a record that a caller adds to the audit log.

    Raises:
        TypeError: the event is no text, or a fact has no form in JSON.
        ValueError: the event or the name of a fact is one of the session's own, or the record is too long.
    """
    if not isinstance(event, str):
        raise TypeError(f"expected the name of an event as a text, got {type(event).__name__}")
    if event in OWN:
        raise ValueError(f"{event!r} is an event that the session notes itself; choose another name")
    if taken := [name for name in CHAINED if name in facts]:
        raise ValueError(f"every record has its own {taken[0]!r}; give that fact another name")
    try:
        text = json.dumps({"event": event, **facts}, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"expected facts that JSON can hold, such as finite numbers and texts ({error})"
        ) from error
    if len(text) > LONGEST // 2:
        raise ValueError(f"expected a record of at most {LONGEST // 2} characters, got {len(text)}")


def digest_of(logits: Tensor) -> str:
    """Digest of the logits of an answer, 16 hexadecimal digits."""
    plain = logits.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.blake2b(plain.data, digest_size=8).hexdigest()


def _event(event: Any) -> dict[str, Any]:
    return {name: getattr(event, name, None) for name in ("kind", "reason", "step")}
