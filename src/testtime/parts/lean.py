"""Lean autograd: forwards that save less for their backward, with the same values and the same gradients.

Plain autograd saves the input of a convolution also where its weight is frozen, the output of a ReLU to know where it was above
zero, and the input and 8-byte indices of a max pooling. While :func:`saving` runs a forward as ``"lean"``,

* a convolution with a frozen weight saves nothing but the weight, which is there anyway;
* ReLU, LeakyReLU, ReLU6 and Hardtanh save one bit for each value;
* a max pooling saves its indices in two or four bytes, and not its input.

As ``"recompute"``, GELU, SiLU and attention save what their input was computed from (the input of a LayerNorm, say, which
is saved in any case) and compute it again in the backward: less memory for more time.

The backward calls the kernels of plain autograd, so that gradients are equal bit by bit where these are deterministic. What
is not one of these cases (adapted weights, transposed convolutions, tensors of few values or with gaps in their memory,
subclasses of Tensor, transforms of ``torch.func``, what ``torch.utils.checkpoint`` runs) is left to plain autograd. Torch
refuses a second derivative of these.

Reference: Chen, Xu, Zhang and Guestrin, Training Deep Nets with Sublinear Memory Cost, 2016 (recomputation); Jain, Phanishayee,
Mars, Tang and Pekhimenko, Gist: Efficient Data Encoding for Deep Neural Network Training, ISCA 2018 (one bit of a ReLU).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from testtime.intake.gradients import checkpointed
from testtime.intake.named import Inputs
from testtime.intake.outputs import AUTOGRAD

__all__ = ["Saving", "pack", "resting", "saving", "unpack"]

PLAIN_TYPES = (Tensor, nn.Parameter)
SMALLEST = 2**18
"""Number of values of a tensor from which on this saves more than it costs."""
GATHER, SPREAD, BITS = 0x0102040810204080, 0x0101010101010101, 0x8040201008040201 - 2**64
HOST = "cpu"
"""Type of the devices whose bits numpy handles, in fewer and faster calls than torch."""
WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def saving(how: str | None = None) -> AbstractContextManager[Any]:
    """Run forwards and their backwards, inside, with what they save.

    Args:
        how: "plain" (autograd of torch), "lean" (the same values, less memory), "recompute" (least memory, more time); None
            for the default, "plain": the others take more time.

    Raises:
        ValueError: there is no such way.

    >>> x = torch.randn(2, 3, 256, 256, requires_grad=True)
    >>> with saving("lean"):
    ...     y = x.relu()
    >>> bool((torch.autograd.grad(y.sum(), x)[0] == (x > 0)).all())
    True
    """
    if how not in (None, *AUTOGRAD):
        raise ValueError(f"autograd is one of {', '.join(map(repr, AUTOGRAD))}, got {how!r}")
    return nullcontext() if how in (None, "plain") else _Lean(how == "recompute")


def resting(how: str | None) -> AbstractContextManager[Any]:
    """Leave :func:`saving` for calls that belong to no forward, of which each would be looked at."""
    return nullcontext() if how in (None, "plain") else torch._C.DisableTorchFunction()


class Saving:
    """:func:`saving` for the steps of one adapter, without a look at batches that are too small for "lean" to save anything."""

    def __init__(self) -> None:
        self._small = 0  # values of the largest of these

    @contextmanager
    def __call__(self, how: str | None, x: Inputs) -> Iterator[None]:
        """Run the step on a batch inside.

        Args:
            how: one of the names that :func:`saving` takes.
            x: batch.
        """
        values = x.numel() if isinstance(x, Tensor) else 0
        mode = saving("plain" if how == "lean" and 0 < values <= self._small else how)
        with mode:
            yield
        if isinstance(mode, _Lean) and not mode.applied:
            self._small = max(self._small, values)


class _Lean(TorchFunctionMode):
    """Calls of torch's functions, inside, go to those of this module where there is one for them."""

    def __init__(self, recompute: bool) -> None:
        super().__init__()
        self.recipes, self.applied = None, False
        if recompute:
            from testtime.parts.recompute import Recipes

            self.recipes = Recipes()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        lean = LEAN.get(func)
        if lean is not None and _applies(*args, **kwargs):
            y = lean(*args, **kwargs)
            if y is not None:
                self.applied = True
                return y
        return func(*args, **kwargs) if self.recipes is None else self.recipes(func, args, kwargs)


