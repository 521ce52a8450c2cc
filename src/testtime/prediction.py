"""What an adapter answers: the logits, and what the method has to say about them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["Prediction", "energy"]


def energy(logits: Tensor) -> Tensor:
    r"""Energy of the logits, an open-set score that is higher for the unknown.

    .. math:: E(x) = -\log \sum_c \exp z_c(x)

    Args:
        logits: (N, C).

    Returns:
        (N,), at least in float32.

    Reference: Liu et al., Energy-based Out-of-distribution Detection, NeurIPS 2020, eq. 3 (T = 1).

    >>> energy(torch.zeros(1, 10))  # -log 10
    tensor([-2.3026])
    """
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    return -logits.logsumexp(dim=-1)


class Prediction(Tensor):
    """Logits (N, C) that carry what else the method knows; to every operation they are a plain tensor.

    Attributes:
        score: (N,) open-set score, higher for the unknown; the energy of the logits unless the method has its own.
        valid: (N,) bool; False where the image was refused (NaN, infinity) or could not be answered. The logits of
            such a row are NaN.
        selected: masks (N,) by name, e.g. ``{"minimised": ..., "maximised": ...}``: what the method did with whom.
        updated: whether this call changed the adapted parameters.

    >>> y = Prediction(torch.tensor([[2.0, 0.0]]))
    >>> y.argmax(1), type(y + 1).__name__, y.valid
    (tensor([0]), 'Tensor', tensor([True]))
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    score: Tensor
    valid: Tensor
    selected: dict[str, Tensor]
    updated: bool

    @staticmethod
    def __new__(
        cls,
        logits: Tensor,
        *,
        score: Tensor | None = None,
        valid: Tensor | None = None,
        selected: Mapping[str, Tensor] | None = None,
        updated: bool = False,
    ) -> Prediction:
        self = torch.Tensor._make_subclass(cls, logits.detach())
        plain = logits.detach()
        self.score = energy(plain) if score is None else score.detach()
        self.valid = torch.isfinite(plain).flatten(1).all(1) if valid is None else valid
        self.selected = dict(selected or {})
        self.updated = updated
        return self

    def __init__(self, *_: object, **__: object) -> None:
        """All is done in ``__new__``, as a tensor asks for."""

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
        )

    def spread(self, rows: Tensor) -> Prediction:
        """The prediction for a larger batch in which these are the rows where the mask ``rows`` (M,) is True.

        The other rows are not valid: their logits and scores are NaN, and no mask holds them.
        """

        def fill(values: Tensor, nothing: float | bool) -> Tensor:
            whole = values.new_full((len(rows), *values.shape[1:]), nothing)
            whole[rows] = values
            return whole

        return Prediction(
            fill(self.logits, torch.nan),
            score=fill(self.score, torch.nan),
            valid=fill(self.valid, False),
            selected={name: fill(mask, False) for name, mask in self.selected.items()},
            updated=self.updated,
        )
