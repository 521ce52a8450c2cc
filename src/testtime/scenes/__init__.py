"""Procedural houses and their renderer: pictures of rooms with every label a dense task asks for, from a seed.

>>> house = generate_house(seed=3, style="default")
>>> camera = house.cameras(count=1, seed=0)[0]
>>> frame = Renderer(house, backend=None).frame(camera, size=(48, 64), shift="dim")
>>> frame.rgb.shape, frame.depth.shape, CLASSES[frame.semantic[47, 0]] in CLASSES
((48, 64, 3), (48, 64), True)
"""

from testtime.scenes.cameras import Camera
from testtime.scenes.furniture import CLASSES
from testtime.scenes.house import House, Light, generate_house
from testtime.scenes.layout import Placed
from testtime.scenes.render import Box, Frame, Renderer
from testtime.scenes.shifts import SHIFTS, Shift
from testtime.scenes.style import STYLES

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
    "Renderer",
    "Shift",
    "generate_house",
]
