"""What is compared: a pre-training, its transfer, and the place where the model is evaluated, as one value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

from testtime.scenes.places import Place

__all__ = ["RGB", "Objective", "Variant"]

RGB = ("rgb",)
"""The modality of the images alone."""
Objective = Literal["mm", "mae", "dino", "scratch", "named", "teacher"]
"""Objective of a pre-training, or what stands in for one; see :class:`Variant`."""


@final
@dataclass(frozen=True)
class Variant:
    """A pre-training, its transfer, and the place where it is evaluated.

    Args:
        name: name for people.
        objective: "mm" (TST-MM), "mae" (TST-MAE), "dino" (TST-DINO), "scratch" (no pre-training), "named": the encoder of
            another library that the variant is named after (:func:`testtime.space.foreign.named_encoder`), or "teacher": the
            pseudo-labeller's own segmentation, without a transfer.
        modalities: modalities of TST-MM, the image's tokens being "rgb"; of "scratch", the inputs of the network.
        places: places that are pre-trained on.
        test: place that is evaluated.
        mixin: share of the transfer set's images, relative to the space's; 0 for none.
        mixin_modalities: "rgb": these images alone, as in the paper; "all_pseudo": with all of the modalities.
        effort: share of the preset's steps of pre-training; 0 for the initial model.
        later: places where pre-training continues, with the same tokens.
        more: share of the preset's steps of this continuation.
        labels: training data of the transfer: labelled frames "outside", "few" of the test place itself (from the cameras of
            pre-training), or all of these ("space").
        taught: whether the pseudo-labellers were trained.
        frozen: whether only the head learns in transfer.
        decay: layer decay of the transfer; 0 takes the preset's.
        labellers: "one": the preset's pseudo-labeller gives all pseudo-modalities; "two": a stronger one, which is trained on
            more houses, gives all but the features.
        larger: whether the model has the preset's larger size.
        synthetic: whether the frames that are pre-trained on are synthesised from each other
            (:mod:`testtime.space.synthesis`).
        outside: style of the houses of the transfer set; empty for the preset's.

    Raises:
        ValueError: a pre-training has no places.
    """

    name: str
    objective: Objective
    modalities: tuple[str, ...] = RGB
    places: tuple[Place, ...] = ()
    test: Place = Place()  # noqa: RUF009 - a frozen value
    mixin: float = 1.0
    mixin_modalities: Literal["rgb", "all_pseudo"] = "rgb"
    effort: float = 1.0
    later: tuple[Place, ...] = ()
    more: float = 0.25
    labels: Literal["outside", "few", "space"] = "outside"
    taught: bool = True
    frozen: bool = False
    decay: float = 0.0
    labellers: Literal["one", "two"] = "one"
    larger: bool = False
    synthetic: bool = False
    outside: str = ""

    def __post_init__(self) -> None:
        if self.objective in ("mm", "mae", "dino") and not self.places:
            raise ValueError(f"{self.name}: a pre-training needs places")