def _applies(x: Any = None, *args: Any, input: Any = None, **kwargs: Any) -> bool:
    """Whether a call on x is one whose gradient is asked for, of a plain tensor in plain autograd."""
    x = input if x is None else x
    return (
        type(x) in PLAIN_TYPES
        and x.requires_grad
        and torch.is_grad_enabled()
        and x.numel() >= SMALLEST
        and not torch._C._are_functorch_transforms_active()
        and not checkpointed()
    )


# One bit for each value -------------------------------------------------------------------------------------------------


def pack(flags: Tensor) -> Tensor:
    """Bytes of 0 and 1, without gaps in their memory, as bits: eight in a byte, in the order of that memory.

    >>> pack(torch.tensor([1, 0, 0, 1, 0, 0, 0, 0, 1], dtype=torch.uint8))
    tensor([9, 1], dtype=torch.uint8)
    """
    flat = flags.as_strided((flags.numel(),), (1,))
    if flat.device.type == HOST:
        return torch.from_numpy(np.packbits(flat.numpy(), bitorder="little"))
    flat = torch.cat([flat, flat.new_zeros(-len(flat) % 8)]) if len(flat) % 8 else flat
    return (flat.view(torch.int64) * GATHER).bitwise_right_shift_(56).to(torch.uint8)


def unpack(packed: Tensor, shape: Sequence[int], strides: Sequence[int]) -> Tensor:
    """Bytes that are 0 where those given to :func:`pack` were, and above 0 elsewhere; 1 on a CPU.

    >>> unpack(torch.tensor([9], dtype=torch.uint8), (2, 2), (2, 1))
    tensor([[1, 0],
            [0, 1]], dtype=torch.uint8)
    """
    if packed.device.type == HOST:
        bits = torch.from_numpy(np.unpackbits(packed.numpy(), bitorder="little"))
    else:
        bits = packed.to(torch.int64).mul_(SPREAD).bitwise_and_(BITS).view(torch.uint8)
    return bits.as_strided(tuple(shape), tuple(strides))


def _set(y: Tensor) -> Tensor:
    """Where values are not 0; comparisons of torch are slow on a CPU."""
    if y.device.type == HOST and y.dtype != torch.bfloat16:
        return torch.from_numpy(np.not_equal(y.detach().numpy(), 0))
    return y.to(torch.bool)


def _kept(g: Tensor, flags: Tensor) -> Tensor:
    """The values of g where flags are set, and 0 elsewhere, in the layout of the flags."""
    if g.device.type == HOST and g.stride() == flags.stride():  # integers, so that infinity times 0 is 0
        words = g.view(WORDS[g.element_size()])
        kept = torch.empty_like(words)
        np.multiply(words.numpy(), flags.numpy(), out=kept.numpy())
        return kept.view(g.dtype)
    flags = flags.to(g.dtype)  # kernels for bool are slow on a CPU
    return torch.ops.aten.threshold_backward.grad_input(g, flags, 0, grad_input=flags)


