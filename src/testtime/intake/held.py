"""A value that copies of a module share, as they share frozen weights."""

from __future__ import annotations

from typing import Any, Generic, Self, TypeVar, final

__all__ = ["Held"]

T = TypeVar("T")


@final
class Held(Generic[T]):
    """Holds a value that never changes, such as a tokenizer; a copy holds the same.

    Args:
        value: the value.

    >>> import copy
    >>> vocabulary = Held({"a": 0})
    >>> copy.deepcopy(vocabulary).value is vocabulary.value
    True
    """

    def __init__(self, value: T) -> None:
        self.value = value

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self
