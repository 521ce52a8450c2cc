"""Shifts of domain: the same rooms under another light, without textures, from another camera, through a worse sensor.

A shift changes pictures, never what is true of them: depth, normals, classes, instances and boxes stay exact for the
camera that took the picture. Shifts are small values; ``a + b`` is a shift that does both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, final

import numpy as np

from testtime.scenes.cameras import Camera
from testtime.scenes.geometry import Array
from testtime.scenes.style import Style
from testtime.scenes.texture import Paint

if TYPE_CHECKING:
    from testtime.scenes.house import House, Light

__all__ = [
    "SHIFTS",
    "Blur",
    "Both",
    "Fog",
    "Lens",
    "Lighting",
    "Noise",
    "Repainted",
    "Shift",
    "Untextured",
]


@dataclass(frozen=True)
class Shift:
    """No shift: every method gives back what it got. Subclasses change one thing each."""

    def camera(self, camera: Camera, house: House) -> Camera:
        """Where the picture is taken."""
        return camera

    def lights(self, lights: Sequence[Light]) -> Sequence[Light]:
        """What lights the house."""
        return lights

    def paint(self, paint: Paint, house: House) -> Paint:
        """What its surfaces look like."""
        return paint

    def air(self, light: Array, depth: Array) -> Array:
        """What reaches the lens, linear (H, W, 3), through ``depth`` metres of air; 0 is infinitely far."""
        return light

    def sensor(self, picture: Array, rng: np.random.Generator) -> Array:
        """What the sensor makes of it: sRGB (H, W, 3) in [0, 1]."""
        return picture

    def __add__(self, other: Shift) -> Shift:
        return Both(self, other)


@final
@dataclass(frozen=True)
class Both(Shift):
    """One shift after the other."""

    first: Shift
    second: Shift

    def camera(self, camera: Camera, house: House) -> Camera:
        """Both, in turn."""
        return self.second.camera(self.first.camera(camera, house), house)

    def lights(self, lights: Sequence[Light]) -> Sequence[Light]:
        """Both, in turn."""
        return self.second.lights(self.first.lights(lights))

    def paint(self, paint: Paint, house: House) -> Paint:
        """Both, in turn."""
        return self.second.paint(self.first.paint(paint, house), house)

    def air(self, light: Array, depth: Array) -> Array:
        """Both, in turn."""
        return self.second.air(self.first.air(light, depth), depth)

    def sensor(self, picture: Array, rng: np.random.Generator) -> Array:
        """Both, in turn."""
        return self.second.sensor(self.first.sensor(picture, rng), rng)


@final
@dataclass(frozen=True)
class Lighting(Shift):
    """Other lamps and another sky.

    Attributes:
        intensity: a factor on all light.
        tint: factors on red, green and blue.
        daylight: a further factor on what comes through windows.
    """

    intensity: float = 1.0
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)
    daylight: float = 1.0

    def lights(self, lights: Sequence[Light]) -> Sequence[Light]:
        """The lights, multiplied."""
        made = []
        for light in lights:
            factor = self.intensity * (self.daylight if light.facing is not None else 1.0)
            r, g, b = (c * t * factor for c, t in zip(light.colour, self.tint, strict=True))
            made.append(replace(light, colour=(r, g, b)))
        return made


@final
@dataclass(frozen=True)
class Untextured(Shift):
    """Every surface in one colour: patterns are switched off."""

    def paint(self, paint: Paint, house: House) -> Paint:
        """The same materials without patterns."""
        return paint.plain()


@final
@dataclass(frozen=True)
class Repainted(Shift):
    """The same house and furniture in the materials of another style's prior.

    Attributes:
        style: the name of that prior.
    """

    style: str = "other"

    def paint(self, paint: Paint, house: House) -> Paint:
        """The materials that the house's seed draws from the other prior."""
        return _painted(house.seed, self.style)


@lru_cache(maxsize=64)
def _painted(seed: int, style: str) -> Paint:
    return Paint(Style(seed, style).materials)


