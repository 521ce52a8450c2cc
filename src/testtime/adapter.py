"""The adapter: a module that predicts a batch and learns from it, and gives its state back when asked."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from testtime.construction import Construction, Lock
from testtime.errors import AdapterWarning
from testtime.facts import Facts
from testtime.gate import Screened, admit, check_batch, declared_range, explain, outside, typical_range
from testtime.intake.fingerprint import Fingerprint, state_hash
from testtime.intake.frozen import Frozen
from testtime.intake.gradients import explained, gradients
from testtime.intake.outputs import Contract, Logits, declares_tasks
from testtime.intake.sharing import Birth, Stateful, at_least_float32, share
from testtime.norm.layer import NormPolicy, advance, policies_of
from testtime.parts.optimizers import MasterWeights, OptimizerFactory, born
from testtime.parts.views import MirrorCheck, changes_of
from testtime.prediction import Prediction, TaskPredictions

__all__ = ["Adapter", "state_hash"]


class _Diverged(ArithmeticError):
    """A loss, a gradient, an update or an answer was not finite: the step must not count."""


NEVER_NEGATIVE = ("clock", "step", "var", "exp_avg_sq", "max_exp_avg_sq", "square_avg")  # entries of a state
PATIENCE = 50  # batches without any update before a warning says so


class Adapter(Facts, Stateful, metaclass=Construction):
    """Base of every method: the method is ``__init__``, which holds its parts, and ``step``, the paper's algorithm.

    The base owns everything else. A call refuses bad images before the forward, runs ``step`` under gradients whatever
    the caller's grad mode, and commits it or not: what is not finite leaves the state as it was. ``state_dict`` holds
    only what moves (adapted parameters, moving buffers, the optimizer's state, the count of steps), as a value; ``reset``
    loads the state of birth. Calls of one adapter from several threads wait for each other.

    Args:
        model: the network as a norm policy returned it; frozen here, in evaluation mode. Frozen weights share their
            memory with the model they came from.
        seed: every random draw is a function of (seed, steps, purpose).

    Every method takes three more keywords, which describe the model (:class:`testtime.intake.outputs.Logits`): ``outputs``,
    which part of its output the logits are; ``input_range``, the lowest and highest value of its inputs; ``preserves``, which
    changes of an image preserve its class (:class:`testtime.models.Views`).

    Attributes:
        fingerprint: fingerprint of the source model when the adapter was built.
    """

    fingerprint: Fingerprint

    def __init__(self, model: nn.Module, seed: int = 0) -> None:
        super().__init__()
        self.model = model if isinstance(model, Adapter) else share(model)
        self.seed = seed
        self.clock = torch.zeros((), dtype=torch.int64)  # steps taken; stays on the CPU
        self._adapted: list[nn.Parameter] = []
        self._masters = MasterWeights([])
        self._optimizer: torch.optim.Optimizer | None = None
        self._birth: dict[str, Tensor] | None = None
        self.taught: Birth | None = None
        self._updated = False
        self._frozen = Frozen()
        self._lock = Lock()
        self._mirror = MirrorCheck()
        self._range: tuple[float, float] | None = None  # of the inputs, as learned from them
        self._idle = 0  # batches without an update; -1 after the first update, or once it was reported
        self._refused = False  # whether a warning has reported a batch without any valid answer

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
        self._masters = MasterWeights(self._adapted)
        self._optimizer = born(optimizer(self._masters.weights), self._masters.weights)

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
            loss = gradients(loss, self._adapted)
        present = [g for g in loss if g is not None]
        if not _finite(present):
            raise _Diverged("gradient")
        with self._masters.stepping(loss):
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
            TypeError, ValueError: x is not a batch of floating-point images, or the model does not take it or does not
                return logits; the message says what to do. The state is as before.
        """
        with self._lock:
            self._frozen.check(self)
            x, good = self._admit(x, learn=True)
            if len(x) == 0:
                return self._nothing(x, good)
            before, policies = self.state_dict(), policies_of(self)
            with torch.inference_mode(False), torch.enable_grad():
                x, self._updated = (x.clone() if x.is_inference() else x.detach()), False
                advance(policies, accept=False)  # what a prediction that raised has left
                try:
                    self._mirror(self, x)
                    with explained():
                        y = _as_prediction(self.step(x))
                    self._frozen.check(self)  # the model's own forward may write into a buffer
                    if not bool(y.valid.any()):
                        raise _Diverged("answer")
                    if not _finite(_proposed(policies)):
                        raise _Diverged("statistics")
                    advance(policies)
                    y.updated = y.updated or self._updated
                except _Diverged as what:
                    self._undo(before)
                    with torch.no_grad():
                        y = _as_prediction(self._look(x))
                    advance(policies, accept=False)
                    self._report_idle(f"the last {what} was not finite")
                except BaseException as error:
                    self._undo(before)
                    self._explain(error, x)
                    raise
                self.clock += 1
            self._report(y)
            return y if good.all() else y.spread(good)

    def predict(self, x: Tensor) -> Any:
        """Predict the batch and learn nothing: the state stays as it is, byte for byte. Takes and returns what a call does."""
        with self._lock:
            self._frozen.check(self)
            x, good = self._admit(x, learn=False)
            self._born()
            if len(x) == 0:
                return self._nothing(x, good)
            with torch.inference_mode(False), torch.no_grad():
                y = self._looked(x)
            return y if good.all() else y.spread(good)

    def prepare(self, source: Iterable[Any]) -> None:
        """Show the adapter unlabelled batches of its source before the first batch of the stream.

        Batches are checked as those of a call: images that are not finite or out of range are left out.

        Args:
            source: batches (N, C, H, W); pairs (images, labels) too, where ``labelled_source``.

        Raises:
            TypeError: a batch is no floating-point tensor.
            ValueError: there is no batch, none of the images is accepted, or the model does not take them. The state is as
                before.
        """
        with self._lock:
            self._frozen.check(self)
            before, birth, taught = self.state_dict(), self._birth, self.taught
            batches = Screened(source, self.labelled_source, self._range)
            self.reset()
            try:
                with torch.inference_mode(False), torch.enable_grad(), explained():
                    self._learn(batches)
                    advance(self, accept=False)
                self._birth, self._frozen, self._range = None, Frozen(), batches.within
                now = self._born()
                if taught is not None:
                    taught.remember(now)
            except BaseException as error:
                self._birth = birth
                self._undo(before)
                if batches.last is not None:
                    self._explain(error, batches.last)
                raise

    def reset(self) -> None:
        """Back to birth: parameters, statistics, memory, optimizer, randomness. What ``prepare`` taught stays."""
        with self._lock:
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
            ValueError: the state is of another method, model or setting, or holds values that are not finite; the message
                names what differs. The adapter is then as before.
        """
        with self._lock:
            self._born()
            before = self.state_dict()
            try:
                self._restore(self._checked(state_dict))
            except BaseException:
                self._undo(before)
                raise

    # How the base keeps its promises ----------------------------------------------------------------------------------

    @property
    def input_range(self) -> tuple[float, float] | None:
        """Typical range of the inputs: as the model declares it, or as learned from the first images; None if unknown."""
        return self._range

    @property
    def _ddp_params_and_buffers_to_ignore(self) -> list[str]:
        raise TypeError(
            "an adapter cannot be wrapped in DistributedDataParallel: every rank would adapt by itself and their states "
            "would differ; run one adapter in one process"
        )

    def _agree(self) -> None:
        """Take over what the model declares of its inputs, and tell its outputs what this method expects of them."""
        self._range = declared_range(self.model)
        if isinstance(self.model, Adapter):
            return
        if "outputs" in type(self).of_every_method():
            self.outputs = getattr(self.model, "outputs", None)
        self.preserves = getattr(self.model, "views", None)
        name = type(self).__name__
        if declares_tasks(self.model) and "classifier" in self.needs:
            raise ValueError(
                f"{name} works on the logits of a classifier, (N, C), and this model declares several tasks; methods for "
                "multi-task models are S4T, TIPI, TTT, TTTPlusPlus, TTTFlow, TTTMAE, ClusT3, ActMAD, NCTTT, Tent, BNAdapt and "
                "Source"
            )
        contract = Contract(name, getattr(self, "classes", None), "classifier" not in self.needs)
        for module in self.modules():
            if isinstance(module, Logits) and not module.gives_features:
                module.contract = contract

    def _admit(self, x: Any, learn: bool) -> tuple[Tensor, Tensor]:
        """The samples of a batch that may meet the network, and which they are (a mask over the batch)."""
        check_batch(x)
        if x.dim() != 4 and ("images" in self.needs or any(changes_of(v) for v in vars(self).values())):
            raise ValueError(
                f"{type(self).__name__} changes images or makes views of them and takes batches (N, C, H, W), got shape "
                f"{tuple(x.shape)}; add the batch dimension of one image: x[None]; for sequences and tables pass augment= a "
                "function of your own where the method has it, or use a method without views, such as Tent or EATA"
            )
        x, within = x.contiguous(), self._range
        good = admit(x, within)
        if within is None and (found := typical_range(x[good])):
            good &= admit(x, found)
            if learn:
                self._range = found
                if found != (0.0, 1.0):
                    warnings.warn(
                        f"the first images lie in about [{found[0]:.3g}, {found[1]:.3g}] and not in [0, 1], where views and "
                        "corruptions are defined; normalise inside the model (testtime.models.normalised(model, mean, "
                        "std)), or pass input_range=(lowest, highest)",
                        AdapterWarning,
                        stacklevel=4,
                    )
        if len(x) and not bool(good.any()) and not isinstance(self.model, Adapter):
            if not int(self.clock) and bool(torch.isfinite(x).all()):
                raise ValueError(outside(x, within))
            self._report_refused(outside(x, within))
        return (x, good) if bool(good.all()) else (x[good], good)

    def _looked(self, x: Tensor) -> Prediction | TaskPredictions:
        try:
            return _as_prediction(self._look(x))
        except Exception as error:
            self._explain(error, x)
            raise
        finally:
            advance(self, accept=False)

    def _undo(self, before: Mapping[str, Tensor]) -> None:
        advance(self, accept=False)
        self._restore(before)

    def _explain(self, error: BaseException, x: Tensor) -> None:
        """Raise a ValueError instead where the model itself does not take the batch."""
        if not isinstance(error, Exception) or isinstance(
            error, TypeError | ValueError | torch.OutOfMemoryError
        ):
            return
        cause = explain(self.model, x)
        advance(self, accept=False)
        if cause is not None:
            raise cause from error

    def _report(self, y: Prediction | TaskPredictions) -> None:
        """Warn once when a batch got no valid answer, and once when nothing was ever updated."""
        if not bool(y.valid.any()):
            self._report_refused("the model's answers are not finite")
        if y.updated or self._optimizer is None or self._idle < 0:
            self._idle = -1
            return
        self._report_idle("its filters selected no sample")

    def _report_idle(self, why: str) -> None:
        if self._idle < 0:
            return
        self._idle += 1
        if self._idle == PATIENCE:
            self._idle = -1
            warnings.warn(
                f"{type(self).__name__} has updated nothing in {PATIENCE} batches ({why}); it answers as the model does. Check "
                "that the images are as in training (range, size, colours) and that thresholds such as margin= fit",
                AdapterWarning,
                stacklevel=4,
            )

    def _report_refused(self, why: str) -> None:
        if not self._refused:
            self._refused = True
            warnings.warn(
                f"{type(self).__name__} answered no image of a batch ({why}); such rows are NaN and not valid, and nothing is "
                "learned from them. This is reported once",
                AdapterWarning,
                stacklevel=4,
            )

    def _checked(self, state: Mapping[str, Any]) -> dict[str, Tensor]:
        """A saved state that fits, converted to the types and devices of this adapter.

        Raises:
            ValueError: names, kinds, shapes or values do not fit.
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"expected a state as state_dict() returns it, got {type(state).__name__}")
        live = self._moving(learned=True)
        missing, foreign = sorted(live.keys() - state.keys()), sorted(map(str, state.keys() - live.keys()))
        if missing or foreign:
            raise ValueError(
                f"this state does not belong to this {type(self).__name__}: {len(missing)} entries are missing "
                f"(first {missing[:3]}), {len(foreign)} are unknown (first {foreign[:3]}); build the adapter with the "
                "same model and arguments as the one that was saved"
            )
        grows = {
            prefix + name
            for prefix, m in self._parts(learned=True).items()
            if not isinstance(m, NormPolicy)
            for name in m.moving()
            if name in m._buffers and m.grows(name)
        }
        return {name: _fitting(name, state[name], now, name in grows) for name, now in live.items()}

    def train(self, mode: bool = True) -> Adapter:
        """An adapter has one mode: ``train()`` and ``eval()`` change nothing."""
        return self

    def moving(self) -> dict[str, Tensor]:
        names = {id(p): name for name, p in self.model.named_parameters()} if self._adapted else {}
        live = {"clock": self.clock, **super().moving()}
        for p, master in zip(self._adapted, self._masters.weights, strict=True):
            live[f"model.{names[id(p)]}"] = p
            if master is not p:
                live[f"master.{names[id(p)]}"] = master
            for key, value in (self._optimizer.state[master] if self._optimizer else {}).items():
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
            one = self._looked(x.new_zeros(1, *x.shape[1:]))
        return one.at(one.valid & False).spread(good)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        self._masters.follow(fn, self._optimizer)
        for state in self._optimizer.state.values() if self._optimizer else ():
            state.update({k: at_least_float32(v, fn) for k, v in state.items()})
        if self._birth is not None:
            live = self._moving(learned=False)
            born = {k: v.to(live[k].device, live[k].dtype) for k, v in self._birth.items() if k in live}
            for k in live.keys() - born.keys():  # the float32 copies of what became half precision
                born[k] = born[k.replace("master.", "model.", 1)].float()
            self._birth = born
        return self


