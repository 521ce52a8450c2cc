"""Points: one pre-training, its transfer, and what it is worth in the test space. Every analysis is a list of them.

A point names its objective, its modalities and the places it has seen; two points of an analysis differ in one of these and
have the same steps, batch, budgets and number of frames. What points share (frames, tokenizers, shards, the pre-training itself
where only the test differs) is made once and lies in folders named by what it depends on.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, final

import torch
from torch import nn

from testtime.data.dense import DenseSet
from testtime.files import read_json, write_json
from testtime.scenes.sceneset import SceneSet
from testtime.space.dino import SelfDistilled
from testtime.space.foreign import named_encoder
from testtime.space.frames import SpaceFrames
from testtime.space.loader import Batches, Part
from testtime.space.mae import MaskedAutoencoder, PictureEncoder
from testtime.space.masking import Masking
from testtime.space.measures import family_of
from testtime.space.modalities import DEPTH, EDGES, NORMALS, RGB, SENSORY, Modality
from testtime.space.model import Encoder, FourM
from testtime.space.presets import MAPPING, Place, Preset, Views
from testtime.space.pretrain import pretrain
from testtime.space.segmenter import ConvNeXtHead, PatchEncoder, Segmenter
from testtime.space.shards import Shards, write_shards
from testtime.space.teachers import STRUCTURE, Teacher, train_teacher
from testtime.space.tokenizers import FSQTokenizer, Tokenizer
from testtime.space.transfer import TransferRecipe, few, transfer

if TYPE_CHECKING:
    from testtime.space.captioning import Captioner
    from testtime.space.detection import Detector

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
        objective: "mm" (TST-MM), "mae" (TST-MAE), "dino" (TST-DINO), "scratch" (no pre-training), "named": the encoder of
            another library that the point is named after (:func:`testtime.space.foreign.named_encoder`), or "teacher": the
            pseudo-labeller's own segmentation, nothing being transferred.
        modalities: of TST-MM, the picture's tokens being "rgb"; of "scratch", what the network sees.
        places: that are pre-trained on.
        test: the place that is judged.
        mixin: share of the transfer set's pictures, relative to the space's; 0 for none.
        effort: the share of the preset's steps that is pre-trained; 0 for a model as it was born.
        later: where pre-training goes on, from what it has learned and with the same tokens.
        more: the share of the preset's steps that it goes on for.
        labels: what the transfer learns from: labelled frames "outside", "few" of the test place itself (from the cameras of
            pre-training), or all of these ("space").
        taught: whether the pseudo-labellers were trained.
        frozen: whether only the head learns in transfer.

    Raises:
        ValueError: a pre-training has no places.
    """

    name: str
    objective: Literal["mm", "mae", "dino", "scratch", "named", "teacher"]
    modalities: tuple[str, ...] = (RGB.name,)
    places: tuple[Place, ...] = ()
    test: Place = Place()  # noqa: RUF009 - a frozen value
    mixin: float = 1.0
    effort: float = 1.0
    later: tuple[Place, ...] = ()
    more: float = 0.25
    labels: Literal["outside", "few", "space"] = "outside"
    taught: bool = True
    frozen: bool = False

    def __post_init__(self) -> None:
        if self.objective in ("mm", "mae", "dino") and not self.places:
            raise ValueError(f"{self.name}: a pre-training needs places")


