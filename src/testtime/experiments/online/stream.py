"""The stream of a unit, from its parameters and places; ``model NAME`` among them is an own file of weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from testtime.data.places import Places, image_size, images_of
from testtime.experiments import Workspace
from testtime.models import OpenedModel, open_model
from testtime.streams import CCCStream, Difficulty, Stream, clean, open_set, recorded
from testtime.streams.cache import cached, missing, render
from testtime.streams.named import ORDERS, corrupted_domains

__all__ = ["cached_stream", "difficulty", "make_stream", "render_images", "source_model"]

CCC_STEPS = 2  # of a wandering stream, from one severity to the next


def source_model(name: str, places: Places) -> OpenedModel:
    """Open a source model, see :func:`testtime.models.open_model`."""
    return open_model(places.get(f"model {name}", name), places["data"])


def difficulty(closed: str, model: str, places: Places, cache: Path | None = None) -> Difficulty:
    """Return the accuracy of a source model on blends of two corruptions of a closed set.

    What was measured before comes with the package (``scripts/measure_difficulty.py`` wrote it); the rest is measured when it
    is asked for, and kept in the cache.
    """
    found, images = source_model(model, places), images_of(closed, places)
    file = resources.files(__package__) / "difficulties" / f"{closed}-{model}.json"
    known = json.loads(file.read_text()) if file.is_file() and f"model {model}" not in places else {}
    kept = None if cache is None else cache / f"difficulty-{images.digest()[:12]}-{found.digest[:12]}.json"
    return Difficulty(known, found.model, images, file=kept)


def make_stream(p: Mapping[str, Any], places: Places, limit: int | None, cache: Path | None = None) -> Stream:
    """Build the stream of a unit.

    The corrupted images are those of one fixed set, as the published sets are; the seed draws their order, and which of them
    where there is a limit.

    Args:
        p: parameters of the unit.
        places: its places.
        limit: known images of each domain; None takes all.
        cache: folder for what is measured for a wandering stream.
    """
    images = images_of(p["closed"], places, p.get("skip_damaged", False))
    size = image_size(p["closed"], p["side"])
    if p["order"] == "recorded":
        return recorded(clean(images, size), p["batch_size"])
    if p["order"] == "wandering":
        measured = difficulty(p["closed"], p["model"], places, cache)
        facts = p["target"], p["pace"], p["batch_size"], tuple(p["corruptions"]), CCC_STEPS, p["seed"]
        count = (limit or len(images)) * len(p["corruptions"]) * p["rounds"]
        stream = CCCStream(images, measured, *facts).first(-(-count // p["batch_size"]))
    else:
        order = ORDERS[p["order"]]
        pairs = [(kind, level) for kind in p["corruptions"] for level in order.severities or (p["severity"],)]
        made = [corrupted_domains(p["closed"], places, [kind], level, size)[0][0] for kind, level in pairs]
        whole = made * p["rounds"] + ([clean(images, size)] if p.get("returns") else [])
        assert order.create is not None
        stream = order.create(None, whole, batch_size=p["batch_size"], limit=limit, seed=p["seed"])
    if p["open_set"] is None:
        return stream
    return open_set(stream, images_of(p["open_set"], places), p["ratio"])


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
