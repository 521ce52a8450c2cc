"""Procedural houses and their renderer: images of rooms with exact labels for dense tasks, generated from a seed.

>>> house = generate_house(seed=3, style="default")
>>> camera = house.cameras(count=1, seed=0)[0]
>>> frame = Renderer(house, backend=None).frame(camera, size=(48, 64), shift="dim")
>>> frame.rgb.shape, frame.depth.shape, CLASSES[frame.semantic[47, 0]] in CLASSES
((48, 64, 3), (48, 64), True)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from testtime.scenes.cameras import Camera
from testtime.scenes.furniture import CLASSES
from testtime.scenes.house import House, Light, generate_house
from testtime.scenes.layout import Placed
from testtime.scenes.render import Box, Frame, Renderer
from testtime.scenes.shifts import SHIFTS, Shift
from testtime.scenes.style import STYLES

if TYPE_CHECKING:
    from testtime.scenes.disk import Recipe, make, read_scenes, render_space
    from testtime.scenes.sceneset import SceneSet

__all__ = [
    "CLASSES",
    "SHIFTS",
    "STYLES",
    "Box",
    "Camera",
    "Frame",
    "House",
    "Light",
    "Placed",
    "Recipe",
    "Renderer",
    "SceneSet",
    "Shift",
    "generate_house",
    "make",
    "read_scenes",
    "render_space",
]

_HOMES = {
    "testtime.scenes.disk": ("Recipe", "make", "read_scenes", "render_space"),
    "testtime.scenes.sceneset": ("SceneSet",),
}


def __getattr__(name: str) -> Any:
    """Import names that need torch on first use."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module 'testtime.scenes' has no attribute {name!r}")
