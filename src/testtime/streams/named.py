"""Streams by the names of their parts: an order of arrival, and the corrupted versions of a data set."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from testtime.data.cifar import cifar_c
from testtime.data.folders import imagenet_c
from testtime.data.imageset import Size
from testtime.data.places import Places, images_of
from testtime.streams.domain import Domain, corrupted, fingerprint, published
from testtime.streams.orders import GRADUAL_SEVERITIES, continual, correlated, label_shift, mixed
from testtime.streams.stream import Stream

__all__ = ["ORDERS", "Order", "corrupted_domains"]

PUBLISHED = {"cifar10": "CIFAR-10-C", "cifar100": "CIFAR-100-C", "imagenet": "ImageNet-C"}


@dataclass(frozen=True)
class Order:
    """An order in which the images of a stream arrive.

    Args:
        about: description; {corruptions}, {severity}, {times} and {target} stand for those of the stream.
        create: function that creates the stream of domains, such as :func:`testtime.streams.continual`; None where the
            domains are blends.
        severities: severities of each corruption; empty for the one of the stream.
        in_turn: whether one domain arrives after the other.
    """

    about: str
    create: Callable[..., Stream] | None
    severities: tuple[int, ...] = ()
    in_turn: bool = True


AFTER = "{corruptions} of severity {severity}{times}, one after the other"
JOINED = "{corruptions} of severity {severity}{times}, shuffled into one"
RISING = "{corruptions}{times}, one after the other, whose severity rises from 1 to 5 and falls again"
BLENDS = (
    "blends of two of {corruptions} whose severities change all the time, such that the source model is right in "
    "about {target} %"
)
BY_CLASS = ", the images of a class in succession"
ORDERS = {
    "continual": Order(AFTER, continual),
    "gradual": Order(RISING, continual, GRADUAL_SEVERITIES),
    "mixed": Order(JOINED, mixed, in_turn=False),
    "correlated": Order(AFTER + BY_CLASS, correlated),
    "mixed-correlated": Order(JOINED + BY_CLASS, partial(correlated, together=True), in_turn=False),
    "label-shift": Order(f"{AFTER}, in each of which every class dominates for a time", label_shift),
    "wandering": Order(BLENDS, None, in_turn=False),
}
"""Orders of arrival by name; "wandering" is a :class:`testtime.streams.CCCStream`."""


def corrupted_domains(
    closed: str, places: Places, corruptions: Sequence[str], severity: int, size: Size | None
) -> tuple[list[Domain], str]:
    """Return the corrupted versions of a closed set, and where they are from.

    A published -C folder below the data folder is used where there is one ("published"); otherwise our corruptions make
    them ("ours-" and a fingerprint of what the corruptions do).
    """
    jpeg, folder = closed == "imagenet", Path(places["data"]) / PUBLISHED.get(closed, "-")
    if folder.is_dir() and f"set {closed}" not in places:
        read = imagenet_c if jpeg else cifar_c
        facts = {"arguments": {} if jpeg else {"dataset": closed}, "size": size, "jpeg": jpeg}
        return [published(read, folder, c, severity, **facts) for c in corruptions], "published"  # type: ignore[arg-type]
    images = images_of(closed, places)
    made = [corrupted(images, c, severity, size=size, jpeg=jpeg) for c in corruptions]
    marks = "".join(fingerprint(domain.condition) for domain in made)
    return made, f"ours-{hashlib.sha256(marks.encode()).hexdigest()[:8]}"
