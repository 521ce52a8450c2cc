"""The values that the page shows, as OpenAPI describes them."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field

from testtime.serve.gate import png_bytes

if TYPE_CHECKING:
    from testtime.serve.gate import Held
    from testtime.serve.server.served import Configuration
    from testtime.serve.shadow import Shadow

__all__ = [
    "EventView",
    "HeldView",
    "HistoryView",
    "RecordView",
    "ShadowView",
    "held_view",
    "record_view",
    "shadow_view",
]


class EventView(BaseModel):
    """What a guard did."""

    kind: str = Field(description="skip, restore, partial_reset, fallback, recover or alarm")
    reason: str
    step: int


class RecordView(BaseModel):
    """A request of a stream."""

    time: float = Field(description="seconds since 1970")
    offset: int = Field(description="number of samples of the stream before it")
    samples: int
    learned: bool = Field(description="whether the state moved")
    skipped: str = Field(
        description="why nothing was learned: deadline, paused, asked, audit; otherwise empty"
    )
    serving: str = Field(description="whose answer it got: adapter, bn or source")
    refused: int = Field(description="samples without an answer")
    quarantined: int = Field(description="samples that were answered and not learned from")
    moved: float | None = Field(
        description="distance by which the adapted parameters moved; null without a step"
    )
    distance: float | None = Field(description="their distance from those of the shipped model")
    diagnostics: dict[str, float | None] = Field(description="estimates of the guards; null where unknown")
    events: list[EventView]


class HeldView(BaseModel):
    """A sample that was refused, or answered and not learned from."""

    offset: int = Field(description="its place in the stream")
    time: float = Field(description="seconds since 1970")
    reason: str
    digest: str = Field(description="digest of its values, hexadecimal")
    refused: bool = Field(description="whether it was refused; otherwise it was answered")
    image: str | None = Field(description="PNG file in base64; null unless the session keeps pixels")


class HistoryView(BaseModel):
    """The last requests of a stream, oldest first, and its last samples that were held back."""

    stream: str
    model: str
    records: list[RecordView]
    held: list[HeldView]


class CandidateView(BaseModel):
    """A method that runs in shadow; its answers are never served."""

    name: str
    method: str
    options: dict[str, Any]
    guarded: bool
    accuracy: float | None = Field(description="estimated accuracy in percent; null before a judgement")
    agreement: float | None = Field(description="agreement with the shipped model in percent")
    milliseconds: float | None = Field(description="median duration of a batch")
    alarms: list[str] = Field(description="reasons against it")
    error: str = Field(description="why it was stopped; empty if it runs")


class ShadowView(BaseModel):
    """What is known about other methods, from a share of the traffic."""

    running: bool
    stream: str | None = Field(default=None, description="the stream whose images they get")
    share: float = Field(default=0.0, description="share of its requests")
    images: int = Field(default=0, description="images that the judgement rests on")
    needed: int = Field(default=0, description="images for a first judgement")
    dropped: int = Field(default=0, description="images that were left out because the server was busy")
    serving: str | None = Field(default=None, description="name of the candidate that serves")
    recommended: str | None = Field(
        default=None, description="name of the recommended one; null before a judgement"
    )
    reasons: list[str] = Field(default_factory=list)
    candidates: list[CandidateView] = Field(default_factory=list)


def record_view(record: Mapping[str, Any]) -> RecordView:
    """Return a record of :meth:`testtime.serve.Session.history` as the page gets it."""
    diagnostics = {name: _finite(value) for name, value in record["diagnostics"].items()}
    numbers = {name: _finite(record.get(name)) for name in ("moved", "distance")}
    known = {name: record[name] for name in RecordView.model_fields if name in record}
    return RecordView(**{**known, **numbers, "diagnostics": diagnostics})


def held_view(held: Held) -> HeldView:
    """Return a sample in quarantine as the page gets it."""
    pixels = held.pixels
    shown = pixels is not None and pixels.dim() == 3 and len(pixels) in (1, 3)
    image = base64.b64encode(png_bytes(pixels)).decode() if shown and pixels is not None else None
    return HeldView(
        offset=held.offset,
        time=held.time,
        reason=held.reason,
        digest=held.digest,
        refused=held.refused,
        image=image,
    )


def shadow_view(
    shadow: Shadow, configurations: Mapping[str, Configuration], serving: str | None
) -> ShadowView:
    """Return what is known of the candidates as the page gets it."""
    found = shadow.judgement
    judged = {} if found.advice is None else {one.name: one for one in found.advice.candidates}
    candidates = []
    for name, one in configurations.items():
        about = judged.get(name)
        candidates.append(
            CandidateView(
                name=name,
                method=one.method,
                options=dict(one.options),
                guarded=one.guarded,
                accuracy=None if about is None else _finite(about.accuracy),
                agreement=None if about is None else _finite(about.agreement),
                milliseconds=None if about is None else _finite(about.milliseconds),
                alarms=[] if about is None else list(about.alarms),
                error=found.errors.get(name, ""),
            )
        )
    return ShadowView(
        running=True,
        stream=found.stream,
        share=shadow.share,
        images=found.images,
        needed=shadow.least,
        dropped=found.dropped,
        serving=serving,
        recommended=None if found.advice is None else found.advice.name,
        reasons=[] if found.advice is None else list(found.advice.reasons),
        candidates=candidates,
    )


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)
