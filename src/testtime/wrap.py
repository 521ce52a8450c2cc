"""Wrappers, adapter -> adapter: when to forget, with whom a single image is predicted, and how often classes are."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, ClassVar, Literal, final

import torch
from torch import Tensor

from testtime.adapter import Adapter
from testtime.parts.prior import reweighted
from testtime.prediction import Prediction
from testtime.source.label_shift import shifted_heads

__all__ = [
    "Episodic",
    "LabelShift",
    "PriorCorrected",
    "Repeat",
    "ResetEvery",
    "TimeConstrained",
    "Window",
    "Wrapper",
]


class Wrapper(Adapter):
    """Base of what tweaks an adapter without knowing its method: it holds one, and is one.

    The facts (``output``, ``source``, ``labelled_source``, ``stochastic``, ``cost``) are the inner adapter's, ``predict``
    asks it, ``prepare`` teaches it, and its state is part of the wrapper's. A subclass says ``step``.

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

    def _look(self, x: Tensor) -> Tensor:
        return self.adapter.predict(x)

    def _learn(self, batches: Iterable[Tensor]) -> None:
        self.adapter.prepare(batches)

    def reset(self) -> None:
        super().reset()
        self.adapter.reset()

    def _born(self) -> dict[str, Tensor]:
        self.adapter._born()  # together, so that a state loaded later does not become the inner one's birth
        return super()._born()


@final
class Episodic(Wrapper):
    r"""Every batch is met by the adapter as it was born.

    .. math:: \theta_t = \theta_0 - \eta \nabla L(x_t; \theta_0)

    A step:
        1. reset the adapter;
        2. let it predict and learn the batch.

    ``predict`` looks with what the last batch left.

    Args:
        adapter: adapter that is reset.

    Cost: the adapter's.

    Reference: the episodic mode of Tent's code (Wang et al., ICLR 2021); MEMO (Zhang et al., NeurIPS 2022).

    >>> from torch import nn
    >>> from testtime.methods import Tent
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    >>> tent = Episodic(Tent(net))
    >>> x = torch.rand(8, 3, 8, 8)
    >>> bool((tent(x) == tent(x)).all())
    True
    """

    def step(self, x: Tensor) -> Tensor:
        self.adapter.reset()
        return self.adapter(x)


@final
class ResetEvery(Wrapper):
    r"""Back to birth after a fixed number of steps: the adapter never drifts further than that.

    .. math:: \theta_t \leftarrow \theta_0 \quad \text{whenever } t \bmod T = 0

    A step:
        1. when ``every`` steps have passed since birth or the last reset, reset the adapter;
        2. let it predict and learn the batch.

    Args:
        adapter: adapter that is reset.
        every: T, in steps; the paper's is 1000.

    Raises:
        ValueError: every is below 1.

    Cost: the adapter's.

    Reference: Press, Schneider, Kümmerer and Bethge, RDumb: A simple approach that questions our progress in
    continual test-time adaptation, NeurIPS 2023, section 4 (there around ETA).

    >>> from torch import nn
    >>> from testtime.methods import Tent
    >>> ResetEvery(Tent(nn.LayerNorm(3)), 1000).every
    1000
    """

    def __init__(self, adapter: Adapter, every: int = 1000) -> None:
        if every < 1:
            raise ValueError(f"every counts the steps between two resets and is at least 1, got {every}")
        super().__init__(adapter)
        self.every = every

    def step(self, x: Tensor) -> Tensor:
        if int(self.clock) % self.every == 0:
            self.adapter.reset()
        return self.adapter(x)


