"""Batches that are dictionaries of tensors: token ids with their mask, an image with its size, what a processor returns."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, final, overload

import torch
from torch import Tensor, nn

__all__ = [
    "MASK",
    "Inputs",
    "NamedTensors",
    "blank",
    "called",
    "check_masks",
    "form",
    "joined",
    "layout",
    "packed",
    "unpacked",
    "wordless",
]

MASK, SEQUENCES = "attention_mask", ("input_ids", "inputs_embeds")
"""Entry that says which words of a sample count, and those whose words they are, by the names of transformers."""
POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@final
class NamedTensors:
    """Tensors by name that belong to the same samples: a batch that is indexed, split and copied as one tensor is.

    A string selects a tensor, anything else selects samples of all tensors. The tensors are those that were given; the
    dictionary is a new one.

    Args:
        entries: tensors (N, ...) by name.

    >>> batch = NamedTensors({"input_ids": torch.tensor([[1, 2], [3, 4], [5, 6]]), "length": torch.tensor([2, 1, 2])})
    >>> len(batch), batch[1:]["input_ids"].tolist(), form(batch[:1])
    (3, [[3, 4], [5, 6]], "{'input_ids': (1, 2), 'length': (1,)}")
    """

    requires_grad = False

    def __init__(self, entries: Mapping[str, Tensor]) -> None:
        self.entries = dict(entries)

    def __len__(self) -> int:
        """The number of samples."""
        return len(next(iter(self.entries.values())))

    @overload
    def __getitem__(self, key: str) -> Tensor: ...
    @overload
    def __getitem__(self, key: Tensor | slice) -> NamedTensors: ...
    def __getitem__(self, key: Any) -> Any:
        return self.entries[key] if isinstance(key, str) else self.map(lambda value: value[key])

    def __iter__(self) -> Iterator[NamedTensors]:
        raise TypeError(
            "a batch of several tensors is iterated by batch.keys() or in parts, by batch.split(n)"
        )

    def keys(self) -> list[str]:
        """The names of the tensors."""
        return list(self.entries)

    def map(self, change: Callable[[Tensor], Tensor]) -> NamedTensors:
        """Apply a function to every tensor."""
        return NamedTensors({name: change(value) for name, value in self.entries.items()})

    def clone(self) -> NamedTensors:
        """Copy all tensors."""
        return self.map(Tensor.clone)

    def detach(self) -> NamedTensors:
        """Return the tensors without their graphs."""
        return self.map(Tensor.detach)

    def contiguous(self) -> NamedTensors:
        """Return the tensors, each contiguous in memory."""
        return self.map(Tensor.contiguous)

    def to(self, *args: Any) -> NamedTensors:
        """Move the tensors to a device; a floating-point type converts floating-point tensors alone.

        >>> NamedTensors({"ids": torch.ones(1, dtype=torch.int64), "x": torch.ones(1)}).to(torch.float64)["ids"].dtype
        torch.int64
        """
        kinds = [a for a in args if isinstance(a, torch.dtype)]
        rest = [a for a in args if not isinstance(a, torch.dtype)]
        return self.map(lambda t: t.to(*rest, *(kinds if t.is_floating_point() else ())))

    def split(self, size: int) -> tuple[NamedTensors, ...]:
        """Split into batches of ``size`` samples; the last may be smaller."""
        return tuple(self[start : start + size] for start in range(0, len(self), size))

    def is_inference(self) -> bool:
        """Whether one of the tensors was made under ``torch.inference_mode``."""
        return any(value.is_inference() for value in self.entries.values())

    @property
    def device(self) -> torch.device:
        """The device of the tensors."""
        return next(iter(self.entries.values())).device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the first floating-point tensor, torch's default type where there is none."""
        kinds = (value.dtype for value in self.entries.values() if value.is_floating_point())
        return next(kinds, torch.get_default_dtype())


Inputs = Tensor | NamedTensors
"""A batch that passed the checks of :mod:`testtime.gate`."""


def form(x: Inputs) -> str:
    """The shape of a batch, for messages."""
    if isinstance(x, Tensor):
        return str(tuple(x.shape))
    return str({name: tuple(value.shape) for name, value in x.entries.items()})


def check_masks(entries: Mapping[str, Tensor]) -> None:
    """Refuse a mask of words of another length than the words.

    Args:
        entries: tensors (N, ...) by name; "attention_mask" and "decoder_attention_mask" (N, T) are checked.

    Raises:
        ValueError: a mask has not as many columns as the words of its samples.
    """
    for name, mask in entries.items():
        if not name.endswith(MASK) or mask.dim() != 2:
            continue  # (N, 1, T, T) and the like are the model's own
        for words in (name.replace(MASK, sequence) for sequence in SEQUENCES):
            columns = entries[words].shape[1:2] if words in entries else ()
            if columns and columns != mask.shape[1:]:
                raise ValueError(
                    f"expected {name!r} with a value for each word of {words!r} {tuple(entries[words].shape)}, got "
                    f"{tuple(mask.shape)}; take both from one call of the tokenizer, padded alike (padding=True)"
                )


