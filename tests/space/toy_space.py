"""A toy space: pictures of grey blocks, their negative as depth, boxes, and a tokenizer that says how bright a patch is."""

import math

import torch
from torch import nn

from testtime.space.masking import Stream
from testtime.space.modalities import DEPTH, RGB, boxes
from testtime.space.sequences import Box, BoxVocabulary
from testtime.space.shards import write_shards

VOCABULARY = BoxVocabulary(["chair", "table"], bins=11, sentinels=16)
WORDS = 22
BOXES = (boxes("boxes", len(VOCABULARY)), VOCABULARY, WORDS)
SIZE, PATCH = (16, 16), 4


class Levels(nn.Module):
    """The mean of a patch's first channel, in equal levels; in the form of a tokenizer."""

    def __init__(self, modality, levels=8, size=SIZE):
        super().__init__()
        self.modality, self.vocabulary, self.size = modality, levels, size
        self.grid = (size[0] // PATCH, size[1] // PATCH)
        self.register_buffer("scale", torch.tensor(float(levels)))

    def encode(self, value):
        means = value[:, :1].unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH).mean((-1, -2)).flatten(1)
        return (means * self.scale).long().clamp(0, self.vocabulary - 1)


def frame(index, side=16):
    """Blocks of a patch's side, in eighths; a few boxes."""
    rng = torch.Generator().manual_seed(index)
    blocks = (torch.randint(8, (side // PATCH, side // PATCH), generator=rng) + 0.5) / 8
    picture = blocks.repeat_interleave(PATCH, 0).repeat_interleave(PATCH, 1).expand(3, side, side)
    corners = torch.rand(int(torch.randint(0, 4, (), generator=rng)), 2, generator=rng).tolist()
    found = [Box(0.5 * x, 0.5 * y, 0.5 + 0.5 * x, 0.5 + 0.5 * y, "chair") for x, y in corners]
    return {"rgb": picture.clone(), "depth": 1 - picture[:1], "boxes": found}


def frames(count=10, start=0):
    return [frame(start + i) for i in range(count)]


def tokenizers(levels=8):
    return {"tok_rgb": Levels(RGB, levels), "tok_depth": Levels(DEPTH, levels)}


def shards(folder, count=10, crops=3, boxed=True, levels=8, start=0, **kwargs):
    words = BOXES if boxed else None
    return write_shards(
        folder, frames(count, start), tokenizers(levels), SIZE, PATCH, crops, boxes=words, **kwargs
    )


def streams(boxed=True, levels=8):
    places = math.prod(SIZE) // PATCH**2
    found = (
        Stream("rgb", "pixels", places),
        Stream("tok_rgb", "grid", places, levels),
        Stream("tok_depth", "grid", places, levels),
        Stream("boxes", "sequence", WORDS, len(VOCABULARY)),
    )
    return found if boxed else found[:3]
