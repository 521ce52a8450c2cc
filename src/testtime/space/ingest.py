"""Taking a place in: from its frames to the shards that pre-training reads, with a sheet for a person to look at.

Scenes, one of the public layouts, or a person's own walk become, in one folder::

    ingest.json                 what was asked for
    alignment.json              whether depth and normals lie on the picture, with numbers
    tokenizers/<stream>/        one for each modality, and how well it does
    shards/                     crops and tokens (:mod:`testtime.space.shards`)
    report.json, sheet.png      all numbers; frames as they were sensed, and as their tokens tell them

Normals are made of depth where no sensor gave them, edges of the picture. Each stage keeps what is there, so that the same
call goes on where it was left.
"""

from __future__ import annotations

import hashlib
import json
import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from testtime.data.dense import IGNORE, DenseSet, Sample
from testtime.data.files import need_choice
from testtime.data.seven_scenes import COLOUR_LENS
from testtime.errors import DataError, missing_extra
from testtime.parts.randomness import generator
from testtime.progress import progress
from testtime.space.crops import cropped, windows
from testtime.space.frames import PseudoLabeller, SpaceFrames
from testtime.space.modalities import DEPTH, NORMALS, RGB, SENSORY, Modality, truncated
from testtime.space.sequences import Box, BoxVocabulary
from testtime.space.shards import Shards, write_shards
from testtime.space.tokenizers import FSQTokenizer, Network, Tokenizer, VQTokenizer, load_tokenizer
from testtime.space.walkthrough import Walkthrough, is_walkthrough, normals_of, take_apart

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "LAYOUTS",
    "Alignment",
    "Sensed",
    "TokenizerRecipe",
    "alignment",
    "ingest",
    "normal_signs",
    "read_space",
    "space_sheet",
    "summary",
]

LAYOUTS = (
    "scenes",
    "walk-through",
    "replica",
    "taskonomy",
    "scannetpp-iphone",
    "scannetpp-dslr",
    "7scenes",
    "procthor",
)
MEMORY = 2**27
"""Numbers that tokenizers learn from at once, over all modalities: half a GiB."""

SCALES = (0.8, 0.85, 0.9, 0.95, 1 / 0.95, 1 / 0.9, 1 / 0.85, 1.25)
"""Of the scales that are tried on a modality."""

WORK = 256
"""Pixels of the longer side at which modalities are compared."""

LEAST = 0.05
"""The correlation below which picture and modality have nothing to do with each other."""

NEAR, FAR = 0.15, 60.0
"""Metres between which the median depth of a place is expected."""

RED, RULE = (176, 42, 30), (214, 212, 206)


