"""How adapters are constructed: the keywords of every method, and the lock of an instance."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from testtime.gate import declared_range
from testtime.intake.arguments import check_arguments
from testtime.intake.dense import refuse_dense
from testtime.intake.fingerprint import fingerprint
from testtime.intake.outputs import Contract, Logits, declares_tasks
from testtime.moved import current_arguments

__all__ = ["Construction", "Lock"]

OF_EVERY_METHOD = ("outputs", "input_range", "preserves", "autograd")


class Lock:
    """A re-entrant lock; a copy of its owner gets one of its own."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[type[Lock], tuple[()]]:
        return Lock, ()


def _described(
    model: nn.Module,
    outputs: Any = None,
    input_range: Any = None,
    preserves: Any = None,
    autograd: Any = None,
) -> Logits:
    """The model with what the keywords of every method declare; a tree that has its logits already keeps its names."""
    if not isinstance(model, Logits):
        return Logits(model, outputs, input_range, preserves, autograd)
    return Logits(
        model.network,
        model.outputs if outputs is None else outputs,
        model.input_range if input_range is None else input_range,
        model.views if preserves is None else preserves,
        model.autograd if autograd is None else autograd,
    )


class Construction(type):
    """Construction of an adapter: the keywords that every method takes, and normal tensors under inference mode.

    The fingerprint of the model that the caller gave is kept for :mod:`testtime.saving`.
    """

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        kwargs = current_arguments(cls, kwargs)
        given = inspect.signature(cls).bind_partial(*args, **kwargs).arguments.values()
        source = next((value for value in given if isinstance(value, nn.Module)), None)
        known = {name: kwargs.pop(name) for name in cls.of_every_method() if name in kwargs}
        if any(value is not None for value in known.values()):
            model, *args = [kwargs.pop("model")] if "model" in kwargs else args  # type: ignore[assignment]
            if not isinstance(model, nn.Module):
                raise TypeError(f"expected a torch.nn.Module as the model, got {type(model).__name__}")
            args = (_described(model, **known), *args)
        signature = inspect.signature(cls)
        bound = signature.bind_partial(*args, **kwargs).arguments
        if "classes" in bound:
            check_classes(bound["classes"])
        check_arguments(cls.__name__, cls.__init__, _single(signature, bound))  # type: ignore[misc]
        if isinstance(type(source), Construction) and "model" in inspect.signature(cls.__init__).parameters:  # type: ignore[misc]
            raise TypeError(
                f"{cls.__name__} adapts a model, got an adapter ({type(source).__name__}); pass the model in it, "
                "or wrap the adapter (testtime.wrap)"
            )
        with torch.inference_mode(False):
            adapter = super().__call__(*args, **kwargs)
            _agree(adapter)
        source = adapter.model if source is None else source
        adapter.fingerprint = getattr(source, "fingerprint", None) or fingerprint(source)
        return adapter

    def of_every_method(cls) -> list[str]:
        """The keywords that describe the model, as far as the class has no argument of that name."""
        own = inspect.signature(cls.__init__).parameters  # type: ignore[misc]
        return [name for name in OF_EVERY_METHOD if name not in own] if "model" in own else []

    @property
    def __signature__(cls) -> inspect.Signature:
        """What the class takes, for ``help`` and for :mod:`testtime.saving`."""
        signature = inspect.signature(cls.__init__)  # type: ignore[misc]
        more = [
            inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=None) for n in cls.of_every_method()
        ]
        own = list(signature.parameters.values())[1:]
        rest = [p for p in own if p.kind is p.VAR_KEYWORD]
        return signature.replace(parameters=[*own[: len(own) - len(rest)], *more, *rest])


def _single(signature: inspect.Signature, bound: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that are one value, without those that a parameter such as ``**kwargs`` collects."""
    many = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {name: value for name, value in bound.items() if signature.parameters[name].kind not in many}


def _agree(adapter: Any) -> None:
    """Adopt what the model declares of its inputs, and state to its outputs what the method expects of them.

    Raises:
        ValueError: the model declares several tasks, or is known to return logits for each pixel, and the method works on
            one classifier.
    """
    model, cls, name = adapter.model, type(adapter), type(adapter).__name__
    adapter._gate.within = declared_range(model)
    if isinstance(type(model), Construction):
        return
    if "outputs" in cls.of_every_method():
        adapter.outputs = getattr(model, "outputs", None)
    adapter.preserves = getattr(model, "views", None)
    adapter.autograd = getattr(model, "autograd", None)
    if declares_tasks(model) and {"classifier", "class logits"} & {*adapter.needs}:
        raise ValueError(
            f"{name} works on the logits of one task, and this model declares several tasks; methods for "
            "multi-task models are S4T, TIPI, TTT, TTTPlusPlus, TTTFlow, TTTMAE, ClusT3, ActMAD, NCTTT, Tent, BNAdapt and "
            "Source"
        )
    if "classifier" in adapter.needs:
        refuse_dense(name, model)
    contract = Contract(name, getattr(adapter, "classes", None), "classifier" not in adapter.needs)
    for module in adapter.modules():
        if isinstance(module, Logits) and not module.gives_features:
            module.contract = contract


def check_classes(classes: Any) -> None:
    if isinstance(classes, bool) or not hasattr(classes, "__index__"):
        raise TypeError(f"classes is the number of classes, an integer, got {classes!r}")
    if classes < 2:
        raise ValueError(f"classes is the number of classes, 2 at least, got {classes}")