class _Gated(torch.autograd.Function):
    """An activation whose gradient is that of its output where a flag is set, and ``slope`` of it elsewhere."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, act: Callable[[Tensor], Tensor], flags: Tensor | None, slope: float
    ) -> Tensor:
        y = act(x)
        if y is x:
            ctx.mark_dirty(x)
        flags = _set(y) if flags is None else flags  # of a ReLU
        ctx.save_for_backward(pack(flags.view(torch.uint8)))
        ctx.layout, ctx.slope = (flags.shape, flags.stride()), slope
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (g,) = gradients
        flags = unpack(*ctx.saved_tensors, *ctx.layout)
        if ctx.slope:
            flags = flags.to(g.dtype)
            of_x = torch.ops.aten.leaky_relu_backward.grad_input(g, flags, ctx.slope, False, grad_input=flags)
        else:
            of_x = _kept(g, flags)
        return of_x, None, None, None


def _relu(input: Tensor, inplace: bool = False) -> Tensor | None:
    if _cannot_write(input, inplace):
        return None
    return _Gated.apply(input, torch.relu_ if inplace else torch.relu, None, 0.0)


def _relu_(input: Tensor) -> Tensor | None:
    return _relu(input, inplace=True)


def _leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor | None:
    if negative_slope <= 0 or _cannot_write(input, inplace):
        return None
    act = F.leaky_relu_ if inplace else F.leaky_relu
    flags = input.detach().clamp(min=0).to(torch.bool)
    return _Gated.apply(input, lambda x: act(x, negative_slope), flags, float(negative_slope))


def _hardtanh(
    input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> Tensor | None:
    if _cannot_write(input, inplace):
        return None
    x, act = input.detach(), F.hardtanh_ if inplace else F.hardtanh
    inside = ~((x <= min_val) | (x >= max_val))
    return _Gated.apply(input, lambda x: act(x, min_val, max_val), inside, 0.0)


def _relu6(input: Tensor, inplace: bool = False) -> Tensor | None:
    return _hardtanh(input, 0.0, 6.0, inplace)


def _cannot_write(x: Tensor, inplace: bool) -> bool:
    """Whether this is left to plain autograd: writing into a view, or a leaf; a tensor with gaps in its memory."""
    return (inplace and (x._is_view() or x.is_leaf)) or not _dense(x)


def _dense(x: Tensor) -> bool:
    """Whether a tensor fills its memory, in the usual order or with the channels last."""
    return x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last))


# Convolution -----------------------------------------------------------------------------------------------------------


class _Convolution(torch.autograd.Function):
    """A convolution with a frozen weight, which saves that alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, form: tuple[Any, ...]) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.form, ctx.like = form, (x.shape, x.stride(), x.dtype)
        stride, padding, dilation, groups = form
        convolve = (F.conv1d, F.conv2d, F.conv3d)[x.dim() - 3]
        bias = None if bias is None else bias.to(x.dtype)
        return convolve(x, weight.to(x.dtype), bias, stride, padding, dilation, groups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (g,), (weight,), (shape, strides, dtype) = gradients, ctx.saved_tensors, ctx.like
        if g.dtype == dtype and g.numel() >= math.prod(shape) and _dense(g):
            x = g.as_strided(shape, strides)  # of the input its form alone is read: any memory will do
        else:
            x = torch.empty_strided(shape, strides, dtype=dtype, device=g.device)
        stride, padding, dilation, groups = ctx.form
        found = torch.ops.aten.convolution_backward(
            g, x, weight.to(dtype), None, stride, padding, dilation, False, [0] * len(stride), groups,
            [True, False, False],
        )  # fmt: skip
        return found[0], None, None, None


def _convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor | None:
    adapted = weight.requires_grad or (bias is not None and bias.requires_grad)
    if adapted or isinstance(padding, str) or input.dim() != weight.dim() or not _dense(input):
        return None
    device = input.device.type
    if torch.is_autocast_enabled(device) and input.dtype != torch.float64:
        input = input.to(torch.get_autocast_dtype(device))
    elif input.dtype != weight.dtype:
        return None  # an error of torch
    places = input.dim() - 2
    form = (*([v] * places if isinstance(v, int) else list(v) for v in (stride, padding, dilation)), groups)
    return _Convolution.apply(input, weight, bias, form)


# Pooling ---------------------------------------------------------------------------------------------------------------


class _MaxPool(torch.autograd.Function):
    """A max pooling that saves where the maxima are, in as few bytes as the size of a map needs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, form: tuple[Any, ...]) -> Tensor:
        y, where = torch.ops.aten.max_pool2d_with_indices(x, *form)
        small = torch.int16 if x.shape[-2] * x.shape[-1] <= torch.iinfo(torch.int16).max else torch.int32
        ctx.save_for_backward(where.to(small))
        ctx.form, ctx.like = form, (x.shape, x.stride(), x.dtype)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (g,), (where,), (shape, strides, dtype) = gradients, ctx.saved_tensors, ctx.like
        x = torch.empty_strided(shape, strides, dtype=dtype, device=g.device)  # its form alone is read
        return torch.ops.aten.max_pool2d_with_indices_backward(g, x, *ctx.form, where.long()), None


def _max_pool2d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | None:
    if return_indices or input.dim() != 4 or not _dense(input):
        return None
    kernel, stride, padding, dilation = (
        [v] * 2 if isinstance(v, int) else list(v)
        for v in (kernel_size, kernel_size if stride is None else stride, padding, dilation)
    )
    return _MaxPool.apply(input, (kernel, stride, padding, dilation, ceil_mode))


LEAN: dict[Any, Callable[..., Tensor | None]] = {
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), _convolution),
    **dict.fromkeys((F.relu, torch.relu, Tensor.relu), _relu),
    **dict.fromkeys((torch.relu_, Tensor.relu_), _relu_),
    F.leaky_relu: _leaky_relu,
    F.hardtanh: _hardtanh,
    F.relu6: _relu6,
    F.max_pool2d: _max_pool2d,
}
