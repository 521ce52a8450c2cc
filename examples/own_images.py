# %% [markdown]
# # Drift on your own images
#
# A folder of images without labels, a model, and the question whether adaptation helps. The script runs as it stands
# (`python examples/own_images.py [FOLDER OF THE PICTURES]`), or cell by cell in an editor that knows `# %%`. It takes a few
# seconds and needs the extra `pip install -e '.[demo]'`.

# %%
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import testtime
from testtime.corruptions import corrupt
from testtime.data import embedded, image_folder
from testtime.methods import BNAdapt, Source, Tent
from testtime.metrics import diversity
from testtime.models import load_model
from testtime.parts import adam
from testtime.report import Series, line_chart, write_chart
from testtime.selection import appearance_features, monitor, recommend
from testtime.streams import recorded

OUT = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/own_images")

# %% [markdown]
# ## The images
#
# Put your own folder in the place of `folder`: the images are read in natural order (`frame_2` before `frame_10`). Here the
# stream is written first: 600 handwritten digits, clear at first, then in fog, then noisy.

# %%
folder = Path(tempfile.mkdtemp()) / "camera"
folder.mkdir()
test = embedded().test
order = np.random.default_rng(0).permutation(len(test))[:600]
truth = test.targets(order)  # kept for the last cell alone: nothing below reads it before
for part, (name, severity) in enumerate([("", 0), ("fog", 3), ("gaussian_noise", 5)]):
    rows = order[200 * part : 200 * (part + 1)]
    x = test.batch(rows)
    x = corrupt(x, name, severity) if name else x
    for i, pixels in enumerate((255 * x).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()):
        Image.fromarray(pixels).save(folder / f"frame_{200 * part + i}.png")

images = image_folder(folder)
batches = [batch.x for batch in recorded(images, batch_size=50)]
print(f"{len(images)} images in {len(batches)} batches")

# %% [markdown]
# ## The model
#
# Any `nn.Module` that returns logits. It declares which changes of an image keep its class: a mirrored digit is another one.

# %%
model = load_model("digits-cnn")  # your own: Preprocessed(network, mean, std, views=Views(...))

# %% [markdown]
# ## Candidates in shadow
#
# Each candidate predicts the same batches and adapts to them; their predictions are not used. The first is what is in use.
# The last has a learning rate that is far too high, to show that this is noticed without labels.

# %%
candidates = {
    "Source": Source(model),
    "BN-adapt": BNAdapt(model),
    "TENT": Tent(model),
    "too fast": Tent(model, adam(0.5)),
}
diagnostics = {name: list(monitor(adapter, batches, Source(model))) for name, adapter in candidates.items()}
appearance = appearance_features(torch.cat(batches))
advice = recommend(diagnostics, appearance)
print(f"take {advice.name}")
for reason in advice.reasons:
    print(f"- {reason}")

# %% [markdown]
# ## A signal without labels
#
# The diversity of the predictions, 100 % where all classes are predicted equally often. In the fog the shipped model predicts
# few classes, and the candidate with the high learning rate ends at one. Both are consistent in this: an estimate from
# consistency alone would prefer the shipped model (`over_time` shows it), so that the advice also needs the alarms.

# %%
WINDOW = 2  # batches of a point
series = []
for number, (name, seen) in enumerate(diagnostics.items(), 1):
    counts = [sum(one.counts for one in seen[i : i + WINDOW]) for i in range(0, len(seen), WINDOW)]
    x = [sum(one.images for one in seen[: i + WINDOW]) for i in range(0, len(seen), WINDOW)]
    series.append(Series(name, x, [100 * diversity(count) for count in counts], colour=number))
chart = line_chart(series, title="Diversity of the predictions", x="images", y="diversity (%)", height=200)
OUT.mkdir(parents=True, exist_ok=True)
print(write_chart(OUT / "drift-diversity.svg", chart))

# %% [markdown]
# ## What the labels say
#
# In this example they exist. On your own stream this cell is what you do not have.

# %%
series = []
for number, (name, seen) in enumerate(diagnostics.items(), 1):
    right = torch.tensor([label for one in seen for label in one.predicted]) == truth
    accuracy = [100 * part.float().mean().item() for part in right.split(100)]
    series.append(Series(name, [100 * (i + 1) for i in range(len(accuracy))], accuracy, colour=number))
    print(f"{name:12} " + " ".join(f"{value:5.1f}" for value in accuracy))
chart = line_chart(series, title="Accuracy along the stream", x="images", y="accuracy (%)", height=200)
print(write_chart(OUT / "drift-accuracy.svg", chart))

# %% [markdown]
# ## Deploy the choice
#
# Keep the state of the adapter beside the model; `reset()` returns to the model that was shipped at any time.

# %%
adapter = testtime.adapt(model, {"Source": "source", "BN-adapt": "bn-adapt"}.get(advice.name, "tent"))
for x in batches:
    y = adapter(x)
testtime.save(adapter, folder.parent / "adapter")
adapter = testtime.load(folder.parent / "adapter", model)
adapter.reset()
