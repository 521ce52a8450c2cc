"""Methods that destroy themselves, fail, raise or move nothing."""

import torch
from torch import Tensor, nn

from testtime.adapter import Adapter
from testtime.methods import Tent
from testtime.norm import norm_affine
from testtime.parts import adam
from testtime.wrap import Repeat


class HotTent(Repeat):
    """TENT at a learning rate of 5."""

    def __init__(self, model: nn.Module) -> None:
        inner: Adapter = Tent(model, adam(5.0))
        super().__init__(inner, 1)


class NaNLoss(Adapter):
    """Every step fails: its loss is not a number."""

    cost = (1, 1)

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.adapt(norm_affine(self.model), adam(0.1))

    def step(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)
        self.update(logits.mean() * self.factor())
        return logits

    def factor(self) -> float:
        return torch.nan


class NaNLossAtTimes(NaNLoss):
    """Every second step fails."""

    def factor(self) -> float:
        return torch.nan if int(self.clock) % 2 else 1.0


class Idle(NaNLoss):
    """No step moves anything."""

    def step(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)
        return logits


class Raises(NaNLoss):
    """Every step raises."""

    def step(self, x: Tensor) -> Tensor:
        raise KeyError("tent")