@final
@dataclass(frozen=True)
class Lens(Shift):
    """Another camera in the same place.

    Attributes:
        higher: metres; it stays 0.3 m or more from the floor and 0.35 m from the ceiling.
        wider: a factor on the angle of view, which stays between 30 and 110 degrees.
    """

    higher: float = 0.0
    wider: float = 1.0

    def camera(self, camera: Camera, house: House) -> Camera:
        """The camera, lifted and with another lens."""
        pose = camera.pose.copy()
        pose[2, 3] = np.clip(pose[2, 3] + self.higher, 0.3, house.plan.height - 0.35)
        return replace(
            camera, pose=pose, fov_degrees=float(np.clip(camera.fov_degrees * self.wider, 30, 110))
        )


@final
@dataclass(frozen=True)
class Noise(Shift):
    """Noise of photons and of the electronics.

    Attributes:
        shot: standard deviation at full brightness; it falls with the square root of brightness.
        read: standard deviation in the dark.
    """

    shot: float = 0.05
    read: float = 0.02

    def sensor(self, picture: Array, rng: np.random.Generator) -> Array:
        """The picture with noise."""
        deviation = np.sqrt(self.shot**2 * picture + self.read**2)
        return picture + deviation * rng.standard_normal(picture.shape)


@final
@dataclass(frozen=True)
class Blur(Shift):
    """A lens out of focus.

    Attributes:
        sigma: of the Gaussian, as a fraction of the picture's width.
    """

    sigma: float = 0.013

    def sensor(self, picture: Array, rng: np.random.Generator) -> Array:
        """The picture, blurred."""
        sigma = self.sigma * picture.shape[1]
        reach = max(1, int(np.ceil(3 * sigma)))
        weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
        weights /= weights.sum()
        for axis in (0, 1):
            pad = [(reach, reach) if a == axis else (0, 0) for a in range(3)]
            wide, size = np.pad(picture, pad, mode="edge"), picture.shape[axis]
            picture = sum(w * np.take(wide, range(i, i + size), axis=axis) for i, w in enumerate(weights))
        return picture


@final
@dataclass(frozen=True)
class Fog(Shift):
    """Smoke in the rooms: light is lost exponentially with depth, and replaced by the smoke's own.

    Attributes:
        density: per metre.
        colour: of the smoke, linear.
    """

    density: float = 0.3
    colour: tuple[float, float, float] = (0.62, 0.64, 0.66)

    def air(self, light: Array, depth: Array) -> Array:
        """What is left, and what the smoke adds."""
        passed = np.where(depth > 0, np.exp(-self.density * depth), 0)[..., None]
        mixed: Array = light * passed + np.array(self.colour) * (1 - passed)
        return mixed


SHIFTS: Mapping[str, Shift] = {
    "dim": Lighting(0.35),
    "bright": Lighting(2.2),
    "warm": Lighting(0.85, (1.25, 0.97, 0.65)),
    "cold": Lighting(0.9, (0.72, 0.97, 1.3)),
    "night": Lighting(0.4, (1.3, 0.95, 0.6), daylight=0.05) + Noise(0.04, 0.02),
    "untextured": Untextured(),
    "repainted": Repainted(),
    "repainted_warm": Repainted() + Lighting(0.7, (1.2, 0.97, 0.7)),
    "high": Lens(higher=0.8),
    "low": Lens(higher=-0.8),
    "wide": Lens(wider=1.4),
    "tele": Lens(wider=0.62),
    "noise": Noise(0.07, 0.03),
    "blur": Blur(),
    "fog": Fog(),
}
"""Shifts by name."""


def named(shift: str | Shift | None) -> tuple[str, Shift]:
    """A shift and its name: that of :data:`SHIFTS`, "" for none, and what it is written as for others.

    Raises:
        ValueError: there is no shift of this name.
    """
    if shift is None:
        return "", Shift()
    if isinstance(shift, Shift):
        known = [name for name, other in SHIFTS.items() if other == shift]
        return (known or [repr(shift)])[0], shift
    if shift not in SHIFTS:
        raise ValueError(f"shift: expected one of {', '.join(SHIFTS)} or a Shift, got {shift!r}")
    return shift, SHIFTS[shift]
