"""Contact sheets: frames of a space with all modalities side by side, for visual inspection."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from testtime.errors import need_pillow
from testtime.files import write_image
from testtime.labels import IGNORE
from testtime.scenes.disk import read_scenes
from testtime.scenes.sceneset import SceneSet, View

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

__all__ = ["contact_sheet", "depth_colours", "palette", "write_sheet"]

COLUMNS = ("rgb", "boxes", "depth", "normal", "canny", "occlusion", "semantic", "instance")
RAMP = np.array(  # perceptually uniform colours from near (dark) to far (light)
    [
        *((68, 1, 84), (72, 40, 120), (62, 74, 137), (49, 104, 142), (38, 130, 142)),
        *((31, 158, 137), (53, 183, 121), (110, 206, 88), (181, 222, 43), (253, 231, 37)),
    ]
)
QUIET = ((200, 200, 196), (139, 115, 85), (240, 236, 224))
PAPER, INK, DIM, GAP = (253, 252, 250), (28, 31, 36), (102, 109, 120), 6


@lru_cache(maxsize=8)
def palette(count: int) -> NDArray[np.uint8]:
    """Return colours (count, 3) uint8: muted ones for wall, floor and ceiling, then colours of largest mutual distance.

    The distance is a weighted one in sRGB that approximates perception (its weights depend on the red of a pair).

    >>> palette(5).tolist()
    [[200, 200, 196], [139, 115, 85], [240, 236, 224], [50, 50, 250], [250, 50, 250]]
    """
    steps = np.arange(50, 256, 20)
    candidates = (
        np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3).astype(float)
    )
    candidates = candidates[np.ptp(candidates, axis=1) >= 60]
    chosen = [np.array(c, dtype=float) for c in QUIET]
    nearest = np.min([_apart(candidates, c) for c in chosen[:-1]], axis=0)
    while len(chosen) < count:
        nearest = np.minimum(nearest, _apart(candidates, chosen[-1]))
        chosen.append(candidates[nearest.argmax()])
    return np.array(chosen[:count]).reshape(-1, 3).astype(np.uint8)


def _apart(colours: NDArray[np.float64], one: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the squared distances of colours (N, 3) from one."""
    red = (colours[:, 0] + one[0]) / 2 / 256
    weights = np.stack([2 + red, np.full_like(red, 4), 3 - red], axis=1)
    found: NDArray[np.float64] = (weights * (colours - one) ** 2).sum(axis=1)
    return found


def depth_colours(depth: NDArray[Any], near: float, far: float) -> NDArray[np.uint8]:
    """Convert depth (H, W) to colours (H, W, 3): dark for near, light for far, black for 0.

    >>> depth_colours(np.array([[0, 1000, 3000]]), 1000, 3000).tolist()
    [[[0, 0, 0], [68, 1, 84], [253, 231, 37]]]
    """
    place = np.clip((depth - near) / max(far - near, 1e-9), 0, 1) * (len(RAMP) - 1)
    stops = np.arange(len(RAMP))
    colours = np.stack([np.interp(place, stops, RAMP[:, c]) for c in range(3)], axis=-1)
    colours[depth == 0] = 0
    return np.rint(colours).astype(np.uint8)


