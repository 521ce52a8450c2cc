"""The adapter: a module that predicts a batch and learns from it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from testtime.construction import Construction
from testtime.facts import Facts
from testtime.gate import Gate, Screened, batch_of, explain, is_finite, outside, refuse_unfit
from testtime.intake.fingerprint import Fingerprint, state_hash
from testtime.intake.frozen import Frozen
from testtime.intake.gradients import explained, gradients
from testtime.intake.journal import Journal
from testtime.intake.named import Inputs, blank, form
from testtime.intake.sharing import Stateful, share
from testtime.intake.trees import modules_of
from testtime.norm.layer import advance, policies_of
from testtime.notices import Notices
from testtime.parts.lean import Saving, resting
from testtime.parts.views import MirrorCheck
from testtime.prediction import Prediction, TaskPredictions, as_prediction
from testtime.state import AdapterState, all_finite

if TYPE_CHECKING:
    from testtime.freezing import FrozenModel

__all__ = ["Adapter", "state_hash"]


class _Diverged(ArithmeticError):
    """A loss, a gradient, an update or a prediction was not finite: the step must not count."""


class Adapter(Facts, AdapterState, metaclass=Construction):
    """Base of every method: the method is ``__init__``, which holds its parts, and ``step``, the paper's algorithm.

    The base does everything else. A call refuses bad images before the forward, runs ``step`` under gradients whatever
    the caller's grad mode, and commits it or not: a step that is not finite leaves the state as it was. The state is a value
    (:class:`testtime.state.AdapterState`): ``state_dict`` copies what moves, ``reset`` loads the initial state. Calls of one
    adapter from several threads wait for each other.

    Args:
        model: the network as a norm policy returned it; frozen here, in evaluation mode. Frozen weights share their
            memory with the model they came from.
        seed: every random draw is a function of (seed, steps, purpose).

    Every method takes keywords that describe the model (:class:`testtime.intake.outputs.Logits`): ``outputs``,
    which part of its output the logits are; ``input_range``, the lowest and highest value of its inputs; ``preserves``, which
    changes of an image preserve its class (:class:`testtime.models.Views`). A fourth, ``autograd``, says what a step saves for
    its backward (:mod:`testtime.parts.lean`).

    Facts about the method are class attributes (:class:`testtime.facts.Facts`).

    Attributes:
        fingerprint: fingerprint of the source model when the adapter was built.
    """

    fingerprint: Fingerprint
    autograd: str | None = "plain"  # of an adapter around another, whose step runs the other's

    def __init__(self, model: nn.Module, seed: int = 0) -> None:
        super().__init__(model if isinstance(model, Adapter) else share(model), seed)
        self._updated = self._diverged = False  # in the last step
        self._frozen = Frozen()
        self._gate = Gate()
        self._mirror = MirrorCheck()
        self._saving = Saving()
        self._notices = Notices(type(self).__name__)

    # What a method defines --------------------------------------------------------------------------------------------

    def step(self, x: Tensor) -> Any:
        """Predict a batch (N, C, H, W) and learn from it: the method itself.

        Returns:
            logits (N, C), (N, C, H, W) or a :class:`Prediction`; for a multi-task model a dictionary of outputs by task.
        """
        raise TypeError(f"{type(self).__name__} has no step(x): a method is __init__ and step")

    def _predict_batch(self, x: Tensor) -> Any:
        """Predict a batch without learning; overridden where a prediction is more than the model's output."""
        return self.model(x)

    def _answering(self) -> nn.Module:
        """The module whose output a prediction is; overridden where ``_predict_batch`` is and a module computes the same."""
        if type(self)._predict_batch is not Adapter._predict_batch:
            made = self.answers_with or "more than the output of one network"
            raise TypeError(
                f"{type(self).__name__} cannot be frozen: it answers with {made}; keep the adapter and call predict(x)"
            )
        return self.model

    def _prepare(self, batches: Iterable[Tensor]) -> None:
        """Learn what the method needs from unlabelled source batches; overridden by methods with ``prepare``."""

    def update(self, loss: Tensor | Sequence[Tensor | None], rate: float = 1.0) -> None:
        """Take a step of the optimizer down a scalar loss, or along given gradients of the adapted parameters.

        Args:
            loss: a scalar with its graph, or a gradient for each adapted parameter.
            rate: factor of the learning rates, in this step alone.

        Raises:
            RuntimeError: ``__init__`` did not call :meth:`adapt`.
        """
        if self._optimizer is None:
            raise RuntimeError(f"{type(self).__name__} called update() without adapt() in its __init__")
        with resting(self.autograd):
            if isinstance(loss, Tensor):
                if not math.isfinite(loss.item()):
                    raise _Diverged("loss")
                loss = gradients(loss, self._adapted)
            if not all_finite([g for g in loss if g is not None]):
                raise _Diverged("gradient")
            self._move(loss, rate)
            with torch.no_grad():
                if not all_finite(self._adapted):
                    raise _Diverged("update")
        self._updated = True

    # What a user calls ------------------------------------------------------------------------------------------------

    def forward(self, x: Tensor | Mapping[str, Tensor]) -> Any:
        """Adapt to the batch and predict it.

        Args:
            x: images (N, C, H, W) or sequences (N, T, D), floating point; token ids (N, T); or a dictionary of tensors
                (N, ...), such as the batch of a tokenizer, which the model gets by keyword.

        Returns:
            logits (N, C) as a :class:`Prediction`, or a dictionary of outputs by task as :class:`TaskPredictions`
            where the model returns one. A sample with NaN or infinity is not shown to the network: its row is
            NaN and not ``valid``, and its neighbours get exactly what they would have got without it.

        Raises:
            TypeError, ValueError: x is no such batch, the method or the model does not take it, or the model does not return
                logits; the message says what to do. The state is as before.
        """
        with self._lock:
            self._frozen.check(self)
            batch, good = self._admit(x, learn=True)
            if len(batch) == 0:
                return self._nothing(batch, good)
            with torch.inference_mode(False), torch.enable_grad():
                y = self._committed(batch.clone() if batch.is_inference() else batch.detach())
                self.clock.add_(1)
            if self._diverged and not bool(y.valid.any()):
                self._notices.not_predicted("the model's answers are not finite")
            if y.updated or self._optimizer is None:
                self._notices.updated()
            else:
                self._notices.not_updated("its filters selected no sample")
            return y if len(batch) == len(good) else y.spread(good)

    def predict(self, x: Tensor | Mapping[str, Tensor]) -> Any:
        """Predict the batch without learning: the state stays the same, byte for byte. Arguments and results as of a call."""
        with self._lock:
            self._frozen.check(self)
            self._frozen.check_buffers(self)  # what the forward of the last prediction wrote
            batch, good = self._admit(x, learn=False)
            self._initial_state()
            if len(batch) == 0:
                return self._nothing(batch, good)
            with torch.inference_mode(False), torch.no_grad():
                y = self._predicted(batch)
            return y if len(batch) == len(good) else y.spread(good)

    def prepare(self, source: Iterable[Any]) -> None:
        """Learn from unlabelled batches of the source before the first batch of the stream.

        Batches are checked as those of a call: images that are not finite or out of range are left out.

        Args:
            source: batches (N, C, H, W); pairs (images, labels) too, where ``labelled_source``.

        Raises:
            TypeError: a batch is no floating-point tensor.
            ValueError: there is no batch, none of the images is accepted, the model does not take them, or learning from
                them led to values that are not finite. The state is as before.
        """
        with self._lock:
            self._frozen.check(self)
            self._frozen.check_buffers(self)
            self._initial_state()
            before, initial = Journal().before(self._parts(learned=True).values()), self._initial
            taught = self.taught
            batches = Screened(source, self.labelled_source, self._gate.within, partial(refuse_unfit, self))
            self.reset()
            try:
                with torch.inference_mode(False), torch.enable_grad(), explained():
                    self._prepare(batches)
                    advance(self, accept=False)
                self._initial, self._frozen, self._gate.within = None, Frozen(), batches.within
                now = self._initial_state()
                if taught is not None:
                    taught.remember(now)
            except BaseException as error:
                self._initial = initial
                self._undo(before)
                if isinstance(error, _Diverged):
                    raise ValueError(
                        f"the source batches led {type(self).__name__} to a {error} that is not finite; expected images as "
                        "in training, and a learning rate of optimizer= that fits"
                    ) from error
                if batches.last is not None:
                    self._explain(error, batches.last)
                raise

    def freeze(self) -> FrozenModel:
        """Return what ``predict`` computes as a plain module in its present state, independent of the adapter.

        Returns:
            module from a batch to logits, in evaluation mode and without gradients; its outputs are those of ``predict``.

        Raises:
            TypeError: the predictions of this method or wrapper are not computed by one module; the message says of what
                they are made.
        """
        from testtime.freezing import freeze  # few freeze an adapter: it is loaded when it is needed

        with self._lock:
            return freeze(self._answering())

    @property
    def input_range(self) -> tuple[float, float] | None:
        """Range of the inputs as the model declares it, or as estimated from the first images; None if unknown."""
        return self._gate.within

    # How the base keeps its promises ----------------------------------------------------------------------------------

    def _admit(self, x: Any, learn: bool) -> tuple[Any, Tensor]:
        """The samples of a batch that the network may receive, and which they are (a mask over the batch)."""
        x = batch_of(x)
        refuse_unfit(self, x)
        x, within = x.contiguous(), self._gate.within
        good = self._gate.admit(x, learn)
        if bool(good.all()):
            return x, good
        if not bool(good.any()) and not isinstance(self.model, Adapter):
            if not int(self.clock) and is_finite(x):
                raise ValueError(outside(x, within))
            self._notices.not_predicted(outside(x, within))
        return x[good], good

    def _committed(self, x: Any) -> Prediction | TaskPredictions:
        """Take a step and commit it, or restore the state where anything was not finite, and predict without learning."""
        self._initial_state()
        before, policies = self._journal.before(modules_of(self, Stateful)), policies_of(self)
        self._updated = self._diverged = False
        advance(policies, accept=False)  # what a prediction that raised has left
        try:
            self._mirror(self, x)
            with explained(), self._saving(self.autograd, x):
                y = as_prediction(self.step(x))
            self._frozen.check_buffers(self)  # the model's own forward may write into a buffer
            if not bool(y.valid.any()):
                raise _Diverged("answer")
            proposals = [v for m in policies for v in (m.proposal or {}).values()]
            if not all_finite([v for v in proposals if v.is_floating_point()]):
                raise _Diverged("statistics")
            advance(policies)
            y.updated = y.updated or self._updated
        except _Diverged as what:
            self._diverged = True
            self._undo(before)
            self._frozen.check_buffers(self)
            with torch.no_grad():
                y = as_prediction(self._predict_batch(x))
            y.failed = str(what)
            advance(policies, accept=False)
            self._notices.not_updated(f"the last {what} was not finite")
        except BaseException as error:
            self._undo(before)
            self._explain(error, x)
            raise
        return y

    def _predicted(self, x: Any) -> Prediction | TaskPredictions:
        try:
            return as_prediction(self._predict_batch(x))
        except Exception as error:
            self._explain(error, x)
            raise
        finally:
            advance(self, accept=False)

    def _nothing(self, x: Any, good: Tensor) -> Prediction | TaskPredictions:
        """Predictions of a batch of which no sample was admitted: NaN, in the form of the model's output."""
        with torch.inference_mode(False), torch.no_grad():
            one = self._predicted(blank(x))
        return one.at(one.valid & False).spread(good)

    def _explain(self, error: BaseException, x: Inputs) -> None:
        """Name the method in a note; raise a ValueError instead where the model itself does not take the batch.

        An adapter inside another has explained its own errors; it is not called again, for a call learns.
        """
        cause = None if isinstance(self.model, Adapter) else explain(self.model, x, error)
        advance(self, accept=False)
        if not hasattr(cause or error, "__notes__"):
            (cause or error).add_note(f"raised in {type(self).__name__}, on a batch of shape {form(x)}")
        if cause is not None:
            raise cause from error