@final
@dataclass(frozen=True)
class TokenizerRecipe:
    """How the tokenizers of a space are made; see :mod:`testtime.space.tokenizers`.

    Attributes:
        kind: "fsq" or "vq".
        levels: of "fsq"; the vocabulary is their product.
        codebook: of "vq".
        width, depth, network: of encoder and decoder.
        steps, batch, lr: of the training.
    """

    kind: Literal["fsq", "vq"] = "fsq"
    levels: tuple[int, ...] = (8, 5, 5, 5)
    codebook: int = 512
    width: int = 64
    depth: int = 1
    network: Network = "convolution"
    steps: int = 400
    batch: int = 32
    lr: float = 3e-3

    def made(self, modality: Modality, size: tuple[int, int], patch: int, seed: int) -> Tokenizer:
        """A new tokenizer of a modality; a feature map's grid is that of the patches."""
        if modality.kind == "features":
            size, patch = (size[0] // patch, size[1] // patch), 1
        body: dict[str, Any] = {
            "size": size,
            "patch": patch,
            "width": self.width,
            "depth": self.depth,
            "network": self.network,
            "seed": seed,
        }
        if self.kind == "vq":
            return VQTokenizer(modality, codebook=self.codebook, **body)
        return FSQTokenizer(modality, levels=self.levels, **body)


def read_space(
    source: str | Path,
    layout: str | None = None,
    spaces: Sequence[str] | None = None,
    frames: str | Path | None = None,
    depth: str | Path | bool | None = None,
    intrinsics: Sequence[float] | str | Path | None = None,
    fov: float | None = None,
    fps: float = 2.0,
    every: int | None = None,
    blur: float = 0.5,
    longest: int = 512,
) -> DenseSet:
    """The frames of a place, in whichever layout they lie.

    Args:
        source: the root of scenes, of a public layout, of a person's pictures, or a video.
        layout: one of :data:`LAYOUTS`; None finds out, by the names of folders.
        spaces: some of the spaces (scenes, buildings, houses, sequences) there; None takes all.
        frames: where a video is taken apart; ``<video>-frames`` beside it by default.
        depth, intrinsics, fov, longest: of a walk, see :class:`~testtime.space.walkthrough.Walkthrough`. Of a video, None
            takes the depth in ``<video>-depth`` and the ``intrinsics.json`` beside it if they are there.
        fps, every: of a video, see :func:`~testtime.space.walkthrough.take_apart`.
        blur: frames of a video that are blurred beside their neighbours are left out; 0 keeps them. Pictures are kept.

    Raises:
        DataError: nothing is there, or in none of the layouts.
        ValueError: there is no such layout.
    """
    root = Path(source)
    if not root.exists():
        raise DataError(f"{root}: no such file or folder; expected the frames of a place")
    layout = _layout(root) if layout is None else need_choice(layout, LAYOUTS, "layout")
    if layout == "walk-through":
        if root.is_file():
            folder = take_apart(root, frames or root.with_name(f"{root.stem}-frames"), fps, every, longest)
            beside = root.with_name(f"{root.stem}-depth")
            found = beside if depth is None and beside.is_dir() else depth
            lens = root.with_name("intrinsics.json")
            lens_of = lens if intrinsics is None and fov is None and lens.is_file() else intrinsics
            return Walkthrough(folder, found, lens_of, fov, longest, blur, root.stem)
        return Walkthrough(root, depth, intrinsics, fov, longest)
    if layout == "scenes":
        from testtime.scenes.disk import read_scenes

        return read_scenes(root, spaces, ("depth", "normals"), keep=False)
    from testtime import data

    if layout in ("replica", "taskonomy"):
        one = data.replica(root, scenes=spaces) if layout == "replica" else None
        one = one or data.taskonomy(root, buildings=spaces, partial_labels=True)
        tasks = [task for task in ("depth", "normals") if task in one.tasks]
        if layout == "replica":
            return data.replica(root, tasks, spaces, partial_labels=False)
        return data.taskonomy(root, tasks, buildings=spaces)
    if layout == "7scenes":
        walks = None if spaces is None else [int(s) for s in spaces]
        return data.seven_scenes(root, sequences=walks, colour_lens=COLOUR_LENS)
    if layout == "procthor":
        return data.procthor(root, spaces)
    device = layout.partition("-")[2]
    names = spaces or sorted(p.parent.name for p in (root / "data").glob(f"*/{device}"))
    reader = data.scannetpp_iphone if device == "iphone" else data.scannetpp_dslr
    return reader(root, names)


def _layout(root: Path) -> str:
    marks = {
        "scenes": "spaces/*/space.json",
        "replica": "rgb/replica",
        "taskonomy": "rgb/taskonomy",
        "scannetpp-iphone": "data/*/iphone/rgb",
        "scannetpp-dslr": "data/*/dslr",
        "7scenes": "seq-*/frame-*.color.*",
        "procthor": "classes.json",
    }
    for layout, mark in marks.items():
        if root.is_dir() and any(True for _ in root.glob(mark)):
            return layout
    if is_walkthrough(root):
        return "walk-through"
    raise DataError(
        f"{root}: expected a video, a folder of pictures, or the layout of {', '.join(marks)}, found none of these; "
        f"say which it is with layout= (one of {', '.join(LAYOUTS)})"
    )


@final
class Sensed(DenseSet):
    """A set of which only sensors are left, with normals made of depth where there are none, and edges of the picture.

    Args:
        data: pictures, with "depth" and "normals" if there are. For normals, its ``camera(index)`` has to tell the
            intrinsics of a pinhole, of some frame at least; the first that has any stands for those that have none.
        radius: of the windows that normals are made of; None takes a 64th of the shorter side.

    Attributes:
        normals: "sensed", "of depth", or why there are none.
    """

    def __init__(self, data: DenseSet, radius: int | None = None) -> None:
        if len(data) == 0:
            raise DataError(f"{data.name}: expected frames, found none")
        self.data, self.radius, self.name = data, radius, data.name
        self._lens, self.normals = None, "there is no depth"
        tasks = [task for task in ("depth", "normals") if task in data.tasks]
        if "normals" in tasks:
            self.normals = "sensed"
        elif "depth" in tasks:
            self._lens, self.normals = _first_lens(data)
        if self._lens is not None:
            tasks.append("normals")
        self.tasks = (*tasks, "edge")

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Sample:
        sample = self.data[index]
        labels = {
            task: sample.labels[task] for task in self.tasks if task in sample.labels and task != "edge"
        }
        if self._lens is not None and "depth" in labels:
            depth = labels["depth"]
            labels["normals"] = normals_of(depth, self._k(index, depth, self._lens), self._radius(depth))
        return Sample(sample.image, labels, sample.name)

    def made_normals(self, index: int) -> Tensor | None:
        """Normals of a frame's depth, whether or not a sensor gave some; None where that cannot be told."""
        depth = self.data[index].labels.get("depth")
        lens = self._lens or _first_lens(self.data)[0]
        if depth is None or lens is None:
            return None
        return normals_of(depth, self._k(index, depth, lens), self._radius(depth))

    def _k(self, index: int, depth: Tensor, lens: Any) -> NDArray[np.float64]:
        with suppress(DataError):  # else that of the first frame which knows it
            lens = self.data.camera(index)  # type: ignore[attr-defined]
        k: NDArray[np.float64] = lens.sized(tuple(depth.shape[-2:])).k
        return k

    def _radius(self, depth: Tensor) -> int:
        return max(1, min(depth.shape[-2:]) // 64) if self.radius is None else self.radius


def _first_lens(data: DenseSet) -> tuple[Any, str]:
    """The first camera that a set knows, or None and the reason."""
    reason = "no intrinsics are known"
    for index in range(len(data) if hasattr(data, "camera") else 0):
        try:
            camera = data.camera(index)  # type: ignore[attr-defined]
        except DataError as error:
            reason = str(error)
            continue
        if camera.model == "OPENCV_FISHEYE":
            return None, "the camera is a fisheye; undistort the frames first"
        return camera, "of depth"
    return None, reason


@final
@dataclass(frozen=True)
class Alignment:
    """Whether a modality lies on the picture: how its borders and the picture's edges coincide, as it is and otherwise.

    Attributes:
        modality: its name.
        frames: how many were looked at.
        score: mean correlation of picture edges and borders, as they are.
        best: the change of the modality that would bring the highest score; "as it is" if none does.
        best_score: with that change.
        shift: (right, down) in pixels of the frame, of the best shift.
        warning: what seems wrong, or "".
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
            f"{self.modality}: borders meet the picture's edges with correlation {self.score:.2f}; no shift, mirror or scale "
            "brings more"
        )


def alignment(data: DenseSet, task: str, count: int = 32, reach: float = 0.06) -> Alignment:
    r"""Look for a constant shift, a mirror, a scale or a lag of one frame between pictures and a modality.

    .. math:: s(g) = \frac1N \sum_i \operatorname{corr}(e(\text{picture}_i), b(g(\text{modality}_i)))

    e is the strength of the picture's edges, b that of the borders in depth (second differences of one over depth, which vanish
    on planes) or normals, both squashed by :math:`v^2 / (v^2 + (2 \bar v)^2)` against a sensor's noise, and g a change. One
    that brings a tenth more than none, by more than three standard errors over the frames, is worth a warning; of three
    frames or less, half as much again.

    Args:
        data: pictures with the modality.
        task: "depth" or "normals".
        count: frames to look at, evenly spread.
        reach: of the shifts, as a share of the longer side.

    Raises:
        ValueError: the task is another one.
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
            "turned upside down": borders.flip(-2),
            "turned by half": borders.flip(-1, -2),
        }
        for lag, word in ((-1, "taken from the frame before"), (1, "taken from the frame after")):
            if 0 <= i + lag < len(data) and task in (other := data[i + lag]).labels:
                changes[word] = _borders(other.labels[task], edges.shape)
        for name, changed in changes.items():
            tables.setdefault(name, []).append(_correlation(edges, changed))
        for scale in SCALES:
            part, changed = _scaled(edges, borders, scale)
            tables.setdefault(f"scaled by {scale:.2f}", []).append(_correlation(part, changed))
    return _judged(task, tables, shifts, step)


