"""The present state of an adapter as a plain module: what predicts, without what learns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self, final

import torch
from torch import nn

from testtime.intake.model import copy_model, drop_safeguards
from testtime.intake.named import NamedTensors
from testtime.intake.outputs import Logits
from testtime.norm.layer import NormPolicy
from testtime.parts.taps import Tap

__all__ = ["FrozenModel", "freeze"]


@final
class FrozenModel(nn.Module):
    """A network in the state that an adapter had: logits of a batch, nothing learned, nothing checked.

    It is in evaluation mode, and stays there; its parameters take no gradients. It holds parameters and buffers of its own, so
    that it can be pickled, saved as safetensors (``state_dict``) and exported (:func:`testtime.export.export_onnx`). A sample
    that an adapter would refuse is predicted like any other.

    Args:
        answer: module from a batch to logits.
    """

    def __init__(self, answer: nn.Module) -> None:
        super().__init__()
        self.answer = answer
        super().train(False)

    def forward(self, x: Any) -> Any:
        """Predict a batch: a tensor, or a dictionary of tensors.

        Returns:
            logits (N, C) or (N, C, H, W), or a dictionary of outputs by task.
        """
        return self.answer(NamedTensors(x) if isinstance(x, Mapping) else x)

    def train(self, mode: bool = True) -> Self:
        """Change nothing: a frozen model has one mode."""
        return self


def freeze(answer: nn.Module) -> FrozenModel:
    """Copy a module as it is now, with plain layers in place of what an adapter put into it.

    Args:
        answer: module from a batch to logits; trees of an adapter may be shared in it.
    """
    with torch.inference_mode(False):
        copied = copy_model(nn.ModuleList([answer])).requires_grad_(False)
    for parent in list(copied.modules()):
        if isinstance(parent, NormPolicy):
            continue
        for name, child in list(parent.named_children()):
            plain = child.layer if isinstance(child, Tap) else child
            plain = plain.settled() if isinstance(plain, NormPolicy) else plain
            if plain is not child:
                setattr(parent, name, plain)
    for module in copied.modules():
        if isinstance(module, Logits):
            module.contract, module.shards, module.autograd = None, None, None
            module.writes = bool(module.writes)
    drop_safeguards(copied)
    return FrozenModel(next(copied.children()))
