"""The stream of a unit, from its parameters and places."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from testtime.adapter import Adapter
from testtime.experiments.online import sets
from testtime.experiments.store import Workspace
from testtime.streams import (
    GRADUAL_SEVERITIES,
    Batch,
    CCCStream,
    Stream,
    clean,
    continual,
    correlated,
    label_shift,
    mixed,
    open_set,
    recorded,
)
from testtime.streams.cache import cached, missing, render

__all__ = ["ORDERS", "cached_stream", "make_stream", "render_images", "reset_by_visit"]

CCC_STEPS = 2  # of a wandering stream, from one severity to the next
ARRIVALS: dict[str, Callable[..., Stream]] = {
    "continual": continual,
    "gradual": continual,  # with GRADUAL_SEVERITIES
    "mixed": mixed,
    "correlated": correlated,
    "mixed-correlated": partial(correlated, together=True),
    "label-shift": label_shift,
}
ORDERS = (*ARRIVALS, "wandering")


def make_stream(
    p: Mapping[str, Any], places: sets.Places, limit: int | None, cache: Path | None = None
) -> Stream:
    """Build the stream of a unit.

    The corrupted images are those of one fixed set, as the published sets are; the seed draws their order, and which of them
    where there is a limit.

    Args:
        p: parameters of the unit.
        places: its places.
        limit: known images of each domain; None takes all.
        cache: folder for what is measured for a wandering stream.
    """
    images = sets.images_of(p["closed"], places, p.get("skip_damaged", False))
    size = sets.image_size(p["closed"], p["side"])
    if p["order"] == "recorded":
        return recorded(clean(images, size), p["batch_size"])
    if p["order"] == "wandering":
        difficulty = sets.difficulty(p["closed"], p["model"], places, cache)
        facts = p["target"], p["pace"], p["batch_size"], tuple(p["corruptions"]), CCC_STEPS, p["seed"]
        count = (limit or len(images)) * len(p["corruptions"]) * p["rounds"]
        stream = CCCStream(images, difficulty, *facts).first(-(-count // p["batch_size"]))
    else:
        severities = GRADUAL_SEVERITIES if p["order"] == "gradual" else (p["severity"],)
        pairs = [(corruption, severity) for corruption in p["corruptions"] for severity in severities]
        made = [sets.domains(p["closed"], places, [c], severity, size)[0][0] for c, severity in pairs]
        whole = made * p["rounds"] + ([clean(images, size)] if p.get("returns") else [])
        arrive = ARRIVALS[p["order"]]
        stream = arrive(None, whole, batch_size=p["batch_size"], limit=limit, seed=p["seed"])
    if p["open_set"] is None:
        return stream
    return open_set(stream, sets.images_of(p["open_set"], places), p["ratio"])


def render_images(work: Workspace) -> dict[str, Any]:
    """Corrupt the images of a stream, into the shared cache, before the units that show it run."""
    whole = make_stream(work.parameters, work.places, work.parameters["limit"], work.cache)
    tables = missing(whole, work.cache)
    for done, (index, path) in enumerate(tables, 1):
        if not path.exists():  # another unit may have made it in the meantime
            render(whole, index, work.cache)
        work.progress(done, len(tables))
    return {"images": whole.images, "batches": len(whole)}


def cached_stream(work: Workspace, limit: int | None) -> Stream:
    """Return the stream of a unit with its images in the shared cache, rendered ahead by one thread."""
    p = work.parameters
    whole, stream = (make_stream(p, work.places, n, work.cache) for n in (p["limit"], limit))
    return cached(stream, work.cache, whole).prefetch(1)


def reset_by_visit(adapter: Adapter, stream: Stream, start: int) -> Iterator[Batch]:
    """Pass on the batches from a number on; before the first of each visit the adapter is reset."""
    before = stream.plans[start - 1].visit if start else None
    for batch in stream.since(start):
        if batch.visit != before:
            adapter.reset()
        before = batch.visit
        yield batch