def wordless(x: NamedTensors) -> Tensor:
    """Which samples have a mask of zeros alone, (N,) bool; floating-point masks, which may be added to scores, do not count.

    >>> wordless(NamedTensors({"attention_mask": torch.tensor([[1, 0], [0, 0]])}))
    tensor([False,  True])
    """
    mask = x.entries.get(MASK)
    if mask is None or mask.dim() != 2 or mask.is_floating_point():
        return torch.zeros(len(x), dtype=torch.bool, device=x.device)
    return ~mask.bool().any(dim=1)


def layout(x: NamedTensors) -> str:
    """The form of a sample of a batch: names, types and shapes of its tensors, in the order of the names.

    >>> layout(NamedTensors({"ids": torch.ones(2, 3, dtype=torch.int64), "age": torch.ones(2)}))
    'age (), float32; ids (3,), int64'
    """
    entries = sorted(x.entries.items())
    return "; ".join(f"{n} {tuple(v.shape[1:])}, {v.dtype}".replace("torch.", "") for n, v in entries)


def packed(x: NamedTensors) -> Tensor:
    """The samples of a batch as rows of bytes, (N, B) uint8: one tensor for all of theirs.

    >>> packed(NamedTensors({"ids": torch.ones(2, 3, dtype=torch.int64), "age": torch.ones(2)})).shape
    torch.Size([2, 28])
    """
    flat = (
        v.detach().contiguous().view(len(v), math.prod(v.shape[1:])) for _, v in sorted(x.entries.items())
    )
    return torch.cat([v.view(torch.uint8) for v in flat], dim=1)


def unpacked(rows: Tensor, like: NamedTensors) -> NamedTensors:
    """The batch whose :func:`packed` rows (N, B) these are; its samples have the :func:`layout` of another batch."""
    found, start = {}, 0
    for name, value in sorted(like.entries.items()):
        stop = start + math.prod(value.shape[1:]) * value.element_size()
        part = rows[:, start:stop].clone(memory_format=torch.contiguous_format)  # aligned in memory
        found[name], start = part.view(value.dtype).view(len(rows), *value.shape[1:]), stop
    return NamedTensors({name: found[name] for name in like.entries})


def joined(batches: Sequence[Any]) -> Any:
    """The samples of several batches of one form as one batch.

    >>> joined([NamedTensors({"age": torch.ones(2)}), NamedTensors({"age": torch.zeros(1)})])["age"]
    tensor([1., 1., 0.])
    """
    if isinstance(batches[0], Tensor):
        return torch.cat(list(batches))
    return NamedTensors({name: torch.cat([x[name] for x in batches]) for name in batches[0].entries})


def blank(x: Inputs) -> Any:
    """One sample of zeros of the form of a batch, whose words all count."""
    if isinstance(x, Tensor):
        return x.new_zeros(1, *x.shape[1:])
    return NamedTensors(
        {n: torch.ones_like(blank(v)) if n == MASK else blank(v) for n, v in x.entries.items()}
    )


def called(network: nn.Module, x: Inputs) -> Any:
    """Call a network with a batch; with a dictionary by keyword where its forward takes these names, else with it whole.

    Args:
        network: network.
        x: batch; the network gets a dictionary of its own.

    Raises:
        ValueError: forward takes the dictionary neither way; the message lists what it takes.

    >>> class Ids(nn.Module):
    ...     def forward(self, input_ids, attention_mask=None): return input_ids.sum()
    >>> called(Ids(), NamedTensors({"input_ids": torch.ones(2, 3)}))
    tensor(6.)
    """
    if isinstance(x, Tensor):
        try:
            return network(x)
        except TypeError as error:
            _explain_arguments(network, error)
            raise
    signature = inspect.signature(network.forward)
    try:
        signature.bind(**x.entries)
    except TypeError as error:
        taken = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        required = [p.name for p in taken if p.default is p.empty and p.kind in POSITIONAL]
        if len(required) == 1 and not x.entries.keys() & {p.name for p in taken}:
            return network(dict(x.entries))
        raise ValueError(
            f"{type(network).__name__}.forward takes {', '.join(p.name for p in taken) or 'nothing'}, and the batch has "
            f"{', '.join(x.entries)} ({error}); leave out the entries that the model does not take, and add those that it "
            "needs"
        ) from None
    return network(**x.entries)


def _explain_arguments(network: nn.Module, error: TypeError) -> None:
    """Raise a ValueError where a network cannot be called with one tensor because it takes several."""
    try:
        inspect.signature(network.forward).bind(None)
    except TypeError as why:
        names = ", ".join(inspect.signature(network.forward).parameters)
        raise ValueError(
            f"{type(network).__name__}.forward takes {names} ({why}), got one tensor; pass a dictionary of tensors by these "
            "names"
        ) from error
    except ValueError:  # a builtin without a signature
        return
