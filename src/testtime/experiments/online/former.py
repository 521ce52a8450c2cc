"""What is left of ``testtime.bench.sets`` and ``testtime.bench.protocols`` for one version; nothing here imports it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, SimpleNamespace

from testtime.data.places import image_size
from testtime.experiments.online import listing
from testtime.streams import Domain
from testtime.streams.named import corrupted_domains

__all__ = ["PROTOCOLS", "domains"]

PROTOCOLS: Mapping[str, SimpleNamespace] = MappingProxyType(
    {name: SimpleNamespace(name=name, **entry) for name, entry in listing.entries().items()}
)
"""The entries of ``experiments.toml`` by name, as objects: ``closed``, ``model``, ``columns``, ``severity``, ``seeds``."""


def domains(
    name: str, root: str | Path, corruptions: Sequence[str], severity: int
) -> tuple[list[Domain], str]:
    """Return the corrupted versions of a closed set, and where they are from, by the arguments before experiments.

    Args:
        name: name of the set; ImageNet gets images of 224 pixels, other sets keep theirs.
        root: folder of data sets.
        corruptions: names of corruptions.
        severity: severity of all of them, 1 to 5.

    Returns:
        the domains, and "published" or "ours-" with a fingerprint; see :func:`testtime.streams.named.corrupted_domains`.
    """
    size = image_size(name, 224) if name == "imagenet" else None
    return corrupted_domains(name, {"data": str(root)}, corruptions, severity, size)
