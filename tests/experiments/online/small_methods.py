"""A method that destroys itself."""

from torch import nn

from testtime.adapter import Adapter
from testtime.methods import Tent
from testtime.parts import adam
from testtime.wrap import Repeat


class HotTent(Repeat):
    """TENT at a learning rate of 5."""

    def __init__(self, model: nn.Module) -> None:
        inner: Adapter = Tent(model, adam(5.0))
        super().__init__(inner, 1)
