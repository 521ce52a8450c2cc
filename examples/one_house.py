# %% [markdown]
# # A model that knows one house
#
# A robot works in one house. Its camera and its depth sensor give pictures without labels; labelled pictures exist of other
# houses. Four segmenters with the same network and the same number of steps of fine-tuning:
#
# - from scratch, on the labels of other houses;
# - the same after pre-training on what the sensors saw in the house, without labels (TST-MM);
# - from scratch, on twenty labelled pictures of the house;
# - pre-trained, on these twenty.
#
# `python examples/one_house.py [FOLDER OF THE PICTURES]` takes about five minutes on two cores and needs
# `pip install -e '.[space]'`. The network is small and there is one seed: the figures are an illustration, not a result.

# %%
import colorsys
import sys
from copy import deepcopy
from pathlib import Path

import torch
from PIL import Image

from testtime.data import relabelled
from testtime.report import Point, row_chart, write_chart
from testtime.scenes import CLASSES, make, read_scenes
from testtime.scenes import Recipe as House
from testtime.space.frames import SpaceFrames
from testtime.space.loader import Batches, Part
from testtime.space.mae import PictureEncoder
from testtime.space.masking import Masking, rgb_to_all
from testtime.space.modalities import DEPTH, NORMALS, RGB
from testtime.space.model import Encoder, FourM
from testtime.space.pretrain import Recipe, pretrain
from testtime.space.segmenter import ConvNeXtHead, Segmenter
from testtime.space.shards import write_shards
from testtime.space.tokenizers import FSQTokenizer
from testtime.space.transfer import TransferRecipe, evaluate, few, transfer

OUT = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/one_house")
WORK = Path("runs/one_house")
SIZE, PATCH = (64, 64), 8

# %% [markdown]
# ## The place, other houses, and a test
#
# Rendered here. A walk through a real place is read by `testtime space ingest`, scans by `testtime.data.replica` and
# `testtime.data.scannetpp_frames`.

# %%
PARTS = {"wall", "floor", "ceiling", "window", "door", "bed", "sofa", "chair", "table", "cabinet"}
GROUPS = {name: name if name in PARTS else "thing" for name in CLASSES}
GROUPS |= {"rug": "floor", "curtain": "window", "desk": "table", "wardrobe": "cabinet", "shelf": "cabinet"}


def pictures(seeds, frames, camera_seed=0):
    """Labelled pictures of rendered houses."""
    recipes = [House(seed, frames=frames, size=SIZE, camera_seed=camera_seed) for seed in seeds]
    root = WORK / f"houses-{frames}-{camera_seed}"
    make(root, recipes, jobs=1)
    classes = tuple(dict.fromkeys(GROUPS.values()))
    return relabelled(read_scenes(root, [r.name for r in recipes]), GROUPS, classes)


own = pictures([0], 160)  # seen by the robot: pre-training takes no label of them
test = pictures([0], 40, camera_seed=1)  # the same house from other places
others = pictures(range(100, 108), 20)  # labelled, elsewhere
labelled = few(own, 20)  # twenty pictures of the house that show many classes

# %% [markdown]
# ## Pre-training on what the sensors saw
#
# Pictures, depth and normals become tokens; the model is shown some of them and predicts others (masked modelling over all
# modalities, 4M).

# %%
sensed = SpaceFrames(own, (DEPTH.name, NORMALS.name))
tokenizers = {}
for modality in (RGB, DEPTH, NORMALS):
    tokenizer = FSQTokenizer(modality, SIZE, PATCH, levels=(8, 6, 5))
    tokenizer.fit(sensed.values(modality, SIZE), 100, folder=WORK / f"tokenizer-{modality.name}")
    tokenizers[f"tok_{modality.name}"] = tokenizer
shards = write_shards(WORK / "shards", sensed, tokenizers, SIZE, PATCH, crops=2)
masking = Masking(shards.streams, rgb_to_all(shards.streams), inputs=24, targets=24)
torch.manual_seed(0)
model = FourM(shards.streams, "tiny", SIZE, PATCH)
recipe = Recipe(400, batch=32, base_lr=5e-3, warmup=40, inputs=24, targets=24, precision="float32")
pretrain(model, Batches([Part(shards)], masking, recipe.batch), recipe, WORK / "pretrained")

# %% [markdown]
# ## Fine-tuning and the test
#
# As many steps whatever the number of labelled pictures. The last number is the mean intersection over union on pictures of
# the house from other places.

# %%
segmenters, scores = {}, {}
for labels, data in {"other houses": others, "20 of this house": labelled}.items():
    for start in ("scratch", "pre-trained"):
        torch.manual_seed(0)
        encoder = PictureEncoder("tiny", SIZE, PATCH) if start == "scratch" else Encoder(deepcopy(model))
        head = ConvNeXtHead(encoder.dim, encoder.grid, len(data.classes), width=24, sub=4, depth=2)
        epochs = 24 * len(others) // len(data)
        tuning = TransferRecipe(epochs, 1, 8, 2e-3, layer_decay=0.9, drop_path=0.0, scale=(1.0, 1.5))
        name = f"{start}, labels of {labels}"
        folder = WORK / f"{start}-{len(data)}"
        segmenters[name] = transfer(Segmenter(encoder, head), data, tuning, folder)
        scores[name] = evaluate(segmenters[name], test)["mIoU"]
        print(f"{name:40} mIoU {scores[name]:5.1f} %")

# %%
chart = row_chart(
    [Point(name, value, 0.0, colour=1 + ("pre" in name)) for name, value in scores.items()],
    title="Segmentation of one house",
    x="mIoU (%)",
    bars=True,
)
OUT.mkdir(parents=True, exist_ok=True)
print(write_chart(OUT / "house-miou.svg", chart))

# %% [markdown]
# ## What it looks like
#
# From left to right: picture, from scratch on other houses, pre-trained on twenty pictures of the house, labels.

# %%
x, truth = test.batch(range(0, 40, 14))
palette = torch.tensor([colorsys.hsv_to_rgb(0.618 * i % 1, 0.45, 0.9) for i in range(256)])
columns = [x]
for name in (next(iter(segmenters)), list(segmenters)[-1]):
    with torch.no_grad():
        columns.append(palette[segmenters[name](x).argmax(1)].movedim(-1, 1))
columns.append(palette[truth["semseg"]].movedim(-1, 1))
rows = torch.cat([torch.cat(list(row), dim=2) for row in zip(*columns, strict=True)], dim=1)
picture = Image.fromarray((255 * rows).byte().permute(1, 2, 0).numpy())
picture.resize((3 * picture.width, 3 * picture.height), Image.Resampling.NEAREST).save(OUT / "house.png")
print(OUT / "house.png")
