"""Places: rendered houses or parts of them, and frames of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, final

from testtime.scenes.disk import Recipe
from testtime.scenes.sceneset import SceneSet, Space

__all__ = ["Place", "Views", "houses"]

CAMERAS_FOR_ONE = 24
"""Rendered frames of a house for each that is taken, where only the cameras in a part of the house are taken."""


@final
@dataclass(frozen=True, order=True)
class Place:
    """A rendered house, or a part of it.

    Args:
        house: random seed of the house.
        style: name of the prior of its furniture.
        shift: name of the domain shift, or None.
        moved: random seed of new positions of the small objects, or None.
        room: number of the room of the cameras; None for all rooms.
        rings: number of a room's concentric rectangles in which the cameras stand, counted from the middle; None for all
            (:data:`testtime.scenes.cameras.RINGS`).
    """

    house: int = 0
    style: str = "default"
    shift: str | None = None
    moved: int | None = None
    room: int | None = None
    rings: int | None = None

    @property
    def whole(self) -> bool:
        """Whether cameras stand anywhere in the house."""
        return self.room is None and self.rings is None

    def holds(self, record: Mapping[str, Any]) -> bool:
        """Return whether the camera of a frame stands in the part of the house."""
        inside = self.rings is None or int(record["ring"]) < self.rings
        return inside and self.room in (None, record["room"])


def houses(seeds: Iterable[int], style: str = "default") -> tuple[Place, ...]:
    """Return whole houses.

    >>> houses(range(2), "other")[1].style
    'other'
    """
    return tuple(Place(seed, style) for seed in seeds)


@final
@dataclass(frozen=True)
class Views:
    """Frames of places.

    Args:
        places: places.
        frames: number of frames of all places together, shared evenly among them.
        cameras: random seed of the cameras.

    Raises:
        ValueError: there are fewer frames than places, or whole houses and parts are mixed.
    """

    places: tuple[Place, ...]
    frames: int
    cameras: int = 0

    def __post_init__(self) -> None:
        if not self.places or self.frames < len(self.places):
            found = f"{len(self.places)} and {self.frames}"
            raise ValueError(f"expected places and a frame of each at least, got {found}")
        if len({place.whole for place in self.places}) > 1:
            raise ValueError("expected whole houses, or parts of houses, not both")

    @property
    def each(self) -> int:
        """Number of frames of a place."""
        return self.frames // len(self.places)

    def rendered(self, image: tuple[int, int]) -> list[Recipe]:
        """Return what is rendered for each place."""
        frames = self.each if self.places[0].whole else CAMERAS_FOR_ONE * self.each
        return [Recipe(p.house, p.style, p.shift, frames, image, self.cameras, p.moved) for p in self.places]

    def choose(self, spaces: Iterable[Space], image: tuple[int, int]) -> SceneSet:
        """Return the frames, of rendered spaces among others.

        Args:
            spaces: rendered spaces, those of :meth:`rendered` among them.
            image: height and width in pixels.

        Raises:
            ValueError: too few cameras of a house stand in the part of it that is asked for.
        """
        known = {space.name: space for space in spaces}
        found = SceneSet([known[recipe.name] for recipe in self.rendered(image)])
        if self.places[0].whole:
            return found
        chosen: list[int] = []
        for number, place in enumerate(self.places):
            records = found.spaces[number].records
            at = enumerate(found.places)
            rows = [index for index, (space, row) in at if space == number and place.holds(records[row])]
            if len(rows) < self.each:
                raise ValueError(
                    f"{place}: {len(rows)} of {len(records)} cameras stand there, {self.each} are needed; take another room or "
                    "more rings"
                )
            chosen += rows[: self.each]
        return found.subset(chosen)