def _judged(
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
                f"{task}: borders meet the picture's edges with correlation {score:.2f}, but with {top:.2f} when {best} "
                f"(mean of {len(here)} frames)"
            )
    shift = max(shifts, key=lambda name: float(full[name].mean()) if name in full else -1.0)
    if not warning and score < LEAST:
        warning = (
            f"{task} and picture have little in common: correlation {score:.2f}; are they of the same frames?"
        )
    kept, reached = (best, top) if warning else ("as it is", score)
    return Alignment(task, len(here), score, kept, reached, shifts[shift], warning)


def _edges(image: Tensor) -> Tensor:
    """Strength of a picture's edges, at working size."""
    shrink = min(1.0, WORK / max(image.shape[-2:]))
    size = [max(8, round(n * shrink)) for n in image.shape[-2:]]
    grey = (image * image.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0)[None, None]
    grey = F.interpolate(grey, size, mode="bilinear", antialias=True)[0, 0] if shrink < 1 else grey[0, 0]
    across = F.pad(grey[:, 2:] - grey[:, :-2], (1, 1))
    down = F.pad(grey[2:] - grey[:-2], (0, 0, 1, 1))
    return _squashed((across.square() + down.square()).sqrt())


def _borders(value: Tensor, size: Sequence[int]) -> Tensor:
    """Strength of the borders in depth or normals, at a size."""
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
    return _squashed(strength + F.pad(down.norm(dim=0), (0, 0, 1, 1)).nan_to_num(0.0))


