"""Facts about a method, as class attributes: names, requirements, time of prediction, cost, reference."""

from __future__ import annotations

import inspect
import warnings
from typing import Any, ClassVar, Literal

from testtime.intake.outputs import Logits

__all__ = ["NORM_KINDS", "Facts", "Need", "Output", "SourceData", "norm_kinds"]

Need = Literal[
    "classifier",
    "class logits",
    "norm",
    "BatchNorm",
    "convolution",
    "linear head",
    "branch",
    "transformer",
    "images",
    "views",
    "forecaster",
    "image-text",
    "tensor",
    "floating-point",
]
"""What a method needs of a model or its inputs; :class:`Facts` explains each."""
Output = Literal["before", "after", "teacher"]
"""When a prediction is computed: before or after the update on its batch, or by a teacher."""
SourceData = Literal["none", "statistics", "data"]
"""What ``prepare`` must get before the first batch."""

NORM_KINDS = ("BatchNorm", "GroupNorm", "LayerNorm")
"""The kinds of normalisation layers."""
ONE_KIND = {"BatchNorm": "BatchNorm", "transformer": "LayerNorm"}
"""The needs that one kind of normalisation layers meets."""
FORMER = {"dense": "classifier", "multi_task": "classifier", "images_only": "images"}
FORMER_METHODS = {"_look": "_predict_batch", "_learn": "_prepare"}


class Facts:
    """Facts that catalogue, documentation, experiments and laws read; a class declares those that differ from these.

    Attributes:
        name: name for :func:`testtime.adapt`, in lower case; the label in lower case unless declared.
        label: name in tables and papers; the name of the class unless declared.
        needs: requirements on the model and its inputs:

            - "classifier": logits (N, C);
            - "class logits": logits (N, C), or (N, C, H, W) for each pixel; with neither of the two, outputs by task too;
            - "norm": normalisation layers with scale and shift;
            - "BatchNorm": BatchNorm layers;
            - "convolution": convolutions, by which the network is divided or which are adapted;
            - "linear head": a last linear layer, or an encoder in a multi-task network;
            - "branch": a self-supervised branch that was trained with the network (:class:`testtime.models.assisted.Assisted`);
            - "transformer": blocks of a vision transformer, with layer normalisation over their tokens;
            - "images": inputs (N, C, H, W);
            - "views": inputs (N, C, H, W), of which views are made, unless ``augment=`` takes other inputs;
            - "forecaster": a :class:`testtime.forecasting.Forecaster`, and windows (N, L + H, D);
            - "image-text": a :class:`testtime.vision_language.ZeroShot`;
            - "tensor": batches that are one tensor, not a dictionary of tensors;
            - "floating-point": batches that are one floating-point tensor, not token ids.
        venue: conference or journal, and year; empty where the file is not from a paper.
        paper: authors and title.
        code: address of published code that the file follows, without the scheme; empty for none.
        answers_with: parts of a prediction where no module of its own computes it, so that the adapter cannot be
            frozen (:meth:`testtime.Adapter.freeze`); empty otherwise.
        output: whether a prediction was computed "before" or "after" the update on its batch, or by a "teacher".
        source: requirement on :meth:`testtime.Adapter.prepare` before the first batch: "none", "statistics" or "data".
        labelled_source: whether ``prepare`` also takes batches of (images, labels).
        stochastic: whether a step draws random numbers.
        episodic: whether the answer to an image depends neither on images before it nor on its neighbours in the batch.
        cost: forwards and backwards of the whole batch per step, at most.

    The last six can depend on arguments: an instance may differ from its class.

    >>> from testtime.methods import ETA
    >>> ETA.name, ETA.venue, ETA.needs, ETA.cost
    ('eta', 'ICML 2022', ('class logits', 'norm'), (1, 1))
    """

    name: ClassVar[str]
    label: ClassVar[str]
    needs: ClassVar[tuple[Need, ...]] = ("classifier",)
    venue: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    code: ClassVar[str] = ""
    answers_with: ClassVar[str] = ""

    output: Output = "before"
    source: SourceData = "none"
    labelled_source: bool = False
    stochastic: bool = False
    episodic: bool = False
    cost: tuple[float, float] = (1, 1)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        declared = vars(cls)
        if "label" not in declared:
            cls.label = cls.__name__
        if "name" not in declared:
            cls.name = cls.label.lower()
        for fact in FORMER.keys() & declared.keys():
            _translate(cls, fact, bool(declared[fact]))
        for old in FORMER_METHODS.keys() & declared.keys():
            _rename(cls, old)

    def __repr__(self) -> str:
        """The class, the class of its model or the adapter it wraps, and the arguments that are not the defaults."""
        inner: Any = getattr(self, "model", None)
        inner = inner.network if isinstance(inner, Logits) else inner
        shown = [repr(inner) if isinstance(inner, Facts) else type(inner).__name__]
        kept = getattr(type(self), "kept_as", {})
        for name, parameter in list(inspect.signature(type(self)).parameters.items())[1:]:
            value = getattr(self, kept.get(name, name), parameter.default)
            if value is not parameter.default and value != parameter.default:
                shown.append(f"{name}={getattr(value, '__name__', None) or repr(value)}")
        return f"{type(self).__name__}({', '.join(shown)})"


def norm_kinds(needs: tuple[Need, ...]) -> tuple[str, ...]:
    """Return the kinds of normalisation layers, of :data:`NORM_KINDS`, that a method of these needs works with."""
    return tuple(kind for need, kind in ONE_KIND.items() if need in needs) or NORM_KINDS


def _rename(cls: type[Facts], old: str) -> None:
    """Take over a method of a class by the name that it had before."""
    new = FORMER_METHODS[old]
    warnings.warn(
        f"{cls.__name__}.{old} is now {new}; the old name goes with the next version",
        DeprecationWarning,
        stacklevel=4,
    )
    if new not in vars(cls):
        setattr(cls, new, vars(cls)[old])


def _translate(cls: type[Facts], fact: str, value: bool) -> None:
    """Take over a fact of a class by the name that it had before."""
    need: Any = FORMER[fact]
    warnings.warn(
        f"{cls.__name__}.{fact} is now part of needs: {need!r} among them or not; the old name goes with the next version",
        DeprecationWarning,
        stacklevel=4,
    )
    others = tuple(n for n in cls.needs if n != need)
    cls.needs = (*others, need) if value == (fact == "images_only") else others
