"""Alignment of depth and normals with the picture: detection of shifts, mirroring, scaling, lags and inverted axes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from testtime.data.dense import DenseSet
from testtime.data.files import need_choice
from testtime.progress import progress

__all__ = ["Alignment", "alignment", "depth_range", "findings", "normal_signs"]

SCALES = (0.8, 0.85, 0.9, 0.95, 1 / 0.95, 1 / 0.9, 1 / 0.85, 1.25)
"""Scale factors that are tried on a modality."""

WORK = 256
"""Length of the longer side, in pixels, at which modalities are compared."""

LEAST = 0.05
"""Correlation below which picture and modality count as unrelated."""

NEAR, FAR = 0.15, 60.0
"""Plausible range of the median depth of a space, in metres."""


@final
@dataclass(frozen=True)
class Alignment:
    """Alignment of a modality with the picture, by the correlation of its borders with the picture's edges.

    Attributes:
        modality: name of the modality.
        frames: number of frames that were compared.
        score: mean correlation of picture edges and borders, without a change.
        best: change of the modality with the highest score; "as it is" if none improves the score.
        best_score: mean correlation with that change.
        shift: best shift (right, down), in pixels of the frame.
        warning: description of the misalignment, or "".
    """

    modality: str
    frames: int
    score: float
    best: str
    best_score: float
    shift: tuple[int, int]
    warning: str

    def __str__(self) -> str:
        if self.warning:
            return self.warning
        return (
            f"{self.modality}: borders correlate with the picture's edges by {self.score:.2f}; no shift, mirroring or scaling "
            "improves this"
        )


def alignment(data: DenseSet, task: str, count: int = 32, reach: float = 0.06) -> Alignment:
    r"""Search for a constant shift, mirroring, scaling or a lag of one frame between pictures and a modality.

    .. math:: s(g) = \frac1N \sum_i \operatorname{corr}(e(\text{picture}_i), b(g(\text{modality}_i)))

    e is the strength of the picture's edges, b that of the borders in depth (second differences of inverse depth, which vanish
    on planes) or normals, both compressed by :math:`v^2 / (v^2 + (2 \bar v)^2)` against sensor noise, and g a change. A change
    that improves the score by 10 %, and by more than three standard errors over the frames, gives a warning; with three frames
    or fewer, it has to improve the score by 50 %.

    Args:
        data: frames with the modality.
        task: modality, "depth" or "normals".
        count: number of frames, at equal distances.
        reach: largest shift, as a fraction of the longer side.

    Raises:
        ValueError: the task is neither of the two.
    """
    need_choice(task, ("depth", "normals"), "task")
    chosen = np.unique(np.linspace(0, len(data) - 1, min(count, len(data))).round().astype(int)).tolist()
    tables: dict[str, list[float]] = {}
    shifts: dict[str, tuple[int, int]] = {"as it is": (0, 0)}
    step = 1.0
    for i in progress(chosen, len(chosen), f"alignment {task}"):
        sample = data[i]
        edges = _edges(sample.image)
        borders = _borders(sample.labels[task], edges.shape)
        step = sample.image.shape[-1] / edges.shape[-1]
        k = max(3, round(reach * max(edges.shape)))
        table = _shifted(edges, borders, k)
        for dy, dx in product(range(-k, k + 1), repeat=2):
            name = f"shifted by ({round(dx * step)}, {round(dy * step)}) pixels" if dx or dy else "as it is"
            shifts.setdefault(name, (round(dx * step), round(dy * step)))
            tables.setdefault(name, []).append(float(table[k + dy, k + dx]))
        changes = {
            "mirrored left to right": borders.flip(-1),
            "mirrored top to bottom": borders.flip(-2),
            "rotated by 180 degrees": borders.flip(-1, -2),
        }
        for lag, word in ((-1, "taken from the frame before"), (1, "taken from the frame after")):
            if 0 <= i + lag < len(data) and task in (other := data[i + lag]).labels:
                changes[word] = _borders(other.labels[task], edges.shape)
        for name, changed in changes.items():
            tables.setdefault(name, []).append(_correlation(edges, changed))
        for scale in SCALES:
            part, changed = _scaled(edges, borders, scale)
            tables.setdefault(f"scaled by {scale:.2f}", []).append(_correlation(part, changed))
    return _alignment(task, tables, shifts, step)


def _alignment(
    task: str, tables: Mapping[str, list[float]], shifts: Mapping[str, tuple[int, int]], step: float
) -> Alignment:
    here = np.array(tables["as it is"])
    full = {name: np.array(scores) for name, scores in tables.items() if len(scores) >= 0.9 * len(here)}
    best = max(full, key=lambda name: float(full[name].mean()))
    score, top = (round(float(full[name].mean()), 4) for name in ("as it is", best))
    warning = ""
    if best != "as it is":
        n = min(len(here), len(full[best]))
        gain = full[best][:n] - here[:n] if len(full[best]) != len(here) else full[best] - here
        sure = (
            float(gain.mean()) > 3 * float(gain.std(ddof=1)) / n**0.5
            if n > 3
            else top > max(1.5 * score, 0.3)
        )
        if sure and top > max(1.1 * score + 0.01, 2 * LEAST):
            warning = (
                f"{task}: borders correlate with the picture's edges by {score:.2f}, but by {top:.2f} when {best} "
                f"(mean of {len(here)} frames)"
            )
    shift = max(shifts, key=lambda name: float(full[name].mean()) if name in full else -1.0)
    if not warning and score < LEAST:
        warning = (
            f"{task} and picture are hardly correlated ({score:.2f}); check that they are of the same frames"
        )
    kept, reached = (best, top) if warning else ("as it is", score)
    return Alignment(task, len(here), score, kept, reached, shifts[shift], warning)


def _edges(image: Tensor) -> Tensor:
    """Return the strength of a picture's edges, at the resolution of the comparison."""
    shrink = min(1.0, WORK / max(image.shape[-2:]))
    size = [max(8, round(n * shrink)) for n in image.shape[-2:]]
    grey = (image * image.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0)[None, None]
    grey = F.interpolate(grey, size, mode="bilinear", antialias=True)[0, 0] if shrink < 1 else grey[0, 0]
    across = F.pad(grey[:, 2:] - grey[:, :-2], (1, 1))
    down = F.pad(grey[2:] - grey[:-2], (0, 0, 1, 1))
    return _compressed((across.square() + down.square()).sqrt())


