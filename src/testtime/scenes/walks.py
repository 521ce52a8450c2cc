"""Walks through the rooms of a house as sequences of frames, with the room of every frame.

>>> from testtime.scenes import generate_house
>>> house = generate_house(0)
>>> walk = room_walk(house, room=0, frames=24, seed=0)
>>> len(walk.cameras), sorted({house.rooms[0].kind}) == [walk.kind]
(24, True)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import numpy as np

from testtime.scenes.cameras import Camera, camera_pose
from testtime.scenes.house import House

__all__ = ["RoomWalk", "room_walk"]

TURN = 0.12
"""Turn of the camera from frame to frame, in radians."""
CAMERAS = 6
"""Number of positions in each room among which a visit's is chosen."""


@final
@dataclass(frozen=True, eq=False)
class RoomWalk:
    """Cameras along a walk that visits one room several times.

    Attributes:
        cameras: camera of each frame.
        inside: whether a frame is in the main room, (T,) bool.
        segments: the visits of the main room as (first frame, frame after the last).
        kind: kind of the main room.
    """

    cameras: tuple[Camera, ...]
    inside: np.ndarray
    segments: tuple[tuple[int, int], ...]
    kind: str


def room_walk(house: House, room: int, frames: int, seed: int, visits: int = 2) -> RoomWalk:
    """Walk through a room and others in turn; the walk may begin and end in either.

    In a visit the camera stands at one place of :func:`testtime.scenes.cameras.place_cameras` and turns. The visits of the main
    room take 35 to 65 % of the frames together; the longest may be six times as long as the shortest.

    Args:
        house: house with at least two rooms.
        room: index of the main room; no other room of the same kind is visited.
        frames: number of frames, at least ten for each visit.
        seed: random seed of places and lengths.
        visits: number of visits of the main room.

    Raises:
        ValueError: there are too few frames, or no room of another kind.
    """
    kind = house.rooms[room].kind
    others = [r.index for r in house.rooms if r.kind != kind]
    if not others:
        raise ValueError(
            f"expected a house with rooms of other kinds than {kind!r}, got house {house.seed}; take another seed"
        )
    if visits < 1 or frames < 10 * visits:
        raise ValueError(f"expected at least ten frames for each of {visits} visits, got {frames}")
    rng = np.random.default_rng([seed, house.seed, room])
    placed = house.cameras(CAMERAS * len(house.rooms), seed)
    main = round(rng.uniform(0.35, 0.65) * frames)
    begins, ends = (bool(v) for v in rng.integers(0, 2, 2))  # outside of the main room
    between = max(visits - 1 + begins + ends, 1)
    begins = begins or between > visits - 1 + ends
    lengths = {True: _split(main, visits, rng), False: _split(frames - main, between, rng)}
    cameras, inside, now = list[Camera](), list[bool](), not begins
    while lengths[now]:
        here = room if now else int(rng.choice(others))
        spots = [c for c in placed if c.room == here]
        start = spots[int(rng.integers(len(spots)))]
        length = lengths[now].pop()
        cameras += _turning(start, length, float(rng.choice([-TURN, TURN])))
        inside += [now] * length
        now = not now
    flags = np.array(inside)
    steps = np.diff(np.r_[0, flags.astype(int), 0])
    segments = zip((steps == 1).nonzero()[0].tolist(), (steps == -1).nonzero()[0].tolist(), strict=True)
    return RoomWalk(tuple(cameras), flags, tuple(segments), kind)


def _split(total: int, parts: int, rng: np.random.Generator) -> list[int]:
    """Divide a number of frames into parts of different lengths, each at least one frame."""
    weights = rng.uniform(0.3, 1.8, parts)
    borders = np.rint(np.cumsum(weights) / weights.sum() * (total - parts)).astype(int)
    return (np.diff(np.r_[0, borders]) + 1).tolist()


def _turning(start: Camera, count: int, turn: float) -> list[Camera]:
    """Return cameras at one place, turned a little from one to the next."""
    forward = -start.pose[:3, 2]
    yaw, pitch = float(np.arctan2(forward[1], forward[0])), float(np.arcsin(np.clip(forward[2], -1, 1)))
    return [replace(start, pose=camera_pose(start.position, yaw + k * turn, pitch)) for k in range(count)]
