"""One pass for several models that share every weight but those of their normalisation layers."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from testtime.intake.sharing import twin
from testtime.norm.layer import KINDS, NormPolicy

__all__ = ["Grouped", "grouped"]


@final
class Grouped(nn.Module):
    """Several normalisation layers side by side: each serves its equal share of the batch."""

    mixes_samples = True

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = layers  # a plain list: the layers belong to their own models

    def forward(self, x: Tensor) -> Tensor:
        parts = x.chunk(len(self.layers))
        return torch.cat([layer(part) for layer, part in zip(self.layers, parts, strict=True)])


def grouped(models: list[nn.Module]) -> nn.Module:
    """A tree that runs the models at once, on the concatenation of their batches; tensors stay shared and live.

    Args:
        models: trees of one shape (twins) that differ in their normalisation layers alone.

    Returns:
        a module that takes (len(models) * N, ...) and returns the models' outputs, concatenated.
    """
    tree = twin(models[0])

    def walk(node: nn.Module, peers: list[nn.Module]) -> None:
        for name, child in list(node.named_children()):
            of_peers = [getattr(peer, name) for peer in peers]
            if isinstance(child, (NormPolicy, *KINDS)):
                setattr(node, name, Grouped(of_peers))
            else:
                walk(child, of_peers)

    walk(tree, models)
    return tree
