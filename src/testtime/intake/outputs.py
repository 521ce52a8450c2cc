"""The logits of a network, whatever it wraps them in, and the check that they are what an adapter can work with."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from testtime.errors import AdapterWarning
from testtime.intake.gradients import require_gradient
from testtime.intake.named import Inputs, NamedTensors, called
from testtime.intake.shards import Shards, current_shards
from testtime.intake.views import Views, checked

__all__ = ["Contract", "Logits", "Outputs"]

Outputs = str | int | Callable[[Any], Tensor]
# Methods for logits of each pixel, for messages.
FOR_PIXELS = (
    "methods that take (N, C, H, W) are Source, BNAdapt, Tent, PL, RPL, ETA, EATA, SAR, Core, CoTTA, OSTTA, EcoTTA, ViDA, "
    "TIPI and ActMAD, and a multi-task model declares its tasks (testtime.multitask.MultiTaskNet)"
)
HALF = (torch.float16, torch.bfloat16)
AUTOGRAD = ("plain", "lean", "recompute")
"""What a step may save for its backward (:mod:`testtime.parts.lean`)."""


@dataclass(frozen=True)
class Contract:
    """What an adapter expects of the outputs of its model.

    Args:
        method: name of the method, for messages.
        classes: number of classes; None where the method does not ask for it.
        dense: whether the method works on logits for each pixel, (N, C, H, W).
    """

    method: str
    classes: int | None = None
    dense: bool = False

    def check(self, y: Tensor, n: int) -> None:
        """Refuse logits whose form does not fit.

        Args:
            y: output of the model.
            n: number of samples that the model was given.

        Raises:
            TypeError: y is not dense and floating-point.
            ValueError: y is not (N, C), or (N, C, H, W) where the method works on pixels; one class; another number of
                classes than ``classes``.
        """
        form, expected = tuple(y.shape), "(N, C) or (N, C, H, W)" if self.dense else "(N, C)"
        if y.layout != torch.strided:
            raise TypeError(
                f"the model returned logits of layout {y.layout}; return a dense tensor: y.to_dense()"
            )
        if not y.is_floating_point():
            raise TypeError(
                f"the model returned {y.dtype}; {self.method} expects logits {expected}, floating-point"
            )
        if y.dim() not in (2, 4) or len(y) != n:
            raise ValueError(
                f"the model returned an output of shape {form} for {n} samples; {self.method} expects logits {expected}; "
                "outputs= (a name, an index or a function) says which part of the model's output they are"
            )
        if y.dim() == 4 and not self.dense:
            raise ValueError(
                f"the model returned logits for each pixel, {form}; {self.method} works on logits (N, C); {FOR_PIXELS}"
            )
        if y.shape[1] < 2:
            raise ValueError(
                f"the model returned one logit for each sample, {form}; a softmax needs two classes at least, logits "
                f"{expected} with C >= 2: for a binary classifier return torch.cat([torch.zeros_like(z), z], 1)"
            )
        if self.classes is not None and y.shape[1] != self.classes:
            raise ValueError(
                f"the model returned logits of {y.shape[1]} classes, and {self.method} was built with "
                f"classes={self.classes}; pass classes={y.shape[1]}"
            )


class Logits(nn.Module):
    """A network whose output is its logits, whatever it wraps them in, and what is known of its inputs.

    A tensor, an object with ``.logits``, a dictionary with the key "logits" and whatever holds exactly one candidate are
    taken as they are; a dictionary by task of a model that declares its ``tasks`` stays one. Anything else is
    ambiguous, and refused unless ``outputs`` chooses.

    Args:
        network: the model.
        outputs: which part of the output the logits are: a key or attribute, an index, or a function of the output.
        input_range: lowest and highest value of the inputs, in units of the inputs; (0, 1) for images unless said otherwise.
        views: which changes of an image preserve its class (:class:`testtime.models.Views`).
        autograd: way of saving for the backward of a step, "plain", "lean" or "recompute"; None for the default, "plain".

    Raises:
        TypeError, ValueError: outputs, input_range, views or autograd is not one of these.

    >>> class Two(nn.Module):
    ...     def forward(self, x):
    ...         return x, x[:, :2]
    >>> Logits(Two(), outputs=1)(torch.ones(4, 3)).shape
    torch.Size([4, 2])
    """

    def __init__(
        self,
        network: nn.Module,
        outputs: Outputs | None = None,
        input_range: tuple[float, float] | None = None,
        views: Views | None = None,
        autograd: str | None = None,
    ) -> None:
        super().__init__()
        if isinstance(outputs, bool) or not (
            outputs is None or isinstance(outputs, str | int) or callable(outputs)
        ):
            raise TypeError(f"outputs is a name, an index or a function, got {outputs!r}")
        if input_range is not None and (len(input_range) != 2 or not input_range[0] < input_range[1]):
            raise ValueError(
                f"input_range is the lowest and the highest value of the inputs, got {input_range!r}"
            )
        if autograd not in (None, *AUTOGRAD):
            raise ValueError(f"autograd is one of {', '.join(map(repr, AUTOGRAD))}, got {autograd!r}")
        self.network = network
        self.autograd = autograd
        self.shards: Shards | None = None  # set while a group of processes shares the batches out
        self.outputs = outputs
        self.input_range = None if input_range is None else (float(input_range[0]), float(input_range[1]))
        self.views = checked(views, "preserves")  # the keyword of every method
        self.contract: Contract | None = None
        self.gives_features = False  # whether its head was taken off, so that it has no logits to check
        self.seen = False  # whether an output was looked at for probabilities
        self.writes: bool | None = (
            None  # whether the network writes into its input; None before the first batch
        )

    def forward(self, x: Inputs) -> Any:
        shards = (
            self.shards if current_shards() is None else None
        )  # a network in this one runs what it is given
        y = self._logits(x) if shards is None else shards.run(self.network, self._logits, x)
        if self.contract is None:
            return y
        if isinstance(y, Tensor):
            self.contract.check(y, len(x))
        require_gradient(self.network, y)
        if isinstance(y, Tensor) and not self.seen and len(y):
            self.seen = True
            _refuse_probabilities(y)
            _warn_of_bounded(y)
        return y

    def _logits(self, x: Any) -> Any:
        return self._choose(self._run(x))

    def _run(self, x: Any) -> Any:
        """The network's output; a network that writes into its input, as ``x.sub_(mean)`` does, gets a copy each time."""
        if not isinstance(x, Tensor | NamedTensors):
            return self.network(x)
        if self.writes is False or torch.is_inference_mode_enabled():
            return called(self.network, x)
        given = x.clone()
        versions = _versions(given)
        output = called(self.network, given)
        self.writes = _versions(given) != versions
        return output

    def _choose(self, output: Any) -> Any:
        parts = _parts(output)
        if self.outputs is not None:
            return _chosen(output, self.outputs, parts)
        if isinstance(output, Tensor):
            plain = type(output) is Tensor or torch.compiler.is_compiling()  # the exporter's own tensors stay
            return output if plain else output.as_subclass(Tensor)
        logits = getattr(output, "logits", None)
        if isinstance(logits, Tensor):
            return logits
        if isinstance(output, Mapping) and declares_tasks(self.network):
            return dict(output)
        if isinstance(output, Mapping) and isinstance(output.get("logits"), Tensor):
            return output["logits"]
        possible = [k for k, y in parts.items() if y.is_floating_point() and y.dim() >= 2]
        deeper = _nested(output)
        if len(possible) == 1 and not deeper:
            return parts[possible[0]]
        choices = ", ".join(f"outputs={k!r} {tuple(y.shape)}" for k, y in parts.items())
        choices = (
            "; ".join([*([choices] if choices else []), *deeper]) or "outputs=, a function of the output"
        )
        raise ValueError(
            f"{type(self.network).__name__} returned a {type(output).__name__}, and it is not clear which part the logits "
            f"are; expected a tensor, or say which: {choices}. A multi-task model declares its outputs by "
            "name as `tasks` (testtime.multitask.MultiTaskNet)"
        )


