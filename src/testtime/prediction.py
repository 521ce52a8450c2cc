"""The prediction of an adapter: the logits, and what the method knows about them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["Prediction", "TaskPredictions", "as_prediction", "energy"]


def energy(logits: Tensor) -> Tensor:
    r"""Energy of the logits, an open-set score that is higher for the unknown.

    .. math:: E(x) = -\log \sum_c \exp z_c(x)

    Args:
        logits: (N, C), or (N, C, H, W).

    Returns:
        (N,), or (N, H, W), at least in float32.

    Reference: Liu et al., Energy-based Out-of-distribution Detection, NeurIPS 2020, eq. 3 (T = 1).

    >>> energy(torch.zeros(1, 10))  # -log 10
    tensor([-2.3026])
    """
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    return -logits.logsumexp(dim=1)


class Prediction(Tensor):
    """Logits (N, C), or (N, C, H, W), that carry what else the method knows; to every operation they are a plain tensor.

    Attributes:
        score: (N,) open-set score, or (N, H, W) for logits (N, C, H, W), higher for the unknown; the energy of the logits
            unless the method has its own.
        valid: (N,) bool; False where the image was refused (NaN, infinity) or could not be answered. The logits of
            such a row are NaN.
        selected: masks (N,), or (N, H, W) where a method filters pixels, by name, e.g.
            ``{"minimised": ..., "maximised": ...}``: what the method did with whom.
        updated: whether this call changed the adapted parameters.
        failed: part of the step that was not finite, "loss", "gradient", "update", "answer" or "statistics", for which it was
            taken back and the batch was predicted without learning; empty where the step counts.

    >>> y = Prediction(torch.tensor([[2.0, 0.0]]))
    >>> y.argmax(1), type(y + 1).__name__, y.valid
    (tensor([0]), 'Tensor', tensor([True]))
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    valid: Tensor
    selected: dict[str, Tensor]
    updated: bool
    failed: str
    _score: Tensor | None

    @staticmethod
    def __new__(
        cls,
        logits: Tensor,
        *,
        score: Tensor | None = None,
        valid: Tensor | None = None,
        selected: Mapping[str, Tensor] | None = None,
        updated: bool = False,
        failed: str = "",
    ) -> Prediction:
        self = torch.Tensor._make_subclass(cls, logits.detach())
        plain = logits.detach()
        self._score = None if score is None else score.detach()
        self.valid = _finite_rows(plain) if valid is None else valid
        self.selected = dict(selected or {})
        self.updated, self.failed = updated, failed
        return self

    def __init__(self, *_: object, **__: object) -> None:
        """All is done in ``__new__``, as a tensor asks for."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Prediction:
        copied = {name: mask.clone() for name, mask in self.selected.items()}
        memo[id(self)] = y = Prediction(
            self.logits.clone(),
            score=self.score.clone(),
            valid=self.valid.clone(),
            selected=copied,
            updated=self.updated,
            failed=self.failed,
        )
        return y

    @property
    def score(self) -> Tensor:
        """Open-set score (N,), or (N, H, W); an energy is computed when it is first read."""
        if self._score is None:
            with torch.inference_mode(False), torch.no_grad():
                self._score = energy(self.logits)
        return self._score

    @score.setter
    def score(self, value: Tensor) -> None:
        self._score = value

    @property
    def logits(self) -> Tensor:
        """The logits (N, C) as a plain tensor."""
        return self.as_subclass(Tensor)

    def at(self, rows: Tensor) -> Prediction:
        """The same prediction for some rows only (an index or a mask of length N)."""
        return Prediction(
            self.logits[rows],
            score=self.score[rows],
            valid=self.valid[rows],
            selected={name: mask[rows] for name, mask in self.selected.items()},
            updated=self.updated,
            failed=self.failed,
        )

    def spread(self, rows: Tensor) -> Prediction:
        """The prediction for a larger batch in which these are the rows where the mask ``rows`` (M,) is True.

        The other rows are not valid: their logits and scores are NaN, and no mask holds them.
        """
        return Prediction(
            _fill(self.logits, rows, torch.nan),
            score=_fill(self.score, rows, torch.nan),
            valid=_fill(self.valid, rows, False),
            selected={name: _fill(mask, rows, False) for name, mask in self.selected.items()},
            updated=self.updated,
            failed=self.failed,
        )


class TaskPredictions(dict[str, Tensor]):
    """The outputs of a multi-task model by task name, with what else the method knows; otherwise a plain dictionary.

    Attributes:
        valid: (N,) bool; False where the image was refused or could not be answered: its outputs are NaN.
        selected: masks (N,) by name, as in :class:`Prediction`.
        updated: whether this call changed the adapted parameters.
        failed: part of the step that was not finite, as in :class:`Prediction`.

    >>> y = TaskPredictions({"depth": torch.ones(2, 1, 4, 4)})
    >>> y["depth"].shape, y.valid
    (torch.Size([2, 1, 4, 4]), tensor([True, True]))
    """

    def __init__(
        self,
        outputs: Mapping[str, Tensor],
        *,
        valid: Tensor | None = None,
        selected: Mapping[str, Tensor] | None = None,
        updated: bool = False,
        failed: str = "",
    ) -> None:
        super().__init__({name: y.detach() for name, y in outputs.items()})
        finite = [torch.isfinite(y[:, None]).flatten(1).all(1) for y in self.values()]
        self.valid = torch.stack(finite).all(0) if valid is None else valid
        self.selected = dict(selected or {})
        self.updated, self.failed = updated, failed

    def at(self, rows: Tensor) -> TaskPredictions:
        """The same for some images only (an index or a mask of length N)."""
        return self._each(lambda y, _: y[rows])

    def spread(self, rows: Tensor) -> TaskPredictions:
        """The prediction for a larger batch in which these are the images where the mask ``rows`` (M,) is True."""
        return self._each(lambda y, nothing: _fill(y, rows, nothing))

    def __reduce__(self) -> tuple[Any, ...]:
        return _tasks, (dict(self), self.valid, self.selected, self.updated, self.failed)

    def _each(self, change: Callable[[Tensor, float | bool], Tensor]) -> TaskPredictions:
        return TaskPredictions(
            {name: change(y, torch.nan) for name, y in self.items()},
            valid=change(self.valid, False),
            selected={name: change(mask, False) for name, mask in self.selected.items()},
            updated=self.updated,
            failed=self.failed,
        )


def _tasks(
    outputs: dict[str, Tensor], valid: Tensor, selected: dict[str, Tensor], updated: bool, failed: str
) -> Any:
    return TaskPredictions(outputs, valid=valid, selected=selected, updated=updated, failed=failed)


def as_prediction(y: Any) -> Prediction | TaskPredictions:
    """Return logits as a :class:`Prediction`, a dictionary of outputs as :class:`TaskPredictions`."""
    if isinstance(y, Prediction | TaskPredictions):
        return y
    return TaskPredictions(y) if isinstance(y, Mapping) else Prediction(y)


def _finite_rows(y: Tensor) -> Tensor:
    """Whether all values of each row (N, ...) are finite; a finite sum of a few says so of all in fewer calls."""
    if y.device.type == "cpu" and 0 < y.numel() < 2**10 and math.isfinite(y.sum()):
        return torch.ones(len(y), dtype=torch.bool)
    return torch.isfinite(y).flatten(1).all(1)


def _fill(values: Tensor, rows: Tensor, nothing: float | bool) -> Tensor:
    """The values in the rows that a mask names, and nothing in the others."""
    whole = values.new_full((len(rows), *values.shape[1:]), nothing)
    whole[rows] = values
    return whole


# torch.load reads a saved prediction without executing a pickle: both hold tensors, strings and truth values.
torch.serialization.add_safe_globals([Prediction, _tasks])