def _squashed(strength: Tensor) -> Tensor:
    """Between 0 and 1: what noise brings everywhere stays near 0. Large frames are averaged over 3 x 3 pixels before."""
    if max(strength.shape) >= WORK // 2:
        strength = F.avg_pool2d(strength[None, None], 3, 1, 1)[0, 0]
    wide = strength.square()
    return wide / (wide + (2 * strength.mean()).square().clamp(min=1e-12))


def _correlation(a: Tensor, b: Tensor) -> float:
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / (a.norm() * b.norm()).clamp(min=1e-9))


def _shifted(edges: Tensor, borders: Tensor, k: int) -> Tensor:
    """The correlation (2k + 1, 2k + 1) of the picture's inner part with borders moved by -k ... k down, and right."""
    inner = edges[k:-k, k:-k]
    inner = inner - inner.mean()
    product_ = F.conv2d(borders[None, None], inner[None, None])[0, 0]
    size = tuple(inner.shape)
    mean = F.avg_pool2d(borders[None, None], size, 1)[0, 0]
    square = F.avg_pool2d(borders.square()[None, None], size, 1)[0, 0]
    spread = ((square - mean.square()).clamp(min=0) * inner.numel()).sqrt()
    # Where borders are moved right, what is read lies to the left.
    return (product_ / (spread * inner.norm()).clamp(min=1e-9)).flip(0, 1)


