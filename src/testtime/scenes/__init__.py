"""Procedural houses and their renderer: pictures of rooms with every label a dense task asks for, from a seed."""

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
