"""The base of every wrapper: an adapter that holds another."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from testtime.adapter import Adapter

__all__ = ["Wrapper"]


class Wrapper(Adapter):
    """Base of adapters that change another adapter without knowing its method.

    The facts (``output``, ``source``, ``labelled_source``, ``stochastic``, ``cost``) are the inner adapter's, ``predict``
    and ``prepare`` are passed on to it, and its state is part of the wrapper's. A subclass defines ``step``.

    Args:
        adapter: any adapter, a wrapper too.

    Raises:
        TypeError: the wrapped object is not an adapter.
    """

    def __init__(self, adapter: Adapter) -> None:
        if not isinstance(adapter, Adapter):
            raise TypeError(
                f"{type(self).__name__} wraps an adapter, got {type(adapter).__name__}; "
                "build one first, as in Episodic(Tent(model))"
            )
        super().__init__(adapter, adapter.seed)
        self.output, self.source = adapter.output, adapter.source
        self.labelled_source = adapter.labelled_source
        self.stochastic, self.cost = adapter.stochastic, adapter.cost

    @property
    def adapter(self) -> Adapter:
        """The adapter inside."""
        assert isinstance(self.model, Adapter)
        return self.model

    def _predict_batch(self, x: Tensor) -> Tensor:
        return self.adapter.predict(x)

    def _answering(self) -> nn.Module:
        own = type(self)._predict_batch is not Wrapper._predict_batch
        return super()._answering() if own else self.adapter._answering()

    def _prepare(self, batches: Iterable[Tensor]) -> None:
        self.adapter.prepare(batches)

    def reset(self) -> None:
        super().reset()
        self.adapter.reset()

    def _initial_state(self) -> dict[str, Tensor]:
        self.adapter._initial_state()  # together, so that a state loaded later does not become the inner one's initial state
        return super()._initial_state()