@final
class PriorCorrected(Wrapper):
    r"""What is frequent in a batch is more likely there: every answer is reweighted by the classes of its batch.

    .. math:: z_i' = z_i + \log \bar p, \qquad \bar p = \text{the smoothed mean prediction of the batch}

    which is Bayes' rule for a source whose classes were equally frequent (:func:`testtime.parts.prior.smoothed_prior`).

    A step:
        1. let the adapter predict and learn the batch;
        2. estimate how frequent the classes are in it, and reweight its answer; what the adapter learns is not touched.

    Departures: the published code of ROID multiplies the logits, instead of the probabilities, by the prior:
    ``of="logits"``. It does so with the forward before the update, as most adapters answer. An open-set score stays the
    adapter's.

    Args:
        adapter: any that answers logits (N, C).
        of: quantity that the prior multiplies, "probabilities" or "logits".

    Raises:
        ValueError: ``of`` is neither.
        TypeError: the adapter answers several tasks.

    Cost: the adapter's.

    Reference: Marsden, Döbler and Yang, Universal Test-Time Adaptation through Weight Ensembling, Diversity Weighting, and
    Prior Correction, WACV 2024.

    >>> from torch import nn
    >>> from testtime.methods import Source
    >>> net = nn.Linear(2, 2)
    >>> nn.init.eye_(net.weight).sum().item(), nn.init.zeros_(net.bias).sum().item()
    (2.0, 0.0)
    >>> x = torch.tensor([[9.0, 0.0], [9.0, 0.0], [9.0, 0.0], [1.0, 1.1]])  # three of the first class, and a doubtful image
    >>> Source(net)(x).argmax(1).tolist(), PriorCorrected(Source(net))(x).argmax(1).tolist()
    ([0, 0, 0, 1], [0, 0, 0, 0])
    """

    def __init__(self, adapter: Adapter, of: Literal["probabilities", "logits"] = "probabilities") -> None:
        super().__init__(adapter)
        self.of = of

    def _correct(self, y: Any) -> Prediction:
        if not isinstance(y, Prediction) or y.dim() != 2:
            raise TypeError(
                "the prior of a batch is that of its logits (N, C), and this adapter answers otherwise"
            )
        z = reweighted(y.logits, y.valid, self.of)
        return Prediction(z, score=y.score, valid=y.valid, selected=y.selected, updated=y.updated)

    def _look(self, x: Tensor) -> Tensor:
        return self._correct(self.adapter.predict(x))

    def step(self, x: Tensor) -> Tensor:
        return self._correct(self.adapter(x))


@final
class LabelShift(Wrapper):
    r"""The head follows how frequent the classes of the stream are, estimated from the answers.

    .. math:: \pi \leftarrow \rho\, \pi + (1 - \rho)\, \tfrac1N \sum_i \operatorname{softmax}(z_i)

    A step:
        1. let the adapter predict and learn the batch, with the head for the distribution :math:`\pi` so far;
        2. move :math:`\pi` towards the mean answer; the batches that follow meet the head for that.

    Args:
        adapter: any, around a model with a :class:`testtime.source.label_shift.ShiftedHead` (there: how it is made and
            learned, what is the paper's, and what is not).
        decay: rho, the weight of the past; its default is this library's.

    Raises:
        ValueError: the model has no such head, or decay lies outside [0, 1].
        TypeError: the adapter answers several tasks.

    Cost: the adapter's.

    Reference: Park, Yang, Choo and Yun, Label Shift Adapter for Test-Time Adaptation under Covariate and Label Shifts, ICCV
    2023.

    >>> from torch import nn
    >>> from testtime.source.label_shift import with_label_shift
    >>> from testtime.methods import Tent
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    >>> adapter = LabelShift(Tent(with_label_shift(net, torch.tensor([0.9, 0.1]))))
    >>> adapter(torch.rand(8, 3, 8, 8)).shape, adapter.distribution.shape
    (torch.Size([8, 2]), torch.Size([2]))
    """

    def __init__(self, adapter: Adapter, decay: float = 0.9) -> None:
        super().__init__(adapter)
        if not 0 <= decay <= 1:
            raise ValueError(f"decay is the weight of the past and lies in [0, 1], got {decay}")
        if not shifted_heads(self.adapter):
            raise ValueError(
                "this adapter's model has no head that follows a label distribution; build it by "
                "testtime.source.label_shift.with_label_shift(model, prior)"
            )
        self.decay = decay

    @property
    def distribution(self) -> Tensor:
        """The label distribution (C,) that the head is for."""
        return shifted_heads(self.adapter)[0].distribution

    def step(self, x: Tensor) -> Tensor:
        y = self.adapter(x)
        if not isinstance(y, Prediction) or y.dim() != 2:
            raise TypeError(
                "a label distribution is that of logits (N, C), and this adapter answers otherwise"
            )
        if bool(y.valid.any()):
            p = y.logits[y.valid].to(self.distribution.dtype).softmax(dim=1)
            distribution = p.mean(dim=0).lerp(self.distribution, self.decay)
            for head in shifted_heads(self.adapter):
                head.restore("distribution", distribution)
        return y