def contact_sheet(scenes: SceneSet, indices: Sequence[int], width: int = 160) -> Image:
    """Draw a row for each frame with a column for each modality and the caption, and a legend of classes.

    Args:
        scenes: data set of the frames.
        indices: indices of the frames.
        width: width of an image, in pixels.

    Raises:
        ImportError: Pillow is not installed.
        ValueError: there are no frames, or the width is below 32.
    """
    need_pillow()
    from PIL import Image, ImageDraw

    if not indices or width < 32:
        raise ValueError(f"expected frames to draw, 32 pixels wide or more, got {len(indices)} of {width}")
    heights = [
        width * scenes.stored("semantic", i).shape[0] // scenes.stored("semantic", i).shape[1]
        for i in indices
    ]
    full = GAP + len(COLUMNS) * (width + GAP)
    present = sorted({int(c) for i in indices for c in np.unique(scenes.stored("semantic", i))} - {IGNORE})
    captions = [textwrap.wrap(f"{scenes.title(i)}: {scenes.view(i).caption}", full // 7) for i in indices]
    legend_columns = max(1, full // 150)
    legend = -(-len(present) // legend_columns)
    high = (
        30 + sum(h + 16 + 17 * len(c) + 14 for h, c in zip(heights, captions, strict=True)) + 20 * legend + 16
    )
    sheet = Image.new("RGB", (full, high), PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(COLUMNS):
        draw.text((GAP + column * (width + GAP), 9), title, INK, _font(14))
    top = 30
    for i, height, lines in zip(indices, heights, captions, strict=True):
        view, pictures = scenes.view(i), _pictures(scenes, i)
        for column, title in enumerate(COLUMNS):
            left = GAP + column * (width + GAP)
            smooth = title in ("rgb", "boxes")
            kind = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
            sheet.paste(Image.fromarray(pictures[title]).resize((width, height), kind), (left, top))
            if title == "boxes":
                _boxes(draw, view, scenes.classes, left, top, width / pictures[title].shape[1])
            if note := _note(scenes, i, title, view):
                draw.text((left, top + height + 1), note, DIM, _font(11))
        top += height + 16
        for line in lines:
            draw.text((GAP, top), line, INK, _font(13))
            top += 17
        top += 14
    colours = palette(len(scenes.classes))
    for n, c in enumerate(present):
        left, above = GAP + (n % legend_columns) * 150, top + 20 * (n // legend_columns)
        draw.rectangle((left, above + 2, left + 13, above + 15), tuple(colours[c].tolist()), INK)
        draw.text((left + 19, above), scenes.classes[c], INK, _font(13))
    return sheet


def write_sheet(
    root: str | Path,
    out: str | Path | None = None,
    spaces: Sequence[str] | None = None,
    frames: int = 4,
    width: int = 160,
) -> Path:
    """Draw evenly spaced frames of the spaces in a root folder into a PNG file.

    Args:
        root: root folder written by :func:`testtime.scenes.disk.make`.
        out: path of the file; by default ``sheet.png`` in the root folder.
        spaces: names of the spaces; None takes all.
        frames: number of frames.
        width: width of an image, in pixels.

    Raises:
        DataError: there is no such space, or its files are damaged.
        ValueError: there are no frames, or the width is below 32.
    """
    scenes = read_scenes(root, spaces, keep=False)
    rows = np.unique(np.linspace(0, len(scenes) - 1, max(frames, 0)).round().astype(int)).tolist()
    path = Path(out) if out is not None else Path(root) / "sheet.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, contact_sheet(scenes, rows, width))
    return path


def _pictures(scenes: SceneSet, i: int) -> dict[str, NDArray[np.uint8]]:
    stored = {m: scenes.stored(m, i) for m in COLUMNS if m != "boxes"}
    depth = stored["depth"].astype(np.float64)
    known = depth[depth > 0]
    near, far = (known.min(), known.max()) if known.size else (0.0, 1.0)
    classes = np.full((IGNORE + 1, 3), 255, np.uint8)
    classes[: len(scenes.classes)] = palette(len(scenes.classes))
    numbers = stored["instance"].astype(np.int64)
    instances = palette(int(numbers.max()) + 1)[numbers]
    instances[numbers == 0] = 0
    return {
        "rgb": stored["rgb"],
        "boxes": stored["rgb"] // 2 + 64,
        "depth": depth_colours(depth, near, far),
        "normal": stored["normal"],
        "canny": np.repeat(stored["canny"][..., None], 3, axis=2),
        "occlusion": np.repeat(stored["occlusion"][..., None], 3, axis=2),
        "semantic": classes[stored["semantic"]],
        "instance": instances,
    }


def _note(scenes: SceneSet, i: int, title: str, view: View) -> str:
    if title == "rgb":
        return f"room {view.room}, ring {view.ring}" + (f", {view.shift}" if view.shift else "")
    if title == "depth":
        known = scenes.stored("depth", i)[scenes.stored("depth", i) > 0] / 1000
        return f"{known.min():.1f} to {known.max():.1f} m" if known.size else "nothing"
    if title == "instance":
        return f"{len(np.unique(scenes.stored('instance', i)))} instances"
    return f"{len(view.boxes)} boxes" if title == "boxes" else ""


def _boxes(draw: ImageDraw, view: View, classes: Sequence[str], left: int, top: int, scale: float) -> None:
    colours = palette(len(classes))
    ordered = sorted(view.boxes, key=lambda b: -(b["x1"] - b["x0"]) * (b["y1"] - b["y0"]))
    for box in ordered:
        colour = tuple(colours[box["label"]].tolist())
        x0, x1 = (left + scale * box[side] for side in ("x0", "x1"))
        y0, y1 = (top + scale * box[side] for side in ("y0", "y1"))
        draw.rectangle((x0, y0, max(x1 - 1, x0), max(y1 - 1, y0)), outline=colour)
        name = classes[box["label"]]
        place = draw.textbbox((x0 + 2, y0), name, _font(10))
        if x1 - x0 > 20:
            draw.rectangle(place, colour)
            dark = np.dot(colour, (0.3, 0.59, 0.11)) < 128
            draw.text((x0 + 2, y0), name, PAPER if dark else INK, _font(10))


def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)
