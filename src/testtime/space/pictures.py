"""Pictures of the input, predictions and segmentations of a model of a space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from testtime.data.dense import DenseSet
from testtime.errors import need_pillow
from testtime.files import write_image
from testtime.multitask import Depth, Edges, Normals, Segmentation
from testtime.multitask.pictures import picture
from testtime.parts.randomness import generator
from testtime.space.generate import predicted
from testtime.space.modalities import DEPTH, Modality
from testtime.space.model import FourM
from testtime.space.tokenizers import Tokenizer

__all__ = [
    "coloured",
    "hidden",
    "image_pixels",
    "write_pictures",
    "write_predictions",
    "write_retrieved",
    "write_sheets",
]

Named = tuple[str, list[NDArray[np.uint8]]]
"""A heading, and the pictures (H, W, 3) below it."""

LIGHT = {"paper": (253, 252, 250), "ink": (28, 31, 36)}
DARK = {"paper": (20, 23, 28), "ink": (232, 230, 225)}
GAP, HEAD = 6, 26
RIGHT = (0, 150, 80)
"""The colour of the frame around what was retrieved rightly."""


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
        return picture(Normals(), F.normalize(value, dim=0))
    if modality.normalise == "unit":
        return picture(Edges(), (value + 1) / 2)
    return picture(Depth(), value, (-2.0, 2.5))


def image_pixels(images: Tensor) -> list[NDArray[np.uint8]]:
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
        ("picture", image_pixels(images)),
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


def write_predictions(
    folder: str | Path,
    networks: Mapping[str, Mapping[str, nn.Module]],
    data: DenseSet,
    indices: Sequence[int],
    size: tuple[int, int],
) -> list[Path]:
    """Draw frames: picture, label and the predictions of networks; for several tasks one below the other.

    Predicted depth is scaled to the median of the measured depth, as for the evaluation (:mod:`testtime.space.depths`); the
    colours go from the nearest to the farthest measured point of the frame.

    Args:
        folder: folder of ``pictures/light.png`` and ``pictures/dark.png``.
        networks: networks by task ("depth": its logarithms, "semseg": logits) and by name, the same names for every task.
        data: frames with labels of these tasks.
        indices: indices of the frames.
        size: (H, W) of the pictures that the networks get.

    Returns:
        paths of the two images.

    Raises:
        ImportError: Pillow is not installed.
    """
    images, labels = data.batch(indices, size)
    names = next(iter(networks.values()))
    columns: list[Named] = [(heading, []) for heading in ("picture", "label", *names)]
    for task, by_name in networks.items():
        columns[0][1].extend(image_pixels(images))
        with torch.no_grad():
            outputs = [by_name[name].eval()(images).float() for name in names]
        for i, label in enumerate(labels[task]):
            for (_, pixels), value in zip(columns[1:], (label, *(y[i] for y in outputs)), strict=True):
                pixels.append(
                    _depth(value, label, value is label) if task == "depth" else _classes(value, data)
                )
    return write_sheets(folder, columns, 150)


def _classes(value: Tensor, data: DenseSet) -> NDArray[np.uint8]:
    """The colours of a label (H, W) or of logits (C, H, W)."""
    return picture(Segmentation(data.classes), value if value.dim() == 2 else value.argmax(0))


def _depth(value: Tensor, label: Tensor, measured: bool) -> NDArray[np.uint8]:
    """The colours of measured depth (1, H, W) in metres, or of logarithms of depth scaled to it."""
    known = label[label > 0]
    if not len(known):
        return picture(Depth(), torch.full_like(label, torch.nan))
    reach = float(known.quantile(0.01)), float(known.quantile(0.99))
    if measured:
        return picture(Depth(), label.where(label > 0, torch.nan), reach)
    return picture(Depth(), (value - (value[label > 0] - known.log()).median()).exp(), reach)


def write_retrieved(
    folder: str | Path,
    pixels: Tensor,
    depth: Tensor,
    nearest: tuple[Tensor, Tensor],
    indices: Sequence[int],
    count: int = 3,
) -> list[Path]:
    """Draw what was retrieved: depth maps by pictures, then pictures by depth maps; the matching one has a green frame.

    Args:
        folder: folder of ``pictures/light.png`` and ``pictures/dark.png``.
        pixels: pictures (N, 3, H, W) in [0, 1].
        depth: normalised depth maps (N, 1, h, w) of the same frames.
        nearest: indices (N, N) of the depth maps for every picture, nearest first, and of the pictures for every depth map.
        indices: indices of the frames that are drawn.
        count: number of retrieved ones that are drawn.

    Returns:
        paths of the two images.

    Raises:
        ImportError: Pillow is not installed.
    """
    high, wide = pixels.shape[-2:]
    shown = F.interpolate(depth, (high, wide), mode="nearest")
    kinds = {"picture": image_pixels(pixels), "depth": [coloured(DEPTH, z) for z in shown]}
    columns: list[Named] = []
    for ranks, (asked, answer) in zip(nearest, (("picture", "depth"), ("depth", "picture")), strict=True):
        columns.append((f"{asked} asked for", [kinds[asked][i] for i in indices]))
        for k in range(min(count, len(pixels))):
            found = [(i, int(ranks[i, k])) for i in indices]
            columns.append((f"{answer} {k + 1}", [_framed(kinds[answer][j], j == i) for i, j in found]))
    return write_sheets(folder, columns)


def _framed(pixels: NDArray[np.uint8], right: bool) -> NDArray[np.uint8]:
    """A copy of a picture, with a frame if it is the right one."""
    framed = pixels.copy()
    if right:
        edge = max(1, len(pixels) // 24)
        framed[:edge] = framed[-edge:] = framed[:, :edge] = framed[:, -edge:] = RIGHT
    return framed


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
