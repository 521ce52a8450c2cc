"""Ingestion of a space: from frames to the shards that pre-training reads, with a report and a contact sheet.

The output folder contains::

    ingest.json                 arguments
    alignment.json              alignment of depth and normals with the picture
    tokenizers/<stream>/        tokenizer of each modality, and its report
    shards/                     crops and tokens (:mod:`testtime.space.shards`)
    report.json, sheet.png      all numbers; frames, and their reconstruction from tokens

Normals are computed from depth where no sensor measured them, edges from the picture. Each stage keeps existing results, so
that the same call resumes an interrupted run.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import torch
from torch import Tensor

from testtime.data.dense import DenseSet
from testtime.errors import DataError, need_pillow
from testtime.files import read_json, write_image, write_json
from testtime.moved import renamed, takes_former
from testtime.parts.randomness import generator
from testtime.progress import progress
from testtime.space.alignment import alignment, depth_range, findings, normal_signs
from testtime.space.autoencoder import Network
from testtime.space.crops import cropped, windows
from testtime.space.frames import PseudoLabeller, SpaceFrames
from testtime.space.modalities import RGB, SENSORY, Modality
from testtime.space.sequences import BoxVocabulary
from testtime.space.shards import write_shards
from testtime.space.sheet import space_sheet
from testtime.space.sources import SensorSet, read_space
from testtime.space.tokenizers import FSQTokenizer, Tokenizer, VQTokenizer, load_tokenizer

__all__ = ["IngestOptions", "TokenizerRecipe", "ingest", "summary"]

__getattr__ = renamed(
    __name__, {"LAYOUTS": "testtime.space.sources:LAYOUTS", "Sensed": "testtime.space.sources:SensorSet"}
)

AGAIN = "delete it and run the same testtime space ingest command again"
MEMORY = 2**27
"""Largest number of values in the training data of the tokenizers, over all modalities: half a GiB."""


@final
@dataclass(frozen=True)
class TokenizerRecipe:
    """Recipe of the tokenizers of a space; see :mod:`testtime.space.tokenizers`.

    Attributes:
        kind: quantiser, "fsq" or "vq".
        levels: numbers of levels of "fsq"; the vocabulary is their product.
        codebook: number of codes of "vq".
        width, depth, network: channels, blocks and kind of encoder and decoder.
        steps, batch, lr: number of steps, frames per step and learning rate of the training.
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

    def __post_init__(self) -> None:
        if self.kind not in ("fsq", "vq") or min(self.steps, self.batch) < 1 or not 0 < self.lr < math.inf:
            raise ValueError(
                f"expected the kind fsq or vq, steps and batch of at least 1 and lr above 0, got {self.kind!r}, "
                f"{self.steps}, {self.batch} and {self.lr}"
            )

    def tokenizer(self, modality: Modality, size: tuple[int, int], patch: int, seed: int) -> Tokenizer:
        """Make an untrained tokenizer.

        Args:
            modality: modality of the frames.
            size: (H, W) of the frames in pixels; a feature map gets the grid of the patches.
            patch: side of a token's patch in pixels.
            seed: random seed of the weights.
        """
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


@final
@dataclass(frozen=True)
class _Cropping:
    """Crops of the frames, see :func:`ingest`."""

    size: tuple[int, int]
    patch: int
    crops: int
    smallest: float
    seed: int

    def __post_init__(self) -> None:
        (high, wide), patch = self.size, self.patch
        fits = high >= patch and wide >= patch and not high % patch and not wide % patch
        if not fits or self.crops < 1 or not 0 < self.smallest <= 1:
            raise ValueError(
                f"expected a size in multiples of patch, 1 or more crops and 0 < smallest <= 1, got {high} x {wide}, {patch}, "
                f"{self.crops} and {self.smallest}"
            )


