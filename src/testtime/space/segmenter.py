"""Segmentation network of the transfer: an encoder of pictures or of several modalities, and a head for classes.

Reference: the head is that of MultiMAE (Bachmann et al., ECCV 2022), its blocks those of ConvNeXt (Liu et al., CVPR 2022).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, cast, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from testtime.data.dense import IGNORE
from testtime.space.modalities import SENSORY, Modality
from testtime.space.model import Block, grid_embedding

__all__ = ["ConvNeXtHead", "Encoder", "Images", "PatchEncoder", "Segmenter"]

Images = Tensor | Mapping[str, Tensor]
"""Images (N, 3, H, W), or the inputs of an encoder of several modalities by name."""


class Encoder(Protocol):
    """Encoder that is transferred: an ``nn.Module`` from pictures (N, 3, H, W) in [0, 1] to features (N, h*w, dim).

    Attributes:
        dim: number of channels of a feature.
        grid: (h, w) of the features, in row-major order.
        size: (H, W) of the input pictures in pixels.
        blocks: blocks in order, for layer decay and drop path.

    An attribute ``norm`` (the final norm) has the learning rate of the head; an attribute ``modalities`` contains the names of
    the inputs of a multimodal encoder, whose input is a dictionary.
    """

    @property
    def dim(self) -> int: ...
    @property
    def grid(self) -> tuple[int, int]: ...
    @property
    def size(self) -> tuple[int, int]: ...
    @property
    def blocks(self) -> nn.ModuleList: ...
    def __call__(self, images: Any) -> Tensor: ...
    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]: ...
    def train(self, mode: bool = True) -> Any: ...


@final
class PatchEncoder(nn.Module):
    """Plain ViT over patches of one or several modalities, with the blocks of 4M: the baseline without pre-training.

    Args:
        modalities: modalities of kind "image", whose normalised channels are concatenated; NaN becomes 0.
        size: (H, W) of the picture in pixels.
        patch: side of a patch in pixels.
        dim, depth, heads: width, a multiple of four and of ``heads``, number of blocks, and attention heads of a block.

    Raises:
        ValueError: the patch does not divide the size, or a modality is not an image.

    >>> encoder = PatchEncoder([SENSORY["rgb"], SENSORY["depth"]], (16, 16), 8, dim=12, depth=1, heads=3)
    >>> encoder({"rgb": torch.rand(2, 3, 16, 16), "depth": torch.rand(2, 1, 16, 16)}).shape
    torch.Size([2, 4, 12])
    """

    def __init__(
        self,
        modalities: Sequence[Modality] = (SENSORY["rgb"],),
        size: tuple[int, int] = (224, 224),
        patch: int = 16,
        dim: int = 512,
        depth: int = 8,
        heads: int = 8,
    ) -> None:
        super().__init__()
        if size[0] % patch or size[1] % patch:
            raise ValueError(f"a patch of {patch} does not divide a picture of {size[0]} x {size[1]}")
        wrong = [m.name for m in modalities if m.kind != "image"]
        if wrong or not modalities:
            raise ValueError(f"expected modalities of kind image, at least one; {wrong} are none")
        self.kinds = tuple(modalities)
        self.modalities = tuple(m.name for m in modalities)
        self.dim, self.size, self.patch = dim, size, patch
        self.grid = (size[0] // patch, size[1] // patch)
        self.patches = nn.Linear(sum(m.channels for m in modalities) * patch * patch, dim, bias=False)
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6, bias=False)
        self.register_buffer("position", grid_embedding(self.grid, dim), persistent=False)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                for weight in module.weight.chunk(3 if name.endswith("qkv") else 1):
                    nn.init.xavier_uniform_(weight)

    position: Tensor

    def forward(self, images: Images) -> Tensor:
        """Return features (N, h*w, dim).

        Args:
            images: modalities by name, or pictures (N, 3, H, W) in [0, 1].

        Raises:
            ValueError: a modality is missing.
        """
        given = {"rgb": images} if isinstance(images, Tensor) else images
        missing = [name for name in self.modalities if name not in given]
        if missing:
            raise ValueError(
                f"the encoder takes {', '.join(self.modalities)}; {', '.join(missing)} is missing"
            )
        x = torch.cat([m.normalised(given[m.name]).nan_to_num(0.0) for m in self.kinds], 1)
        x = self.patches(F.unfold(x, self.patch, stride=self.patch).transpose(1, 2)) + self.position
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class ConvNeXtBlock(nn.Module):
    """x + W2 GELU(W1 LN(D x)) on (N, C, H, W), with a depthwise 7 x 7 convolution D and a hidden width of 4 C."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + self.fc2(F.gelu(self.fc1(y))).permute(0, 3, 1, 2)


@final
class ConvNeXtHead(nn.Module):
    """MultiMAE's head: every token becomes ``sub`` x ``sub`` positions, followed by ConvNeXt blocks.

    Args:
        dim: number of channels of a token.
        grid: (h, w) of the tokens.
        classes: number of channels of the output.
        width: number of channels of a position; linear dim -> sub * sub * width (6144 = 16 * 384 in the paper).
        sub: number of positions along a side of a token.
        depth: number of ConvNeXt blocks.
    """

    def __init__(
        self, dim: int, grid: tuple[int, int], classes: int, width: int = 384, sub: int = 4, depth: int = 4
    ) -> None:
        super().__init__()
        self.grid, self.classes, self.sub, self.width = grid, classes, sub, width
        self.spread = nn.Linear(dim, sub * sub * width)
        self.blocks = nn.Sequential(*(ConvNeXtBlock(width) for _ in range(depth)))
        self.answer = nn.Conv2d(width, classes, 1)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(cast(Tensor, module.bias))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits (N, classes, h*sub, w*sub) of tokens (N, h*w, dim)."""
        (h, w), sub = self.grid, self.sub
        x = self.spread(tokens).view(-1, h, w, sub, sub, self.width)
        x = x.permute(0, 5, 1, 3, 2, 4).reshape(-1, self.width, h * sub, w * sub)
        return self.answer(self.blocks(x))


@final
class Segmenter(nn.Module):
    """Encoder and head: logits at the resolution of the pictures.

    Args:
        encoder: encoder, see :class:`Encoder`; it is trained in place.
        head: network from features (N, h*w, dim) to logits at any resolution, such as :class:`ConvNeXtHead`.

    >>> encoder = PatchEncoder(size=(16, 16), patch=8, dim=12, depth=1, heads=3)
    >>> Segmenter(encoder, ConvNeXtHead(12, (2, 2), classes=5, width=4))(torch.rand(1, 3, 16, 16)).shape
    torch.Size([1, 5, 16, 16])
    """

    def __init__(self, encoder: Encoder, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the encoder's inputs."""
        return getattr(self.encoder, "modalities", ("rgb",))

    def forward(self, images: Images) -> Tensor:
        """Return logits (N, C, H, W), interpolated bilinearly from those of the head."""
        logits = self.head(self.encoder(images))
        return F.interpolate(logits, self.encoder.size, mode="bilinear", align_corners=False)

    def loss(self, images: Images, label: Tensor) -> Tensor:
        """Return the mean cross-entropy over labelled pixels, in nats; 0 if there are none.

        Args:
            images: input of the encoder.
            label: classes (N, H, W).
        """
        total = F.cross_entropy(self(images).float(), label, ignore_index=IGNORE, reduction="sum")
        return total / (label != IGNORE).sum().clamp(min=1)
