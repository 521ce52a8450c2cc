"""Styles: common materials, proportions and forms of the furniture of one house, drawn from a prior.

Models of one class are similar within a house and differ between houses, because a style determines the materials and the
proportions of every class. :data:`STYLES` contains the priors.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import final

import numpy as np

from testtime.scenes.texture import Material

__all__ = ["MATERIALS", "STYLES", "Prior", "Style", "generator"]

Range = tuple[float, float]
Colours = tuple[str, ...]
Colour = tuple[float, float, float]


def generator(seed: int, *purpose: object) -> np.random.Generator:
    """Return a random generator for one purpose, independent of the global one.

    >>> generator(3, "plan").integers(1000) == generator(3, "plan").integers(1000)
    np.True_
    """
    return np.random.default_rng([seed, zlib.crc32("/".join(map(str, purpose)).encode())])


@final
@dataclass(frozen=True)
class Prior:
    """The prior of styles. Colours are sRGB in hexadecimal and drawn uniformly from their palettes.

    Attributes:
        walls, floors, woods, fabrics, bedding, curtains, rugs, metals, lacquers, small: palettes.
        wall_patterns, floor_patterns, fabric_patterns, bedding_patterns, rug_patterns: names of
            :data:`testtime.scenes.texture.PATTERNS`.
        painted: probability of lacquered instead of wooden furniture.
        width, depth, height: ranges of the factors of the size of furniture.
        ceiling: range of the height of the rooms, in metres.
        clutter: factor of the number of small objects.
        leg: forms of legs: square, round or runner.
        light: range of the colour temperature of lamps, in kelvin.
        power: range of the factor of the lamps' intensity.
        sky: colours of sky and ground outside of the windows.
        jitter: standard deviation of colours around those of their palette, in sRGB.
    """

    walls: Colours
    floors: Colours
    woods: Colours
    fabrics: Colours
    bedding: Colours
    curtains: Colours
    rugs: Colours
    metals: Colours
    lacquers: Colours
    small: Colours
    wall_patterns: tuple[str, ...]
    floor_patterns: tuple[str, ...]
    fabric_patterns: tuple[str, ...]
    bedding_patterns: tuple[str, ...]
    rug_patterns: tuple[str, ...]
    painted: float = 0.2
    width: Range = (0.9, 1.1)
    depth: Range = (0.92, 1.08)
    height: Range = (0.95, 1.05)
    ceiling: Range = (2.5, 2.8)
    clutter: float = 1.0
    leg: tuple[str, ...] = ("square", "round")
    light: Range = (2800, 5200)
    power: Range = (0.8, 1.25)
    sky: tuple[str, str] = ("#cfe4f7", "#8a9a6a")
    jitter: float = 0.045


DEFAULT = Prior(
    walls=(
        *("#ece8df", "#e9e4d3", "#e4e7e6", "#dfe6dc", "#f0ece6", "#e6dcd0", "#d9e0e6"),
        *("#c3d2c8", "#d9c2ac", "#b4c5d4", "#e3d5a0", "#c2b3a4", "#cfa99a", "#a9bcb4"),
    ),
    floors=("#b98f5f", "#a67c52", "#c8a477", "#8f6a48", "#d2b48c"),
    woods=("#b5854f", "#8a5a36", "#c9a06c", "#6f4a2e", "#d8b98c", "#a8733f"),
    fabrics=("#7d858c", "#b7a78f", "#4d6078", "#7f8a64", "#a05a48", "#c2bdb3", "#5c6e6a"),
    bedding=("#f1efe9", "#dfe7ee", "#e9dfcf", "#c9d4d8", "#e8d9d6"),
    curtains=("#e7e1d3", "#c9cfd2", "#d6c7ae", "#b9c4b3", "#b8a7a0"),
    rugs=("#a94f3d", "#4f6a86", "#b59a6a", "#8b8f86", "#6f7f5e", "#c7b79b"),
    metals=("#b8bbbe", "#8f9396", "#55585c"),
    lacquers=("#f4f3f0", "#e6e6e2", "#cfd6d8"),
    small=("#c0483a", "#2f6f9f", "#d9a441", "#4d8a5b", "#efeae0", "#7a4e8a", "#d97b4a", "#34495e"),
    wall_patterns=("plain", "plain", "plain", "noise"),
    floor_patterns=("planks", "planks", "planks", "wood"),
    fabric_patterns=("weave", "weave", "plain"),
    bedding_patterns=("plain", "plain", "weave", "stripe"),
    rug_patterns=("stripe", "checker", "noise", "weave"),
)

OTHER = Prior(
    walls=("#6f9a9e", "#b4776c", "#cfae62", "#8d82a8", "#87967c", "#c48f9a", "#6f809c", "#9db37e"),
    floors=("#3a2a22", "#27292d", "#6e6a66", "#7b3b2a", "#d9d4c8"),
    woods=("#2d2320", "#1f1f22", "#5b2f22", "#40352e"),
    fabrics=("#a3223b", "#d17a1f", "#12685f", "#6b2f7a", "#2b2b2f", "#c9b02e", "#d4c8c0"),
    bedding=("#8a1f3d", "#1f4e6b", "#d3a92c", "#3c3c44", "#5f8a5a", "#d9668a"),
    curtains=("#5d1f2a", "#23415a", "#6a5a1f", "#3a3a3a", "#7a3f6a"),
    rugs=("#e2dcd0", "#1f1f24", "#c23b2a", "#2a7a72", "#e0b030"),
    metals=("#c8a24a", "#2a2a2c", "#b0703f"),
    lacquers=("#c22f2f", "#1d1d20", "#1f4f8a", "#e0b22e", "#2f7a5f", "#f0f0f0", "#d06a9a"),
    small=("#f2c53d", "#e05a3a", "#1fa090", "#e6e6e6", "#3a3a9a", "#1d1d1f", "#b03a7a", "#7fb03a"),
    wall_patterns=("stripe", "plain", "plain", "dots", "bricks", "noise"),
    floor_patterns=("checker", "tiles", "planks", "noise"),
    fabric_patterns=("stripe", "checker", "plain", "dots"),
    bedding_patterns=("checker", "stripe", "dots", "plain"),
    rug_patterns=("dots", "checker", "stripe"),
    painted=0.65,
    width=(0.78, 1.3),
    depth=(0.82, 1.2),
    height=(0.78, 1.22),
    ceiling=(2.7, 3.0),
    clutter=1.8,
    leg=("runner", "round", "square"),
    light=(2500, 3100),
    power=(0.75, 1.05),
    sky=("#f3c8a4", "#7a6a66"),
    jitter=0.06,
)

MINIMAL = Prior(
    walls=("#f7f7f5", "#f2f2f0", "#ebebea", "#dcdcda"),
    floors=("#9a9a98", "#c9c6c0", "#b3b0aa", "#e2ddd2"),
    woods=("#d9c4a0", "#e6d7bd", "#c4a57c"),
    fabrics=("#3f4246", "#9a9c9e", "#d5d3ce", "#6b7076"),
    bedding=("#ffffff", "#d9d9d7", "#6f7479"),
    curtains=("#f4f4f2", "#bfc1c2", "#8a8d90"),
    rugs=("#e9e6df", "#55585b", "#b1aea7"),
    metals=("#202224", "#c3c6c8"),
    lacquers=("#ffffff", "#f0f0ee", "#3a3c3f"),
    small=("#202224", "#f4f4f2", "#a89f91", "#7c8a82", "#c96f4a"),
    wall_patterns=("plain",),
    floor_patterns=("noise", "tiles", "planks"),
    fabric_patterns=("plain", "weave"),
    bedding_patterns=("plain",),
    rug_patterns=("plain", "weave", "stripe"),
    painted=0.6,
    width=(0.95, 1.2),
    depth=(0.95, 1.1),
    height=(0.82, 0.98),
    ceiling=(2.6, 3.0),
    clutter=0.5,
    leg=("runner", "round"),
    light=(4000, 5500),
    power=(1.05, 1.25),
    sky=("#dfe6ea", "#a7a9a4"),
    jitter=0.015,
)

STYLES: Mapping[str, Prior] = {"default": DEFAULT, "other": OTHER, "minimal": MINIMAL}
"""Priors by name: "default" is wood, beige and daylight; "other" is colourful, patterned, lacquered, cluttered
and of other proportions, under warm light; "minimal" is bright, grey and sparse."""

ACCENTS = 8
PICTURES = 6
ROOMS = ("living", "kitchen", "bed", "bath", "study")

MATERIALS = (
    *(f"wall_{kind}" for kind in ROOMS),
    *(f"floor_{kind}" for kind in ROOMS),
    *("ceiling", "trim", "door", "sky", "handle"),
    *("wood", "wood2", "lacquer", "counter", "front", "metal", "steel", "dark", "white", "ceramic", "water"),
    *(
        "sofa",
        "sofa_cushion",
        "chair_seat",
        "bed_cover",
        "sheet",
        "pillow",
        "pillow2",
        "curtain",
        "rug",
        "rug_border",
    ),
    *(
        "screen",
        "glass",
        "shade",
        "bulb",
        "pot",
        "soil",
        "leaf",
        "leaf2",
        "cardboard",
        "tape",
        "paper",
        "burner",
    ),
    *(f"accent{i}" for i in range(ACCENTS)),
    *(f"picture{i}" for i in range(PICTURES)),
)
"""Names of the materials; every style has all, in this order, so that a house can have the materials of another style."""


@final
@dataclass(frozen=True)
class Style:
    """The style of one house, drawn from a prior.

    Args:
        seed: random seed of the house.
        name: name of the prior.

    Raises:
        ValueError: there is no prior of this name.
    """

    seed: int
    name: str = "default"
    prior: Prior = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.name not in STYLES:
            raise ValueError(f"style: expected one of {', '.join(STYLES)}, got {self.name!r}")
        object.__setattr__(self, "prior", STYLES[self.name])

    def draw(self, *purpose: object) -> np.random.Generator:
        """Return a random generator for one purpose in this house."""
        return generator(self.seed, self.name, *purpose)

    @cached_property
    def proportions(self) -> tuple[float, float, float]:
        """Factors of the width, depth and height of furniture."""
        rng, prior = self.draw("proportions"), self.prior
        return (
            float(rng.uniform(*prior.width)),
            float(rng.uniform(*prior.depth)),
            float(rng.uniform(*prior.height)),
        )

    @cached_property
    def leg(self) -> str:
        """Form of legs."""
        return self.prior.leg[int(self.draw("leg").integers(len(self.prior.leg)))]

    @staticmethod
    def material(name: str) -> int:
        """Return the index of a material in :data:`MATERIALS`."""
        return _NUMBERS[name]

    @cached_property
    def materials(self) -> tuple[Material, ...]:
        """Materials of the house, in the order of :data:`MATERIALS`."""
        draw = _Draw(self.draw("materials"), self.prior)
        made = _walls_and_floors(draw)
        made |= _fixtures(draw)
        made |= _furniture(draw)
        made |= _fabrics(draw)
        made |= _details(draw)
        return tuple(made[name] for name in MATERIALS)


@final
class _Draw:
    """Random materials from the palettes and patterns of a prior.

    Args:
        rng: random generator of the materials.
        prior: prior of the style.
    """

    def __init__(self, rng: np.random.Generator, prior: Prior) -> None:
        self.rng, self.prior = rng, prior

    def colour(self, palette: Colours) -> Colour:
        """Draw a colour of a palette, with jitter."""
        code = palette[int(self.rng.integers(len(palette)))]
        base = np.array([int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        jitter = self.prior.jitter
        stray = self.rng.normal(0, jitter) + self.rng.normal(0, 0.4 * jitter, 3)
        r, g, b = np.clip(base + stray, 0.02, 0.98).tolist()
        return r, g, b

    def pattern(self, patterns: tuple[str, ...]) -> str:
        """Draw the name of a pattern."""
        return patterns[int(self.rng.integers(len(patterns)))]

    def seed(self) -> int:
        """Draw the seed of a pattern."""
        return int(self.rng.integers(1 << 20))

    def wood(self) -> Material:
        """Draw a wood."""
        base = self.colour(self.prior.woods)
        scale = 0.07 * self.rng.uniform(0.7, 1.5)
        return Material(base, _shade(base, 0.72), "wood", scale, 0.12, seed=self.seed())

    def lacquer(self) -> Material:
        """Draw a lacquer."""
        return Material(self.colour(self.prior.lacquers), gloss=0.25)

    def cloth(self, palette: Colours, patterns: tuple[str, ...], scale: float) -> Material:
        """Draw a cloth with a palette, patterns and the scale of a pattern in metres."""
        base, pattern = self.colour(palette), self.pattern(patterns)
        second = _shade(base, 0.8) if pattern == "weave" else self.colour(palette)
        size = scale * self.rng.uniform(0.7, 1.4) * (0.25 if pattern == "weave" else 1.0)
        return Material(base, second, pattern, size, seed=self.seed())


def _shade(base: Colour, factor: float) -> Colour:
    """Multiply a colour by a factor, clipped to [0, 1]."""
    r, g, b = np.clip(np.array(base) * factor, 0, 1).tolist()
    return r, g, b


def _walls_and_floors(draw: _Draw) -> dict[str, Material]:
    rng, prior, made = draw.rng, draw.prior, dict[str, Material]()
    for kind in ROOMS:
        base, pattern = draw.colour(prior.walls), draw.pattern(prior.wall_patterns)
        if kind == "bath":
            scale = rng.uniform(0.15, 0.3)
            made["wall_bath"] = Material(base, _shade(base, 0.72), "tiles", scale, 0.25, seed=draw.seed())
        else:
            scale = {"noise": 0.6, "bricks": 0.26}.get(pattern, rng.uniform(0.14, 0.3))
            deep = 0.86 if pattern in ("noise", "plain") else 0.72
            made[f"wall_{kind}"] = Material(base, _shade(base, deep), pattern, scale, seed=draw.seed())
    dry = draw.pattern(prior.floor_patterns)
    ground = draw.colour(prior.floors)
    for kind in ROOMS:
        if kind in ("bath", "kitchen"):
            base = draw.colour(prior.walls)
            base = _shade(base, rng.uniform(0.55, 0.8))
            pattern = "checker" if dry == "checker" and kind == "kitchen" else "tiles"
            scale = rng.uniform(0.28, 0.5)
            made[f"floor_{kind}"] = Material(base, _shade(base, 0.6), pattern, scale, 0.2, seed=draw.seed())
        else:
            scale = {"planks": 0.14, "wood": 0.16, "noise": 0.3}.get(dry, 0.45)
            made[f"floor_{kind}"] = Material(ground, _shade(ground, 0.66), dry, scale, 0.12, seed=draw.seed())
    return made


def _fixtures(draw: _Draw) -> dict[str, Material]:
    rng, prior, made = draw.rng, draw.prior, dict[str, Material]()
    white = _shade((0.96, 0.955, 0.94), 1.0)
    made["ceiling"] = Material(white)
    made["trim"] = Material(white if rng.random() < 0.7 else draw.colour(prior.woods), gloss=0.15)
    made["door"] = draw.wood() if rng.random() > prior.painted else draw.lacquer()
    sky, outside = (tuple(int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)) for c in prior.sky)
    made["sky"] = Material(
        (sky[0], sky[1], sky[2]), (outside[0], outside[1], outside[2]), "sky", 1.0, glow=1.35
    )
    made["handle"] = Material(draw.colour(prior.metals), gloss=0.6)
    return made


def _furniture(draw: _Draw) -> dict[str, Material]:
    rng, prior, made = draw.rng, draw.prior, dict[str, Material]()
    made["wood"] = draw.lacquer() if rng.random() < prior.painted * 0.6 else draw.wood()
    made["wood2"] = draw.lacquer() if rng.random() < prior.painted else draw.wood()
    made["lacquer"] = draw.lacquer()
    stone = draw.colour(("#d8d5cf", "#4a4a4c", "#9a958c", "#b08a5a"))
    made["counter"] = Material(stone, _shade(stone, 0.75), "noise", 0.05, 0.35, seed=draw.seed())
    made["front"] = draw.wood() if rng.random() > 0.35 + prior.painted / 2 else draw.lacquer()
    made["metal"] = Material(draw.colour(prior.metals), gloss=0.5)
    made["steel"] = Material(draw.colour(("#c9ccce", "#b4b8bb", "#e8e8e6")), gloss=0.5)
    made["dark"] = Material((0.09, 0.09, 0.1), gloss=0.3)
    made["white"] = Material((0.93, 0.93, 0.92), gloss=0.2)
    made["ceramic"] = Material((0.95, 0.955, 0.95), gloss=0.5)
    made["water"] = Material((0.62, 0.78, 0.82), gloss=0.5)
    return made


def _fabrics(draw: _Draw) -> dict[str, Material]:
    prior, made = draw.prior, dict[str, Material]()
    made["sofa"] = draw.cloth(prior.fabrics, prior.fabric_patterns, 0.16)
    made["sofa_cushion"] = draw.cloth(prior.fabrics, prior.fabric_patterns, 0.12)
    made["chair_seat"] = draw.cloth(prior.fabrics, prior.fabric_patterns, 0.08)
    made["bed_cover"] = draw.cloth(prior.bedding + prior.fabrics[:2], prior.bedding_patterns, 0.2)
    made["sheet"] = Material(draw.colour(prior.bedding))
    made["pillow"] = draw.cloth(prior.bedding, prior.bedding_patterns, 0.1)
    made["pillow2"] = draw.cloth(prior.fabrics, prior.fabric_patterns, 0.08)
    made["curtain"] = draw.cloth(prior.curtains, prior.fabric_patterns, 0.14)
    made["rug"] = draw.cloth(prior.rugs, prior.rug_patterns, 0.3)
    made["rug_border"] = Material(draw.colour(prior.rugs))
    return made


def _details(draw: _Draw) -> dict[str, Material]:
    prior, made = draw.prior, dict[str, Material]()
    made["screen"] = Material((0.035, 0.04, 0.05), (0.10, 0.14, 0.2), "noise", 0.5, 0.8, seed=draw.seed())
    made["glass"] = Material((0.72, 0.82, 0.86), (0.9, 0.94, 0.95), "noise", 0.6, 0.9, seed=draw.seed())
    made["shade"] = Material(draw.colour(("#f6e8c8", "#f3dcb8", "#fff4e0")), glow=0.55)
    made["bulb"] = Material((1.0, 0.97, 0.9), glow=2.0)
    made["pot"] = Material(draw.colour(("#b5623f", "#e9e6df", "#5a5f63", *prior.small)), gloss=0.15)
    made["soil"] = Material((0.22, 0.16, 0.12))
    green = draw.colour(("#3f7a3a", "#4f8a45", "#2f6a42", "#6a944a"))
    made["leaf"] = Material(green, _shade(green, 0.7), "noise", 0.08, 0.1, seed=draw.seed())
    made["leaf2"] = Material(_shade(green, 1.25), green, "noise", 0.08, 0.1, seed=draw.seed())
    brown = draw.colour(("#b48a5e", "#a47c52", "#c49a6c", "#8fa3b0"))
    made["cardboard"] = Material(brown, (0.6, 0.5, 0.36), "noise", 0.2)
    made["tape"] = Material((0.85, 0.78, 0.6), gloss=0.3)
    made["paper"] = Material((0.94, 0.92, 0.86))
    made["burner"] = Material((0.14, 0.14, 0.15), gloss=0.4)
    for i in range(ACCENTS):
        made[f"accent{i}"] = Material(draw.colour(prior.small), gloss=0.2)
    for i in range(PICTURES):
        first, second = draw.colour(prior.small), draw.colour(prior.small)
        made[f"picture{i}"] = Material(first, second, "painting", 1.0, 0.1, seed=draw.seed())
    return made


_NUMBERS = {name: i for i, name in enumerate(MATERIALS)}
