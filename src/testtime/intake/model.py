"""The caller's model as it comes: wrappers are removed, kinds that cannot be adapted are refused, copies are safe to run."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections import OrderedDict
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

__all__ = [
    "DetachedCopies",
    "check_model",
    "copy_model",
    "drop_safeguards",
    "make_group_norm_safe",
    "standard_strides",
    "unwrapped",
]

# By the name of a class, so that torch.distributed and torch._dynamo need not be imported.
WRAPPERS = {"DataParallel": "module", "DistributedDataParallel": "module", "OptimizedModule": "_orig_mod"}
SHARDED = {"FullyShardedDataParallel", "FSDPModule", "DTensor"}
EXPORTED = {"ExportedProgram", "_StatefulGraphModule", "UnflattenedModule", "InterpreterModule"}
WHOLE = "this model"
NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
QUANTIZED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")


def _kinds(value: object) -> set[str]:
    return {kind.__name__ for kind in type(value).__mro__}


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside ``DataParallel``, ``DistributedDataParallel`` and ``torch.compile``; any other module itself.

    >>> net = nn.Linear(3, 2)
    >>> unwrapped(nn.DataParallel(net)) is net
    True
    """
    for kind in type(module).__mro__:
        if kind.__name__ in WRAPPERS:
            return unwrapped(getattr(module, WRAPPERS[kind.__name__]))
    return module


def check_model(model: object) -> None:
    """Refuse what cannot be adapted, with the reason and a remedy.

    Raises:
        TypeError: no module; TorchScript, an exported program, a quantized or a sharded model.
        ValueError: parameters without values (lazy modules before their first batch, the meta device).
    """
    if EXPORTED & _kinds(model):
        raise TypeError(
            f"{type(model).__name__} comes from torch.export, which replaces the layers of a model by a fixed graph, and "
            "such a graph cannot be adapted; pass the eager torch.nn.Module that was exported"
        )
    if isinstance(model, type) and issubclass(model, nn.Module):
        raise TypeError(
            f"expected a torch.nn.Module, got the class {model.__name__} itself; pass an instance of it"
        )
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a torch.nn.Module as the model, got {type(model).__name__}")
    _check_forward(unwrapped(model))
    inside = _own_objects(model)
    for name, module in model.named_modules():
        where = f"{name!r} of this model" if name else WHOLE
        _check_kind(module, where, inside)
        tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for leaf, tensor in tensors:
            _check_tensor(tensor, f"{name}.{leaf}".removeprefix("."))


def _check_kind(module: nn.Module, where: str, inside: set[int]) -> None:
    kinds = _kinds(module)
    if isinstance(module, torch.jit.ScriptModule):
        if where == WHOLE or module.state_dict():
            raise TypeError(
                f"{where} is TorchScript (torch.jit.script, trace, freeze or load): scripted and traced modules hide their "
                "layers and cannot be adapted; pass the eager torch.nn.Module with the same weights"
            )
    elif _has_foreign_forward(module):
        raise TypeError(
            f"the forward of {where} was replaced by a function, which would call this very model from every copy; bind it "
            "with types.MethodType(function, module), or write a torch.nn.Module around the model"
        )
    elif hook := _hook_on_the_model(module, inside):
        raise TypeError(
            f"the hook {hook} of {where} is a function that refers to this very model, and the hook of a copy would write to "
            "and read from the model and not from the copy; make it a method, which is copied with its module "
            "(register_forward_hook(self.hook)), or remove it before building the adapter"
        )
    elif EXPORTED & kinds or ("GraphModule" in kinds and _is_flat(module)):
        raise TypeError(
            f"{where} comes from torch.export, which replaces the layers of a model by a fixed graph, and such a graph "
            "cannot be adapted; pass the eager torch.nn.Module that was exported"
        )
    elif SHARDED & kinds:
        raise TypeError(
            f"{where} is sharded over processes (FSDP), which cannot be adapted; build the adapter on the model before it "
            "is sharded, or on an unsharded copy with the full state dict (for a wrapper, the class of model.module)"
        )
    elif type(module).__module__.startswith(QUANTIZED):
        raise TypeError(
            f"{where} is a quantized {type(module).__name__}, which no gradient passes; pass the float model from before "
            "the quantization"
        )


def _check_forward(model: nn.Module) -> None:
    """Refuse a forward that takes a batch neither as its one argument nor, a dictionary, by keyword."""
    try:
        signature = inspect.signature(model.forward)
    except ValueError:  # a builtin without a signature
        return
    required = [p for p in signature.parameters.values() if p.default is p.empty and p.kind in NAMED]
    if len(required) > 1:  # a dictionary of tensors by these names
        return
    try:
        signature.bind(None)
    except TypeError as error:
        raise TypeError(
            f"{type(model).__name__}.forward cannot be called with a batch as its only argument ({error}); write a "
            "torch.nn.Module around the model whose forward(self, x) passes the batch on"
        ) from None


def _own_objects(model: nn.Module) -> set[int]:
    """The ids of the model's modules and of the lists and dictionaries that they keep."""
    kept = {id(v) for m in model.modules() for v in vars(m).values() if isinstance(v, dict | list)}
    return kept | {id(m) for m in model.modules()}


def _hook_on_the_model(module: nn.Module, inside: set[int]) -> str | None:
    """The name of a hook that is a function with one of these objects in its closure."""
    for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
        if not isinstance(hook, FunctionType):
            continue
        for cell in hook.__closure__ or ():
            with contextlib.suppress(ValueError):  # an empty cell
                if id(cell.cell_contents) in inside:
                    return hook.__qualname__
    return None


