"""Pictures of every task before, during and after adaptation: input, label and prediction."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from testtime.errors import need_pillow
from testtime.labels import IGNORE
from testtime.scenes.sheet import depth_colours, palette
from testtime.tasks import Segmentation, Task, Tasks

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

__all__ = ["UNKNOWN", "Strip", "answer", "picture", "sheet", "sheets", "varied"]

UNKNOWN = (128, 128, 128)
"""The colour of a pixel whose label is not known."""

TITLES = {"semseg": "segmentation", "depth": "depth", "normals": "normals", "edge": "edges"}
LIGHT = {"paper": (253, 252, 250), "ink": (28, 31, 36), "dim": (102, 109, 120)}
DARK = {"paper": (20, 23, 28), "ink": (232, 230, 225), "dim": (154, 161, 172)}
GAP, HEAD, NOTE, SIDE = 8, 26, 18, 104


@dataclass(frozen=True)
class Strip:
    """A column of a sheet: its heading, and the outputs of all tasks, (N, channels, H, W) by name."""

    heading: str
    outputs: Mapping[str, Tensor]


def varied(labels: Mapping[str, Tensor], count: int) -> list[int]:
    """The images of a batch with the most classes in them, most first; without classes, those in their order."""
    if "semseg" not in labels:
        return list(range(min(count, len(next(iter(labels.values()))))))
    found = [len(set(y.unique().tolist()) - {IGNORE}) for y in labels["semseg"]]
    return sorted(range(len(found)), key=lambda i: -found[i])[:count]


def answer(task: Task, output: Tensor) -> Tensor:
    """An output (channels, H, W) of a head in the form of its label (:class:`testtime.data.Sample`)."""
    if task.kind == "classes":
        return output.argmax(0)
    if task.kind == "binary":
        return output.sigmoid()
    if task.name == "normals":
        return torch.nn.functional.normalize(output, dim=0)
    return output


def picture(task: Task, label: Tensor, reach: tuple[float, float] = (0.0, 1.0)) -> NDArray[np.uint8]:
    """A label, or an answer in its form, as colours (H, W, 3).

    Classes in their palette, depth from dark (near) to light (far), normals as 127.5 (n + 1), edges white on black;
    :data:`UNKNOWN` where the label is not known.

    Args:
        task: task of the label.
        label: in the convention of :class:`testtime.data.Sample`.
        reach: nearest and farthest depth of the scale, in metres.

    >>> from testtime.tasks import Edges
    >>> picture(Edges(), torch.tensor([[[1.0, 0.0, torch.nan]]]))[0].tolist()
    [[255, 255, 255], [0, 0, 0], [128, 128, 128]]
    """
    if task.kind == "classes":
        colours = np.full((IGNORE + 1, 3), UNKNOWN, np.uint8)
        colours[: task.channels] = palette(task.channels)
        return colours[label.numpy()]
    values = label.permute(1, 2, 0).double().numpy()
    known = np.isfinite(values).all(-1)
    values = np.where(known[..., None], values, 0.0)
    if task.channels == 3:
        shown = np.rint(127.5 * (values.clip(-1, 1) + 1))
    elif task.kind == "binary":
        shown = np.rint(255 * values.clip(0, 1)).repeat(3, -1)
    else:
        near, far = reach
        shown = depth_colours(values[..., 0].clip(near, far), near, far)
    result = shown.astype(np.uint8)
    result[~known] = UNKNOWN
    return result


def sheet(
    tasks: Tasks,
    image: Tensor,
    labels: Mapping[str, Tensor],
    strips: Sequence[Strip],
    index: int,
    width: int = 128,
    dark: bool = False,
) -> Image:
    """One image: a row for each task, a column for its label and one for each strip, its metric under each answer.

    Args:
        tasks: tasks by name, in the order of the rows.
        image: (3, H, W) in [0, 1].
        labels: labels of the image by task.
        strips: predictions for the batch of the image, in the order of the columns.
        index: index of the image in that batch.
        width: width of a picture in pixels.
        dark: light letters on a dark ground.

    Raises:
        ImportError: Pillow is not installed.
    """
    need_pillow()
    from PIL import Image, ImageDraw

    tone = DARK if dark else LIGHT
    height = round(width * image.shape[-2] / image.shape[-1])
    row = height + NOTE + GAP
    full = SIDE + (len(strips) + 2) * (width + GAP)
    canvas = Image.new("RGB", (full, HEAD + len(tasks) * row), tone["paper"])
    draw = ImageDraw.Draw(canvas)

    def paste(pixels: NDArray[np.uint8], column: int, top: int, smooth: bool = False) -> None:
        kind = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
        left = SIDE + column * (width + GAP)
        canvas.paste(Image.fromarray(pixels).resize((width, height), kind), (left, top))

    for column, heading in enumerate(["input", "label", *(s.heading for s in strips)]):
        draw.text((SIDE + column * (width + GAP), 5), heading, tone["ink"], _font(14))
    paste(np.rint(image.permute(1, 2, 0).clamp(0, 1).numpy() * 255).astype(np.uint8), 0, HEAD, smooth=True)
    for place, (name, task) in enumerate(tasks.items()):
        top = HEAD + place * row
        draw.text((GAP, top + height // 2 - 8), TITLES.get(name, name), tone["ink"], _font(14))
        label = labels.get(name)
        reach = _reach(label) if name == "depth" and label is not None else (0.0, 1.0)
        if label is not None:
            paste(picture(task, label, reach), 1, top)
        for column, strip in enumerate(strips, 2):
            if name not in strip.outputs:
                continue
            output = strip.outputs[name][index].float()
            paste(picture(task, answer(task, output), reach), column, top)
            if label is not None:
                note = _measured(task, output, label)
                draw.text((SIDE + column * (width + GAP), top + height + 1), note, tone["dim"], _font(12))
        if name == "depth" and label is not None:
            note = f"{reach[0]:.1f} to {reach[1]:.1f} m"
            draw.text((SIDE + width + GAP, top + height + 1), note, tone["dim"], _font(12))
    seen = labels.get("semseg")
    if seen is not None and isinstance(tasks.get("semseg"), Segmentation):
        _legend(draw, tasks["semseg"].classes, seen, strips, index, HEAD + row, width, canvas.height, tone)  # type: ignore[attr-defined]
    return canvas


def sheets(
    tasks: Tasks, x: Tensor, labels: Mapping[str, Tensor], strips: Sequence[Strip], count: int = 3
) -> list[dict[str, str]]:
    """Draw the sheets of the most varied images of a batch as PNG in base64: "light" and "dark", each with its "caption".

    Args:
        tasks: tasks by name, in the order of the rows.
        x: images (N, 3, H, W) in [0, 1].
        labels: labels of the batch by task.
        strips: predictions for the batch, in the order of the columns.
        count: number of images.
    """
    found = []
    for i in varied(labels, count):
        drawn, own = {"caption": f"Image {i + 1} of the batch"}, {k: y[i].cpu() for k, y in labels.items()}
        for tone in ("light", "dark"):
            file = io.BytesIO()
            sheet(tasks, x[i].cpu(), own, strips, i, dark=tone == "dark").save(file, "PNG", optimize=True)
            drawn[tone] = base64.b64encode(file.getvalue()).decode()
        found.append(drawn)
    return found


def _reach(label: Tensor) -> tuple[float, float]:
    """Nearest and farthest known depth."""
    known = label[label.isfinite()]
    return (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)


def _measured(task: Task, output: Tensor, label: Tensor) -> str:
    """The task's metric on this image alone."""
    meter = task.meter()
    meter.update(output[None], label[None])
    value = meter.value()
    metric, _, unit = task.metric.partition(" (")
    unit = unit.rstrip(")")
    places, gap = (2, " ") if unit == "m" else (0, "" if unit == "°" else " ")
    return "" if math.isnan(value) else f"{metric} {value:.{places}f}{gap}{unit}"


def _legend(
    draw: ImageDraw,
    classes: Sequence[str],
    label: Tensor,
    strips: Iterable[Strip],
    index: int,
    top: int,
    width: int,
    bottom: int,
    tone: Mapping[str, Any],
) -> None:
    """The classes that are in the label or in an answer, below the input."""
    present = set(label.unique().tolist())
    for strip in strips:
        if "semseg" in strip.outputs:
            present |= set(strip.outputs["semseg"][index].argmax(0).unique().tolist())
    colours = palette(len(classes))
    for c in sorted(present - {IGNORE}):
        if top + 17 > bottom:
            return
        draw.rectangle((SIDE, top + 2, SIDE + 11, top + 13), tuple(colours[c].tolist()))
        draw.text((SIDE + 18, top), classes[c][: width // 7], tone["dim"], _font(12))
        top += 17
    if IGNORE in present and top + 17 <= bottom:
        draw.rectangle((SIDE, top + 2, SIDE + 11, top + 13), UNKNOWN)
        draw.text((SIDE + 18, top), "not known", tone["dim"], _font(12))


def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)
