"""A method of your own in twenty lines, tried against the laws, in a table beside TENT.

    python examples/your_own_method.py
    cd examples && testtime run digits --rows Source BN-adapt TENT --method your_own_method:HalfTent --seeds 0

It minimises the entropy of the confident half of each batch. docs/guides/your_own_method.md goes through it line by line.
"""

from typing import final

from torch import Tensor, nn

from testtime import Adapter, adam
from testtime.laws import check_adapter
from testtime.norm import batch_statistics, norm_affine
from testtime.parts import entropy


@final
class HalfTent(Adapter):
    """Minimise the entropy of the more confident half of the batch."""

    label = "HalfTENT"
    needs = ("classifier", "norm")

    def __init__(self, model: nn.Module) -> None:
        super().__init__(batch_statistics(model))
        self.adapt(norm_affine(self.model), adam(1e-3))

    def step(self, x: Tensor) -> Tensor:
        logits = self.model(x)
        h = entropy(logits)
        self.update(h[h <= h.median()].mean())
        return logits


if __name__ == "__main__":
    check_adapter(HalfTent)
    print("HalfTent obeys the laws")
