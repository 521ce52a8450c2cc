"""A preset so small that a study of it takes seconds."""

from dataclasses import replace

from testtime.multitask import Recipe
from testtime.multitask.presets import TINY, Domain

SIZE = (32, 32)
SPECK = replace(
    TINY,
    name="speck",
    width=4,
    branch={**TINY.branch, "features": 4, "width": 8, "depth": 1, "decoder_depth": 1, "heads": 2},
    recipe=Recipe(iterations=3, batch=4, lr=1e-3, every=2),
    domains={
        "source": Domain(0, 2, 4, SIZE),
        "validation": Domain(50, 1, 4, SIZE, style="minimal"),
        "target": Domain(90, 1, 5, SIZE, style="other"),
        "target + noise 0.4": Domain(90, 1, 5, SIZE, style="other", noise=0.4),
    },
)
