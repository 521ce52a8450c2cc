"""The adapter: a module that predicts a batch and learns from it, and gives its state back when asked."""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from testtime.norm.layer import advance
from testtime.parts.optimizers import OptimizerFactory, born
from testtime.prediction import Prediction, TaskPredictions
from testtime.sharing import Birth, Stateful, share

__all__ = ["Adapter", "state_hash"]


class _Diverged(ArithmeticError):
    """A loss, a gradient, an update or an answer was not finite: the step must not count."""


class _OutsideInference(type):
    """Builds its instances of normal tensors, which gradients can be taken of, also under the caller's inference mode."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        with torch.inference_mode(False):
            return super().__call__(*args, **kwargs)

    @property
    def __signature__(cls) -> inspect.Signature:
        """What the class takes, for ``help`` and for :mod:`testtime.saving`."""
        signature = inspect.signature(cls.__init__)  # type: ignore[misc]
        return signature.replace(parameters=list(signature.parameters.values())[1:])


class Adapter(Stateful, metaclass=_OutsideInference):
    """Base of every method: the method is ``__init__``, which holds its parts, and ``step``, the paper's algorithm.

    The base owns everything else. A call refuses bad images before the forward, runs ``step`` under gradients whatever
    the caller's grad mode, and commits it or not: what is not finite leaves the state as it was. ``state_dict`` holds
    only what moves (adapted parameters, moving buffers, the optimizer's state, the count of steps), as a value; ``reset``
    loads the state of birth.

    Args:
        model: the network as a norm policy returned it; frozen here, in evaluation mode. Frozen weights share their
            memory with the model they came from.
        seed: every random draw is a function of (seed, steps, purpose).

    Attributes:
        output: whether the answer was computed "before" or "after" this batch's update, or by a "teacher".
        source: what :meth:`prepare` must see before the first batch: "none", "statistics" or "data".
        labelled_source: whether the source batches may also be pairs (images, labels).
        stochastic: whether a step draws random numbers.
        cost: forwards and backwards of the whole batch per step, at most.
    """

    output: ClassVar[Literal["before", "after", "teacher"]] = "before"
    source: ClassVar[Literal["none", "statistics", "data"]] = "none"
    labelled_source: ClassVar[bool] = False
    stochastic: ClassVar[bool] = False
    cost: tuple[float, float] = (1, 1)

    def __init__(self, model: nn.Module, seed: int = 0) -> None:
        super().__init__()
        self.model = model if isinstance(model, Adapter) else share(model)
        self.seed = seed
        self.clock = torch.zeros((), dtype=torch.int64)  # steps taken; stays on the CPU
        self._adapted: list[nn.Parameter] = []
        self._optimizer: torch.optim.Optimizer | None = None
        self._birth: dict[str, Tensor] | None = None
        self.taught: Birth | None = None
        self._updated = False

    # What a method says -----------------------------------------------------------------------------------------------

    def step(self, x: Tensor) -> Any:
        """The method: predict the batch (N, C, H, W) and learn from it.

        Returns logits or a :class:`Prediction`; for a multi-task model a dictionary of outputs by task.
        """
        raise TypeError(f"{type(self).__name__} has no step(x): a method is __init__ and step")

    def _look(self, x: Tensor) -> Any:
        """How the method predicts when it only looks; a method that answers with more than its model says so here."""
        return self.model(x)

    def _learn(self, batches: Iterable[Tensor]) -> None:
        """What the method must know of the source, from its unlabelled batches; most need nothing."""

    def adapt(self, parameters: Iterable[nn.Parameter], optimizer: OptimizerFactory) -> None:
        """Declare the parameters that move, and what moves them. They stop sharing memory with the source model.

        Raises:
            ValueError: there are none.
        """
        self._adapted = list(parameters)
        if not self._adapted:
            raise ValueError(
                f"{type(self).__name__} adapts the scale and shift of normalisation layers, and this model has none; "
                "expected BatchNorm, LayerNorm, GroupNorm, RMSNorm or InstanceNorm layers with affine=True"
            )
        for p in self._adapted:
            p.data = p.data.clone()
            p.requires_grad_(True)
        self._optimizer = born(optimizer(self._adapted), self._adapted)

    def taught_at_birth(self) -> None:
        """Declare, last in ``__init__``, that ``prepare`` moves what the adapter is born with: the state then holds it."""
        self.taught = Birth(self._moving(learned=False))

    def update(self, loss: Tensor | Sequence[Tensor | None]) -> None:
        """Move the adapted parameters one step down a scalar loss, or along gradients that are at hand."""
        if self._optimizer is None:
            raise RuntimeError(f"{type(self).__name__} called update() without adapt() in its __init__")
        if isinstance(loss, Tensor):
            if not math.isfinite(loss.item()):
                raise _Diverged("loss")
            loss = torch.autograd.grad(loss, self._adapted, allow_unused=True)
        present = [g for g in loss if g is not None]
        if not _finite(present):
            raise _Diverged("gradient")
        for p, g in zip(self._adapted, loss, strict=True):
            p.grad = g
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        if not _finite([p.detach() for p in self._adapted]):
            raise _Diverged("update")
        self._updated = True

    # What a user calls ------------------------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Any:
        """Adapt to the batch and predict it.

        Args:
            x: images (N, C, H, W), floating point.

        Returns:
            logits (N, C) as a :class:`Prediction`, or a dictionary of outputs by task as :class:`TaskPredictions`
            where the model returns one. An image with NaN or infinity is not shown to the network: its row is
            NaN and not ``valid``, and its neighbours get exactly what they would have got without it.

        Raises:
            TypeError, ValueError: x is not a batch of floating-point images.
        """
        x, good = _admit(x)
        before = self.state_dict()
        if len(x) == 0:
            return self._nothing(x, good)
        with torch.inference_mode(False), torch.enable_grad():
            x, self._updated = (x.clone() if x.is_inference() else x.detach()), False
            advance(self, accept=False)  # what a look that raised has left
            try:
                y = _as_prediction(self.step(x))
                if not bool(y.valid.any()):
                    raise _Diverged("answer")
                advance(self)
                y.updated = y.updated or self._updated
            except _Diverged:
                advance(self, accept=False)
                self.load_state_dict(before)
                with torch.no_grad():
                    y = _as_prediction(self._look(x))
                advance(self, accept=False)
            except BaseException:
                advance(self, accept=False)
                self.load_state_dict(before)
                raise
            self.clock += 1
        return y if good.all() else y.spread(good)

    def predict(self, x: Tensor) -> Any:
        """Predict the batch and learn nothing: the state stays as it is, byte for byte. Takes and returns what a call does."""
        x, good = _admit(x)
        self._born()
        if len(x) == 0:
            return self._nothing(x, good)
        with torch.inference_mode(False), torch.no_grad():
            y = _as_prediction(self._look(x.clone() if x.is_inference() else x))
            advance(self, accept=False)
        return y if good.all() else y.spread(good)

    def prepare(self, source: Iterable[Tensor]) -> None:
        """Show the adapter unlabelled batches (N, C, H, W) of its source before the first batch; then it is born."""
        self.reset()
        with torch.inference_mode(False), torch.enable_grad():
            self._learn(source)
            advance(self, accept=False)
        self._birth = None
        birth = self._born()
        if self.taught is not None:
            self.taught.remember(birth)

    def reset(self) -> None:
        """Back to birth: parameters, statistics, memory, optimizer, randomness. What ``prepare`` taught stays."""
        self._restore({**self._born(), **(self.taught.known() if self.taught else {})})

    def state_dict(
        self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False
    ) -> Any:
        """What moves, by name, as tensors of its own: enough to continue the run in another process."""
        self._born()
        state = {f"{prefix}{k}": v.detach().clone() for k, v in self._moving(learned=True).items()}
        if destination is None:
            return state
        destination.update(state)
        return destination

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Continue from a saved state, whatever this adapter has seen.

        Raises:
            ValueError: the state is of another method, model or setting; the message names what differs.
        """
        self._born()
        live = self._moving(learned=True)
        missing, foreign = sorted(live.keys() - state_dict.keys()), sorted(state_dict.keys() - live.keys())
        if missing or foreign:
            raise ValueError(
                f"this state does not belong to this {type(self).__name__}: {len(missing)} entries are missing "
                f"(first {missing[:3]}), {len(foreign)} are unknown (first {foreign[:3]}); build the adapter with the "
                "same model and arguments as the one that was saved"
            )
        self._restore(state_dict)

    # How the base keeps its promises ----------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> Adapter:
        """An adapter has one mode: ``train()`` and ``eval()`` change nothing."""
        return self

    def moving(self) -> dict[str, Tensor]:
        names = {id(p): name for name, p in self.model.named_parameters()} if self._adapted else {}
        live = {"clock": self.clock, **super().moving()}
        for p in self._adapted:
            live[f"model.{names[id(p)]}"] = p
            for key, value in (self._optimizer.state[p] if self._optimizer else {}).items():
                live[f"optimizer.{names[id(p)]}.{key}"] = value
        return live

    def restore(self, name: str, value: Tensor) -> None:
        live = self.moving()
        if name in self._buffers:
            super().restore(name, value)
        elif live[name].shape != value.shape:
            raise ValueError(
                f"{name} has shape {tuple(live[name].shape)}, the saved state {tuple(value.shape)}"
            )
        else:
            with torch.no_grad():
                live[name].copy_(value)

    def _parts(self, *, learned: bool) -> dict[str, Stateful]:
        parts = {name: m for name, m in self.named_modules() if isinstance(m, Stateful)}
        return {f"{name}." if name else "": m for name, m in parts.items() if learned or not m.learned}

    def _moving(self, *, learned: bool) -> dict[str, Tensor]:
        return {p + k: v for p, m in self._parts(learned=learned).items() for k, v in m.moving().items()}

    def _restore(self, state: Mapping[str, Tensor]) -> None:
        with torch.inference_mode(False):
            for prefix, module in self._parts(learned=True).items():
                for name in module.moving():
                    if prefix + name in state:
                        module.restore(name, state[prefix + name])

    def _born(self) -> dict[str, Tensor]:
        if self._birth is None:
            with torch.inference_mode(False):
                self._birth = {k: v.detach().clone() for k, v in self._moving(learned=False).items()}
        return self._birth

    def _nothing(self, x: Tensor, good: Tensor) -> Prediction | TaskPredictions:
        with torch.inference_mode(False), torch.no_grad():
            one = _as_prediction(self._look(x.new_zeros(1, *x.shape[1:])))
            advance(self, accept=False)
        return one.at(one.valid & False).spread(good)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        for state in self._optimizer.state.values() if self._optimizer else ():
            state.update({k: fn(v) if v.dim() else v for k, v in state.items()})
        if self._birth is not None:
            self._birth = {k: fn(v) if v.dim() else v for k, v in self._birth.items()}
        return self


def state_hash(adapter: nn.Module) -> str:
    """A hash of the adapter's whole state, or of any module's: equal exactly when a run would go on the same.

    >>> from testtime.methods import Source
    >>> a = Source(nn.Linear(3, 2))
    >>> before = state_hash(a); a.reset(); state_hash(a) == before
    True
    """
    digest = hashlib.sha256()
    for name, value in sorted(adapter.state_dict().items()):
        flat = value.contiguous().cpu().reshape(-1)
        digest.update(f"{name}:{value.dtype}:{tuple(value.shape)}".encode())
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _finite(tensors: Sequence[Tensor]) -> bool:
    return not tensors or bool(torch.isfinite(torch.stack(torch._foreach_norm(list(tensors)))).all())


def _admit(x: Tensor) -> tuple[Tensor, Tensor]:
    """The images that may meet the network, and which they are (a mask over the batch)."""
    if not isinstance(x, Tensor):
        raise TypeError(f"expected a batch of images as a torch.Tensor (N, C, H, W), got {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(
            f"expected floating-point images, usually in [0, 1], got {x.dtype}; convert them (uint8: x / 255)"
        )
    if x.dim() < 2:
        raise ValueError(
            f"expected a batch (N, ...), got shape {tuple(x.shape)}; add the batch dimension: x[None]"
        )
    x = x.contiguous()  # torch's GroupNorm crashes on the CPU in the backward of frozen channels-last images
    good = torch.isfinite(x).flatten(1).all(dim=1)
    return (x, good) if bool(good.all()) else (x[good], good)


def _as_prediction(y: Any) -> Prediction | TaskPredictions:
    if isinstance(y, Prediction | TaskPredictions):
        return y
    return TaskPredictions(y) if isinstance(y, Mapping) else Prediction(y)
