"""Points: one pre-training, its transfer, and what it is worth in the test house. Every analysis is a list of them.

A point names its objective, its modalities and the houses it has seen; two points of an analysis differ in one of these and
have the same steps, batch, budgets and number of frames. What points share (frames, tokenizers, shards, the pre-training itself
where only the test differs) is made once and lies in folders named by what it depends on.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, final

import torch
from torch import nn

from testtime.data.dense import DenseSet
from testtime.space.frames import SpaceFrames
from testtime.space.loader import Batches, Part
from testtime.space.mae import MaskedAutoencoder, PictureEncoder
from testtime.space.masking import Masking
from testtime.space.modalities import DEPTH, EDGES, NORMALS, RGB, SENSORY, Modality
from testtime.space.model import Encoder, FourM
from testtime.space.presets import Preset, Views
from testtime.space.pretrain import pretrain
from testtime.space.shards import Shards, write_shards
from testtime.space.teachers import Teacher, train_teacher
from testtime.space.tokenizers import FSQTokenizer, Tokenizer
from testtime.space.transfer import ConvNeXtHead, PatchEncoder, Segmenter, evaluate, transfer

__all__ = ["ALL", "PSEUDO", "SENSORS", "Lab", "Point"]

SENSORS = (RGB.name, DEPTH.name, NORMALS.name, EDGES.name)
PSEUDO = ("classes", "object_edge", "features", "boxes")
ALL = (*SENSORS, *PSEUDO)


@final
@dataclass(frozen=True)
class Point:
    """One pre-training and where it is judged.

    Attributes:
        name: for people.
        objective: "mm" (TST-MM), "mae" (TST-MAE), or "scratch": no pre-training.
        modalities: of TST-MM, the picture's tokens being "rgb"; of "scratch", what the network sees.
        houses: that are pre-trained on.
        test: the house that is judged.
        mixin: share of the transfer set's pictures, relative to the space's; 0 for none.
    """

    name: str
    objective: Literal["mm", "mae", "scratch"]
    modalities: tuple[str, ...] = (RGB.name,)
    houses: tuple[int, ...] = ()
    test: int = 0
    mixin: float = 1.0

    def __post_init__(self) -> None:
        if self.objective != "scratch" and not self.houses:
            raise ValueError(f"{self.name}: a pre-training needs houses")


@final
class Lab:
    """Makes what points need, in a folder, each thing once.

    Args:
        preset: how large.
        folder: of everything.
        seed: of the models and their training.
        jobs: processes that render.
    """

    def __init__(self, preset: Preset, folder: str | Path, seed: int = 0, jobs: int = 1) -> None:
        self.preset, self.folder, self.seed, self.jobs = preset, Path(folder), seed, jobs
        self._teacher: Teacher | None = None

    def result(self, point: Point) -> dict[str, Any]:
        """Run a point, or read what it gave: "mIoU" and "IoU" by class in percent, "seconds" and the point itself."""
        path = self.folder / "points" / f"{self._key(point)}-{self.seed}.json"
        if path.exists():
            return dict(json.loads(path.read_text()))
        begin = time.monotonic()
        model = self.transferred(point)
        found = evaluate(model, self.read(self.preset.test(point.test)))
        result = {**asdict(point), "seed": self.seed, **found, "seconds": time.monotonic() - begin}
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(result, indent=1) + "\n")
        partial.replace(path)
        return result

    def read(self, views: Views) -> DenseSet:
        """Frames of houses, with labels; who judges may look at those."""
        return self.preset.read(views, self.folder, self.jobs)

    def transferred(self, point: Point) -> Segmenter:
        """The segmenter of a point: pre-trained, then fine-tuned on the labelled houses outside."""
        preset = self.preset
        data = self.read(preset.outside)
        encoder = self.encoder(point)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = Segmenter(
                encoder, ConvNeXtHead(preset.size.dim, encoder.grid, len(data.classes), width=24, depth=2)
            )
        folder = self.folder / "transfers" / f"{self._source(point)}-{self.seed}"
        return transfer(model, data, preset.transfer, folder, self.seed)

    def encoder(self, point: Point) -> Any:
        """The picture encoder of a point, pre-trained."""
        preset = self.preset
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            if point.objective == "scratch" and point.modalities == (RGB.name,):
                return PictureEncoder(preset.size, preset.image, preset.patch)
            if point.objective == "scratch":
                size = preset.size
                seen = [SENSORY[name] for name in point.modalities]
                return PatchEncoder(seen, preset.image, preset.patch, size.dim, size.encoder, size.heads)
        model = self.pretrained(point)
        return Encoder(model) if isinstance(model, FourM) else model.encoder

    def pretrained(self, point: Point) -> Any:
        """The whole model of a point after pre-training."""
        preset, recipe = self.preset, self.preset.recipe
        names = point.modalities if point.objective == "mm" else (RGB.name,)
        parts = [Part(self.shards(preset.space(point.houses), names, point.houses))]
        if point.mixin:
            outside = self.shards(preset.outside, (RGB.name,), point.houses)
            parts.append(Part(outside, point.mixin, ("rgb", "tok_rgb")))
        streams = parts[0].shards.streams
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            if point.objective == "mae":
                model: nn.Module = MaskedAutoencoder(preset.size, preset.image, preset.patch, seed=self.seed)
            else:
                model = FourM(streams, preset.size, preset.image, preset.patch)
        masking = Masking(streams, inputs=recipe.inputs, targets=recipe.targets)
        batches = Batches(parts, masking, recipe.batch, self.seed)
        return pretrain(model, batches, recipe, self.folder / "models" / f"{self._source(point)}-{self.seed}")

    def shards(self, views: Views, names: Sequence[str], houses: Sequence[int]) -> Shards:
        """The frames of views as the tokenizers of some houses say them."""
        preset = self.preset
        frames = self.frames(views, names)
        tokenizers = {f"tok_{name}": self.tokenizer(name, houses) for name in names if name != "boxes"}
        made_from = {"views": asdict(views), "tokenizers": list(houses)}
        words = None
        if "boxes" in names:
            vocabulary = self.teacher.vocabulary
            words = (self.teacher.modalities["boxes"], vocabulary, preset.boxes)
        where = self.folder / "shards" / _digest({**made_from, "names": list(names)})
        return write_shards(
            where,
            frames,
            tokenizers,
            preset.image,
            preset.patch,
            preset.crops,
            boxes=words,
            made_from=made_from,
        )

    def tokenizer(self, name: str, houses: Sequence[int]) -> Tokenizer:
        """The tokenizer of a modality, of the very frames that are pre-trained on."""
        preset = self.preset
        modality: Modality = SENSORY[name] if name in SENSORY else self.teacher.modalities[name]
        grid = (preset.image[0] // preset.patch, preset.image[1] // preset.patch)
        flat = modality.kind == "features"
        made = FSQTokenizer(
            modality, grid if flat else preset.image, 1 if flat else preset.patch, levels=preset.levels
        )
        frames = self.frames(preset.space(houses), (name,))
        folder = self.folder / "tokenizers" / f"{name}-{_digest(list(houses))}"
        made.fit(frames.values(modality, made.size), preset.tokenizer_steps, folder=folder)
        return made

    def frames(self, views: Views, names: Sequence[str]) -> SpaceFrames:
        """The frames of views without labels: sensors, and what the teacher says."""
        sensors = [name for name in names if name in SENSORY and name != RGB.name]
        asked = [name for name in names if name not in SENSORY]
        pseudo = {name: self.teacher.pseudo[name] for name in asked} if asked else {}
        return SpaceFrames(self.read(views), sensors, pseudo)

    @property
    def teacher(self) -> Teacher:
        """The pseudo-labeller, trained on houses of its own."""
        if self._teacher is None:
            data = self.read(self.preset.teacher)
            self._teacher = train_teacher(data, self.folder / "teacher", self.preset.teacher_recipe)
        return self._teacher

    def _source(self, point: Point) -> str:
        """What model and transfer depend on: all but the test house and the name."""
        facts: Mapping[str, Any] = {k: v for k, v in asdict(point).items() if k not in ("name", "test")}
        return f"{point.objective}-{_digest(facts)}"

    def _key(self, point: Point) -> str:
        return f"{self._source(point)}-in-{point.test}"


def _digest(facts: Any) -> str:
    return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=5).hexdigest()