def _is_compiled(module: nn.Module) -> bool:
    """Whether ``module.forward = torch.compile(module.forward)`` stands in for the forward of the class."""
    forward: Any = vars(module).get("forward")
    if not hasattr(forward, "_torchdynamo_orig_callable"):
        return False
    return getattr(inspect.unwrap(forward), "__func__", None) is type(module).forward


def _has_foreign_forward(module: nn.Module) -> bool:
    """Whether a function stands in for the forward, which a copy of the module would share."""
    replaced = isinstance(vars(module).get("forward"), FunctionType)
    return replaced and not _is_compiled(module) and unwrapped(module) is module


def _is_flat(graph_module: Any) -> bool:
    """Whether the graph calls operators in place of the layers."""
    return any(type(node.target).__name__ == "OpOverload" for node in graph_module.graph.nodes)


def _check_tensor(tensor: Tensor, name: str) -> None:
    if is_lazy(tensor):
        raise ValueError(
            f"{name} of this model is not initialised (a lazy module); run the model on one batch, and load its weights, "
            "before building an adapter on it"
        )
    if tensor.is_meta:
        raise ValueError(
            f"{name} of this model is on the meta device and has no values; load the weights before building an adapter "
            "on the model"
        )
    if SHARDED & _kinds(tensor):
        raise TypeError(
            f"{name} of this model is sharded over processes (DTensor), which cannot be adapted; build the adapter on the "
            "model before it is sharded, or on an unsharded copy with the full state dict"
        )


class DetachedCopies(TorchFunctionMode):
    """Inside, ``copy.deepcopy`` copies the value of tensors that are part of a graph, where torch refuses.

    A model holds such tensors under ``torch.nn.utils.weight_norm`` or ``spectral_norm`` and where it keeps features of
    its last forward.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            return args[0].detach().clone()
        return func(*args, **(kwargs or {}))


def copy_model(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """A deep copy of the model without its wrappers, safe to run and to differentiate.

    Args:
        model: any module that :func:`check_model` accepts.
        memo: substitutes for objects of the model, by ``id``, as in ``copy.deepcopy``; it is filled further.

    Raises:
        TypeError: the model holds something that cannot be copied.
    """
    memo = {} if memo is None else memo
    # Each module has eleven dictionaries of hooks, almost all empty: half the time of a copy.
    for module in model.modules():
        for value in vars(module).values():
            if type(value) is OrderedDict and not value:
                memo.setdefault(id(value), OrderedDict())
    with torch.inference_mode(False), DetachedCopies():
        try:
            for module in reversed(list(model.modules())):  # what lies inside comes first
                inner = unwrapped(module)
                if inner is not module:
                    memo[id(module)] = copy.deepcopy(inner, memo)
            tree = copy.deepcopy(model, memo)
        except (TypeError, RuntimeError, NotImplementedError) as error:
            raise TypeError(
                f"{type(model).__name__} cannot be copied by copy.deepcopy ({error}); an adapter works on a copy of the "
                "module tree: remove that attribute from the model, or give its class a __deepcopy__"
            ) from error
    for module in tree.modules():
        if _is_compiled(module):
            del module.forward  # it would run the module that was compiled, and not this copy of it
    make_group_norm_safe(tree)
    return tree


def standard_strides(x: Tensor) -> Tensor:
    """The tensor with the strides of a freshly made one; ``contiguous()`` leaves others where a dimension is 1.

    >>> x = torch.rand(2, 1, 1, 3).permute(0, 3, 1, 2)
    >>> x.contiguous().stride(), standard_strides(x).stride()
    ((3, 1, 3, 3), (3, 1, 1, 1))
    """
    expected = 1
    for size, stride in zip(reversed(x.shape), reversed(x.stride()), strict=True):
        if stride != expected:
            return x.clone(memory_format=torch.contiguous_format)
        expected *= max(size, 1)
    return x


def make_group_norm_safe(tree: nn.Module) -> None:
    """Give every GroupNorm layer of the tree input of standard strides, in place.

    On the CPU, torch's backward of GroupNorm writes the gradient of a channels-last input also where none was asked for,
    and the process dies: so of the first layers of a network of which only norms are adapted. The layer's input is made
    anywhere (by a convolution, a view, a memory bank, the caller), so a hook on the layer is the one place that sees it.
    A module of another class that calls ``group_norm`` itself is given standard strides as well.
    """
    for module in tree.modules():
        code = getattr(getattr(type(module), "forward", None), "__code__", None)
        calls = code is not None and "group_norm" in code.co_names
        known = _standard_input in module._forward_pre_hooks.values()
        if (calls or isinstance(module, nn.GroupNorm)) and not known:
            module.register_forward_pre_hook(_standard_input, with_kwargs=True)


def drop_safeguards(tree: nn.Module) -> None:
    """Remove what :func:`make_group_norm_safe` added, from a tree that no gradient passes."""
    for module in tree.modules():
        for key in [k for k, hook in module._forward_pre_hooks.items() if hook is _standard_input]:
            del module._forward_pre_hooks[key]
            module._forward_pre_hooks_with_kwargs.pop(key, None)


def _standard_input(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    def made(x: Any) -> Any:
        on_cpu = isinstance(x, Tensor) and x.layout == torch.strided and x.device.type == "cpu"
        return standard_strides(x) if on_cpu else x

    return tuple(made(x) for x in args), {key: made(x) for key, x in kwargs.items()}