@final
class Repeat(Wrapper):
    r"""Every batch is learned several times, and then predicted: test-time training as its papers run it.

    A step:
        1. let the adapter learn the batch, ``times`` times;
        2. answer what it predicts then.

    ``Episodic(Repeat(adapter, 40))`` begins every batch at the source, ``Repeat(adapter, 40)`` goes on from the last.

    Args:
        adapter: adapter that learns; one call is one step of its optimizer.
        times: steps on a batch.

    Raises:
        ValueError: times is below 1.

    Cost: ``times`` times the adapter's, and one prediction.

    Reference: Sun et al., Test-Time Training with Self-Supervision for Generalization under Distribution Shifts, ICML 2020
    (10 steps); Jeong et al., Synchronizing Task Behavior, ICCV 2025 (up to 40).

    >>> from torch import nn
    >>> from testtime.methods import Tent
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    >>> tent = Repeat(Tent(net), 5)
    >>> y = tent(torch.rand(8, 3, 8, 8))
    >>> y.updated, int(tent.adapter.clock), tent.cost
    (True, 5, (6, 5))
    """

    def __init__(self, adapter: Adapter, times: int = 40) -> None:
        super().__init__(adapter)
        if times < 1:
            raise ValueError(f"times counts the steps on a batch and is at least 1, got {times}")
        self.times = times
        forwards, backwards = adapter.cost
        self.output, self.cost = "after", (times * forwards + 1, times * backwards)

    def step(self, x: Tensor) -> Any:
        updated = [self.adapter(x).updated for _ in range(self.times)]
        self._updated = any(updated)
        return self.adapter.predict(x)


@final
class TimeConstrained(Wrapper):
    r"""The stream does not wait: what arrives while the adapter is still learning is answered without learning.

    With the cost c of a step of the adapter, in plain predictions, and :math:`\eta` batches arriving in the time of one,

    .. math:: \text{batches that are missed after each that is learned} = \lceil \eta\, c \rceil - 1

    A step:
        1. if the last lesson is over, let the adapter predict and learn the batch: its lesson begins;
        2. else answer without learning, by another model or by the adapter as it is.

    Departures: the paper measures c by the clock, so that no run is repeated; here it is declared, the forwards of a step and
    two for each backward unless given, and a run is a function of its seed. A method that answers and learns within one
    plain prediction misses nothing.

    Args:
        adapter: any.
        meanwhile: who answers what is missed; the paper's is ``Source(model)``. None is the adapter as it is, without learning.
        speed: eta, in (0, 1] in the paper; 1 is a stream as fast as the source model.
        cost: c; what the adapter declares unless given.

    Raises:
        TypeError: ``meanwhile`` is no adapter.
        ValueError: speed or cost is not positive.

    Cost: the adapter's, and one prediction.

    Reference: Alfarra, Itani, Pardo, Bhuwalka, Singh, Ghanem and Pérez, Evaluation of Test-Time Adaptation Under Computational
    Time Constraints, ICML 2024.

    >>> from torch import nn
    >>> from testtime.methods import Source, Tent
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    >>> tent = TimeConstrained(Tent(net), Source(net))  # a forward and a backward: two of three batches are missed
    >>> [tent(torch.rand(8, 3, 8, 8)).updated for _ in range(5)]
    [True, False, False, True, False]
    """

    kept_as: ClassVar = {
        "cost": "taken"
    }  # for testtime.save: the attribute that holds an argument of another name
    busy: Tensor

    def __init__(
        self,
        adapter: Adapter,
        meanwhile: Adapter | None = None,
        speed: float = 1.0,
        cost: float | None = None,
    ) -> None:
        super().__init__(adapter)
        if meanwhile is not None and not isinstance(meanwhile, Adapter):
            raise TypeError(f"meanwhile is an adapter, such as Source(model), got {type(meanwhile).__name__}")
        forwards, backwards = adapter.cost
        self.meanwhile, self.speed = meanwhile, speed
        self.taken = forwards + 2 * backwards if cost is None else cost
        if not speed > 0 or not self.taken > 0:
            raise ValueError(f"speed and cost are positive, got {speed} and {self.taken}")
        self.register_buffer("busy", torch.zeros((), dtype=torch.int64))

    @property
    def delay(self) -> int:
        """Batches that are missed after each that is learned."""
        return max(0, math.ceil(self.speed * self.taken) - 1)

    def _born(self) -> dict[str, Tensor]:
        if self.meanwhile is not None:
            self.meanwhile._born()
        return super()._born()

    def _look(self, x: Tensor) -> Tensor:
        return (self.meanwhile if self.meanwhile is not None and int(self.busy) else self.adapter).predict(x)

    def step(self, x: Tensor) -> Tensor:
        if int(self.busy):
            y = self._look(x)
            self.busy -= 1
            return y
        self.busy += self.delay
        return self.adapter(x)


