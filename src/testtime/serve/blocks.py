"""Tensors that move, on one block of memory per device: they are exchanged, copied and hashed as a whole."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["Blocks", "movable"]

ALIGNED = 64  # bytes: the alignment of torch's own memory, on which kernels may depend bit by bit
LARGE = (
    2**14
)  # elements from which a tensor gains nothing from a block; an optimizer may replace its memory in every step
OWNERS = 2  # references to a storage that a tensor has alone: its own, and that of the question


class Blocks:
    """Tensors on blocks of bytes. They stay the same objects with the same values.

    Args:
        tensors: dense tensors of fixed shape that share their memory with nothing else, see :func:`movable`.

    Attributes:
        memory: block of every device (bytes,), uint8.

    >>> a, b = torch.ones(3), torch.zeros(2)
    >>> blocks = Blocks([a, b])
    >>> waiting = [memory.clone() for memory in blocks.memory]
    >>> _ = a.add_(1)
    >>> waiting = blocks.exchange(waiting)
    >>> a, blocks.views(waiting)[0]
    (tensor([1., 1., 1.]), tensor([2., 2., 2.]))
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = list(tensors)
        self._spans: list[tuple[int, int, int]] = []  # block, first byte, byte after the last
        sizes: dict[torch.device, int] = {}
        for t in self._tensors:
            step = ALIGNED if t.nbytes >= ALIGNED else t.element_size()
            first = -(-sizes.get(t.device, 0) // step) * step
            sizes[t.device] = first + t.nbytes
            self._spans.append((list(sizes).index(t.device), first, first + t.nbytes))
        self._forms = [(t.dtype, t.shape) for t in self._tensors]
        self._spares: list[Tensor] = []
        with torch.inference_mode(False), torch.no_grad():
            self.memory = [
                torch.zeros(size, dtype=torch.uint8, device=place) for place, size in sizes.items()
            ]
            self._views = self.views(self.memory)
        self._places = [view.data_ptr() for view in self._views]
        self._slices = None if any(m.device.type != "cpu" for m in self.memory) else self._cut(self.memory)
        self.hold(self._tensors)

    def hold(self, tensors: Sequence[Tensor]) -> None:
        """Take the tensors onto the blocks, where they are not there already; an optimizer may have replaced its own.

        Raises:
            RuntimeError: one has another shape or type than the one in its place.
        """
        if all(map(operator.is_, tensors, self._tensors)) and self._places == [
            t.data_ptr() for t in self._tensors
        ]:
            return
        self._tensors = list(tensors)
        with torch.inference_mode(False), torch.no_grad():
            for t, view, place, form in zip(tensors, self._views, self._places, self._forms, strict=True):
                if t.data_ptr() == place:
                    continue
                if (t.dtype, t.shape) != form:
                    raise RuntimeError(
                        f"a tensor of the optimizer or a parameter has become {t.dtype} {tuple(t.shape)}, and was {form[0]} "
                        f"{tuple(form[1])}; an adapter in a session keeps their shapes and types"
                    )
                view.copy_(t)
                t.data = view

    def exchange(self, blocks: list[Tensor]) -> list[Tensor]:
        """Put other bytes in, and return those that were there; the memory of the given ones is used again."""
        found = self._spares or [torch.empty_like(m) for m in self.memory]
        for memory, spare, block in zip(self.memory, found, blocks, strict=True):
            spare.copy_(memory)
            memory.copy_(block)
        self._spares = blocks
        return found

    def views(self, blocks: Sequence[Tensor]) -> list[Tensor]:
        """The tensors that blocks hold, on their memory."""
        return [
            blocks[block][first:last].view(dtype).view(shape)
            for (block, first, last), (dtype, shape) in zip(self._spans, self._forms, strict=True)
        ]

    def bytes(self) -> list[memoryview]:
        """The bytes of every tensor, on the CPU."""
        return self._cut([m.cpu() for m in self.memory]) if self._slices is None else self._slices

    def run(self, count: int) -> Tensor | None:
        """The first tensors as one vector, with zeros between them; None where they are of several types or devices."""
        if not count or count > len(self._spans) or len({f[0] for f in self._forms[:count]}) > 1:
            return None
        if len({block for block, _, _ in self._spans[:count]}) > 1:
            return None
        block, _, last = self._spans[count - 1]
        return self.memory[block][:last].view(self._forms[0][0]) if block == 0 else None

    def _cut(self, blocks: Sequence[Tensor]) -> list[memoryview]:
        whole = [block.numpy().data for block in blocks]
        return [whole[block][first:last] for block, first, last in self._spans]


def movable(tensor: Tensor) -> bool:
    """Whether a tensor belongs on a block: it is dense and not large, and nothing else uses its memory.

    >>> a = torch.ones(3)
    >>> b = a.view(3)
    >>> movable(torch.ones(3)), movable(a)
    (True, False)
    """
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout != torch.strided:
        return False
    if not 0 < tensor.numel() < LARGE:
        return False
    if tensor.is_inference() or not tensor.is_contiguous() or tensor.device.type == "meta":
        return False
    storage = tensor.untyped_storage()
    count = getattr(torch._C, "_storage_Use_Count", None)
    return storage.nbytes() == tensor.nbytes and count is not None and count(storage._cdata) <= OWNERS