def _borders(value: Tensor, size: Sequence[int]) -> Tensor:
    """Return the strength of the borders in depth or normals, resized to ``size``."""
    rows, columns = (
        ((torch.arange(new) + 0.5) * old / new).long()
        for new, old in zip(size, value.shape[-2:], strict=True)
    )
    planes = value[:, rows[:, None], columns]
    if len(planes) == 1:
        planes = 1 / planes.where(planes > 0, torch.nan)
        planes = planes / planes.nanmean().clamp(min=1e-9)
        across = planes[:, :, 2:] - 2 * planes[:, :, 1:-1] + planes[:, :, :-2]
        down = planes[:, 2:] - 2 * planes[:, 1:-1] + planes[:, :-2]
    else:
        across, down = planes[:, :, 2:] - planes[:, :, :-2], planes[:, 2:] - planes[:, :-2]
    strength = F.pad(across.norm(dim=0), (1, 1)).nan_to_num(0.0)
    return _compressed(strength + F.pad(down.norm(dim=0), (0, 0, 1, 1)).nan_to_num(0.0))


def _compressed(strength: Tensor) -> Tensor:
    """Compress to [0, 1], so that uniform noise stays near 0. Large frames are averaged over 3 x 3 pixels before."""
    if max(strength.shape) >= WORK // 2:
        strength = F.avg_pool2d(strength[None, None], 3, 1, 1)[0, 0]
    wide = strength.square()
    return wide / (wide + (2 * strength.mean()).square().clamp(min=1e-12))


def _correlation(a: Tensor, b: Tensor) -> float:
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / (a.norm() * b.norm()).clamp(min=1e-9))