@final
class Lab:
    """Makes what points need, in a folder, each thing once.

    Args:
        preset: how large.
        folder: of everything.
        seed: of the models and their training.
        jobs: processes that render.
        device: where models are trained.
    """

    def __init__(
        self,
        preset: Preset,
        folder: str | Path,
        seed: int = 0,
        jobs: int = 1,
        device: str | torch.device = "cpu",
    ) -> None:
        self.preset, self.folder, self.seed, self.jobs = preset, Path(folder), seed, jobs
        self.device = device
        self._teachers = dict[bool, Teacher]()

    def result(self, point: Point, measure: str = "mIoU") -> dict[str, Any]:
        """Measure a point, or read what was measured: all that is measured together, "seconds" and the point itself.

        Raises:
            ValueError: nothing of that name is measured, or not of such a point.
        """
        family, how = family_of(measure)
        path = (
            self.folder / "points" / f"{self._transfer(point)}-{family}-in-{_digest(asdict(point.test))}.json"
        )
        if path.exists():
            return {**read_json(path, "delete it and run the same command again"), "name": point.name}
        begin = time.monotonic()
        result = {**asdict(point), "seed": self.seed, **how(self, point), "seconds": time.monotonic() - begin}
        write_json(path, result)
        return result

    def scenes(self, views: Views) -> SceneSet:
        """Frames of places, with all that is known of them; who judges may look at that."""
        return self.preset.scenes(views, self.folder, self.jobs)

    def read(self, views: Views) -> DenseSet:
        """The same with labels, their classes being the grouped ones."""
        return self.preset.read(views, self.folder, self.jobs)

    def transferred(self, point: Point) -> Segmenter:
        """The segmenter of a point: pre-trained, then fine-tuned on labelled frames."""
        data = self._labelled(point)
        encoder = self.encoder(point)
        width, sub, depth = self.preset.head
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            head = ConvNeXtHead(encoder.dim, encoder.grid, len(data.classes), width, sub, depth)
            model = Segmenter(encoder, head)
        folder = self.folder / "transfers" / self._transfer(point)
        recipe = self._recipe(len(data), point)
        return transfer(model, data, recipe, folder, self.seed, self.device)

    def detector(self, point: Point) -> Detector:
        """The detector of a point, fine-tuned on the boxes of things in the labelled houses outside."""
        from testtime.space.detection import Detector, boxes_of, train_detector

        scenes, encoder = self.scenes(self.preset.outside), self.encoder(point)
        things = [name for name in dict.fromkeys(MAPPING.values()) if name not in STRUCTURE]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = Detector(encoder, things, *self.preset.head)
        folder = self.folder / "detectors" / self._transfer(point)
        recipe = replace(self._recipe(len(scenes), point), scale=(1.0, 1.0))
        return train_detector(
            model, scenes, boxes_of(scenes, things, MAPPING), recipe, folder, self.seed, self.device
        )

    def captioner(self, point: Point) -> Captioner:
        """The captioner of a point, fine-tuned on what is said of the labelled houses outside."""
        from testtime.space.captioning import Captioner, CaptionVocabulary, captions_of, train_captioner

        scenes, encoder, size = self.scenes(self.preset.outside), self.encoder(point), self.preset.size
        said = captions_of(scenes)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            vocabulary = CaptionVocabulary.of(said)
            model = Captioner(encoder, vocabulary, size.dim, size.decoder, size.heads)
        folder = self.folder / "captioners" / self._transfer(point)
        recipe = replace(self._recipe(len(scenes), point), scale=(1.0, 1.0))
        return train_captioner(model, scenes, said, recipe, folder, self.seed, self.device)

    def encoder(self, point: Point) -> Any:
        """The picture encoder of a point, pre-trained."""
        preset = self.preset
        if point.objective == "named":
            return named_encoder(point.name)
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
        preset = self.preset
        views = preset.space(point.later or point.places)
        effort = point.more if point.later else point.effort
        parts = self._parts(point, views)
        streams = parts[0].shards.streams
        if point.later:
            model = self.pretrained(replace(point, later=(), more=Point.more))
        else:
            model = self._born(point, parts[0].shards)
        if not effort:
            return model.eval()
        warmup = 0 if point.later else round(preset.recipe.warmup * effort)
        recipe = replace(preset.recipe, steps=max(1, round(preset.recipe.steps * effort)), warmup=warmup)
        masking = Masking(streams, preset.components(streams), recipe.inputs, recipe.targets)
        batches = Batches(parts, masking, recipe.batch, self.seed)
        return pretrain(model, batches, recipe, self.folder / "models" / self._model(point), self.device)

    def shards(self, views: Views, names: Sequence[str], point: Point) -> Shards:
        """The frames of views, in the tokens that a point knows."""
        preset = self.preset
        frames = self.frames(views, names, point.taught)
        tokenizers = {f"tok_{name}": self.tokenizer(name, point) for name in names if name != "boxes"}
        made_from = {
            "views": asdict(views),
            "tokenizers": [asdict(place) for place in point.places],
            "taught": point.taught or not {*names} & {*PSEUDO},
        }
        words = None
        if "boxes" in names:
            teacher = self.teacher(point.taught)
            words = (teacher.modalities["boxes"], teacher.vocabulary, preset.boxes)
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

    def tokenizer(self, name: str, point: Point) -> Tokenizer:
        """The tokenizer of a modality, learned from the very frames that the point is pre-trained on."""
        preset, sensed = self.preset, name in SENSORY
        modality: Modality = SENSORY[name] if sensed else self.teacher(point.taught).modalities[name]
        grid = (preset.image[0] // preset.patch, preset.image[1] // preset.patch)
        flat = modality.kind == "features"
        made = FSQTokenizer(
            modality, grid if flat else preset.image, 1 if flat else preset.patch, levels=preset.levels
        )
        frames = self.frames(preset.space(point.places), (name,), point.taught)
        facts = {"places": [asdict(place) for place in point.places], "taught": sensed or point.taught}
        folder = self.folder / "tokenizers" / f"{name}-{_digest(facts)}"
        made.fit(frames.values(modality, made.size), preset.tokenizer_steps, folder=folder)
        return made

    def frames(self, views: Views, names: Sequence[str], taught: bool = True) -> SpaceFrames:
        """The frames of views without labels: sensors, and what the teacher says."""
        sensors = [name for name in names if name in SENSORY and name != RGB.name]
        asked = [name for name in names if name not in SENSORY]
        pseudo = {name: self.teacher(taught).pseudo[name] for name in asked} if asked else {}
        return SpaceFrames(self.read(views), sensors, pseudo)

    def teacher(self, taught: bool = True) -> Teacher:
        """The pseudo-labeller, trained on houses of its own, or as it was born."""
        if taught not in self._teachers:
            data = self.read(self.preset.teacher)
            self._teachers[taught] = train_teacher(
                data, self.folder / "teacher", self.preset.teacher_recipe, trained=taught, device=self.device
            )
        return self._teachers[taught]

    def _parts(self, point: Point, views: Views) -> list[Part]:
        """What is pre-trained on: the space, and pictures of the transfer set."""
        names = point.modalities if point.objective == "mm" else (RGB.name,)
        parts = [Part(self.shards(views, names, point))]
        if point.mixin:
            outside = self.shards(self.preset.outside, (RGB.name,), point)
            parts.append(Part(outside, point.mixin, ("rgb", "tok_rgb")))
        return parts

    def _born(self, point: Point, shards: Shards) -> nn.Module:
        """The model of a point before it has learned anything."""
        preset = self.preset
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            if point.objective == "mae":
                return MaskedAutoencoder(preset.size, preset.image, preset.patch, seed=self.seed)
            if point.objective == "dino":
                return SelfDistilled(
                    preset.size, preset.image, preset.patch, *preset.projection, crops=4, seed=self.seed
                )
            return FourM(shards.streams, preset.size, preset.image, preset.patch)

    def _labelled(self, point: Point) -> DenseSet:
        """What the transfer of a point learns from."""
        if point.labels == "outside":
            return self.read(self.preset.outside)
        own = self.read(self.preset.space((point.test,)))
        return few(own, self.preset.labelled, self.seed) if point.labels == "few" else own

    def _recipe(self, frames: int, point: Point) -> TransferRecipe:
        """The preset's transfer, as many steps of it whatever the number of frames."""
        recipe, usual = self.preset.transfer, self.preset.outside.frames
        epochs = max(1, round(recipe.epochs * usual / frames))
        return replace(
            recipe,
            epochs=epochs,
            warmup=recipe.warmup * epochs / recipe.epochs,
            freeze_encoder=point.frozen,
        )

    def _model(self, point: Point) -> str:
        """A name of what pre-training depends on."""
        known: tuple[str, ...] = (
            "objective",
            "modalities",
            "places",
            "mixin",
            "effort",
            "later",
            "more",
            "taught",
        )
        known += ("name",) if point.objective == "named" else ()
        facts = asdict(point)
        return f"{point.objective}-{_digest({k: facts[k] for k in known})}-{self.seed}"

    def _transfer(self, point: Point) -> str:
        """A name of what the transfer depends on."""
        own = None if point.labels == "outside" else asdict(point.test)
        return f"{self._model(point)}-{_digest([point.labels, own, point.frozen])}"


def _digest(facts: Any) -> str:
    return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=5).hexdigest()
