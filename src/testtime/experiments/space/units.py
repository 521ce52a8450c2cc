"""Functions of the units that make things: rendered houses, teacher, tokenizers, shards, pre-trained and fine-tuned models.

A result holds what another unit needs to build the model again; its weights lie beside it as ``model.safetensors``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from testtime.data.dense import DenseSet
from testtime.data.shared_classes import relabelled
from testtime.experiments.space.presets import of_json
from testtime.experiments.store import Made, Workspace
from testtime.multitask import Recipe as TeacherRecipe
from testtime.multitask import Segmentation, multitask_resnet
from testtime.scenes.disk import Recipe as Space
from testtime.scenes.disk import make, read_scenes
from testtime.scenes.groups import GROUPS
from testtime.scenes.places import Place, Views
from testtime.space import masking
from testtime.space.build import encoder_of, fine_tuned, initialised
from testtime.space.captioning import CaptionVocabulary, captions_of, train_captioner
from testtime.space.depths import train_depth
from testtime.space.detection import boxes_of, train_detector
from testtime.space.frames import SpaceFrames
from testtime.space.loader import Batches, Part
from testtime.space.modalities import SENSORY
from testtime.space.pretrain import Recipe, pretrain
from testtime.space.shards import Shards, write_shards
from testtime.space.synthesis import SynthesisedFrames
from testtime.space.teachers import STRUCTURE, Teacher, train_teacher
from testtime.space.tokenizers import FSQTokenizer, Tokenizer, load_tokenizer
from testtime.space.transfer import TransferRecipe, few, transfer
from testtime.space.walks import StoredFrames, Walk, write_frames
from testtime.training import checkpoint

__all__ = ["MAPPING", "labelled_scenes", "read_teacher", "read_views", "tokenizers", "trained"]

MAPPING = {name: group for group, members in GROUPS.items() for name in members}
"""Class of a segmentation by the class of a rendered object."""
WIDTH = 16
"""Width of the pseudo-labeller's ResNet-18, where its unit has none."""
WEIGHTS = "model.safetensors"
SOURCES = 8
"""Largest number of frames that a synthesised frame is made of."""


def scenes(work: Workspace) -> dict[str, Any]:
    """Render houses."""
    recipes = [of_json(Space, facts) for facts in work.parameters["spaces"]]
    for number, recipe in enumerate(recipes):
        work.progress(number, len(recipes))
        make(work.folder, [recipe])
    return {"spaces": [recipe.name for recipe in recipes]}


def walk(work: Workspace) -> dict[str, Any]:
    """Store a walk of one's own: frames to pre-train on, and held-out frames."""
    p = work.parameters
    walked = Walk(work.places["walk"], p["layout"], p["fov"], p["digest"])
    return walked.write(work.folder, tuple(p["image"]), p["frames"], p["tests"])


def synthesis(work: Workspace) -> dict[str, Any]:
    """Store frames that are synthesised from the others of their house."""
    made = SynthesisedFrames(read_views(work), min(SOURCES, work.parameters["views"]["frames"] - 1))
    return {"frames": len(write_frames(work.folder / "train", made, made.tasks))}


def read_views(work: Workspace) -> Any:
    """Return the frames of a unit, with all that is known of them.

    Raises:
        ValueError: too few cameras of a house stand in the part of it that is asked for.
    """
    facts = work.parameters["views"]
    if "frames" in work.needs:
        return StoredFrames(work.needs["frames"].folder / ("test" if facts["cameras"] else "train"))
    views = Views(tuple(Place(**place) for place in facts["places"]), facts["frames"], facts["cameras"])
    sets = [
        read_scenes(made.folder, made.result["spaces"])
        for need, made in work.needs.items()
        if need.startswith("scenes")
    ]
    return views.choose([space for found in sets for space in found.spaces], tuple(work.parameters["image"]))


def labelled_scenes(work: Workspace) -> DenseSet:
    """Return the frames of a unit with grouped classes, which stored frames have."""
    found = read_views(work)
    return found if "frames" in work.needs else relabelled(found, MAPPING, tuple(GROUPS))


def teacher(work: Workspace) -> dict[str, Any]:
    """Train the pseudo-labeller on labelled houses of its own, or initialise it."""
    data, recipe = labelled_scenes(work), work.parameters["recipe"]
    width = work.parameters.get("width", WIDTH)
    found = train_teacher(
        data,
        work.folder / "training",
        of_json(TeacherRecipe, recipe or {}),
        width,
        trained=recipe is not None,
        device=work.parameters["device"],
    )
    checkpoint.save(work.folder / WEIGHTS, found.network, None, 0, {"recipe": recipe})
    return {"classes": list(found.names), "width": width}


def read_teacher(made: Made) -> Teacher:
    """Return the pseudo-labeller of a unit."""
    classes = tuple(made.result["classes"])
    network = multitask_resnet({"semseg": Segmentation(classes)}, 18, made.result.get("width", WIDTH))
    checkpoint.load(made.folder / WEIGHTS, network)
    return Teacher(network, classes)


def labeller(work: Workspace, name: str) -> Teacher:
    """Return the pseudo-labeller of a modality: one of its own, or that of the others."""
    return read_teacher(work.needs.get(f"teacher {name}") or work.needs["teacher"])


def _frames(work: Workspace, names: Sequence[str]) -> SpaceFrames:
    """The frames of a unit without labels: sensors, and predictions of the pseudo-labeller."""
    sensors = [name for name in names if name in SENSORY and name != "rgb"]
    asked = [name for name in names if name not in SENSORY]
    pseudo = {name: labeller(work, name).pseudo[name] for name in asked}
    return SpaceFrames(labelled_scenes(work), sensors, pseudo)


