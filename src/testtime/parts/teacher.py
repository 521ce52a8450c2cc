"""The mean teacher: an exponential moving average of the parameters that adapt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from testtime.intake.journal import LARGE
from testtime.intake.sharing import Stateful, twin

__all__ = ["Teacher"]


class Teacher(Stateful):
    r"""A second tree of the model that shares what is frozen and averages what moves.

    .. math:: \theta' \leftarrow \beta\,\theta' + (1 - \beta)\,\theta

    Args:
        model: the student; the teacher has its own moving statistics and shares every frozen tensor.
        parameters: the student's adapting parameters.
        decay: beta, the weight of the past.

    ``update`` advances it, calling uses it (without gradients). Buffers of the student are not averaged.

    Reference: Tarvainen and Valpola, Mean teachers are better role models, NeurIPS 2017.
    """

    def __init__(self, model: nn.Module, parameters: Sequence[nn.Parameter], decay: float = 0.999) -> None:
        super().__init__()
        if not 0 <= decay <= 1:
            raise ValueError(f"decay is the weight of the past and lies in [0, 1], got {decay}")
        self.decay = decay
        self.model = twin(model, own=parameters)
        ids = {id(p) for p in parameters}
        self.names = [name for name, p in model.named_parameters() if id(p) in ids]
        self.student = [model.get_parameter(name) for name in self.names]
        self.average = [self.model.get_parameter(name) for name in self.names]
        self._places: list[tuple[Any, Any]] = [(self.average, i) for i in range(len(self.average))]

    def moving(self) -> dict[str, Tensor]:
        return dict(zip(self.names, self.average, strict=True))

    def _fixed_places(self) -> list[tuple[Any, Any]]:
        return self._places

    def _moving_elsewhere(self) -> dict[str, Tensor]:
        return {}

    def restore(self, name: str, value: Tensor) -> None:
        with torch.no_grad():
            self.model.get_parameter(name).copy_(value)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Logits of the teacher (N, C), without a graph."""
        return self.model(x)

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the student. Large parameters are written to new memory, so that a step copies nothing."""
        pairs = [(p.data, s.data) for p, s in zip(self.average, self.student, strict=True)]
        small = [(p, s) for p, s in pairs if p.numel() < LARGE]
        if small:
            torch._foreach_lerp_([p for p, _ in small], [s for _, s in small], 1 - self.decay)
        for p, (value, s) in zip(self.average, pairs, strict=True):
            if p.numel() >= LARGE:
                p.data = value.lerp(s, 1 - self.decay)