def _versions(x: Inputs) -> list[int]:
    return [value._version for value in ([x] if isinstance(x, Tensor) else x.entries.values())]


def declares_tasks(network: nn.Module) -> bool:
    """Whether a module of the network declares tasks by name, so that its outputs are a dictionary by task."""
    return any(isinstance(getattr(m, "tasks", None), Mapping) and m.tasks for m in network.modules())


def _parts(output: Any) -> dict[str | int, Tensor]:
    """The tensors in an output by what ``outputs`` may name them."""
    return {k: y for k, y in _entries(output) if isinstance(y, Tensor)}


def _nested(output: Any) -> list[str]:
    """The functions that choose what is named "logits" one level down in an output."""
    found = []
    for name, part in _entries(output):
        if isinstance(dict(_entries(part)).get("logits"), Tensor):
            one = "y.{0}" if not isinstance(output, Mapping | tuple | list) else "y[{0!r}]"
            two = "['logits']" if isinstance(part, Mapping) else ".logits"
            found.append(f"outputs=lambda y: {one.format(name)}{two}")
    return found


def _entries(output: Any) -> list[tuple[Any, Any]]:
    """The entries of an output by name or index."""
    if isinstance(output, Tensor):
        return []
    if isinstance(output, Mapping):
        return list(output.items())
    if isinstance(output, tuple | list):
        return list(enumerate(output))
    if is_dataclass(output):
        return [(f.name, getattr(output, f.name)) for f in fields(output)]
    return list(vars(output).items()) if hasattr(output, "__dict__") else []


