"""What a model declares about its classes: which changes of an image keep them."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import Any, final

from torch import nn

__all__ = ["Views", "checked", "views_of"]

FLAGS = ("mirror", "turn", "colour")


@final
@dataclass(frozen=True)
class Views:
    """The invariances of a model: which changes of an image keep its class, so that a view of the image may have them.

    Photographs of things allow all of them; digits, text and signs do not. A model declares it as the attribute ``views`` of
    any module of its tree, as :class:`testtime.models.Preprocessed` does; the methods' augmentations leave out what it forbids
    and shift no further than it allows.

    Args:
        mirror: a horizontal flip.
        turn: a rotation by up to 15 degrees.
        colour: a change of hue or saturation, or the removal of colour.
        shift: largest shift, as a share of the side, 0 to 1/2; augmentations shift by an eighth at most.

    Raises:
        TypeError: mirror, turn or colour is not a bool, or shift is not a number.
        ValueError: shift is out of range.

    >>> digits = Views(mirror=False)
    >>> digits.forbidden
    ('mirror',)
    """

    mirror: bool = True
    turn: bool = True
    colour: bool = True
    shift: float = 1 / 8

    def __post_init__(self) -> None:
        for name in FLAGS:
            if not isinstance(value := getattr(self, name), bool):
                raise TypeError(
                    f"Views: {name} is True where the change keeps the class, else False; got {value!r}"
                )
        if isinstance(self.shift, bool) or not isinstance(self.shift, Real):
            raise TypeError(f"Views: shift is a share of the image's side, such as 1/16; got {self.shift!r}")
        if not 0 <= self.shift <= 1 / 2:
            raise ValueError(
                f"Views: shift is a share of the image's side, between 0 (no shift) and 1/2; got {self.shift!r}"
            )

    @property
    def forbidden(self) -> tuple[str, ...]:
        """Those of "mirror", "turn" and "colour" that may change the class."""
        return tuple(name for name in FLAGS if not getattr(self, name))


def checked(views: Any, name: str) -> Views | None:
    """Return the argument, or refuse what is neither :class:`Views` nor None.

    Args:
        views: the value of the argument.
        name: the argument's name, for the message.

    Raises:
        TypeError: it is something else.
    """
    if views is not None and not isinstance(views, Views):
        raise TypeError(
            f"{name} is None or a value of testtime.models.Views, such as {name}=Views(mirror=False); got {views!r}"
        )
    return views


def views_of(model: nn.Module) -> Views | None:
    """Return what a model declares, or None; the declaration of an outer module precedes that of an inner one.

    Args:
        model: a module; the trees of an adapter and of wrapped models are searched too.

    >>> from testtime.models import load_model
    >>> views_of(nn.Sequential(load_model("digits-cnn")))
    Views(mirror=False, turn=True, colour=True, shift=0.0625)
    >>> views_of(nn.Linear(3, 2)) is None
    True
    """
    for module in model.modules():
        declared = getattr(module, "views", None)
        if isinstance(declared, Views):
            return declared
    return None
