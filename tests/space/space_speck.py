"""A preset so small that an analysis of it takes seconds."""

from testtime.multitask import Recipe as TeacherRecipe
from testtime.space.model import Size
from testtime.space.presets import Preset, Views, houses
from testtime.space.pretrain import Recipe
from testtime.space.transfer import TransferRecipe

SPECK = Preset(
    "speck",
    (32, 32),
    8,
    Size(1, 1, 12, 3),
    (3, 3),
    2,
    2,
    Recipe(steps=3, batch=4, base_lr=1e-2, inputs=6, targets=6, precision="float32"),
    TransferRecipe(epochs=1, warmup=0, batch=2, lr=1e-3),
    frames=4,
    tests=3,
    outside=Views(houses((100, 101), "other"), 4),
    teacher=Views(houses((200,)), 3),
    teacher_recipe=TeacherRecipe(iterations=2, batch=2, lr=1e-3),
    boxes=12,
    projection=(8, 8, 4),
    head=(4, 2, 1),
    labelled=2,
)