def _shifted(edges: Tensor, borders: Tensor, k: int) -> Tensor:
    """Return the correlation (2k + 1, 2k + 1) of the picture's centre with borders shifted by -k ... k down and right."""
    inner = edges[k:-k, k:-k]
    inner = inner - inner.mean()
    product_ = F.conv2d(borders[None, None], inner[None, None])[0, 0]
    size = tuple(inner.shape)
    mean = F.avg_pool2d(borders[None, None], size, 1)[0, 0]
    square = F.avg_pool2d(borders.square()[None, None], size, 1)[0, 0]
    spread = ((square - mean.square()).clamp(min=0) * inner.numel()).sqrt()
    # Borders that are shifted right are read from the left.
    return (product_ / (spread * inner.norm()).clamp(min=1e-9)).flip(0, 1)


def _scaled(edges: Tensor, borders: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Return the part of the picture that the scaled borders cover, and these borders."""
    grid = F.affine_grid(
        torch.tensor([[[1 / scale, 0, 0], [0, 1 / scale, 0]]]), [1, 1, *borders.shape], align_corners=False
    )
    drawn = F.grid_sample(borders[None, None], grid, align_corners=False)[0, 0]
    top, left = (int(n * max(0.0, 1 - scale) / 2) + 1 for n in borders.shape)
    return edges[top:-top, left:-left], drawn[top:-top, left:-left]


def normal_signs(pairs: Iterable[tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """Compare measured normals with those computed from depth, for all signs of the x, y and z axes.

    Args:
        pairs: measured normals (3, H, W), and normals from :func:`~testtime.space.normals.normals_of`.

    Returns:
        "angle", the median angle in degrees; "signs", the signs of the axes with the smallest median, "best_angle"; "warning".
    """
    sensed, made = [], []
    for a, b in pairs:
        known = (a.isfinite() & b.isfinite()).all(0)
        sensed.append(a[:, known][:, ::7])
        made.append(b[:, known][:, ::7])
    if not sensed or not sum(s.shape[1] for s in sensed):
        return {"angle": None, "signs": [1, 1, 1], "best_angle": None, "warning": ""}
    both = torch.cat(sensed, 1) * torch.cat(made, 1)
    angles = {
        signs: float(
            torch.rad2deg((both * both.new_tensor(signs)[:, None]).sum(0).clamp(-1, 1).acos()).median()
        )
        for signs in product((1, -1), repeat=3)
    }
    angle, best = angles[1, 1, 1], min(angles, key=lambda signs: angles[signs])
    warning = ""
    if angles[best] < 0.7 * angle and angle > 10:
        inverted = " and ".join(axis for axis, sign in zip("xyz", best, strict=True) if sign < 0)
        warning = (
            f"normals: a median of {angle:.0f} degrees to those of the depth, but of {angles[best]:.0f} with "
            f"{inverted} inverted; expected x right, y up, z to the viewer"
        )
    elif angle > 30:
        warning = f"normals: a median of {angle:.0f} degrees to those of the depth, for any signs of the axes"
    found = {"angle": round(angle, 2), "signs": list(best), "best_angle": round(angles[best], 2)}
    return {**found, "warning": warning}


def depth_range(depths: Sequence[Tensor]) -> dict[str, Any]:
    """Return median and known fraction of the depth, with a warning if they are implausible.

    Args:
        depths: depth maps in metres; NaN where unknown.
    """
    flat = torch.cat([d.flatten() for d in depths])
    known, median = float(flat.isfinite().float().mean()), float(flat.nanmedian())
    warning = ""
    if known < 0.05:
        warning = f"depth: known at only {known:.0%} of the pixels"
    elif not NEAR <= median <= FAR:
        warning = f"depth: a median of {median:.3g} m; check that the unit is metres"
    return {"median": round(median, 3) if known else None, "known": round(known, 4), "warning": warning}


def findings(report: Mapping[str, Any]) -> list[str]:
    """Return the warnings and the alignment of a report as lines of text.

    Args:
        report: report of :func:`~testtime.space.ingest.ingest`.
    """
    lines = [f"warning: {line}" for line in report["warnings"]]
    for name, one in report["alignment"].items():
        if one["warning"]:
            continue
        if name == "normals of depth":
            if one["angle"] is not None:
                lines.append(f"normals: a median of {one['angle']:.1f} degrees to those of the depth")
        elif name == "metres":
            lines.append(
                f"depth: known at {one['known']:.0%} of the pixels, a median of {one['median']:.2f} m"
            )
        else:
            lines.append(str(Alignment(**{**one, "shift": tuple(one["shift"])})))
    return lines or ["pictures only: no modality to align"]