def tokenizer(work: Workspace) -> dict[str, Any]:
    """Train the tokenizer of a modality."""
    p = work.parameters
    name, (height, width), patch = p["modality"], p["image"], p["patch"]
    modality = SENSORY[name] if name in SENSORY else labeller(work, name).modalities[name]
    flat = modality.kind == "features"
    size = (height // patch, width // patch) if flat else (height, width)
    made = FSQTokenizer(modality, size, 1 if flat else patch, levels=tuple(p["levels"]))
    frames = _frames(work, (name,)).values(modality, made.size)
    return {"report": str(made.fit(frames, p["steps"], folder=work.folder))}


def tokenizers(work: Workspace) -> dict[str, Tokenizer]:
    """Return the tokenizers that a unit needs, by modality."""
    return {
        need.removeprefix("tokenizer "): load_tokenizer(made.folder / "tokenizer.safetensors")
        for need, made in work.needs.items()
        if need.startswith("tokenizer ")
    }


def shards(work: Workspace) -> dict[str, Any]:
    """Write the frames of a unit as crops and tokens."""
    p, words = work.parameters, None
    if "boxes" in p:
        known = labeller(work, "boxes")
        words = (known.modalities["boxes"], known.vocabulary, p["boxes"])
    streams = {f"tok_{name}": found for name, found in tokenizers(work).items()}
    frames, size = _frames(work, p["names"]), tuple(p["image"])
    found = write_shards(work.folder, frames, streams, size, p["patch"], p["crops"], boxes=words)
    return {"frames": len(found), "streams": [asdict(stream) for stream in found.streams]}


def pretraining(work: Workspace) -> dict[str, Any]:
    """Pre-train a model on shards of a space and of the transfer set's images."""
    p, own = work.parameters, Shards(work.needs["shards"].folder)
    facts = {**p["model"], "streams": work.needs["shards"].result["streams"]}
    model = trained(work.needs["earlier"]) if "earlier" in work.needs else initialised(facts)
    parts = [Part(own)]
    if p["mixin"]:
        only = None if "mixin_modalities" in p else ("rgb", "tok_rgb")
        parts.append(Part(Shards(work.needs["outside"].folder), p["mixin"], only))
    if p["recipe"]:
        recipe = of_json(Recipe, p["recipe"])
        components = getattr(masking, p["components"])(own.streams)
        mask = masking.Masking(own.streams, components, recipe.inputs, recipe.targets)
        batches = Batches(parts, mask, recipe.batch, p["model"]["seed"])
        pretrain(model, batches, recipe, work.folder, p["device"])
    else:
        checkpoint.save(work.folder / WEIGHTS, model, None, 0, {"steps": 0})
    return {"model": facts}


def trained(made: Made) -> Any:
    """Return the model of a pre-training or a transfer with its weights, on the CPU, in evaluation mode."""
    facts = made.result["model"]
    if "task" in facts:
        model = fine_tuned(facts, encoder_of(initialised(facts["encoder"])))
    else:
        model = initialised(facts)
    checkpoint.load(made.folder / WEIGHTS, model)
    return model.eval()


def _begun(work: Workspace, facts: Mapping[str, Any]) -> tuple[dict[str, Any], Any, TransferRecipe]:
    """What a transfer starts from: the facts of its model, the model with its pre-trained encoder, and the recipe."""
    p, before = work.parameters, work.needs.get("pretraining")
    own = p["encoder"] if before is None else before.result["model"]
    whole = {**facts, "encoder": own, "head": p["head"], "seed": p["seed"]}
    encoder = encoder_of(initialised(own) if before is None else trained(before))
    return whole, fine_tuned(whole, encoder), of_json(TransferRecipe, p["recipe"])


def segmenter(work: Workspace) -> dict[str, Any]:
    """Fine-tune an encoder with a head for segmentation on labelled frames."""
    p, data = work.parameters, labelled_scenes(work)
    if p["few"]:
        data = few(data, p["few"], p["seed"])
    facts, model, recipe = _begun(work, {"task": "classes", "classes": list(data.classes)})
    transfer(model, data, recipe, work.folder, p["seed"], p["device"])
    return {"model": facts}


def estimator(work: Workspace) -> dict[str, Any]:
    """Fine-tune an encoder with a head for depth up to a scale."""
    p, data = work.parameters, read_views(work)
    facts, model, recipe = _begun(work, {"task": "depth"})
    train_depth(model, data, recipe, work.folder, p["seed"], p["device"])
    return {"model": facts}


def detector(work: Workspace) -> dict[str, Any]:
    """Fine-tune an encoder with a head for detection on the boxes of things."""
    p, data = work.parameters, read_views(work)
    things = [name for name in dict.fromkeys(MAPPING.values()) if name not in STRUCTURE]
    facts, model, recipe = _begun(work, {"task": "boxes", "classes": things})
    boxes = boxes_of(data, things, MAPPING)
    train_detector(model, data, boxes, recipe, work.folder, p["seed"], p["device"])
    return {"model": facts}


def captioner(work: Workspace) -> dict[str, Any]:
    """Fine-tune an encoder with a decoder of captions."""
    p, data = work.parameters, read_views(work)
    captions = captions_of(data)
    special = len(CaptionVocabulary(()).words)
    words = list(CaptionVocabulary.of(captions).words[special:])
    facts, model, recipe = _begun(work, {"task": "captions", "words": words})
    train_captioner(model, data, captions, recipe, work.folder, p["seed"], p["device"])
    return {"model": facts}