@final
@dataclass(frozen=True)
class IngestOptions:
    """Frames, pseudo-labels and contact sheet of :func:`ingest`.

    Args:
        smallest: smallest fraction of the frame's area that a random crop covers.
        pseudo: pseudo-labellers by modality, see :class:`~testtime.space.frames.SpaceFrames`.
        modalities: modalities of the pseudo-labels, by the same names.
        vocabulary: vocabulary of the boxes, if a modality is a sequence.
        box_tokens: largest number of tokens of a frame's boxes.
        rows: number of frames on the contact sheet.
        limit: largest number of frames, which are chosen at equal distances; None uses all.
        radius: radius in pixels of the windows for normals, see :class:`~testtime.space.sources.SensorSet`.
    """

    smallest: float = 0.4
    pseudo: Mapping[str, PseudoLabeller] | None = None
    modalities: Mapping[str, Modality] | None = None
    vocabulary: BoxVocabulary | None = None
    box_tokens: int = 64
    rows: int = 4
    limit: int | None = None
    radius: int | None = None


@takes_former
def ingest(
    source: DenseSet | str | Path,
    out: str | Path,
    size: int | tuple[int, int] = 64,
    patch: int = 8,
    crops: int = 4,
    recipe: TokenizerRecipe | None = None,
    sensors: Sequence[str] | None = None,
    options: IngestOptions = IngestOptions(),
    seed: int = 0,
    device: str = "cpu",
    log: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Make tokenizers, shards, report and contact sheet of a space; existing results are kept.

    Args:
        source: frames, or a path for :func:`~testtime.space.sources.read_space`.
        out: output folder; its content is described above.
        size: (H, W) of the crops in pixels, or the side of a square.
        patch: side of a token's patch in pixels.
        crops: number of crops of each frame; the first is the largest centred square.
        recipe: recipe of the tokenizers; None uses the defaults.
        sensors: names among "depth", "normals" and "edge"; None uses all that are measured or can be computed.
        options: frames, pseudo-labels and contact sheet.
        seed: random seed of crops and tokenizers.
        device: device of the tokenizers' training.
        log: function that receives a line for each stage.

    Returns:
        the report, as in ``report.json``: frames, source, normals, modalities with their tokenizers, alignment, warnings, and
        the paths of shards and sheet.

    Raises:
        DataError: the frames cannot be read, or the folder contains results of other arguments.
        ImportError: Pillow, OpenCV (edges) or vector-quantize-pytorch is not installed.
        ValueError: an argument is out of range, or a pseudo-label has no modality.
    """
    need_pillow()
    out, recipe = Path(out), recipe or TokenizerRecipe()
    pseudo, modalities = dict(options.pseudo or {}), dict(options.modalities or {})
    boxes = _box_stream(pseudo, modalities, options.vocabulary, options.box_tokens)
    cut = _Cropping((size, size) if isinstance(size, int) else size, patch, crops, options.smallest, seed)
    data = source if isinstance(source, DenseSet) else read_space(source, frames=out / "frames")
    data = _limited(data, options.limit)
    sensed = SensorSet(data, options.radius)
    used = list(sensed.tasks if sensors is None else sensors)
    frames = SpaceFrames(sensed, used, pseudo, edge_side=min(cut.size))
    by_name = {RGB.name: RGB, **{s: SENSORY[s] for s in used}, **{name: modalities[name] for name in pseudo}}
    about = _described(data, cut, recipe, list(by_name), options.radius)
    _check_folder(out, {**about, "sensed": _sensed_digest(data)})
    log(f"{len(data)} frames of {data.name}: {', '.join(by_name)} (normals: {sensed.normals})")
    checks = _kept(out / "alignment.json", lambda: _checks(sensed, used))
    warnings = [c["warning"] for c in checks.values() if c.get("warning")]
    if sensors is None and "normals" not in used and "depth" in used:
        warnings.append(f"no normals were made of the depth: {sensed.normals}")
    for line in warnings:
        log(f"warning: {line}")
    tokenizers, reports = _tokenizers(out, frames, by_name, cut, recipe, device, log)
    log("tokens and crops")
    shards = write_shards(
        out / "shards", frames, tokenizers, cut.size, patch, crops, options.smallest, boxes, seed, about
    )
    report = {
        **{key: about[key] for key in ("source", "frames", "size", "patch", "crops")},
        "normals": sensed.normals,
        "modalities": {name: {"form": one.kind, **reports.get(name, {})} for name, one in by_name.items()},
        "alignment": checks,
        "warnings": warnings,
        "shards": "shards",
        "sheet": "sheet.png",
    }
    log("contact sheet")
    shown = np.unique(np.linspace(0, len(data) - 1, max(1, options.rows)).round().astype(int)).tolist()
    write_image(out / "sheet.png", space_sheet(frames, shards, tokenizers, shown, report, boxes))
    write_json(out / "report.json", report)
    return report


def summary(report: Mapping[str, Any]) -> str:
    """Format the report as a table for a terminal.

    Args:
        report: report of :func:`ingest`.
    """
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
    lines += findings(report)
    return "\n".join(lines)


def _box_stream(
    pseudo: Mapping[str, PseudoLabeller],
    modalities: Mapping[str, Modality],
    vocabulary: BoxVocabulary | None,
    tokens: int,
) -> tuple[Modality, BoxVocabulary, int] | None:
    """Return modality, vocabulary and largest number of tokens of the boxes; None if there are no boxes."""
    without = [name for name in pseudo if name not in modalities]
    sequences = [name for name in pseudo if name in modalities and modalities[name].kind == "sequence"]
    if without or len(sequences) > (vocabulary is not None):
        raise ValueError(
            f"expected the modality of each pseudo-label, and the vocabulary of one of boxes; got labels {sorted(pseudo)}, "
            f"modalities {sorted(modalities)} and {'a' if vocabulary else 'no'} vocabulary"
        )
    return (modalities[sequences[0]], vocabulary, tokens) if sequences and vocabulary else None


def _limited(data: DenseSet, limit: int | None) -> DenseSet:
    """Return at most ``limit`` frames at equal distances."""
    if limit is None or limit >= len(data):
        return data
    return data.subset(np.linspace(0, len(data) - 1, limit).round().astype(int).tolist())


def _described(
    data: DenseSet, cut: _Cropping, recipe: TokenizerRecipe, modalities: list[str], radius: int | None
) -> dict[str, Any]:
    """Return the description of a run, as in ``ingest.json``."""
    return {
        "source": data.name,
        "frames": len(data),
        "pictures": _digest(data),
        "size": list(cut.size),
        "patch": cut.patch,
        "crops": cut.crops,
        "smallest": cut.smallest,
        "recipe": {**asdict(recipe), "levels": list(recipe.levels)},
        "modalities": modalities,
        "radius": radius,
        "seed": cut.seed,
    }


def _tokenizers(
    out: Path,
    frames: SpaceFrames,
    modalities: Mapping[str, Modality],
    cut: _Cropping,
    recipe: TokenizerRecipe,
    device: str,
    log: Callable[[str], None],
) -> tuple[dict[str, Tokenizer], dict[str, dict[str, Any]]]:
    """Train or read the tokenizers; return them by stream, and their reports by modality."""
    wanted = {name: one for name, one in modalities.items() if one.kind != "sequence"}
    folders = {name: out / "tokenizers" / f"tok_{name}" for name in wanted}
    missing = [name for name, folder in folders.items() if not (folder / "report.json").is_file()]
    fresh = {name: recipe.tokenizer(wanted[name], cut.size, cut.patch, cut.seed) for name in missing}
    # The number of frames does not depend on existing tokenizers, so that a resumed run trains on the same frames.
    each = cut.crops * sum(
        math.prod(cut.size) * (m.channels if m.kind == "image" else 1) for m in wanted.values()
    )
    count = max(1, min(len(frames), MEMORY // each))
    values = _values(frames, {name: (t.modality, t.size) for name, t in fresh.items()}, count, cut)
    found, reports = {}, {}
    for name, folder in folders.items():
        if name in fresh:
            log(f"tokenizer of {name}")
            tokenizer = fresh[name].to(device)
            report = tokenizer.fit(values.pop(name), recipe.steps, recipe.batch, recipe.lr, cut.seed, folder)
            write_json(folder / "report.json", asdict(report))
            log(str(report))
        found[f"tok_{name}"] = load_tokenizer(folder / "tokenizer.safetensors").to(device)
        reports[name] = read_json(folder / "report.json", AGAIN)
    return found, reports


def _values(
    frames: SpaceFrames,
    wanted: Mapping[str, tuple[Modality, tuple[int, int]]],
    count: int,
    cut: _Cropping,
) -> dict[str, Tensor]:
    """Return the training data of the tokenizers by modality: the crops of the shards, of ``count`` frames."""
    if not wanted:
        return {}
    chosen = np.unique(np.linspace(0, len(frames) - 1, count).round().astype(int)).tolist()
    values: dict[str, list[Tensor]] = {name: [] for name in wanted}
    for i in progress(chosen, len(chosen), "frames for the tokenizers"):
        frame = frames[i]
        rng = generator(cut.seed, i, "crops")
        around = windows(cut.crops, cut.smallest, rng, tuple(frame["rgb"].shape[-2:]))
        for name, (modality, size) in wanted.items():
            values[name] += [cropped(frame[name], modality, window, size) for window in around.tolist()]
    return {name: torch.stack(values.pop(name)) for name in wanted}


def _checks(sensed: SensorSet, used: Sequence[str]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for task in ("depth", "normals"):
        # Normals that were computed from the depth are aligned with it.
        if task in used and (task == "depth" or sensed.normals == "sensed"):
            found[task] = asdict(alignment(sensed.data, task))
    chosen = np.unique(np.linspace(0, len(sensed) - 1, min(8, len(sensed))).round().astype(int)).tolist()
    if "depth" in used:
        found["metres"] = depth_range([sensed.data[i].labels["depth"] for i in chosen])
    if "depth" in used and sensed.normals == "sensed" and "normals" in used:
        made = ((i, sensed.normals_from_depth(i)) for i in chosen)
        found["normals of depth"] = normal_signs(
            (sensed[i].labels["normals"], one) for i, one in made if one is not None
        )
    return found


# --- files


def _check_folder(out: Path, about: Mapping[str, Any]) -> None:
    """Write the description of a run, or compare it with the one in the folder."""
    path = out / "ingest.json"
    if path.is_file():
        there = {"sensed": about["sensed"], **read_json(path, AGAIN)}  # those of before have no such entry
        differ = sorted(key for key in {*there, *about} if there.get(key) != about.get(key))
        if differ:
            shown = "; ".join(f"{k}: {there.get(k)} there, {about.get(k)} asked" for k in differ[:3])
            raise DataError(f"{out} holds something else ({shown}); give another folder, or delete it")
        return
    write_json(path, about)


def _digest(data: DenseSet) -> str:
    """Return a digest of eight pictures, since another space may have the same name and number of frames."""
    found = hashlib.sha256()
    for i in _probed(data):
        found.update((data[i].image * 255).round().to(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def _sensed_digest(data: DenseSet) -> str:
    """Return a digest of depth and normals of eight frames, in thousandths, and of their intrinsics."""
    found = hashlib.sha256()
    for i in _probed(data):
        labels = data[i].labels
        for task in ("depth", "normals"):
            if task in labels:
                values = (labels[task] * 1000).nan_to_num(nan=-1.0, posinf=-2.0, neginf=-3.0)
                found.update(values.round().to(torch.int32).numpy().tobytes())
        if hasattr(data, "camera"):
            with suppress(DataError):  # no intrinsics are known
                found.update(np.round(data.camera(i).k, 3).tobytes())
    return found.hexdigest()[:16]


def _probed(data: DenseSet) -> list[int]:
    """Indices of at most eight frames at equal distances."""
    chosen: list[int] = np.unique(np.linspace(0, len(data) - 1, 8).round().astype(int)).tolist()
    return chosen


def _kept(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    if not path.is_file():
        write_json(path, make())
    found: dict[str, Any] = read_json(path, AGAIN)
    return found
