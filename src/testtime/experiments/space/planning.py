"""The units of work behind a variant: rendered houses, teacher, tokenizers, shards, pre-training, transfer and measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, final

from testtime.errors import unknown_name
from testtime.experiments.experiment import Unit
from testtime.experiments.space.analyses import FLOOR, HOME, PSEUDO, SENSORS, WHOLE, Variant
from testtime.experiments.space.listing import SHAPES
from testtime.experiments.space.presets import Preset
from testtime.scenes.places import Place, Views
from testtime.space.model import SIZES

__all__ = ["MEASURES", "Planner"]

HOUSES = 10
"""Largest number of houses of a unit that renders."""
FUNCTIONS = ("segmentation", "decoding", "detection", "depth", "captions", "retrieval", "learning_on")
MEASURES: Mapping[str, tuple[str, ...]] = {name: tuple(SHAPES[name]) for name in FUNCTIONS}
"""What is measured together, by the name of the function of :mod:`testtime.experiments.space.measures`."""
Needs = dict[str, Unit]


@final
@dataclass(frozen=True)
class Planner:
    """Makes the units of variants of one preset and seed.

    Args:
        preset: size of the experiment.
        seed: random seed of models and their training; teacher and tokenizers do not depend on it.
        device: device of the training.
        float32: whether pre-training is in float32 even where the preset's recipe has bfloat16.
        walk: path and facts of a walk of one's own, which takes the place of the test house; None for the house.
    """

    preset: Preset
    seed: int = 0
    device: str = "cpu"
    float32: bool = False
    walk: tuple[str, Mapping[str, Any]] | None = None
    _known: dict[Views, Needs] = field(default_factory=dict, init=False, repr=False, compare=False)

    def measured(self, variant: Variant, measure: str = "mIoU") -> Unit:
        """Return the unit whose result has a measure of a variant.

        Raises:
            ValueError: there is no such measure, or not of such a variant.
        """
        kind = next((kind for kind, names in MEASURES.items() if measure in names), None)
        if kind is None:
            raise unknown_name("measure", measure, [name for names in MEASURES.values() for name in names])
        if kind == "segmentation" and variant.objective == "teacher":
            kind, needs = (
                "teacher_segmentation",
                {"teacher": self.teacher(variant.taught, variant.labellers == "two")},
            )
        elif kind == "retrieval":
            if variant.objective != "mm" or not {"depth", "features"} <= {*variant.modalities}:
                raise ValueError(f"{variant.name}: retrieval needs TST-MM with depth and features")
            needs = {
                "pretraining": self.pretraining(variant),
                **self._tokenizers(("depth", "features"), variant),
            }
        elif kind == "decoding":
            if variant.objective != "mm" or not {"depth", "classes"} <= {*variant.modalities}:
                raise ValueError(f"{variant.name}: decoding needs TST-MM with depth and classes")
            needs = {
                "pretraining": self.pretraining(variant),
                **self._teacher(("classes",), variant),
                **self._tokenizers(("depth", "classes"), variant),
            }
        else:
            needs = {"transfer": self.transfer(variant, kind)}
        if kind == "learning_on":
            if variant.objective != "mae" or not variant.frozen:
                raise ValueError(f"{variant.name}: TTT-MAE needs TST-MAE, and a head on its frozen encoder")
            needs["pretraining"] = self.pretraining(variant)
        own = "" if variant.objective == "teacher" else f", seed {self.seed}"
        name = f"{kind.replace('_', ' ')} of {variant.name}{own}"
        views = self.preset.test(variant.test)
        return self._unit(f"measures:{kind}", name, 1.0, needs, views, device=self.device)

    def transfer(self, variant: Variant, measure: str = "segmentation") -> Unit:
        """Return the unit that fine-tunes the encoder of a variant for a measure."""
        preset, recipe, head = self.preset, self.preset.transfer, self.preset.head
        kinds = {"detection": "detector", "captions": "captioner", "depth": "estimator"}
        kind = kinds.get(measure, "segmenter")
        if kind == "captioner":
            head = (preset.size.dim, preset.size.decoder, preset.size.heads)
        own = variant.labels != "outside" and kind == "segmenter"
        views = preset.space((variant.test,)) if own else self._outside(variant)
        few = preset.labelled if own and variant.labels == "few" else None
        # As many steps for any number of frames.
        epochs = max(
            1, round(recipe.epochs * preset.outside.frames / (few or views.each * len(views.places)))
        )
        recipe = replace(
            recipe,
            epochs=epochs,
            warmup=recipe.warmup * epochs / recipe.epochs,
            freeze_encoder=variant.frozen,
            scale=recipe.scale if kind in ("segmenter", "estimator") else (1.0, 1.0),
            layer_decay=variant.decay or recipe.layer_decay,
        )
        parameters = {"recipe": asdict(recipe), "few": few, "head": head, "seed": self.seed}
        needs: Needs = {}
        if variant.objective in ("scratch", "named"):
            parameters["encoder"] = self._initial(variant)
        else:
            needs["pretraining"] = self.pretraining(variant)
        name = f"{kind} of {variant.name}, seed {self.seed}"
        return self._unit(f"units:{kind}", name, 8.0, needs, views, device=self.device, **parameters)

    def pretraining(self, variant: Variant) -> Unit:
        """Return the unit that pre-trains the model of a variant."""
        preset, effort = self.preset, variant.more if variant.later else variant.effort
        names = variant.modalities if variant.objective == "mm" else SENSORS[:1]
        own = variant.later or variant.places
        replaced = self._synthesis(own, variant)
        needs = {"shards": self.shards(preset.space(own), names, variant, replaced)}
        if variant.mixin:
            mixed = names if variant.mixin_modalities == "all_pseudo" else SENSORS[:1]
            needs["outside"] = self.shards(self._outside(variant), mixed, variant)
        if variant.later:
            needs["earlier"] = self.pretraining(replace(variant, later=(), more=WHOLE.more))
        precision = "float32" if self.float32 or not effort else preset.recipe.precision
        steps = max(1, round(preset.recipe.steps * effort))
        warmup = 0 if variant.later else round(preset.recipe.warmup * effort)
        recipe = replace(preset.recipe, steps=steps, warmup=warmup, precision=precision)
        more: dict[str, Any] = (
            {} if variant.mixin_modalities == "rgb" else {"mixin_modalities": variant.mixin_modalities}
        )
        return self._unit(
            "units:pretraining",
            f"pre-training of {variant.name}, seed {self.seed}",
            30.0 * effort + 0.1,
            needs,
            model=self._initial(variant),
            recipe=asdict(recipe) if effort else None,
            components=preset.components,
            mixin=variant.mixin,
            device=self.device,
            precision=precision,
            **more,
        )

    def shards(self, views: Views, names: Sequence[str], variant: Variant, frames: Needs = {}) -> Unit:  # noqa: B006
        """Return the unit that writes frames, or others in their place, in the tokens that a variant knows."""
        needs = {**frames, **self._tokenizers([name for name in names if name != "boxes"], variant)}
        needs |= self._teacher(names, variant)
        boxes = {"boxes": self.preset.boxes} if "boxes" in names else {}
        name = f"shards of {', '.join(names)} of {_named(views.places)}"
        more = {"names": list(names), "crops": self.preset.crops, **boxes}
        return self._unit("units:shards", name, 3.0, needs, views, **more)

    def tokenizer(self, name: str, variant: Variant) -> Unit:
        """Return the unit that trains the tokenizer of a modality on the frames that are pre-trained on."""
        more = {"modality": name, "levels": self.preset.levels, "steps": self.preset.tokenizer_steps}
        views = self.preset.space(variant.places)
        needs = {**self._synthesis(variant.places, variant), **self._teacher([name], variant)}
        title = f"tokenizer of {name} of {_named(variant.places)}"
        return self._unit("units:tokenizer", title, 2.0, needs, views, **more)

    def teacher(self, taught: bool = True, strong: bool = False) -> Unit:
        """Return the unit of a pseudo-labeller, which is trained on houses of its own or stays as it was initialised."""
        of = self.preset
        name = f"{'' if taught else 'untrained '}{'stronger ' if strong else ''}pseudo-labeller"
        recipe, views = (of.strong_recipe, of.strong) if strong else (of.teacher_recipe, of.teacher)
        more: dict[str, Any] = {"width": of.strong_width} if strong else {}
        more |= {"recipe": asdict(recipe) if taught else None, "device": self.device}
        return self._unit("units:teacher", name, 10.0, {}, views, **more)

    def scenes(self, views: Views) -> Needs:
        """Return the units that render frames, by the name under which a unit needs them; hundreds of units need the same."""
        if views not in self._known:
            self._known[views] = self._scenes(views)
        return self._known[views]

    def _scenes(self, views: Views) -> Needs:
        recipes = list(dict.fromkeys(views.rendered(self.preset.image)))
        chunks = [recipes[begin : begin + HOUSES] for begin in range(0, len(recipes), HOUSES)]
        found: Needs = {}
        if self.walk is not None and views.places == HOME:
            path, facts = self.walk
            size = {"image": self.preset.image, "frames": self.preset.frames, "tests": self.preset.tests}
            unit = Unit(
                f"{__package__}.units:walk", {**facts, **size}, "frames of the walk", places={"walk": path}
            )
            return {"frames": unit}
        for number, chunk in enumerate(chunks):
            frames, count = chunk[0].frames, len(chunk)
            name = f"{frames} frames of {count} houses from {chunk[0].name}, cameras {views.cameras}"
            found[f"scenes {number}"] = self._unit(
                "units:scenes", name, frames * count / 500, {}, spaces=[asdict(r) for r in chunk]
            )
        return found

    def pictures(self) -> Unit:
        """Return the unit that draws frames of the test house as the model of all modalities expects them."""
        drawn = ("rgb", "depth", "normals", "edge", "classes")
        needs = {"pretraining": self.pretraining(WHOLE), **self._tokenizers(drawn, WHOLE)}
        needs |= {"scratch": self.transfer(FLOOR), "TST-MM": self.transfer(WHOLE)}
        views = self.preset.test(WHOLE.test)
        return self._unit("measures:pictures", "pictures", 1.0, needs, views, drawn=list(drawn))

    def predictions(self, shown: Sequence[tuple[str, Variant, str]]) -> Unit:
        """Return the unit that draws frames of a walk with the predictions of variants.

        Args:
            shown: task ("depth" or "semseg"), variant, and name of the row.
        """
        kinds = {"depth": "depth", "semseg": "segmentation"}
        needs = {f"{task}, {row}": self.transfer(variant, kinds[task]) for task, variant, row in shown}
        views = self.preset.test(shown[0][1].test)
        return self._unit("measures:predictions", "pictures", 0.1, needs, views, drawn=list(needs))

    def retrieved(self) -> Unit:
        """Return the unit that draws what the model of all modalities retrieves in the test house."""
        needs = {"pretraining": self.pretraining(WHOLE), **self._tokenizers(("depth", "features"), WHOLE)}
        return self._unit("measures:retrieved", "pictures", 0.1, needs, self.preset.test(WHOLE.test))

    def _tokenizers(self, names: Sequence[str], variant: Variant) -> Needs:
        return {f"tokenizer {n}": self.tokenizer(n, variant) for n in names}

    def _teacher(self, names: Sequence[str], variant: Variant) -> Needs:
        """The pseudo-labellers of modalities; of two, the stronger gives all but the features."""
        two, asked = variant.labellers == "two", {*names} & {*PSEUDO}
        others = asked - {"features"} if two else asked
        found = {"teacher": self.teacher(variant.taught, two)} if others else {}
        return found | ({"teacher features": self.teacher(variant.taught)} if asked > others else {})

    def _outside(self, variant: Variant) -> Views:
        """The labelled frames of the transfer set, of houses of another style if the variant names one."""
        views = self.preset.outside
        if not variant.outside:
            return views
        return replace(views, places=tuple(replace(place, style=variant.outside) for place in views.places))

    def _synthesis(self, places: tuple[Place, ...], variant: Variant) -> Needs:
        """The frames that take the place of those that are pre-trained on, if the variant asks for them."""
        if not variant.synthetic:
            return {}
        views, name = self.preset.space(places), f"synthesised frames of {_named(places)}"
        return {"frames": self._unit("units:synthesis", name, 2.0, {}, views)}

    def _initial(self, variant: Variant) -> dict[str, Any]:
        """The model of a variant before it has learned anything, without the streams of its tokens."""
        if variant.objective == "named":
            return {"objective": "named", "name": variant.name}
        of = self.preset
        more = {"dino": ("projection", of.projection), "scratch": ("modalities", variant.modalities)}
        common: dict[str, Any] = {"objective": variant.objective, "seed": self.seed}
        size = SIZES[of.larger] if variant.larger else of.size
        common |= {"size": asdict(size), "image": of.image, "patch": of.patch}
        return common | dict([more[variant.objective]] if variant.objective in more else [])

    def _unit(
        self,
        function: str,
        name: str,
        weight: float,
        needs: Needs,
        views: Views | None = None,
        **parameters: Any,
    ) -> Unit:
        """A unit, and the houses that it needs for its views."""
        if views is not None:
            parameters |= {"views": asdict(views), "image": self.preset.image, "patch": self.preset.patch}
            needs = needs if "frames" in needs else {**needs, **self.scenes(views)}
        return Unit(f"{__package__}.{function}", parameters, name, needs, weight=weight)


def _named(places: Sequence[Place]) -> str:
    count = len({place.house for place in places})
    return f"house {places[0].house}" if count == 1 else f"{count} houses from {places[0].house}"
