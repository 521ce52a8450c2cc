# %% [markdown]
# # Many tasks at once, in a house of another style
#
# A network that segments, measures depth, finds normals and edges is trained on rendered houses of one style, with a small
# synchronizer beside it. Then it gets houses of another style, and S4T adapts all tasks together. The control estimates the
# statistics of the normalisation layers on the same batches and learns nothing.
#
# `python examples/many_tasks.py [FOLDER OF THE PICTURES]` takes two or three minutes on two cores and needs
# `pip install -e '.[scenes,report]'`. The network is small: the figures are an illustration, not a result.

# %%
import sys
from pathlib import Path

import torch
from PIL import Image

from testtime.data import relabelled
from testtime.methods import S4T, Source
from testtime.metrics import delta_ttt
from testtime.multitask import (
    Assisted,
    Depth,
    Edges,
    Normals,
    Recipe,
    Segmentation,
    Synchronizer,
    multitask_resnet,
    train,
)
from testtime.parts import sgd
from testtime.report import Series, line_chart, write_chart
from testtime.scenes import CLASSES, make, read_scenes
from testtime.scenes import Recipe as House

OUT = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/many_tasks")
WORK = Path("runs/many_tasks")

# %% [markdown]
# ## Data: tasks are keyed by name
#
# `make` renders houses into files and goes on where it was left. Any `DenseSet` can take its place: NYUD-v2, Taskonomy,
# ScanNet++, or your own (docs/guides/data_set.md).

# %%
GROUPS = {
    "wall": "wall",
    "floor": "floor",
    "rug": "floor",
    "ceiling": "ceiling",
    "window": "opening",
    "door": "opening",
}
GROUPS = {name: GROUPS.get(name, "thing") for name in CLASSES}


def houses(seeds, style="default"):
    """Rendered houses of a style, 16 frames of each."""
    recipes = [House(seed, style, frames=16, size=(64, 64)) for seed in seeds]
    make(WORK / "houses", recipes, jobs=1)
    return relabelled(
        read_scenes(WORK / "houses", [r.name for r in recipes]), GROUPS, tuple(dict.fromkeys(GROUPS.values()))
    )


source = houses(range(12))
target = houses(range(9000, 9003), style="other")
print(f"{len(source)} images to learn from, {len(target)} of another style")

# %% [markdown]
# ## The network, its branch, and joint training
#
# One encoder with a head for each task. The synchronizer predicts every task from masked features of all tasks; it is trained
# with the network and takes no part in a prediction.

# %%
tasks = {task.name: task for task in (Segmentation(source.classes), Depth(), Normals(), Edges())}
torch.manual_seed(0)
network = multitask_resnet(tasks, depth=18, width=16)
branch = Synchronizer(
    tasks, network.encoder.channels, features=16, size=32, patch=4, width=32, depth=2, decoder_depth=1
)
model = train(Assisted(network, branch), source, Recipe(400, batch=16, lr=4e-3, every=100), WORK / "model")

# %% [markdown]
# ## Adapt, beside the control
#
# Every adapter takes steps on the first eight images; `predict` on all images of the other style is measured after every
# other step. With a learning rate of 0, S4T is the control: the same forwards and the same statistics, and no learning.

# %%
x, labels = target.batch(range(len(target)))


def measured(adapter):
    """The metric of every task, by name."""
    y, metrics = adapter.predict(x), {}
    for name, task in tasks.items():
        meter = task.meter()
        meter.update(y[name], labels[name])
        metrics[name] = meter.value()
    return metrics


better = {name: task.higher_is_better for name, task in tasks.items()}
adapters = {"Unadapted": Source(model), "BN only": S4T(model, sgd(0.0)), "S4T": S4T(model, sgd(1e-3))}
start = measured(adapters["Unadapted"])
steps, gains = list(range(0, 21, 2)), {}
for name, adapter in adapters.items():
    values = [measured(adapter)]
    for _ in steps[1:]:
        for _ in range(2):
            adapter(x[:8])
        values.append(measured(adapter))
    gains[name] = [delta_ttt(value, start, better) for value in values]
    print(f"{name:10}", "  ".join(f"{task} {value:.2f}" for task, value in values[-1].items()))

# %%
chart = line_chart(
    [Series(name, steps, gain, colour=number) for number, (name, gain) in enumerate(gains.items(), 1)],
    title="Mean gain over the unadapted network",
    x="steps on eight images",
    y="mean gain over four tasks (%)",
    height=200,
)
OUT.mkdir(parents=True, exist_ok=True)
print(write_chart(OUT / "tasks-gain.svg", chart))

# %% [markdown]
# ## What it looks like
#
# From left to right: image, depth and normals of the unadapted network, after S4T, and the labels.

# %%
shown = slice(0, len(target), len(target) // 3)
furthest = labels["depth"].nan_to_num(0).quantile(0.95)
columns = [x[shown]]
for y in (adapters["Unadapted"].predict(x), adapters["S4T"].predict(x), labels):
    depth, normals = y["depth"][shown], torch.nn.functional.normalize(y["normals"][shown])
    columns += [(1 - depth / furthest).clamp(0, 1).expand(-1, 3, -1, -1), normals / 2 + 0.5]
rows = torch.cat([torch.cat(list(row), dim=2) for row in zip(*columns, strict=True)], dim=1)
pixels = (255 * rows.nan_to_num(0).clamp(0, 1)).byte().permute(1, 2, 0).numpy()
picture = Image.fromarray(pixels)
picture.resize((2 * picture.width, 2 * picture.height)).save(OUT / "tasks.jpg", quality=85)
print(OUT / "tasks.jpg")
