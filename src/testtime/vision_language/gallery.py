r"""Search of images by text: the images of a gallery are the classes, and a text is what is classified.

.. math:: z_j(t) = s \, \frac{g(t)^\top f(a_j)}{\lVert g(t) \rVert \, \lVert f(a_j) \rVert}

with text encoder g, image encoder f, scale s, and the images :math:`a_j` of the gallery: :class:`ZeroShot` the other way round.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

from testtime.vision_language.pair import ImageText

__all__ = ["ImageGallery", "gallery_of"]

CHUNK = 64  # images that are embedded at once
ALIKE = 0.02  # greatest difference of the mean colour of an image in two sizes
TRIAL = "Two dogs, a cat & 3 horses."


@final
class ImageGallery(nn.Module):
    """A classifier of texts over the images of a gallery: logits (N, M) of token ids (N, T).

    The images are embedded once, into the weights of a linear ``head``; the image encoder is not run again.

    Args:
        pair: image and text encoder.
        images: the M images (M, 3, H, W) in [0, 1].

    Raises:
        TypeError: ``pair`` is no :class:`ImageText`, or the images are integers.
        ValueError: the images are no finite floating-point batch of two or more.

    >>> from testtime.laws.worlds import WORLDS
    >>> pair = WORLDS["image-text"].make().pair
    >>> gallery = ImageGallery(pair, torch.rand(6, 3, 8, 8))
    >>> gallery(gallery.tokenize(["a red thing", "a blue thing"])).shape
    torch.Size([2, 6])
    """

    colours: Tensor

    def __init__(self, pair: ImageText, images: Tensor) -> None:
        super().__init__()
        if not isinstance(pair, ImageText):
            raise TypeError(
                f"expected a pair of encoders, testtime.vision_language.ImageText(images, texts), got {type(pair).__name__}"
            )
        if not isinstance(images, Tensor) or images.dim() != 4 or len(images) < 2:
            got = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise ValueError(
                f"expected the images of the gallery, two or more, as a tensor (M, 3, H, W), got {got}"
            )
        if not images.is_floating_point():
            raise TypeError(f"expected images in [0, 1], got {images.dtype}; convert them (uint8: x / 255)")
        if bad := (~images.isfinite().flatten(1).all(1)).nonzero()[:, 0].tolist():
            raise ValueError(
                f"{len(bad)} images of the gallery hold NaN or infinity, first number {bad[0]}; remove them"
            )
        self.pair = pair
        with torch.no_grad():
            self.register_buffer("colours", images.float().mean((2, 3)), persistent=False)
            found = torch.cat([pair(part) for part in images.split(CHUNK)])
        self.head = nn.Linear(found.shape[1], len(found), bias=False)
        self.head.weight = nn.Parameter(pair.scale * found)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Return the token ids (N, T) of queries, which the gallery takes."""
        return self.pair.tokenize(texts)

    def embed(self, ids: Tensor) -> Tensor:
        """Return the embeddings (N, D) of token ids (N, T), of norm 1."""
        return self.pair.encode_tokens(self.pair.embed(ids), ids)

    def forward(self, ids: Tensor) -> Tensor:
        """Return logits (N, M) of token ids (N, T)."""
        return self.head(self.embed(ids))

    def check_alike(self, other: ImageGallery) -> None:
        """Refuse another gallery that has other images or other token ids.

        Raises:
            ValueError: it has another number of images, images of other mean colours (in another order, say), or its
                tokenizer makes other ids of a text.
        """
        if self.head.out_features != other.head.out_features:
            raise ValueError(
                f"expected galleries of the same images, got {self.head.out_features} and {other.head.out_features}"
            )
        off = (self.colours - other.colours.to(self.colours)).abs().amax(1)
        if other_images := (off > ALIKE).nonzero()[:, 0].tolist():
            raise ValueError(
                f"expected galleries of the same images in the same order, and {len(other_images)} differ in mean colour, "
                f"first number {other_images[0]}"
            )
        if not torch.equal(self.tokenize([TRIAL]), other.tokenize([TRIAL])):
            raise ValueError(
                "the token ids of a query go to both galleries, and their tokenizers make other ids of the same text; expected "
                "pairs with one tokenizer, such as two sizes of CLIP"
            )


def gallery_of(model: nn.Module) -> ImageGallery | None:
    """Return the gallery in a tree of modules, or None."""
    return next((m for m in model.modules() if isinstance(m, ImageGallery)), None)
