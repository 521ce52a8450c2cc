"""Class names in place of training: a zero-shot classifier, prompt tuning for each image, and the controls beside it."""

import torch

from testtime.laws import WORLDS
from testtime.methods import BNAdapt, Source
from testtime.vision_language import TDA, TPT, ZERO, ImageText, ZeroShot, zero_shot_of

# A small trained pair stands in for yours:
#   clip, _, _ = open_clip.create_model_and_transforms("ViT-B-16", pretrained="openai")
#   pair = open_clip_pair(clip, open_clip.get_tokenizer("ViT-B-16"))   # or transformers_pair(model, processor)
world = WORLDS["image-text"]
pair: ImageText = zero_shot_of(world.network()).pair
model = ZeroShot(pair, ["red", "green", "blue", "grey", "black"], "a photo of a {} thing")

draw = torch.Generator().manual_seed(0)
x, label = world.task(256, draw)  # images (N, 3, H, W) in [0, 1]
x = (0.5 * x + 0.1 + 0.05 * torch.randn(x.shape, generator=draw)).clamp(0, 1)  # darker, flatter, noisier

few = {"views": 16, "share": 0.25}  # 64 views and a share of 0.1 in the papers
for adapter in (Source(model), BNAdapt(model), ZERO(model, **few), TDA(model), TPT(model, **few)):
    answers = torch.cat([adapter(batch) for batch in x.split(32)])
    right = (answers.argmax(1) == label).float().mean()
    print(f"{type(adapter).label:9} {100 * right:5.1f} %, {adapter.cost[0]:.0f} forwards of an image")
