"""Gradients that a model does not let through: error messages for its user."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from testtime.intake.trees import modules_of

__all__ = ["checkpointed", "explained", "gradients", "require_gradient"]

ADVICE = (
    "no gradient of the model's output reaches the adapted parameters; the model computes them under torch.no_grad() or "
    "torch.inference_mode(), detaches its features, calls a copy of itself (a replaced forward), or checkpoints its "
    "activations with use_reentrant=True: remove that, or pass use_reentrant=False to torch.utils.checkpoint"
)
# Errors of torch's autograd that have the same causes.
KNOWN = ("does not require grad", "use_reentrant", "Inference tensors cannot be saved for backward")


@contextmanager
def explained() -> Iterator[None]:
    """Turn errors of autograd that the model causes into a ValueError that says what to change.

    >>> with explained():
    ...     torch.zeros(()).backward()
    Traceback (most recent call last):
    ...
    ValueError: no gradient of the model's output reaches the adapted parameters; ...
    """
    try:
        yield
    except RuntimeError as error:
        if not any(known in str(error) for known in KNOWN):
            raise
        raise ValueError(ADVICE) from error


def gradients(loss: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """The gradient of a scalar loss with respect to each parameter, None for those that took no part in it.

    Args:
        loss: a scalar with its graph, which is used up.
        parameters: the adapted parameters.

    Raises:
        ValueError: none of them took part.
    """
    with explained():
        found = torch.autograd.grad(loss, list(parameters), allow_unused=True)
    if all(g is None for g in found):
        raise ValueError(ADVICE)
    return found


def require_gradient(module: nn.Module, output: Any) -> None:
    """Refuse an output without a graph of a model that has parameters to adapt, where gradients are enabled.

    A method whose filter selects nothing takes no gradient, and a penalty on the weights has one without the model: so
    the output is checked and not the loss.

    Raises:
        ValueError: no tensor of the output requires a gradient.

    >>> net = nn.Linear(3, 2)
    >>> require_gradient(net, net(torch.zeros(1, 3)))
    >>> require_gradient(net, net(torch.zeros(1, 3)).detach())
    Traceback (most recent call last):
    ...
    ValueError: no gradient of the model's output reaches the adapted parameters; ...
    """
    if not torch.is_grad_enabled() or any(y.requires_grad for y in _tensors(output)):
        return
    if any(
        p.requires_grad
        for m in modules_of(module, nn.Module)
        for p in m._parameters.values()
        if p is not None
    ):
        raise ValueError(ADVICE)


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping | tuple | list):
        for part in output.values() if isinstance(output, Mapping) else output:
            yield from _tensors(part)


def checkpointed() -> bool:
    """Whether the forward is one that ``torch.utils.checkpoint`` repeats in the backward, and expects to save the same then."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    return hooks is not None and hooks[0].__module__ == "torch.utils.checkpoint"
