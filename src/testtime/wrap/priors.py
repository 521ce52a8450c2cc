"""Wrappers that follow how frequent the classes are: in the answers, or in the head."""

from __future__ import annotations

from typing import Any, Literal, final

from torch import Tensor, nn

from testtime.adapter import Adapter
from testtime.parts.prior import UnderPrior, reweighted
from testtime.prediction import Prediction
from testtime.source.label_shift import shifted_heads
from testtime.wrap.wrapper import Wrapper

__all__ = ["LabelShift", "PriorCorrected"]


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

    >>> import torch
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

    def _predict_batch(self, x: Tensor) -> Tensor:
        return self._correct(self.adapter.predict(x))

    def _answering(self) -> nn.Module:
        return UnderPrior(self.adapter._answering(), self.of)

    def step(self, x: Tensor) -> Tensor:
        return self._correct(self.adapter(x))


@final
class LabelShift(Wrapper):
    r"""The head follows how frequent the classes of the stream are, estimated from the answers.

    .. math:: \pi \leftarrow \rho\, \pi + (1 - \rho)\, \tfrac1N \sum_i \operatorname{softmax}(z_i)

    A step:
        1. let the adapter predict and learn the batch, with the head for the distribution :math:`\pi` so far;
        2. move :math:`\pi` towards the mean answer; the following batches use the head for that.

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

    >>> import torch
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
