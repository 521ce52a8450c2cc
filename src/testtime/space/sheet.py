"""Contact sheet of a space: frames, and their reconstruction from tokens."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from testtime.data.dense import IGNORE
from testtime.errors import need_pillow
from testtime.space.alignment import findings
from testtime.space.crops import cropped, windows
from testtime.space.frames import SpaceFrames
from testtime.space.modalities import DEPTH, NORMALS, RGB, Modality, truncated
from testtime.space.sequences import Box, BoxVocabulary
from testtime.space.shards import Shards
from testtime.space.tokenizers import Tokenizer

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["space_sheet"]

RED, RULE = (176, 42, 30), (214, 212, 206)


def space_sheet(
    frames: SpaceFrames,
    shards: Shards,
    tokenizers: Mapping[str, Tokenizer],
    indices: Sequence[int],
    report: Mapping[str, Any],
    boxes: tuple[Modality, BoxVocabulary, int] | None = None,
    width: int = 150,
) -> Image:
    """Draw the centre crop of frames: each modality, and below it the reconstruction from its tokens.

    Args:
        frames: frames of the space.
        shards: shards of these frames.
        tokenizers: tokenizers by stream.
        indices: indices of the frames that are drawn.
        report: report of :func:`~testtime.space.ingest.ingest`.
        boxes: modality, vocabulary and largest number of tokens of the boxes, if there are any.
        width: smallest width of a picture in pixels; the width is a multiple of the crop's.

    Raises:
        ImportError: Pillow is not installed.
    """
    image_of = need_pillow()
    from PIL import ImageDraw

    from testtime.scenes.sheet import DIM, GAP, INK, PAPER

    high, wide = shards.size
    factor = -(-width // wide)
    w, h = wide * factor, high * factor
    columns = [*(t.modality for t in tokenizers.values()), *([boxes[0]] if boxes else [])]
    side, top, band = 92, 86, 2 * h + 68
    found = findings(report)
    full = max(620, side + len(columns) * (w + GAP) + GAP)
    wrapped = [
        (line, finding.startswith("warning"))
        for finding in found
        for line in textwrap.wrap(finding, max(40, (full - 2 * GAP) // 7), subsequent_indent="    ")
    ]
    sheet = image_of.new("RGB", (full, top + band * len(indices) + 18 * len(wrapped) + 58), PAPER)
    draw = ImageDraw.Draw(sheet)

    def text(x: float, y: float, words: str, colour: tuple[int, int, int] = INK, points: int = 13) -> None:
        draw.text((x, y), words, colour, _font(points))

    title = (
        f"{report['source']}: {report['frames']} frames, {report['crops']} crops of {high} x {wide} pixels, "
        f"a token for each {shards.patch} x {shards.patch}"
    )
    text(GAP, 7, title, points=15)
    for n, modality in enumerate(columns):
        _draw_heading(text, side + n * (w + GAP), modality.name, report["modalities"][modality.name])
    for n, index in enumerate(indices):
        y = top + n * band
        draw.line((GAP, y - 7, full - GAP, y - 7), RULE)
        text(GAP, y, f"frame {index}   {frames.data[index].name}", DIM, 12)
        y += 18
        for line, words in enumerate(("input", "recon-\nstructed")):
            text(GAP, y + line * (h + 19), words, points=14)
        for m, modality in enumerate(columns):
            x = side + m * (w + GAP)
            pair, notes = _pair(frames[index], modality, shards, tokenizers, index, boxes)
            for k, (picture, note) in enumerate(zip(pair, notes, strict=True)):
                smooth = modality.kind == "sequence" or modality.name == RGB.name
                kind = image_of.Resampling.BICUBIC if smooth else image_of.Resampling.NEAREST
                at = y + k * (h + 19)
                sheet.paste(image_of.fromarray(picture).resize((w, h), kind), (x, at))
                text(x, at + h + 2, note, DIM, 11)
                if modality.kind == "sequence" and boxes:
                    _draw_boxes(draw, _boxes(frames[index], shards, index, boxes, k), boxes[1], x, at, w, h)
    y = _draw_legend(sheet, text, columns, top + band * len(indices)) + 8
    for n, (words, bad) in enumerate(wrapped):
        text(GAP, y + 18 * n, words, RED if bad else INK)
    return sheet


def _draw_heading(text: Callable[..., None], x: float, name: str, facts: Mapping[str, Any]) -> None:
    from testtime.scenes.sheet import DIM

    text(x, 34, name, points=15)
    if "perplexity" in facts:
        text(x, 53, f"perplexity {facts['perplexity']:.0f} of {facts['vocabulary']}", DIM, 12)


def _draw_legend(sheet: Image, text: Callable[..., None], columns: Sequence[Modality], y: int) -> int:
    """Draw the meaning of the colours below ``y``; return the position below it."""
    from testtime.scenes.sheet import GAP, RAMP

    image_of = need_pillow()
    for modality in columns:
        if modality.name == DEPTH.name:
            ramp = image_of.fromarray(np.repeat(RAMP[None].astype(np.uint8), 12, axis=0))
            sheet.paste(ramp.resize((120, 12), image_of.Resampling.BILINEAR), (GAP + 84, y + 3))
            text(GAP, y, "depth: near")
            text(GAP + 212, y, "far, scaled per frame; black: not known")
            y += 18
        if modality.name == NORMALS.name:
            text(GAP, y, "normals: red to the right, green up, blue to the viewer; black: not known")
            y += 18
    return y


def _pair(
    frame: Mapping[str, Any],
    modality: Modality,
    shards: Shards,
    tokenizers: Mapping[str, Tokenizer],
    index: int,
    boxes: Any,
) -> tuple[list[NDArray[np.uint8]], list[str]]:
    """Return input and reconstruction of a frame's centre crop as pictures (H, W, 3), and a note for each."""
    window = windows(1, 1.0, torch.Generator(), tuple(frame["rgb"].shape[-2:]))[0].tolist()
    size = shards.size
    stored = shards.read([index], [0])
    if modality.kind == "sequence":
        dim = (stored["rgb"][0].permute(1, 2, 0) // 2 + 64).numpy()
        both = [_boxes(frame, shards, index, boxes, k) for k in (0, 1)]
        return [dim, dim], [f"{len(found)} boxes" for found in both]
    tokenizer = tokenizers[f"tok_{modality.name}"]
    raw = cropped(
        frame[modality.name], modality, window, tokenizer.size if modality.kind == "features" else size
    )
    with torch.no_grad():
        ids = stored[f"tok_{modality.name}"].long().to(next(tokenizer.parameters()).device)
        output = tokenizer.decode(ids)[0].cpu()
    codes = f"{len(ids.unique())} codes"
    if modality.kind == "classes":
        wrong = 100 * float((raw != output)[raw < modality.channels].float().mean())
        return [_class_colours(v, modality.channels) for v in (raw, output)], [
            "",
            f"{codes}, {wrong:.0f} % differ",
        ]
    if modality.kind == "features":
        cosine = float(F.cosine_similarity(_at(raw, output), output, dim=0).mean())
        return _components(raw, output), ["principal components", f"{codes}, cosine {cosine:.2f}"]
    inputs = modality.normalised(raw[None].float())[0]
    note = f"{codes}, mse {float((inputs - output).square().mean()):.3f}"
    if modality.normalise == "truncated":
        known = raw > 0
        near, far = (float(v) for v in raw[known].aminmax()) if bool(known.any()) else (0.0, 0.0)
        return _ramp(raw, output), [f"{near:.1f} to {far:.1f} m", note]
    if modality.normalise == "signed":
        share = float(raw.isfinite().all(0).float().mean())
        length = output.norm(dim=0, keepdim=True).clamp(min=1e-6)
        return [_vectors(raw), _vectors(output / length)], [f"known at {share:.0%} of pixels", note]
    pictures = [(((v + 1) / 2).clamp(0, 1) * 255).round().to(torch.uint8) for v in (inputs, output)]
    first = f"{float(raw.mean()):.0%} of pixels" if modality.channels == 1 else ""
    return [p.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy() for p in pictures], [first, note]


def _ramp(raw: Tensor, output: Tensor) -> list[NDArray[np.uint8]]:
    """Return the colours of depth and of its reconstruction, after normalisation, on the same scale."""
    from testtime.scenes.sheet import depth_colours

    known = (raw > 0)[0].numpy()
    values = truncated(raw[None].where(raw > 0, torch.nan))[0, 0].numpy()
    near, far = np.percentile(values[known], (1, 99)) if known.any() else (-1.0, 1.0)
    pictures = [depth_colours(np.where(v == 0, 1e-9, v), near, far) for v in (values, output[0].numpy())]
    pictures[0][~known] = 0
    return pictures


def _vectors(normals: Tensor) -> NDArray[np.uint8]:
    colours = ((normals + 1) * 127.5).round().clamp(0, 255)
    return colours.nan_to_num(0.0).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


def _class_colours(named: Tensor, count: int) -> NDArray[np.uint8]:
    from testtime.scenes.sheet import palette

    colours = np.zeros((IGNORE + 1, 3), np.uint8)
    colours[:count] = palette(count)
    return colours[named.clamp(0, IGNORE).numpy()]


def _at(value: Tensor, like: Tensor) -> Tensor:
    if value.shape[-2:] == like.shape[-2:]:
        return value
    return F.interpolate(value[None], like.shape[-2:], mode="bilinear", antialias=True)[0]


def _components(raw: Tensor, output: Tensor) -> list[NDArray[np.uint8]]:
    """Return the colours of two feature maps: three principal components of the first, for both."""
    flat = raw.flatten(1).double()
    mean = flat.mean(1, keepdim=True)
    _, _, axes = torch.linalg.svd((flat - mean).T, full_matrices=False)
    axes = axes[:3] * torch.where(axes[:3].sum(1, keepdim=True) < 0, -1.0, 1.0)
    spread = (axes @ (flat - mean)).std(1, keepdim=True).clamp(min=1e-9)
    pictures = []
    for value in (raw, output):
        place = axes @ (value.flatten(1).double() - mean) / spread
        colours = F.pad((place * 48 + 128).clamp(0, 255).T, (0, 3 - len(axes)))
        pictures.append(colours.round().to(torch.uint8).view(*value.shape[-2:], 3).numpy())
    return pictures


def _boxes(frame: Mapping[str, Any], shards: Shards, index: int, boxes: Any, decoded: int) -> list[Box]:
    """Return a frame's boxes in the centre crop: pseudo-labels, or decoded from their tokens."""
    modality, vocabulary, _ = boxes
    if decoded:
        ids = shards.read([index], [0])[modality.name][0]
        return list(vocabulary.decode(ids[ids >= 0].long()))
    window = windows(1, 1.0, torch.Generator(), tuple(frame["rgb"].shape[-2:]))[0].tolist()
    return [
        b for b in cropped(frame[modality.name], modality, window, shards.size) if b.score >= vocabulary.score
    ]


def _draw_boxes(
    draw: Any, found: Sequence[Box], vocabulary: BoxVocabulary, x: int, y: int, w: int, h: int
) -> None:
    from testtime.scenes.sheet import INK, PAPER, palette

    colours = palette(len(vocabulary.classes) + 3)[3:]
    for box in sorted(found, key=lambda b: -(b.x1 - b.x0) * (b.y1 - b.y0)):
        colour = tuple(colours[vocabulary.classes.index(box.name)].tolist())
        left, above = x + box.x0 * w, y + box.y0 * h
        right, below = max(left, x + box.x1 * w - 1), max(above, y + box.y1 * h - 1)
        draw.rectangle((left, above, right, below), outline=colour)
        if right - left > 24:
            draw.rectangle(draw.textbbox((left + 2, above), box.name, _font(10)), colour)
            dark = np.dot(colour, (0.3, 0.59, 0.11)) < 128
            draw.text((left + 2, above), box.name, PAPER if dark else INK, _font(10))


def _font(points: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(points)
