"""Pictures of the input, predictions and segmentations of a model of a space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from testtime.data.dense import DenseSet
from testtime.errors import need_pillow
from testtime.files import write_image
from testtime.multitask import Depth, Edges, Normals, Segmentation
from testtime.multitask.pictures import picture
from testtime.parts.randomness import generator
from testtime.space.generate import predicted
from testtime.space.modalities import Modality
from testtime.space.model import FourM
from testtime.space.tokenizers import Tokenizer

__all__ = ["coloured", "hidden", "seen", "write_pictures", "write_sheets"]

Named = tuple[str, list[NDArray[np.uint8]]]
"""A heading, and the pictures (H, W, 3) below it."""

LIGHT = {"paper": (253, 252, 250), "ink": (28, 31, 36)}
DARK = {"paper": (20, 23, 28), "ink": (232, 230, 225)}
GAP, HEAD = 6, 26


def coloured(modality: Modality, value: Tensor) -> NDArray[np.uint8]:
    """Return the colours (H, W, 3) of a normalised image or of classes.

    Args:
        modality: modality of the value.
        value: normalised image (C, H, W), or classes (H, W).
    """
    if modality.kind == "classes":
        return picture(Segmentation(tuple(str(i) for i in range(modality.channels))), value)
    if modality.channels == 3 and not modality.signs:
        return np.rint((value.permute(1, 2, 0).clamp(-1, 1).numpy() + 1) * 127.5).astype(np.uint8)
    if modality.channels == 3:
        return picture(Normals(), torch.nn.functional.normalize(value, dim=0))
    if modality.normalise == "unit":
        return picture(Edges(), (value + 1) / 2)
    return picture(Depth(), value, (-2.0, 2.5))


def seen(images: Tensor) -> list[NDArray[np.uint8]]:
    """Return images (N, 3, H, W) in [0, 1] as pictures (H, W, 3)."""
    return [np.rint(x.permute(1, 2, 0).numpy() * 255).astype(np.uint8) for x in images]


def hidden(image: Tensor, shown: Tensor, patch: int) -> NDArray[np.uint8]:
    """Return a picture with grey masked patches, (H, W, 3).

    Args:
        image: picture (3, H, W) in [0, 1].
        shown: indices of the visible patches.
        patch: side of a patch in pixels.
    """
    columns = image.shape[-1] // patch
    pixels = np.full((*image.shape[-2:], 3), 128, np.uint8)
    whole = np.rint(image.permute(1, 2, 0).clamp(0, 1).numpy() * 255).astype(np.uint8)
    for place in shown.tolist():
        y, x = divmod(place, columns)
        here = np.s_[y * patch : (y + 1) * patch, x * patch : (x + 1) * patch]
        pixels[here] = whole[here]
    return pixels


def write_pictures(
    folder: str | Path,
    model: FourM,
    tokenizers: Mapping[str, Tokenizer],
    segmenters: Mapping[str, Any],
    data: DenseSet,
    indices: Sequence[int],
    share: float = 0.25,
    width: int = 112,
    seed: int = 0,
) -> list[Path]:
    """Draw frames: picture, visible patches, prediction of each modality, and segmentations.

    Args:
        folder: folder of ``pictures/light.png`` and ``pictures/dark.png``.
        model: pre-trained model.
        tokenizers: tokenizers by stream.
        segmenters: segmentation networks by name, from pictures to logits.
        data: frames with "semseg".
        indices: indices of the frames.
        share: fraction of visible patches.
        width: width of a picture, in pixels.
        seed: random seed of the visible patches.

    Returns:
        paths of the two images.

    Raises:
        ImportError: Pillow is not installed.
    """
    images, labels = data.batch(indices)
    places = model.grid[0] * model.grid[1]
    keys = torch.rand(len(images), places, generator=generator(seed, 0, "pictures"))
    shown = keys.argsort(1)[:, : max(1, int(places * share))]
    columns: list[Named] = [
        ("picture", seen(images)),
        ("visible", [hidden(x, s, model.patch) for x, s in zip(images, shown, strict=True)]),
    ]
    for stream, tokenizer in tokenizers.items():
        if tokenizer.modality.kind in ("image", "classes"):
            guess = tokenizer.decode(predicted(model, stream, images, shown))
            columns.append(
                (f"predicted {tokenizer.modality.name}", [coloured(tokenizer.modality, g) for g in guess])
            )
    task = Segmentation(data.classes)
    columns.append(("label", [picture(task, y) for y in labels["semseg"]]))
    with torch.no_grad():
        for name, segmenter in segmenters.items():
            columns.append((name, [picture(task, y) for y in segmenter(images).argmax(1)]))
    return write_sheets(folder, columns, width)


def write_sheets(folder: str | Path, columns: Sequence[Named], width: int = 112) -> list[Path]:
    """Draw columns of pictures side by side, on a light and on a dark ground.

    Args:
        folder: folder of ``pictures/light.png`` and ``pictures/dark.png``.
        columns: headings, and as many pictures (H, W, 3) of one size in each column; the first column is enlarged smoothly.
        width: width of a picture, in pixels.

    Returns:
        paths of the two images.

    Raises:
        ImportError: Pillow is not installed.
    """
    need_pillow()
    from PIL import Image, ImageDraw, ImageFont

    where = Path(folder) / "pictures"
    where.mkdir(parents=True, exist_ok=True)
    first = columns[0][1]
    height = round(width * first[0].shape[0] / first[0].shape[1])
    written = []
    for tone, colours in (("light", LIGHT), ("dark", DARK)):
        size = (GAP + len(columns) * (width + GAP), HEAD + len(first) * (height + GAP))
        sheet = Image.new("RGB", size, colours["paper"])
        draw = ImageDraw.Draw(sheet)
        for column, (heading, pixels) in enumerate(columns):
            left = GAP + column * (width + GAP)
            draw.text((left, 5), heading, colours["ink"], ImageFont.load_default(13))
            for row, one in enumerate(pixels):
                kind = Image.Resampling.BICUBIC if column < 1 else Image.Resampling.NEAREST
                sheet.paste(
                    Image.fromarray(one).resize((width, height), kind), (left, HEAD + row * (height + GAP))
                )
        path = where / f"{tone}.png"
        write_image(path, sheet, optimize=True)
        written.append(path)
    return written
