"""What a model declares about its classes: which changes of an image keep them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import nn

__all__ = ["Views", "views_of"]


@final
@dataclass(frozen=True)
class Views:
    """The invariances of a model: which changes of an image keep its class, so that a view of the image may have them.

    Photographs of things allow all of them; digits, text and signs do not. A model declares it as the attribute ``views`` of
    any module of its tree, as :class:`Preprocessed` does; the methods' augmentations leave out what it forbids.

    Args:
        mirror: a horizontal flip.
        turn: a rotation by up to 15 degrees.
        colour: a change of hue or saturation, or the removal of colour.

    Raises:
        TypeError: a value is not a bool.

    >>> digits = Views(mirror=False)
    >>> digits.forbidden
    ('mirror',)
    """

    mirror: bool = True
    turn: bool = True
    colour: bool = True

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, bool):
                raise TypeError(
                    f"Views: {name} is True where the change keeps the class, else False; got {value!r}"
                )

    @property
    def forbidden(self) -> tuple[str, ...]:
        """The names of the changes that may change the class."""
        return tuple(name for name, kept in vars(self).items() if not kept)


def views_of(model: nn.Module) -> Views | None:
    """Return what a model declares, or None; the declaration of an outer module precedes that of an inner one.

    Args:
        model: a module; the trees of an adapter and of wrapped models are searched too.

    >>> from testtime.models import load_model
    >>> views_of(nn.Sequential(load_model("digits-cnn")))
    Views(mirror=False, turn=True, colour=True)
    >>> views_of(nn.Linear(3, 2)) is None
    True
    """
    for module in model.modules():
        declared = getattr(module, "views", None)
        if isinstance(declared, Views):
            return declared
    return None
