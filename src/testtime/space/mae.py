r"""Masked autoencoder of pictures: the pixels of masked patches are predicted from the visible quarter (TST-MAE).

With the patches :math:`x_p` of a picture, their standardised values :math:`\hat x_p`, and the visible positions :math:`V`,

.. math:: L = \frac{1}{|\bar V|} \sum_{p \notin V} \frac{1}{3 s^2} \big\lVert g_\phi(f_\theta(x_V))_p - \hat x_p \big\rVert^2

The encoder :math:`f` has the parts, sizes and names of the one that :class:`~testtime.space.model.FourM` has for pictures, so
that both are transferred alike and differ only in the objective. Its input is the visible patches; the input of the decoder
:math:`g` is a shared mask token at all other positions.

Masks are a function of ``seed``, of the number of steps, and of the position in the batch: ``forward`` does not use the global
generator, and a resumed run draws the same masks. Where a batch is computed in parts, every part uses the same masks.

Departures:
    Blocks and norms are 4M's (SwiGLU, no biases), not those of ViT; there is no class token; patches have no bias, and the
    learned vector of the modality is added to the position embedding, as in 4M.
    The decoder is at most as wide and as deep as the paper's (512, 8), and never more so than 4M's of the same size.

Reference: He, Chen, Xie, Li, Dollár and Girshick, Masked Autoencoders Are Scalable Vision Learners, CVPR 2022. Used as Singh,
Garjani et al. do (Multimodality as Supervision), where it is the baseline of one modality.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from testtime.models.assisted import MaskedBranch
from testtime.parts.randomness import generator
from testtime.space.model import SIZES, Batch, Block, Size, grid_embedding

__all__ = ["MaskedAutoencoder", "PictureEncoder"]


@final
class PictureEncoder(nn.Module):
    """Encoder of pictures with the parts, sizes, names and initial weights of :class:`~testtime.space.model.FourM`'s.

    It is compatible with the state of :class:`testtime.space.model.Encoder`.

    Args:
        size: size, a name in :data:`~testtime.space.model.SIZES`, or a :class:`~testtime.space.model.Size`.
        image: (H, W) of the picture in pixels.
        patch: side of a patch in pixels.

    Attributes:
        dim: width of a feature.
        grid: (h, w) of the patches, row by row.
        size: (H, W) of the pictures, as ``image``.
        blocks: blocks in order.

    Raises:
        ValueError: there is no size of that name, or the patch does not divide the picture.

    >>> PictureEncoder("tiny", (32, 32), 8)(torch.rand(2, 3, 32, 32)).shape
    torch.Size([2, 16, 96])
    """

    position: Tensor
    mean: Tensor
    deviation: Tensor

    def __init__(self, size: str | Size = "S", image: tuple[int, int] = (224, 224), patch: int = 16) -> None:
        super().__init__()
        if isinstance(size, str):
            if size not in SIZES:
                raise ValueError(f"no size {size!r}; there are {', '.join(SIZES)}")
            size = SIZES[size]
        if patch < 1 or min(image) < patch or image[0] % patch or image[1] % patch:
            raise ValueError(f"a patch of {patch} does not divide a picture of {image[0]} x {image[1]}")
        self.dim, self.size, self.patch = size.dim, image, patch
        self.grid = (image[0] // patch, image[1] // patch)
        self.pixels = nn.Linear(3 * patch * patch, size.dim, bias=False)
        self.blocks = nn.ModuleList(Block(size.dim, size.heads) for _ in range(size.encoder))
        self.norm = nn.LayerNorm(size.dim, eps=1e-6, bias=False)
        self.modality = nn.Parameter(torch.empty(size.dim))
        buffers = {
            "position": grid_embedding(self.grid, size.dim),
            "mean": torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1),
            "deviation": torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1),
        }
        for name, value in buffers.items():
            self.register_buffer(name, value, persistent=False)
        initialise_linear(self)
        nn.init.normal_(self.modality, std=0.02)

    def forward(self, images: Tensor, shown: Tensor | None = None) -> Tensor:
        """Return features after the norm.

        Args:
            images: pictures (N, 3, H, W) in [0, 1]; position embeddings are interpolated if they are not of size ``size``.
            shown: visible positions (N, k) int64; None is all.

        Returns:
            features (N, positions, dim), or (N, k, dim) in the order of ``shown``.

        Raises:
            ValueError: the patch does not divide the pictures.
        """
        content, embedding = self.embedded(images)
        return self.encoded(picked(content + embedding, shown))

    def cut(self, images: Tensor) -> Tensor:
        """Return the normalised pixels of every patch, (N, positions, 3 * patch * patch), channel by channel.

        Raises:
            ValueError: the patch does not divide the pictures.
        """
        if images.shape[-2] % self.patch or images.shape[-1] % self.patch:
            raise ValueError(
                f"patches of {self.patch} do not divide pictures of {images.shape[-2]} x {images.shape[-1]}"
            )
        x = (images - self.mean) / self.deviation
        return F.unfold(x, self.patch, stride=self.patch).transpose(1, 2)

    def embedded(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the content (N, positions, dim) of every patch, and the embedding (positions, dim) that is added to it."""
        grid = (images.shape[-2] // self.patch, images.shape[-1] // self.patch)
        return self.pixels(self.cut(images)), self.places(grid) + self.modality

    def places(self, grid: tuple[int, int]) -> Tensor:
        """Return the position embedding of a grid, (h * w, dim), interpolated bicubically for other grids, as in DINO."""
        if grid == self.grid:
            return self.position
        field = self.position.T.view(1, self.dim, *self.grid).float()
        field = F.interpolate(field, grid, mode="bicubic", align_corners=False)
        return field.view(self.dim, -1).T.to(self.position.dtype)

    def encoded(self, x: Tensor) -> Tensor:
        """Apply blocks and norm to tokens (N, k, dim)."""
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


@final
class MaskedAutoencoder(MaskedBranch):
    """Encoder of pictures and a decoder that reconstructs masked patches.

    It is trained by :func:`testtime.space.pretrain.pretrain`, and its ``encoder`` is transferred. With a network that has the
    same encoder, ``Assisted(network, autoencoder)``, it is the auxiliary task of :class:`testtime.methods.TTTMAE`.

    Args:
        size: size of the encoder, a name in :data:`~testtime.space.model.SIZES`, or a :class:`~testtime.space.model.Size`.
        image: (H, W) of the picture in pixels.
        patch: side of a patch in pixels.
        ratio: fraction of the patches that are masked.
        decoder_dim: width of the decoder, a multiple of four and, above 32, of 32, the width of a head; None is the encoder's
            width, at most 512.
        decoder_depth: number of blocks of the decoder; None is the depth of 4M's decoder, at most 8.
        norm_pixels: whether the pixels of a target patch are standardised.
        seed: random seed of the masks.

    Raises:
        ValueError: there is no size of that name, the patch does not divide the picture, the ratio masks all patches or none,
            or heads do not divide the decoder's width.

    >>> model = MaskedAutoencoder("tiny", (32, 32), 8)
    >>> model.reconstruct(torch.rand(2, 3, 32, 32), torch.tensor([[0, 5], [3, 15]])).shape
    torch.Size([2, 16, 192])
    """

    encoder: PictureEncoder
    step: Tensor
    position: Tensor

    def __init__(
        self,
        size: str | Size = "S",
        image: tuple[int, int] = (224, 224),
        patch: int = 16,
        ratio: float = 0.75,
        decoder_dim: int | None = None,
        decoder_depth: int | None = None,
        norm_pixels: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.encoder = PictureEncoder(size, image, patch)
        self.ratio, self.norm_pixels, self.seed = ratio, norm_pixels, seed
        self.places = places = self.encoder.grid[0] * self.encoder.grid[1]
        if not 0 <= ratio <= 1:
            raise ValueError(
                f"expected a ratio, the fraction of masked patches, above 0 and below 1, got {ratio}"
            )
        self.visible = int(places * (1 - ratio))
        if not 0 < self.visible < places:
            raise ValueError(
                f"a ratio of {ratio} leaves {self.visible} of {places} patches visible; expected at least 1 and fewer than all"
            )
        sizes = SIZES[size] if isinstance(size, str) else size
        dim = min(512, sizes.dim) if decoder_dim is None else decoder_dim
        depth = min(8, sizes.decoder) if decoder_depth is None else decoder_depth
        if dim < 4 or dim % 4 or depth < 1:
            raise ValueError(
                f"the decoder has a width in multiples of 4 and a depth of at least 1, got {dim} and {depth}"
            )
        heads = max(1, dim // 32)
        if dim % heads:
            raise ValueError(f"heads of 32 channels do not divide a decoder of {dim}; take a multiple of 32")
        self.project = nn.Linear(sizes.dim, dim)
        self.mask_token = nn.Parameter(torch.empty(dim))
        self.decoder = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.decoder_norm = nn.LayerNorm(dim, eps=1e-6, bias=False)
        self.answer = nn.Linear(dim, 3 * patch * patch)
        self.register_buffer("position", grid_embedding(self.encoder.grid, dim), persistent=False)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        for part in (self.project, self.decoder, self.answer):
            initialise_linear(part)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the loss of the batch's pictures with the masks of this step: {"rgb": ()}."""
        rng = generator(self.seed, int(self.step), "mask")
        return {"rgb": self.loss(batch.pixels, self.masks(len(batch.pixels), rng))}

    def advance(self, step: int, steps: int) -> None:
        """Advance to the masks of the next step; ``pretrain`` calls it."""
        self.step.fill_(step + 1)

    def masks(self, count: int, rng: torch.Generator) -> Tensor:
        """Draw visible positions, (count, visible) int64, without repetition in a row."""
        noise = torch.rand(count, self.places, generator=rng, device=rng.device)
        return noise.argsort(1)[:, : self.visible].to(self.position.device)

    def loss(self, images: Tensor, shown: Tensor) -> Tensor:
        """Return the mean squared error over the masked patches of pictures (N, 3, H, W) in [0, 1]."""
        answer, target = self.reconstruct(images, shown).float(), self.target(images).float()
        hidden = torch.ones(target.shape[:2], device=target.device).scatter(1, shown, 0.0)
        return ((answer - target).square().mean(-1) * hidden).sum() / hidden.sum()

    def target(self, images: Tensor) -> Tensor:
        """Return the target of every patch, (N, positions, 3 * patch * patch), standardised with the unbiased variance."""
        patches = self.encoder.cut(images)
        if not self.norm_pixels:
            return patches
        patches = patches.float()
        variance, mean = torch.var_mean(patches, -1, keepdim=True)
        return (patches - mean) / (variance + 1e-6).sqrt()

    def reconstruct(self, images: Tensor, shown: Tensor) -> Tensor:
        """Predict every patch, (N, positions, 3 * patch * patch), from those at ``shown`` (N, k)."""
        visible = self.project(self.encoder(images, shown))
        masked = self.mask_token.to(visible.dtype).expand(len(visible), len(self.position), -1)
        x = masked.scatter(1, shown[..., None].expand_as(visible), visible) + self.position
        for block in self.decoder:
            x = block(x)
        return self.answer(self.decoder_norm(x))

    def source_loss(
        self,
        network: nn.Module,
        x: Tensor,
        seen: Sequence[Tensor],
        labels: Mapping[str, Tensor],
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """Return the same loss, for joint training with a network that has the same encoder."""
        return {"pixels": self.loss(x, self.masks(len(x), generator))}


def picked(x: Tensor, places: Tensor | None) -> Tensor:
    """Return the tokens (N, k, dim) at ``places`` (N, k) of all tokens (N, positions, dim); all tokens if it is None."""
    return x if places is None else x.gather(1, places[..., None].expand(-1, -1, x.shape[-1]))


def initialise_linear(module: nn.Module) -> None:
    """Initialise as in 4M: Xavier for linear layers, query, key and value separately; biases 0."""
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear):
            for weight in layer.weight.chunk(3 if name.endswith("qkv") else 1):
                nn.init.xavier_uniform_(weight)
            if layer.bias is not None:
                nn.init.zeros_(cast(Tensor, layer.bias))
