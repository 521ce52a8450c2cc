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
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from testtime.data.dense import DenseSet, Sample
from testtime.data.files import need_choice
from testtime.data.listing import folders
from testtime.data.seven_scenes import COLOUR_LENS
from testtime.errors import DataError, need_pillow
from testtime.files import read_json, write_image, write_json
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
from testtime.space.tokenizers import FSQTokenizer, Tokenizer, VQTokenizer, load_tokenizer
from testtime.space.walkthrough import Walkthrough, extract_frames, is_walkthrough, normals_of

if TYPE_CHECKING:
    pass

__all__ = [
    "LAYOUTS",
    "Sensed",
    "TokenizerRecipe",
    "ingest",
    "read_space",
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
"""Names of the layouts that are read."""
AGAIN = "delete it and run the same testtime space ingest command again"
MEMORY = 2**27
"""Numbers that tokenizers learn from at once, over all modalities: half a GiB."""


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

    def __post_init__(self) -> None:
        if self.kind not in ("fsq", "vq") or min(self.steps, self.batch) < 1 or not 0 < self.lr < math.inf:
            raise ValueError(
                f"expected the kind fsq or vq, steps and batch of at least 1 and lr above 0, got {self.kind!r}, "
                f"{self.steps}, {self.batch} and {self.lr}"
            )

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
        frames: folder of the extracted frames of a video; by default ``<video>-frames`` beside it.
        depth, intrinsics, fov, longest: of a walk, see :class:`~testtime.space.walkthrough.Walkthrough`. Of a video, None
            takes the depth in ``<video>-depth`` and the ``intrinsics.json`` beside it if they are there.
        fps, every: of a video, see :func:`~testtime.space.walkthrough.extract_frames`.
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
            folder = extract_frames(
                root, frames or root.with_name(f"{root.stem}-frames"), fps, every, longest
            )
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
    names = spaces or [p.name for p in folders(root / "data") if (p / device).is_dir()]
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
    need_pillow()
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
    write_image(out / "sheet.png", sheet)
    write_json(out / "report.json", report)
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
    lines += findings(report)
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
            write_json(folder / "report.json", asdict(told))
            say(str(told))
        found[f"tok_{name}"] = load_tokenizer(folder / "tokenizer.safetensors").to(device)
        reports[name] = read_json(folder / "report.json", AGAIN)
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
        found["metres"] = depth_range([sensed.data[i].labels["depth"] for i in chosen])
    if "depth" in used and sensed.normals == "sensed" and "normals" in used:
        made = ((i, sensed.made_normals(i)) for i in chosen)
        found["normals of depth"] = normal_signs(
            (sensed[i].labels["normals"], one) for i, one in made if one is not None
        )
    return found


# --- files


def _asked(out: Path, about: Mapping[str, Any]) -> None:
    """Note what was asked for; refuse a folder in which something else was."""
    path = out / "ingest.json"
    if path.is_file():
        there = read_json(path, AGAIN)
        differ = sorted(key for key in {*there, *about} if there.get(key) != about.get(key))
        if differ:
            shown = "; ".join(f"{k}: {there.get(k)} there, {about.get(k)} asked" for k in differ[:3])
            raise DataError(f"{out} holds something else ({shown}); give another folder, or delete it")
        return
    write_json(path, about)


def _digest(data: DenseSet) -> str:
    """A fingerprint of eight pictures: the same name and number of frames may still be another place."""
    found = hashlib.sha256()
    for i in np.unique(np.linspace(0, len(data) - 1, 8).round().astype(int)).tolist():
        found.update((data[i].image * 255).round().to(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def _kept(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    if not path.is_file():
        write_json(path, make())
    found: dict[str, Any] = read_json(path, AGAIN)
    return found
