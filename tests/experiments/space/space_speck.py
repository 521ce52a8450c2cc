"""A preset so small that an experiment of it takes seconds, and units of it executed one after the other."""

from pathlib import Path

from testtime.experiments.experiment import closure
from testtime.experiments.space.planning import Planner
from testtime.experiments.space.presets import Preset
from testtime.experiments.store import Made, Store, execute
from testtime.multitask import Recipe as TeacherRecipe
from testtime.scenes.places import Views, houses
from testtime.space.model import Size
from testtime.space.pretrain import Recipe
from testtime.space.transfer import TransferRecipe

SPECK = Preset(
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
    larger="tiny",
    strong=Views(houses((300,)), 3),
    strong_recipe=TeacherRecipe(iterations=3, batch=2, lr=1e-3),
    strong_width=8,
)


class Speck:
    """Planner of the preset whose units are executed in a folder."""

    def __init__(self, folder, seed=0):
        self.root, self.planner = Path(folder), Planner(SPECK, seed)

    def made(self, unit):
        for one in closure([unit]):
            outcome = execute(one.described(), str(self.root))
            assert outcome["state"] == "done", (one.name, outcome)
        store = Store(self.root)
        return Made(store.result(unit.address)["result"], store.folder(unit.address))

    def result(self, variant, measure="mIoU"):
        return self.made(self.planner.measured(variant, measure)).result