def _scaled(edges: Tensor, borders: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Borders drawn larger or smaller about the middle, and the part of the picture that they then cover."""
    grid = F.affine_grid(
        torch.tensor([[[1 / scale, 0, 0], [0, 1 / scale, 0]]]), [1, 1, *borders.shape], align_corners=False
    )
    drawn = F.grid_sample(borders[None, None], grid, align_corners=False)[0, 0]
    top, left = (int(n * max(0.0, 1 - scale) / 2) + 1 for n in borders.shape)
    return edges[top:-top, left:-left], drawn[top:-top, left:-left]


def normal_signs(pairs: Iterable[tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """How far sensed normals are from those of the depth, and with which signs of x, y and z they would be nearest.

    Args:
        pairs: sensed normals (3, H, W), and those that :func:`~testtime.space.walkthrough.normals_of` makes.

    Returns:
        "angle", the median in degrees; "signs" of the axes with the least median, "best_angle", and "warning".
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
        turned = " and ".join(axis for axis, sign in zip("xyz", best, strict=True) if sign < 0)
        warning = (
            f"normals: a median of {angle:.0f} degrees from those of the depth, but of {angles[best]:.0f} with "
            f"{turned} turned round; expected x right, y up, z to the viewer"
        )
    elif angle > 30:
        warning = f"normals: a median of {angle:.0f} degrees from those of the depth, whatever their signs"
    found = {"angle": round(angle, 2), "signs": list(best), "best_angle": round(angles[best], 2)}
    return {**found, "warning": warning}


def ingest(
    source: DenseSet | str | Path,
    out: str | Path,
    size: int | tuple[int, int] = 64,
    patch: int = 8,
    crops: int = 4,
    smallest: float = 0.4,
    recipe: TokenizerRecipe | None = None,
    sensors: Sequence[str] | None = None,
    pseudo: Mapping[str, PseudoLabeller] | None = None,
    modalities: Mapping[str, Modality] | None = None,
    vocabulary: BoxVocabulary | None = None,
    box_tokens: int = 64,
    seed: int = 0,
    rows: int = 4,
    limit: int | None = None,
    radius: int | None = None,
    device: str = "cpu",
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Make tokenizers, shards, report and contact sheet of a place; what is there is not made again.

    Args:
        source: frames, or where they lie (:func:`read_space`).
        out: the folder; see above.
        size: of the crops, (H, W) or the side of a square, in pixels.
        patch: side of a token's patch.
        crops: of each frame; the first is the largest square in the middle.
        smallest: share of the frame that a random crop has at least.
        recipe: of the tokenizers; None takes the defaults.
        sensors: of "depth", "normals", "edge"; None takes all that are there or can be made.
        pseudo: by name, what networks make of a picture, as :class:`~testtime.space.frames.SpaceFrames` asks.
        modalities: of the pseudo-labels, by the same names.
        vocabulary: of boxes, if a modality is a sequence.
        box_tokens: of a frame's boxes at most.
        seed: of crops and tokenizers.
        rows: frames on the contact sheet.
        limit: take so many frames at most, evenly spread.
        radius: of the windows that normals are made of, see :class:`Sensed`.
        device: where tokenizers learn.
        say: is told what is being done.

    Returns:
        the report, as ``report.json`` holds it: frames, source, normals, modalities with their tokenizers, alignment,
        warnings, and the paths of shards and sheet.

    Raises:
        DataError: the frames cannot be read, or the folder holds something that was asked for otherwise.
        ImportError: Pillow, OpenCV (edges) or vector-quantize-pytorch is not installed.
        ValueError: an argument is out of range, or a pseudo-label has no modality.
    """
    _pillow()
    out = Path(out)
    high, wide = (size, size) if isinstance(size, int) else size
    recipe = TokenizerRecipe() if recipe is None else recipe
    pseudo, modalities = dict(pseudo or {}), dict(modalities or {})
    without = [name for name in pseudo if name not in modalities]
    sequences = [name for name in pseudo if name in modalities and modalities[name].kind == "sequence"]
    if without or len(sequences) > (vocabulary is not None):
        raise ValueError(
            f"expected the modality of each pseudo-label, and the vocabulary of one of boxes; got labels {sorted(pseudo)}, "
            f"modalities {sorted(modalities)} and {'a' if vocabulary else 'no'} vocabulary"
        )
    if high < patch or wide < patch or high % patch or wide % patch or crops < 1 or not 0 < smallest <= 1:
        raise ValueError(
            f"expected a size in multiples of patch, 1 or more crops and 0 < smallest <= 1, got {high} x {wide}, {patch}, "
            f"{crops} and {smallest}"
        )
    data = source if isinstance(source, DenseSet) else read_space(source, frames=out / "frames")
    if limit is not None and limit < len(data):
        data = data.subset(np.linspace(0, len(data) - 1, limit).round().astype(int).tolist())
    sensed = Sensed(data, radius)
    used = (
        [s for s in ("depth", "normals", "edge") if s in sensed.tasks] if sensors is None else list(sensors)
    )
    frames = SpaceFrames(sensed, used, pseudo, edge_side=min(high, wide))
    of = {RGB.name: RGB, **{s: SENSORY[s] for s in used}, **{name: modalities[name] for name in pseudo}}
    about = {
        "source": data.name,
        "frames": len(data),
        "pictures": _digest(data),
        "size": [high, wide],
        "patch": patch,
        "crops": crops,
        "smallest": smallest,
        "recipe": {**asdict(recipe), "levels": list(recipe.levels)},
        "modalities": list(of),
        "radius": radius,
        "seed": seed,
    }
    _asked(out, about)
    say(f"{len(data)} frames of {data.name}: {', '.join(of)} (normals: {sensed.normals})")

    checks = _kept(out / "alignment.json", lambda: _checks(sensed, used))
    warnings = [c["warning"] for c in checks.values() if c.get("warning")]
    if sensors is None and "normals" not in used and "depth" in used:
        warnings.append(f"no normals were made of the depth: {sensed.normals}")
    for line in warnings:
        say(f"warning: {line}")

    tokenizers, reports = _tokenizers(
        out, frames, of, (high, wide), patch, crops, smallest, recipe, seed, device, say
    )
    boxes = (modalities[sequences[0]], vocabulary, box_tokens) if sequences and vocabulary else None
    say("tokens and crops")
    shards = write_shards(
        out / "shards", frames, tokenizers, (high, wide), patch, crops, smallest, boxes, seed, about
    )
    report = {
        "source": data.name,
        "frames": len(data),
        "size": [high, wide],
        "patch": patch,
        "crops": crops,
        "normals": sensed.normals,
        "modalities": {name: {"form": one.kind, **reports.get(name, {})} for name, one in of.items()},
        "alignment": checks,
        "warnings": warnings,
        "shards": "shards",
        "sheet": "sheet.png",
    }
    shown = np.unique(np.linspace(0, len(data) - 1, max(1, rows)).round().astype(int)).tolist()
    say("contact sheet")
    sheet = space_sheet(frames, shards, tokenizers, shown, report, boxes)
    partial = out / ".sheet.png.part"
    sheet.save(partial, "PNG")
    partial.replace(out / "sheet.png")
    _write(out / "report.json", report)
    return report


def summary(report: Mapping[str, Any]) -> str:
    """The report as a table for a terminal."""
    lines = [
        f"{report['frames']} frames of {report['source']}, {report['crops']} crops of "
        f"{report['size'][0]} x {report['size'][1]} each; normals: {report['normals']}",
        f"{'modality':14}{'codes':>7}{'used':>7}{'perplexity':>12}{'error':>10}{'a constant':>12}  unit",
    ]
    for name, one in report["modalities"].items():
        if "perplexity" in one:
            lines.append(
                f"{name:14}{one['vocabulary']:7}{one['used']:7.0%}{one['perplexity']:12.0f}{one['error']:10.4f}"
                f"{one['constant']:12.4f}  {one['unit']}"
            )
    lines += _findings(report)
    return "\n".join(lines)


def _tokenizers(
    out: Path,
    frames: SpaceFrames,
    of: Mapping[str, Modality],
    size: tuple[int, int],
    patch: int,
    crops: int,
    smallest: float,
    recipe: TokenizerRecipe,
    seed: int,
    device: str,
    say: Callable[[str], None],
) -> tuple[dict[str, Tokenizer], dict[str, dict[str, Any]]]:
    """By stream the tokenizers, and by modality how well they do; those that are there are read."""
    wanted = {name: one for name, one in of.items() if one.kind != "sequence"}
    folders = {name: out / "tokenizers" / f"tok_{name}" for name in wanted}
    missing = [name for name, folder in folders.items() if not (folder / "report.json").is_file()]
    fresh = {name: recipe.made(wanted[name], size, patch, seed) for name in missing}
    # As many frames whether or not some tokenizers are there: the others must learn from the same ones.
    each = crops * sum(math.prod(size) * (m.channels if m.kind == "image" else 1) for m in wanted.values())
    count = max(1, min(len(frames), MEMORY // each))
    values = _values(
        frames, {name: (t.modality, t.size) for name, t in fresh.items()}, count, crops, smallest, seed
    )
    found, reports = {}, {}
    for name, folder in folders.items():
        if name in fresh:
            say(f"tokenizer of {name}")
            learned = fresh[name].to(device)
            told = learned.fit(values.pop(name), recipe.steps, recipe.batch, recipe.lr, seed, folder)
            _write(folder / "report.json", asdict(told))
            say(str(told))
        found[f"tok_{name}"] = load_tokenizer(folder / "tokenizer.safetensors").to(device)
        reports[name] = json.loads((folder / "report.json").read_text())
    return found, reports


def _values(
    frames: SpaceFrames,
    wanted: Mapping[str, tuple[Modality, tuple[int, int]]],
    count: int,
    crops: int,
    smallest: float,
    seed: int,
) -> dict[str, Tensor]:
    """What tokenizers learn from: the crops that the shards will hold, of some frames."""
    if not wanted:
        return {}
    chosen = np.unique(np.linspace(0, len(frames) - 1, count).round().astype(int)).tolist()
    values: dict[str, list[Tensor]] = {name: [] for name in wanted}
    for i in progress(chosen, len(chosen), "frames for the tokenizers"):
        frame = frames[i]
        around = windows(crops, smallest, generator(seed, i, "crops"), tuple(frame["rgb"].shape[-2:]))
        for name, (modality, size) in wanted.items():
            values[name] += [cropped(frame[name], modality, window, size) for window in around.tolist()]
    return {name: torch.stack(values.pop(name)) for name in wanted}


def _checks(sensed: Sensed, used: Sequence[str]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for task in ("depth", "normals"):
        # Normals that were made of the depth lie where it lies.
        if task in used and (task == "depth" or sensed.normals == "sensed"):
            found[task] = asdict(alignment(sensed.data, task))
    chosen = np.unique(np.linspace(0, len(sensed) - 1, min(8, len(sensed))).round().astype(int)).tolist()
    if "depth" in used:
        found["metres"] = _range([sensed.data[i].labels["depth"] for i in chosen])
    if "depth" in used and sensed.normals == "sensed" and "normals" in used:
        made = ((i, sensed.made_normals(i)) for i in chosen)
        found["normals of depth"] = normal_signs(
            (sensed[i].labels["normals"], one) for i, one in made if one is not None
        )
    return found


def _range(depths: Sequence[Tensor]) -> dict[str, Any]:
    """The median depth, how much of it is known, and whether that can be."""
    flat = torch.cat([d.flatten() for d in depths])
    known, median = float(flat.isfinite().float().mean()), float(flat.nanmedian())
    warning = ""
    if known < 0.05:
        warning = f"depth: known at {known:.0%} of the pixels only"
    elif not NEAR <= median <= FAR:
        warning = f"depth: a median of {median:.3g} m; is it in metres?"
    return {"median": round(median, 3) if known else None, "known": round(known, 4), "warning": warning}


# --- the contact sheet


def space_sheet(
    frames: SpaceFrames,
    shards: Shards,
    tokenizers: Mapping[str, Tokenizer],
    indices: Sequence[int],
    report: Mapping[str, Any],
    boxes: tuple[Modality, BoxVocabulary, int] | None = None,
    width: int = 150,
) -> Image:
    """Draw the middle crop of frames: each modality as it is, and below it as its tokens tell it.

    Args:
        frames: as they were sensed.
        shards: of these frames.
        tokenizers: by stream.
        indices: which frames.
        report: of :func:`ingest`.
        boxes: modality, vocabulary and length, if there are some.
        width: of a picture in pixels at least; it is the next multiple of the crop's.

    Raises:
        ImportError: Pillow is not installed.
    """
    image_of = _pillow()
    from PIL import ImageDraw

    from testtime.scenes.sheet import DIM, GAP, INK, PAPER, RAMP

    high, wide = shards.size
    factor = -(-width // wide)
    w, h = wide * factor, high * factor
    columns = [*(t.modality for t in tokenizers.values()), *([boxes[0]] if boxes else [])]
    side, top, band = 92, 86, 2 * h + 68
    findings = _findings(report)
    full = max(620, side + len(columns) * (w + GAP) + GAP)
    wrapped = [
        (line, finding.startswith("warning"))
        for finding in findings
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
        x, facts = side + n * (w + GAP), report["modalities"][modality.name]
        text(x, 34, modality.name, points=15)
        if "perplexity" in facts:
            text(x, 53, f"perplexity {facts['perplexity']:.0f} of {facts['vocabulary']}", DIM, 12)
    for n, index in enumerate(indices):
        y = top + n * band
        draw.line((GAP, y - 7, full - GAP, y - 7), RULE)
        text(GAP, y, f"frame {index}   {frames.data[index].name}", DIM, 12)
        y += 18
        for line, words in enumerate(("as it is", "as the\ntokens\ntell it")):
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
    y = top + band * len(indices)
    for modality in columns:
        if modality.name == DEPTH.name:
            ramp = image_of.fromarray(np.repeat(RAMP[None].astype(np.uint8), 12, axis=0))
            sheet.paste(ramp.resize((120, 12), image_of.Resampling.BILINEAR), (GAP + 84, y + 3))
            text(GAP, y, "depth: near")
            text(GAP + 212, y, "far, each frame by itself; black: not known")
            y += 18
        if modality.name == NORMALS.name:
            text(GAP, y, "normals: red to the right, green up, blue to the viewer; black: not known")
            y += 18
    y += 8
    for n, (words, bad) in enumerate(wrapped):
        text(GAP, y + 18 * n, words, RED if bad else INK)
    return sheet


def _pair(
    frame: Mapping[str, Any],
    modality: Modality,
    shards: Shards,
    tokenizers: Mapping[str, Tokenizer],
    index: int,
    boxes: Any,
) -> tuple[list[NDArray[np.uint8]], list[str]]:
    """Two pictures (H, W, 3) of a frame's middle crop, as sensed and as told by the tokens, and a note for each."""
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
        told = tokenizer.decode(ids)[0].cpu()
    codes = f"{len(ids.unique())} codes"
    if modality.kind == "classes":
        wrong = 100 * float((raw != told)[raw < modality.channels].float().mean())
        return [_class_colours(v, modality.channels) for v in (raw, told)], [
            "",
            f"{codes}, {wrong:.0f} % differ",
        ]
    if modality.kind == "features":
        cosine = float(F.cosine_similarity(_at(raw, told), told, dim=0).mean())
        return _components(raw, told), ["three main components", f"{codes}, cosine {cosine:.2f}"]
    seen = modality.normalised(raw[None].float())[0]
    note = f"{codes}, mse {float((seen - told).square().mean()):.3f}"
    if modality.normalise == "truncated":
        known = raw > 0
        near, far = (float(v) for v in raw[known].aminmax()) if bool(known.any()) else (0.0, 0.0)
        return _ramp(raw, told), [f"{near:.1f} to {far:.1f} m", note]
    if modality.normalise == "signed":
        share = float(raw.isfinite().all(0).float().mean())
        length = told.norm(dim=0, keepdim=True).clamp(min=1e-6)
        return [_vectors(raw), _vectors(told / length)], [f"known at {share:.0%} of pixels", note]
    pictures = [(((v + 1) / 2).clamp(0, 1) * 255).round().to(torch.uint8) for v in (seen, told)]
    first = f"{float(raw.mean()):.0%} of pixels" if modality.channels == 1 else ""
    return [p.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy() for p in pictures], [first, note]


def _ramp(raw: Tensor, told: Tensor) -> list[NDArray[np.uint8]]:
    """Depth as colours: what was sensed, and what is told of it after normalisation, from the same near to the same far."""
    from testtime.scenes.sheet import depth_colours

    known = (raw > 0)[0].numpy()
    seen = truncated(raw[None].where(raw > 0, torch.nan))[0, 0].numpy()
    near, far = np.percentile(seen[known], (1, 99)) if known.any() else (-1.0, 1.0)
    pictures = [depth_colours(np.where(v == 0, 1e-9, v), near, far) for v in (seen, told[0].numpy())]
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


def _components(raw: Tensor, told: Tensor) -> list[NDArray[np.uint8]]:
    """Feature maps as colours: the three main components of the sensed one, for both."""
    flat = raw.flatten(1).double()
    mean = flat.mean(1, keepdim=True)
    _, _, axes = torch.linalg.svd((flat - mean).T, full_matrices=False)
    axes = axes[:3] * torch.where(axes[:3].sum(1, keepdim=True) < 0, -1.0, 1.0)
    spread = (axes @ (flat - mean)).std(1, keepdim=True).clamp(min=1e-9)
    pictures = []
    for value in (raw, told):
        place = axes @ (value.flatten(1).double() - mean) / spread
        colours = F.pad((place * 48 + 128).clamp(0, 255).T, (0, 3 - len(axes)))
        pictures.append(colours.round().to(torch.uint8).view(*value.shape[-2:], 3).numpy())
    return pictures


def _boxes(frame: Mapping[str, Any], shards: Shards, index: int, boxes: Any, told: int) -> list[Box]:
    """A frame's boxes in the middle crop, as a network said, or as their tokens tell."""
    modality, vocabulary, _ = boxes
    if told:
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


def _findings(report: Mapping[str, Any]) -> list[str]:
    """What there is to say of the alignment."""
    lines = [f"warning: {line}" for line in report["warnings"]]
    for name, one in report["alignment"].items():
        if one["warning"]:
            continue
        if name == "normals of depth":
            if one["angle"] is not None:
                lines.append(f"normals: a median of {one['angle']:.1f} degrees from those of the depth")
        elif name == "metres":
            lines.append(
                f"depth: known at {one['known']:.0%} of the pixels, a median of {one['median']:.2f} m"
            )
        else:
            lines.append(str(Alignment(**{**one, "shift": tuple(one["shift"])})))
    return lines or ["pictures only: there is nothing that could lie beside them"]


def _font(points: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(points)


# --- files


def _asked(out: Path, about: Mapping[str, Any]) -> None:
    """Note what was asked for; refuse a folder in which something else was."""
    path = out / "ingest.json"
    if path.is_file():
        there = json.loads(path.read_text())
        differ = sorted(key for key in {*there, *about} if there.get(key) != about.get(key))
        if differ:
            shown = "; ".join(f"{k}: {there.get(k)} there, {about.get(k)} asked" for k in differ[:3])
            raise DataError(f"{out} holds something else ({shown}); give another folder, or delete it")
        return
    _write(path, about)


def _digest(data: DenseSet) -> str:
    """A fingerprint of eight pictures: the same name and number of frames may still be another place."""
    found = hashlib.sha256()
    for i in np.unique(np.linspace(0, len(data) - 1, 8).round().astype(int)).tolist():
        found.update((data[i].image * 255).round().to(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def _kept(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    if not path.is_file():
        _write(path, make())
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def _write(path: Path, facts: Mapping[str, Any]) -> None:
    """Write JSON; the file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(facts, indent=1) + "\n")
    partial.replace(path)


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise missing_extra("Pillow", "images") from error
    return Image
