"""Shading: diffuse and specular reflection of the lights of a room, with shadows, and ambient light.

Vectors are arrays (3, N) here, so that numpy computes with contiguous rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import numpy as np

from testtime.scenes.geometry import Array
from testtime.scenes.house import House, Light
from testtime.scenes.tracer import Tracer

__all__ = ["Lamps", "dot", "shaded", "unit"]


def dot(a: Array, b: Array) -> Array:
    """Return the scalar products (...) of vectors (3, ...)."""
    product: Array = a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
    return product


def unit(vectors: Array) -> Array:
    """Return vectors (3, ...) of length 1."""
    scaled: Array = vectors / np.sqrt(np.maximum(dot(vectors, vectors), 1e-24))
    return scaled


@final
class Lamps:
    """The lights of a house as arrays by room.

    Args:
        house: house of the lights.
        lights: lights of the house, or those of a shift.
    """

    def __init__(self, house: House, lights: Sequence[Light]) -> None:
        count = len(house.rooms)
        by_room = [[light for light in lights if light.room == r] for r in range(count)]
        self.slots = max(1, *(len(some) for some in by_room))
        self.position = np.zeros((self.slots, count, 3), np.float32)
        self.colour = np.zeros((self.slots, count, 3), np.float32)
        self.facing = np.zeros((self.slots, count, 3), np.float32)
        for r, some in enumerate(by_room):
            for k, light in enumerate(some):
                self.position[k, r], self.colour[k, r] = light.position, light.colour
                if light.facing is not None:
                    self.facing[k, r] = unit(np.array(light.facing, dtype=np.float32))
        areas = np.array([room.area for room in house.rooms], np.float32)[:, None]
        self.bounced = self.colour.sum(axis=0) * 1.9 / (areas + 6)
        self.height = house.plan.height
        self.bounds = np.array([[*room.low, *room.high] for room in house.rooms], np.float32)
        usual = np.zeros(count, np.float32)
        for light in house.lights:
            usual[light.room] += sum(light.colour)
        self.brightness = self.colour.sum(axis=(0, 2)) / np.maximum(usual, 1e-6)

    def ambient(self, room: int, points: Array, normals: Array) -> Array:
        """Return the ambient light (3, N) of a room, which is stronger on surfaces facing up and weaker in corners."""
        x0, y0, x1, y1 = self.bounds[room]
        x, y, z = points
        near = np.empty((6, points.shape[1]), np.float32)  # of the walls, the floor and the ceiling
        for row, (far, close) in zip(
            near, ((x, x0), (y, y0), (x1, x), (y1, y), (z, 0), (self.height, z)), strict=True
        ):
            np.subtract(far, close, out=row)
        np.maximum(near, 0, out=near)
        near /= -0.28
        np.exp(near, out=near)
        corner = 1 - 0.27 * np.minimum(
            near.sum(axis=0) - near.max(axis=0), 2
        )  # the nearest plane is the surface itself
        up = 0.9 + 0.1 * normals[2]
        light: Array = self.bounced[room][:, None] * (corner * up)
        return light

    def incident(self, k: int, room: int, points: Array, normals: Array) -> tuple[Array, Array]:
        """Return the vectors (3, N) from points to light k of a room, and its strength (N,) without shadows.

        The irradiance is :meth:`irradiance` of the strength.
        """
        way = self.position[k, room][:, None] - points
        squared = dot(way, way)
        distance = np.sqrt(np.maximum(squared, 1e-8))
        cosine = np.maximum(dot(way, normals), 0) / distance
        facing = self.facing[k, room]
        if dot(facing, facing) > 0:
            cosine *= np.clip(-dot(way, facing) / distance * 1.5 + 0.15, 0, 1)
        return way, cosine / (0.6 + squared)

    def irradiance(self, k: int, room: int, strength: Array) -> Array:
        """Return the irradiance (3, N) of light k of a room."""
        light: Array = self.colour[k, room][:, None] * strength * 2.1
        return light

    def glow(self, room: Array) -> Array:
        """Return the brightness (N,) of lamps and windows of rooms (N,) relative to the lights of the house."""
        return np.clip(self.brightness[room], 0, 1.5)


def shaded(
    lamps: Lamps, tracer: Tracer, room: int, points: Array, normals: Array, gloss: Array, views: Array
) -> tuple[Array, Array]:
    """Return the diffuse irradiance and the specular reflection, both (3, N), of points in a room.

    Args:
        lamps: lights.
        tracer: tracer of the shadows.
        room: index of the room.
        points: points, (3, N).
        normals: unit normals, (3, N).
        gloss: strength of the specular reflection, (N,).
        views: unit vectors of the viewing directions, (3, N).
    """
    light = lamps.ambient(room, points, normals)
    shine, places = np.zeros_like(light), np.ascontiguousarray(points.T)
    for k in range(lamps.slots):
        way, strength = lamps.incident(k, room, points, normals)
        strongest = lamps.colour[k, room].max() * strength * 2.1
        lit = np.flatnonzero(strongest > 1e-4)
        if not len(lit):
            continue
        starts = places.take(lit, 0)
        dark = tracer.occluded(starts, starts + way.take(lit, 1).T)
        lit = lit[~dark]
        reached, mirrored = np.zeros_like(strength), np.zeros_like(strength)
        reached[lit] = strength[lit]
        arriving = lamps.irradiance(k, room, reached)
        light += arriving
        glossy = lit[gloss[lit] > 0]
        if len(glossy):
            half = unit(unit(way.take(glossy, 1)) - views.take(glossy, 1))
            power = np.maximum(dot(half, normals.take(glossy, 1)), 0) ** 40
            mirrored[glossy] = gloss[glossy] * power
            shine += mirrored * arriving
    return light, shine