@final
class Window(Wrapper):
    """Single images in company: each is predicted with the last ones, and learned from when enough arrived.

    A step:
        1. put the new images behind the last ones; beyond ``size`` the oldest leave (a batch stays whole);
        2. when ``every`` new images have arrived, let the adapter predict and learn all these, else predict;
        3. answer the rows of the new images, and remember the last ``size`` images.

    Args:
        adapter: adapter that predicts and learns; batch statistics and losses are those of the window.
        size: number of images in the window.
        every: new images between two adaptations; ``size`` unless given.

    Raises:
        ValueError: size or every is below 1, or an image has another form than those in the window.

    Cost: the adapter's on up to max(size, N) images per step of N.

    >>> from torch import nn
    >>> from testtime.methods import Tent
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    >>> tent = Window(Tent(net), size=3)
    >>> [tent(torch.rand(1, 3, 8, 8)).updated for _ in range(4)]
    [False, False, True, False]
    """

    window: Tensor
    arrived: Tensor

    def __init__(self, adapter: Adapter, size: int, every: int | None = None) -> None:
        super().__init__(adapter)
        if size < 1 or (every is not None and every < 1):
            raise ValueError(
                f"size and every count images and are at least 1, got size={size}, every={every}"
            )
        self.size, self.every = size, size if every is None else every
        self.register_buffer("window", torch.zeros(0))  # the form of an image is not known before the first
        self.register_buffer("arrived", torch.zeros((), dtype=torch.int64))

    def _company(self, x: Tensor) -> Tensor:
        """The new images (N, ...) behind those of the window, at most ``size`` in all unless N is more."""
        if self.window.numel() == 0:
            return x
        if self.window.shape[1:] != x.shape[1:]:
            raise ValueError(
                f"the window holds images of shape {tuple(self.window.shape[1:])}, got {tuple(x.shape[1:])}; "
                "resize the images, or call reset() to begin a new window"
            )
        return torch.cat([self.window.to(x), x])[-max(self.size, len(x)) :]

    def _look(self, x: Tensor) -> Tensor:
        company = self._company(x)
        return self.adapter.predict(company).at(_last(len(x), company))

    def step(self, x: Tensor) -> Tensor:
        company = self._company(x)
        self.window = company[-self.size :].clone()
        self.arrived += len(x)
        if int(self.arrived) < self.every:
            return self.adapter.predict(company).at(_last(len(x), company))
        self.arrived.zero_()
        return self.adapter(company).at(_last(len(x), company))


def _last(n: int, batch: Tensor) -> Tensor:
    return torch.arange(len(batch) - n, len(batch), device=batch.device)
