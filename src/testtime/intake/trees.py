"""Modules of a tree by kind, found in one walk and remembered until a module or parameter is registered anywhere."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn.modules import module as registration

__all__ = ["REGISTRATIONS", "Registrations", "modules_of", "named_modules_of", "names_of"]

M = TypeVar("M", bound=nn.Module)


class Registrations:
    """Count of the modules and parameters that were registered in any module of this process.

    ``parent.child = module`` and ``add_module`` count, whoever calls them; a tree is as it was while the count is.

    Attributes:
        count: number of registrations so far.
    """

    def __init__(self) -> None:
        self.count = 0
        registration.register_module_module_registration_hook(self._registered)
        registration.register_module_parameter_registration_hook(self._registered)

    def _registered(self, *_: Any) -> None:
        self.count += 1


REGISTRATIONS = Registrations()
Found = tuple[int, list[tuple[str, "weakref.ref[Any]"]]]
_FOUND: MutableMapping[nn.Module, dict[type, Found]] = weakref.WeakKeyDictionary()


def named_modules_of(root: nn.Module, kind: type[M]) -> list[tuple[str, M]]:
    """The modules of a kind in a tree, with their names, in the order of ``named_modules``.

    Args:
        root: the tree; it is walked once, and again after any registration (:class:`Registrations`).
        kind: class of the modules.

    >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    >>> [name for name, _ in named_modules_of(net, nn.Linear)]
    ['0']
    >>> net[1] = nn.Linear(2, 2)
    >>> [name for name, _ in named_modules_of(net, nn.Linear)]
    ['0', '1']
    """
    known = _FOUND.setdefault(root, {})
    found = known.get(kind)
    if found is None or found[0] != REGISTRATIONS.count:
        walked = [(name, weakref.ref(m)) for name, m in root.named_modules() if isinstance(m, kind)]
        found = known[kind] = REGISTRATIONS.count, walked
    return [(name, m) for name, ref in found[1] if (m := ref()) is not None]


def modules_of(root: nn.Module, kind: type[M]) -> list[M]:
    """The modules of a kind in a tree, as :func:`named_modules_of` finds them."""
    return [m for _, m in named_modules_of(root, kind)]


def names_of(root: nn.Module, parameters: Sequence[Tensor]) -> list[str]:
    """The names of parameters of a tree, in their order, from one walk.

    Raises:
        KeyError: a parameter is none of the tree's.
    """
    names: Mapping[int, str] = {id(p): name for name, p in root.named_parameters()}
    return [names[id(p)] for p in parameters]