def _chosen(output: Any, outputs: Outputs, parts: Mapping[str | int, Tensor]) -> Tensor:
    """The part of an output that ``outputs`` names.

    Raises:
        TypeError, ValueError: there is no such part, or it is no tensor.
    """
    if callable(outputs):
        try:
            y = outputs(output)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever it raises is not the batch's fault
            made = ", ".join(f"{k!r} {tuple(y.shape)}" for k, y in parts.items()) or "no tensors"
            raise ValueError(
                f"outputs is a function that raised {type(error).__name__}: {error}, on the model's output "
                f"({type(output).__name__}), which has {made}; expected a function of this output that returns logits"
            ) from error
        if not isinstance(y, Tensor):
            raise TypeError(
                f"outputs is a function that returned {type(y).__name__}, expected a tensor of logits"
            )
        return y
    if (
        isinstance(outputs, str)
        and outputs not in parts
        and isinstance(getattr(output, outputs, None), Tensor)
    ):
        return getattr(output, outputs)
    place = outputs
    if isinstance(output, tuple | list) and isinstance(outputs, int) and outputs < 0:
        place = len(output) + outputs
    if place not in parts:
        choices = ", ".join(f"{k!r} {tuple(y.shape)}" for k, y in parts.items())
        raise ValueError(
            f"the model's output ({type(output).__name__}) has no part outputs={outputs!r}; it has {choices or 'none'}"
        )
    return parts[place]


def _refuse_probabilities(y: Tensor) -> None:
    p, slack = y.detach().float(), 1e-2 if y.dtype in HALF else 1e-4
    if bool((p >= 0).all()) and bool((p.sum(dim=1) - 1).abs().amax() < slack):
        raise ValueError(
            "the model returned probabilities (every row is positive and sums to 1); expected logits: leave out its last "
            "softmax, or choose what stands before it with outputs="
        )


def _warn_of_bounded(y: Tensor) -> None:
    """Warn of log-probabilities, whose energy is the same for all images, and of the output of a sigmoid."""
    z = y.detach().float()
    if bool((z <= 0).all()) and bool(z.logsumexp(dim=1).abs().amax() < (1e-2 if y.dtype in HALF else 1e-4)):
        warnings.warn(
            "the model returned log-probabilities: classes and entropies are right, but the energy of every image is 0, so "
            "that `score` tells nothing; leave out the last log_softmax, or choose what stands before it with outputs=",
            AdapterWarning,
            stacklevel=2,
        )
    elif bool((z > 0).all()) and bool((z < 1).all()):
        warnings.warn(
            f"all outputs of the model lie between 0 and 1 ({float(z.min()):.3g} to {float(z.max()):.3g}), as those of a "
            "sigmoid; they are taken for logits, whose softmax is then almost uniform: leave out the last sigmoid, or choose "
            "what stands before it with outputs=",
            AdapterWarning,
            stacklevel=2,
        )