def _finite(tensors: Sequence[Tensor]) -> bool:
    return not tensors or bool(torch.isfinite(torch.stack(torch._foreach_norm(list(tensors)))).all())


def _proposed(policies: Iterable[NormPolicy]) -> list[Tensor]:
    """The floating-point statistics that norm policies propose."""
    return [v for m in policies for v in (m.proposal or {}).values() if v.is_floating_point()]


def _fitting(name: str, value: Any, live: Tensor, grows: bool) -> Tensor:
    """An entry of a saved state in the type and on the device of the adapter's own.

    Raises:
        ValueError: it is no tensor, of another kind or shape, or holds NaN or infinity.
    """
    if not isinstance(value, Tensor):
        raise ValueError(f"{name} in the saved state is a {type(value).__name__}, expected a tensor")
    if value.layout != torch.strided or value.is_meta or value.is_quantized:
        raise ValueError(
            f"{name} in the saved state is a {value.layout} tensor on {value.device}, expected dense values"
        )
    unknown = grows and not (
        live.numel() and value.numel()
    )  # a buffer may get its form and type from the first batch
    if not unknown and (value.is_floating_point(), value.dtype == torch.bool) != (
        live.is_floating_point(),
        live.dtype == torch.bool,
    ):
        raise ValueError(f"{name} is {live.dtype}, the saved state's {value.dtype}")
    if not (unknown or value.shape == live.shape or (grows and 0 < value.dim() == live.dim())):
        raise ValueError(f"{name} has shape {tuple(live.shape)}, the saved state's {tuple(value.shape)}")
    fits = value.to(live.device) if unknown else value.to(live.device, live.dtype)
    if fits.is_floating_point() and bool(fits.isnan().any() if grows else ~fits.isfinite().all()):
        raise ValueError(
            f"{name} in the saved state holds NaN or infinity; it is damaged, or was saved after a failure"
        )
    if name.rpartition(".")[2] in NEVER_NEGATIVE and bool((fits < 0).any()):
        raise ValueError(f"{name} in the saved state is negative, which it can never be; it is damaged")
    return fits


def _as_prediction(y: Any) -> Prediction | TaskPredictions:
    if isinstance(y, Prediction | TaskPredictions):
        return y
    return TaskPredictions(y) if isinstance(y, Mapping) else Prediction(y)
