"""Arguments that cannot be meant are refused at construction, with the name of the argument and what was expected."""

from __future__ import annotations

import inspect
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import torch
from torch import nn

from testtime import methods
from testtime.adapter import Adapter
from testtime.intake.arguments import Natural, Positive, check_arguments
from testtime.laws.worlds import WORLDS
from testtime.methods import LAME, NOTE, OSTTA, PAFKIP, SHOTIM, STAMP, TIPI, VDP, RoTTA, SoTTA, UniEnt
from testtime.methods.paf_kip import PAFKIPOptions
from testtime.methods.stamp import STAMPOptions
from testtime.parts import sgd

if TYPE_CHECKING:
    from decimal import Decimal


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 3)).eval()


REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "another word": (
        partial(PAFKIP, classes=3, options=PAFKIPOptions(output="afterwards")),
        ValueError,
        r"PAFKIP: options.output is one of 'before', 'after', got 'afterwards' \(did you mean 'after'\?\)",
    ),
    "another word by position": (lambda m: LAME(m, 0), ValueError, "affinity is one of .* got 0"),
    "a filter": (
        partial(PAFKIP, classes=3, minimise="half"),
        ValueError,
        "minimise is one of 'none', 'soft'",
    ),
    "NaN": (partial(PAFKIP, classes=3, margin=float("nan")), ValueError, "margin is a number, got nan"),
    "a word for a number": (partial(TIPI, epsilon="small"), TypeError, "epsilon is a number, got 'small'"),
    "None for a number": (partial(TIPI, epsilon=None), TypeError, "epsilon is a number, got None"),
    "a word for a switch": (partial(TIPI, random_start="no"), TypeError, "random_start is True or False"),
    "no memory": (partial(NOTE, classes=3, capacity=0), ValueError, "NOTE: capacity is at least 1, got 0"),
    "never": (partial(RoTTA, classes=3, frequency=0), ValueError, "frequency is at least 1, got 0"),
    "less than nothing": (partial(SoTTA, classes=3, frequency=-1), ValueError, "frequency is at least 1"),
    "half an image": (
        partial(SoTTA, classes=3, capacity=2.5),
        TypeError,
        "capacity is a whole number, got 2.5",
    ),
    "a switch for a count": (partial(SoTTA, classes=3, capacity=True), TypeError, "whole number, got True"),
    "no options": (partial(STAMP, classes=3, options={}), TypeError, "instance of STAMPOptions, got {}"),
    "no room": (
        partial(STAMP, classes=3, options=STAMPOptions(capacity=0)),
        ValueError,
        "options.capacity is at least 1, got 0",
    ),
    "NaN in an optimizer": (
        partial(TIPI, optimizer=sgd(float("nan"))),
        ValueError,
        "optimizer.lr is a number",
    ),
    "no period": (partial(STAMP, classes=3, period=0), ValueError, "period is at least 1, got 0"),
    "one number for two": (partial(UniEnt, classes=3, alpha=0.5), TypeError, "alpha is a tuple of 2 numbers"),
    "three for two": (partial(SHOTIM, epsilon=(0, 1, 2)), TypeError, "a tuple of 2 numbers, got"),
    "NaN in a tuple": (partial(OSTTA, alpha=(0.5, float("nan"))), ValueError, "alpha is a number, got nan"),
    "one side for three": (partial(VDP, size=8), TypeError, "size is a tuple of 3 numbers, got 8"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_meant_is_refused_at_construction(name: str) -> None:
    make, kind, message = REFUSED[name]
    with pytest.raises(kind, match=message):
        make(net())


def test_numbers_of_other_kinds_and_none_where_it_is_annotated_are_taken() -> None:
    assert (
        STAMP(net(), np.int64(3), alpha=np.float32(0.5), period=None, options=STAMPOptions(rho=0)).period
        is None
    )
    assert OSTTA(net(), alpha=[0.5, 1]).alpha == [0.5, 1]
    assert OSTTA(net(), alpha=torch.tensor(0.5)).alpha == 0.5
    assert PAFKIP(net(), 3, margin=float("inf")).margin == float("inf")
    assert TIPI(net(), random_start=0).random_start == 0


def _wrong(annotated: Any) -> dict[str, Any]:
    """A value for every ``Literal``, ``float`` and count that the annotation excludes."""
    hints = get_type_hints(annotated, include_extras=True)
    words = {n: "nonsense" for n, hint in hints.items() if get_origin(hint) is Literal}
    numbers = {n: float("nan") for n, hint in hints.items() if hint is float}
    counts = {
        n: -1
        for n, hint in hints.items()
        for kind in (hint, *get_args(hint))
        if get_origin(kind) is Annotated
    }
    return words | numbers | counts


@pytest.mark.parametrize("name", methods.__all__)
def test_no_method_takes_another_word_nan_or_a_negative_count(name: str) -> None:
    """Every argument of every method, and every field of its options, by its annotation."""
    cls = getattr(methods, name)
    takes = inspect.signature(cls).parameters
    others = {
        "classes": 3, "reward": WORLDS["image-text"].make().pair, "generate": lambda x, number, rng: x
    }  # fmt: skip
    needed = {k: v for k, v in others.items() if k in takes}
    for argument, value in _wrong(cls.__init__).items():
        with pytest.raises(ValueError, match=rf"{name}: {argument} is .*, got "):
            cls(net(), **needed, **{argument: value})
    options = takes["options"].default if "options" in takes else None
    for field, value in _wrong(type(options)).items() if options else ():
        with pytest.raises(ValueError, match=rf"{field}\b.*got "):
            cls(net(), **needed, options=replace(options, **{field: value}))


class Own(Adapter):
    """A method of a user: annotated by names for type checkers alone, with arguments that are collected."""

    def __init__(self, model: nn.Module, rate: Decimal | None = None, **more: int) -> None:
        super().__init__(model)
        self.rate, self.more = rate, more

    def step(self, x: torch.Tensor) -> Any:
        return self.model(x)


class Checked(Own):
    """Another, whose annotations are known."""

    def __init__(self, model: nn.Module, when: Literal["now", "later"] = "now", **more: int) -> None:
        super().__init__(model, **more)
        self.when = when


def test_own_methods_are_checked_where_their_annotations_are_known() -> None:
    assert Own(net(), rate="any", every=3).rate == "any"
    assert Checked(net(), every=3).more == {"every": 3}
    with pytest.raises(ValueError, match="Checked: when is one of 'now', 'later', got 'never'"):
        Checked(net(), when="never")


def test_annotations_in_numbers() -> None:
    def init(
        self: Any, a: Natural = 0, b: Positive | None = None, c: float | tuple[float, float] = 0, d: Any = 0
    ) -> None: ...

    def refused(**given: Any) -> bool:
        try:
            check_arguments("M", init, given)
        except (TypeError, ValueError):
            return True
        return False

    values = (-1, 0, 1, 1.0, None, float("nan"), (1, 2), (1,), "1", True)
    assert [refused(a=v) for v in values] == [True, False, False, True, True, True, True, True, True, True]
    assert [refused(b=v) for v in values] == [True, True, False, True, False, True, True, True, True, True]
    assert [refused(c=v) for v in values] == [False] * 4 + [True, True, False, True, True, True]
    assert not any(refused(d=v) for v in values)
