"""Leather with a stain: where is it? Words against local tokens, without adaptation and with AnoVL on each image alone."""

import torch
import torch.nn.functional as F

from testtime.corruptions.defects import add_defects
from testtime.metrics.localisation import pixel_auroc
from testtime.vision_language import AnoVL

rng = torch.Generator().manual_seed(0)
space = F.normalize(torch.randn(3, 64, generator=rng), dim=1)  # of images and texts, here of colours


# In place of ImageText(images, texts) with encoders of open_clip or transformers, or of conse_pair(weights).
class Pair(torch.nn.Module):
    def forward(self, x):  # embeddings (N, D) of images
        return x.mean((2, 3)) @ space

    def patches(self, x):  # local tokens (N, P, D), by value_attention() for example
        return F.avg_pool2d(x, 4).flatten(2).transpose(1, 2) @ space


leather = torch.tensor([0.6, 0.3, 0.15]).view(1, 3, 1, 1) + 0.1 * torch.randn(8, 3, 64, 64, generator=rng)
images, masks = add_defects(leather.clamp(0, 1), "blob", seeds=range(8))
normal, abnormal = space[:1] + 0.5 * space[1:2], space[2:]  # pair.encode_texts(prompts)
for steps in (0, 5):
    y = AnoVL(Pair(), normal, abnormal, steps=steps, scale=20.0)(images)
    print(f"{steps} steps: AUROC of pixels {pixel_auroc(y['map'].numpy(), masks.numpy()):.1f} %")
