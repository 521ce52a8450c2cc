"""The classes of a house, and parametric models of its furniture.

A model stands on z = 0, is centred at x = y = 0 and faces +y; its back, at the lowest y, is for the wall. Every builder takes a
style and a random generator; its model depends on them alone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from testtime.scenes.furniture import fittings, kitchen_bath, seats, small, storage, tables
from testtime.scenes.furniture.model import CLASSES, SMALL, STRUCTURE, Model, Surface, label_of
from testtime.scenes.geometry import Array, Mesh
from testtime.scenes.style import Style

__all__ = ["CLASSES", "MODELS", "SMALL", "STRUCTURE", "Model", "Surface", "build", "label_of"]

MODELS: dict[str, Callable[[Style, np.random.Generator], Model]] = {
    "bed": seats.bed,
    "sofa": seats.sofa,
    "armchair": seats.armchair,
    "chair": seats.chair,
    "office_chair": seats.office_chair,
    "table": tables.table,
    "coffee_table": tables.coffee_table,
    "desk": tables.desk,
    "nightstand": storage.nightstand,
    "sideboard": storage.sideboard,
    "dresser": storage.dresser,
    "counter": storage.counter,
    "wall_cabinet": storage.wall_cabinet,
    "kitchen_sink": kitchen_bath.kitchen_sink,
    "stove": kitchen_bath.stove,
    "fridge": kitchen_bath.fridge,
    "wardrobe": storage.wardrobe,
    "shelf": storage.shelf,
    "tv": fittings.tv,
    "monitor": fittings.monitor,
    "bath_sink": kitchen_bath.bath_sink,
    "toilet": kitchen_bath.toilet,
    "bathtub": kitchen_bath.bathtub,
    "floor_lamp": fittings.floor_lamp,
    "table_lamp": fittings.table_lamp,
    "ceiling_lamp": fittings.ceiling_lamp,
    "plant": fittings.plant,
    "rug": fittings.rug,
    "bath_rug": fittings.bath_rug,
    "curtain": fittings.curtain,
    "picture": fittings.picture,
    "mirror": fittings.mirror,
    "pillow": small.pillow,
    "book": small.book,
    "mug": small.mug,
    "bottle": small.bottle,
    "vase": small.vase,
    "box": small.carton,
}
"""Builders of models by name; several builders can build models of one class."""


@lru_cache(maxsize=256)
def build(name: str, style: Style, variant: int = 0) -> Model:
    """Build a model; equal arguments give equal triangles. The last ones are kept: a house has many of each.

    Args:
        name: name of the model, a key of :data:`MODELS`.
        style: style of the house.
        variant: index of the variant.

    Raises:
        ValueError: there is no model of this name.
    """
    if name not in MODELS:
        raise ValueError(f"model: expected one of {', '.join(MODELS)}, got {name!r}")
    return MODELS[name](style, style.draw("model", name, variant))


def stretched(model: Model, width: float, depth: float, height: float) -> Model:
    """Scale a model to another size, without its surfaces.

    Args:
        model: model to scale.
        width, depth, height: size of the result, in metres.
    """
    factors = np.array([width, depth, height]) / np.array(model.size)
    mesh, normals = model.mesh, model.mesh.normals / factors
    normals = normals / np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-12)

    def scaled(values: Array) -> Array:
        return (values * factors).astype(np.float32)

    parts = Mesh(
        scaled(mesh.triangles),
        normals.astype(np.float32),
        scaled(mesh.local),
        mesh.material,
        mesh.instance,
        mesh.label,
    )
    return Model(model.name, parts, lift=model.lift)
