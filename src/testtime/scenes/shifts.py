"""Domain shifts of scenes: other lights, materials, cameras, fog, and degradations of the sensor.

A shift changes images and not labels: depth, normals, classes, instances and boxes are exact for the camera of the image.
Shifts are immutable values; ``a + b`` is a shift that applies both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, final

import numpy as np

from testtime.moved import renamed
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

__getattr__ = renamed(__name__, {"named": "resolve_shift"})


@dataclass(frozen=True)
class Shift:
    """No shift: every method returns its argument. Subclasses change one method each."""

    def camera(self, camera: Camera, house: House) -> Camera:
        """Return the camera of the frame."""
        return camera

    def lights(self, lights: Sequence[Light]) -> Sequence[Light]:
        """Return the lights of the house."""
        return lights

    def paint(self, paint: Paint, house: House) -> Paint:
        """Return the materials of the surfaces."""
        return paint

    def air(self, light: Array, depth: Array) -> Array:
        """Return the linear light (H, W, 3) at the lens after the distance ``depth`` in metres, where 0 is infinite."""
        return light

    def sensor(self, picture: Array, rng: np.random.Generator) -> Array:
        """Return the image of the sensor, sRGB (H, W, 3), from an image in [0, 1]."""
        return picture

    def __add__(self, other: Shift) -> Shift:
        return Both(self, other)


@final
@dataclass(frozen=True)
class Both(Shift):
    """The composition of two shifts."""

    first: Shift
    second: Shift

    def camera(self, camera: Camera, house: House) -> Camera:
        """Apply the first shift, then the second."""
        return self.second.camera(self.first.camera(camera, house), house)

    def lights(self, lights: Sequence[Light]) -> Sequence[Light]:
        """Apply the first shift, then the second."""
        return self.second.lights(self.first.lights(lights))

    def paint(self, paint: Paint, house: House) -> Paint:
        """Apply the first shift, then the second."""
        return self.second.paint(self.first.paint(paint, house), house)

    def air(self, light: Array, depth: Array) -> Array:
        """Apply the first shift, then the second."""
        return self.second.air(self.first.air(light, depth), depth)

    def sensor(self, picture: Array, rng: np.random.Generator) -> Array:
        """Apply the first shift, then the second."""
        return self.second.sensor(self.first.sensor(picture, rng), rng)


@final
@dataclass(frozen=True)
class Lighting(Shift):
    """Other intensities and colours of lamps and daylight.

    Attributes:
        intensity: factor of all light.
        tint: factors of red, green and blue.
        daylight: further factor of light through windows.
    """

    intensity: float = 1.0
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)
    daylight: float = 1.0

    def lights(self, lights: Sequence[Light]) -> Sequence[Light]:
        """Return the lights with scaled colours."""
        made = []
        for light in lights:
            factor = self.intensity * (self.daylight if light.facing is not None else 1.0)
            r, g, b = (c * t * factor for c, t in zip(light.colour, self.tint, strict=True))
            made.append(replace(light, colour=(r, g, b)))
        return made


@final
@dataclass(frozen=True)
class Untextured(Shift):
    """Surfaces in one colour, without patterns."""

    def paint(self, paint: Paint, house: House) -> Paint:
        """Return the materials without patterns."""
        return paint.plain()


@final
@dataclass(frozen=True)
class Repainted(Shift):
    """Materials of another prior for the same house and furniture.

    Attributes:
        style: name of the prior.
    """

    style: str = "other"

    def paint(self, paint: Paint, house: House) -> Paint:
        """Return the materials drawn from the other prior with the seed of the house."""
        return _painted(house.seed, self.style)


@lru_cache(maxsize=64)
def _painted(seed: int, style: str) -> Paint:
    return Paint(Style(seed, style).materials)


@final
@dataclass(frozen=True)
class Lens(Shift):
    """Another height and angle of view of the camera.

    Attributes:
        higher: change of the height in metres; the camera stays at least 0.3 m from the floor and 0.35 m from the ceiling.
        wider: factor of the angle of view, which stays between 30 and 110 degrees.
    """

    higher: float = 0.0
    wider: float = 1.0

    def camera(self, camera: Camera, house: House) -> Camera:
        """Return the camera with another height and angle of view."""
        pose = camera.pose.copy()
        pose[2, 3] = np.clip(pose[2, 3] + self.higher, 0.3, house.plan.height - 0.35)
        return replace(
            camera, pose=pose, fov_degrees=float(np.clip(camera.fov_degrees * self.wider, 30, 110))
        )


@final
@dataclass(frozen=True)
class Noise(Shift):
    """Shot noise and read noise of the sensor.

    Attributes:
        shot: standard deviation of the shot noise at full brightness; it is proportional to the square root of brightness.
        read: standard deviation of the read noise.
    """

    shot: float = 0.05
    read: float = 0.02

    def sensor(self, picture: Array, rng: np.random.Generator) -> Array:
        """Return the image with noise."""
        deviation = np.sqrt(self.shot**2 * picture + self.read**2)
        return picture + deviation * rng.standard_normal(picture.shape)


@final
@dataclass(frozen=True)
class Blur(Shift):
    """A lens out of focus.

    Attributes:
        sigma: standard deviation of the Gaussian, as a fraction of the image's width.
    """

    sigma: float = 0.013

    def sensor(self, picture: Array, rng: np.random.Generator) -> Array:
        """Return the blurred image."""
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
    """Fog in the rooms: light is attenuated exponentially with depth, and the light of the fog is added.

    Attributes:
        density: attenuation coefficient, per metre.
        colour: linear colour of the fog.
    """

    density: float = 0.3
    colour: tuple[float, float, float] = (0.62, 0.64, 0.66)

    def air(self, light: Array, depth: Array) -> Array:
        """Return the attenuated light plus that of the fog."""
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
"""Domain shifts by name."""


def resolve_shift(shift: str | Shift | None) -> tuple[str, Shift]:
    """Return the name of a shift and the shift.

    The name is that in :data:`SHIFTS`, "" for no shift, and the representation of other shifts.

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
