"""The units of work behind a variant: rendered houses, teacher, tokenizers, shards, pre-training, transfer and measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, final

from testtime.errors import unknown_name
from testtime.experiments.experiment import Unit
from testtime.experiments.space.analyses import FLOOR, PSEUDO, SENSORS, WHOLE, Variant
from testtime.experiments.space.presets import Preset
from testtime.scenes.places import Place, Views

__all__ = ["MEASURES", "Planner"]

HOUSES = 10
"""Largest number of houses of a unit that renders."""
MEASURES: Mapping[str, tuple[str, ...]] = {
    "segmentation": ("mIoU", "IoU"),
    "detection": ("AP", "AP50"),
    "captions": ("CIDEr-D", "scene graph F"),
    "retrieval": tuple(f"{kind} R@{k}" for kind in ("depth", "picture", "chance") for k in (1, 5, 10)),
    "learning_on": ("mIoU before", "mIoU after"),
}
"""What is measured together, by the name of the function of :mod:`testtime.experiments.space.measures`."""


@final
@dataclass(frozen=True)
class Planner:
    """Makes the units of variants of one preset and seed.

    Args:
        preset: size of the experiment.
        seed: random seed of models and their training; teacher and tokenizers do not depend on it.
        device: device of the training.
        float32: whether pre-training is in float32 even where the preset's recipe has bfloat16.
    """

    preset: Preset
    seed: int = 0
    device: str = "cpu"
    float32: bool = False

    def measured(self, variant: Variant, measure: str = "mIoU") -> Unit:
        """Return the unit whose result has a measure of a variant.

        Raises:
            ValueError: there is no such measure, or not of such a variant.
        """
        kind = next((kind for kind, names in MEASURES.items() if measure in names), None)
        if kind is None:
            raise unknown_name("measure", measure, [name for names in MEASURES.values() for name in names])
        needs: dict[str, Unit] = {}
        if kind == "segmentation" and variant.objective == "teacher":
            kind, needs = "teacher_segmentation", {"teacher": self.teacher(variant.taught)}
        elif kind == "retrieval":
            if variant.objective != "mm" or not {"depth", "features"} <= {*variant.modalities}:
                raise ValueError(f"{variant.name}: retrieval needs TST-MM with depth and features")
            needs = {"pretraining": self.pretraining(variant)}
            needs |= self._tokenizers(("depth", "features"), variant)
        else:
            needs = {"transfer": self.transfer(variant, kind)}
        if kind == "learning_on":
            if variant.objective != "mae" or not variant.frozen:
                raise ValueError(f"{variant.name}: TTT-MAE needs TST-MAE, and a head on its frozen encoder")
            needs["pretraining"] = self.pretraining(variant)
        own = "" if variant.objective == "teacher" else f", seed {self.seed}"
        name = f"{kind.replace('_', ' ')} of {variant.name}{own}"
        views = self.preset.test(variant.test)
        return self._unit(f"measures:{kind}", {"device": self.device}, name, needs, views)

    def transfer(self, variant: Variant, measure: str = "segmentation") -> Unit:
        """Return the unit that fine-tunes the encoder of a variant for a measure."""
        preset = self.preset
        kind = {"detection": "detector", "captions": "captioner"}.get(measure, "segmenter")
        own = variant.labels != "outside" and kind == "segmenter"
        views = preset.space((variant.test,)) if own else preset.outside
        few = preset.labelled if own and variant.labels == "few" else None
        recipe, count = preset.transfer, few or views.each * len(views.places)
        # As many steps for any number of frames.
        epochs = max(1, round(recipe.epochs * preset.outside.frames / count))
        recipe = replace(
            recipe,
            epochs=epochs,
            warmup=recipe.warmup * epochs / recipe.epochs,
            freeze_encoder=variant.frozen,
            scale=recipe.scale if kind == "segmenter" else (1.0, 1.0),
        )
        parameters = {
            "recipe": asdict(recipe),
            "few": few,
            "head": preset.head,
            "seed": self.seed,
            "device": self.device,
        }
        if kind == "captioner":
            parameters["head"] = (preset.size.dim, preset.size.decoder, preset.size.heads)
        if variant.objective in ("scratch", "named"):
            parameters["encoder"] = self._initial(variant)
            needs = {}
        else:
            needs = {"pretraining": self.pretraining(variant)}
        name = f"{kind} of {variant.name}, seed {self.seed}"
        return self._unit(f"units:{kind}", parameters, name, needs, views, weight=8.0)

    def pretraining(self, variant: Variant) -> Unit:
        """Return the unit that pre-trains the model of a variant."""
        preset, effort = self.preset, variant.more if variant.later else variant.effort
        names = variant.modalities if variant.objective == "mm" else SENSORS[:1]
        needs = {"shards": self.shards(preset.space(variant.later or variant.places), names, variant)}
        if variant.mixin:
            needs["outside"] = self.shards(preset.outside, SENSORS[:1], variant)
        if variant.later:
            needs["earlier"] = self.pretraining(replace(variant, later=(), more=WHOLE.more))
        recipe = None
        if effort:
            of = preset.recipe
            recipe = replace(
                of,
                steps=max(1, round(of.steps * effort)),
                warmup=0 if variant.later else round(of.warmup * effort),
                precision="float32" if self.float32 else of.precision,
            )
        parameters = {
            "model": self._initial(variant),
            "recipe": recipe and asdict(recipe),
            "components": preset.components,
            "mixin": variant.mixin,
            "device": self.device,
            "precision": recipe.precision if recipe else "float32",
        }
        name = f"pre-training of {variant.name}, seed {self.seed}"
        return self._unit("units:pretraining", parameters, name, needs, weight=30.0 * effort + 0.1)

    def shards(self, views: Views, names: Sequence[str], variant: Variant) -> Unit:
        """Return the unit that writes frames in the tokens that a variant knows."""
        needs = self._tokenizers([name for name in names if name != "boxes"], variant)
        needs |= self._teacher(names, variant.taught)
        parameters = {"names": list(names), "crops": self.preset.crops}
        parameters |= {"boxes": self.preset.boxes} if "boxes" in names else {}
        name = f"shards of {', '.join(names)} of {_named(views.places)}"
        return self._unit("units:shards", parameters, name, needs, views, weight=3.0)

    def tokenizer(self, name: str, places: tuple[Place, ...], taught: bool = True) -> Unit:
        """Return the unit that trains the tokenizer of a modality on the frames that are pre-trained on."""
        parameters = {"modality": name, "levels": self.preset.levels, "steps": self.preset.tokenizer_steps}
        needs, views = self._teacher([name], taught), self.preset.space(places)
        title = f"tokenizer of {name} of {_named(places)}"
        return self._unit("units:tokenizer", parameters, title, needs, views, weight=2.0)

    def teacher(self, taught: bool = True) -> Unit:
        """Return the unit of the pseudo-labeller, which is trained on houses of its own or stays as it was initialised."""
        recipe = asdict(self.preset.teacher_recipe) if taught else None
        name = "pseudo-labeller" if taught else "untrained pseudo-labeller"
        parameters = {"recipe": recipe, "device": self.device}
        return self._unit("units:teacher", parameters, name, views=self.preset.teacher, weight=10.0)

    def scenes(self, views: Views) -> dict[str, Unit]:
        """Return the units that render frames, by the name under which a unit needs them."""
        recipes = list(dict.fromkeys(views.rendered(self.preset.image)))
        found = {}
        for begin in range(0, len(recipes), HOUSES):
            chunk = recipes[begin : begin + HOUSES]
            name = f"{chunk[0].frames} frames of {len(chunk)} houses from {chunk[0].name}, cameras {views.cameras}"
            unit = Unit(f"{__package__}.units:scenes", {"spaces": [asdict(r) for r in chunk]}, name)
            found[f"scenes {begin // HOUSES}"] = replace(unit, weight=chunk[0].frames * len(chunk) / 500)
        return found

    def pictures(self) -> Unit:
        """Return the unit that draws frames of the test house as the model of all modalities expects them."""
        drawn = ("rgb", "depth", "normals", "edge", "classes")
        needs = {
            "pretraining": self.pretraining(WHOLE),
            **self._tokenizers(drawn, WHOLE),
            "scratch": self.transfer(FLOOR),
            "TST-MM": self.transfer(WHOLE),
        }
        views = self.preset.test(WHOLE.test)
        return self._unit("measures:pictures", {"drawn": list(drawn)}, "pictures", needs, views)

    def _tokenizers(self, names: Sequence[str], variant: Variant) -> dict[str, Unit]:
        return {
            f"tokenizer {name}": self.tokenizer(name, variant.places, variant.taught or name in SENSORS)
            for name in names
        }

    def _teacher(self, names: Sequence[str], taught: bool) -> dict[str, Unit]:
        return {"teacher": self.teacher(taught)} if {*names} & {*PSEUDO} else {}

    def _initial(self, variant: Variant) -> dict[str, Any]:
        """The model of a variant before it has learned anything, without the streams of its tokens."""
        if variant.objective == "named":
            return {"objective": "named", "name": variant.name}
        of = self.preset
        found: dict[str, Any] = {"objective": variant.objective, "seed": self.seed, "size": asdict(of.size)}
        found |= {"image": of.image, "patch": of.patch}
        found |= {"projection": of.projection} if variant.objective == "dino" else {}
        return found | ({"modalities": variant.modalities} if variant.objective == "scratch" else {})

    def _unit(
        self,
        function: str,
        parameters: Mapping[str, Any],
        name: str,
        needs: Mapping[str, Unit] | None = None,
        views: Views | None = None,
        weight: float = 1.0,
    ) -> Unit:
        found, all_needs = dict(parameters), dict(needs or {})
        if views is not None:
            found |= {"views": asdict(views), "image": self.preset.image, "patch": self.preset.patch}
            all_needs |= self.scenes(views)
        return Unit(f"{__package__}.{function}", found, name, all_needs, weight=weight)


def _named(places: Sequence[Place]) -> str:
    count = len({place.house for place in places})
    return f"house {places[0].house}" if count == 1 else f"{count} houses from {places[0].house}"
