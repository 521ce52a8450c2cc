r"""PAF + KIP: two filters decide who is learned from, three models decide what is answered.

With the adapting model :math:`f`, its moving average :math:`e`, the source model :math:`s`, an augmented view
:math:`\tilde x`, the entropy :math:`H` in nats and :math:`\tau = m \log C`,

.. math::
    F_{pr} &= [H(f(\tilde x)) < \tau], \qquad F_{aux} = [H(e(\tilde x)) < \tau]                          && (6, 7) \\
    w &= \exp(\tau - H(e(\tilde x)))                                                                     && (8) \\
    L &= \tfrac1B \sum_i F_{pr}\, w\, H(f(\tilde x_i))
         - \alpha\, (1 - F_{pr})(1 - F_{aux})\, H(f(\tilde x_i))                                         && (9) \\
    e &\leftarrow \beta e + (1 - \beta) f                                                                && (4) \\
    c_i &= \tfrac13 + \gamma \big(\max p_i - \tfrac13 \textstyle\sum_j \max p_j\big), \qquad
    z = \textstyle\sum_i c_i z_i, \quad i \in \{s(x), f(\tilde x), e(\tilde x)\}                         && (10, 11)

A step:
    1. predict the batch with three models: the source on x, the adapting one and its average on the augmented view;
    2. lower the entropy of what the primary filter takes for known, weighted by the average's confidence; raise it
       where both filters see an unknown; leave out what only the primary filter refuses;
    3. update the scale and shift of the normalisation layers; answer with the weighted logits, and with the energy of
       the adapting model as open-set score; then update the average.

Departures:
    No code was published. The paper leaves open, and this chooses: batch statistics in f and e (as TENT), the source's
    own in s (``source_statistics``); z from the forward before the update (``PAFKIPOptions(output="after")`` forwards
    x again, as the order of lines 17-19 of Algorithm 1 can be read: update f, compute z, update e); the crop pads an
    eighth of the side with zeros; momentum 0.9 for SGD. w and the filters carry no gradient. The mean is over the whole
    batch (Algorithm 1, line 16).

Cost: three forwards and one backward; the weights exist once, whatever the three models.
``PAFKIPOptions(batched=True)`` runs the three forwards as one pass of three times the batch (for GPUs bound by launches).

Reference: Lee, Lee and Lee, Stabilizing Open-Set Test-Time Adaptation via Primary-Auxiliary Filtering and
Knowledge-Integrated Prediction, BMVC 2025.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor, nn

from testtime.adapter import Adapter
from testtime.intake.sharing import twin
from testtime.norm import SourceStatistics, batch_statistics, norm_affine, swap_policy
from testtime.norm.grouped import grouped
from testtime.parts import Teacher, adam, entropy, generator, random_crop_flip
from testtime.parts.augment import Augmentation
from testtime.parts.optimizers import OptimizerFactory
from testtime.parts.views import preserving
from testtime.prediction import Prediction, energy

__all__ = ["PAFKIP", "PAFKIPOptions", "knowledge_integrated", "primary_auxiliary_loss"]

Filter = Literal["none", "soft", "hard"]
MODELS = ("source", "adapting", "ema")


def primary_auxiliary_loss(
    adapting: Tensor,
    auxiliary: Tensor,
    tau: float,
    alpha: float,
    minimise: Filter = "soft",
    maximise: Filter = "hard",
    primary: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of equation 9, and who was minimised and maximised.

    Args:
        adapting: H(f(x~)), (B,), with its graph; it is lowered or raised.
        auxiliary: H(e(x~)), (B,), without; supports or vetoes (eq. 7, 8).
        tau: threshold in nats.
        alpha: the weight of the maximisation.
        minimise: role of the auxiliary filter on the known side: "soft" weighs (the paper), "hard" demands that it
            agree, "none" leaves it out.
        maximise: the same on the unknown side; "soft" weighs with ``1 - exp(tau - H(e))`` bounded to [0, 1], "hard" is
            the paper's.
        primary: the entropies (B,) that decide who counts as known; H(f(x~)) unless given (eq. 6).

    Returns:
        the scalar loss and the masks ``{"minimised", "maximised"}``, (B,) each.
    """
    known, agreed = (adapting if primary is None else primary).detach() < tau, auxiliary < tau
    weight = torch.exp(tau - auxiliary)
    down = {"soft": known * weight, "hard": (known & agreed).to(weight), "none": known.to(weight)}[minimise]
    doubt = {"soft": (1 - weight).clamp(0, 1), "hard": (~agreed).to(weight), "none": torch.ones_like(weight)}[
        maximise
    ]
    up = ~known * doubt
    loss = ((down - alpha * up) * adapting).mean()
    return loss, {"minimised": down > 0, "maximised": up > 0}


def knowledge_integrated(logits: list[Tensor], gamma: float) -> Tensor:
    """Logits (N, C) of several models, each weighted per sample by its confidence against the others' (eq. 10, 11)."""
    z = torch.stack(logits)
    confidence = z.softmax(dim=-1).amax(dim=-1)
    c = 1 / len(logits) + gamma * (confidence - confidence.mean(dim=0))
    return (c[..., None] * z).sum(dim=0)


@final
@dataclass(frozen=True)
class PAFKIPOptions:
    """Settings of PAFKIP that are rarely changed.

    Args:
        primary: model of the primary filter: "adapting", or "ema" for equation 5.
        minimise, maximise: use of the auxiliary filter on either side: "soft", "hard" or "none" (tables 4 and 5).
        models: models in the integrated prediction, of "source", "adapting" and "ema"; ("adapting",) switches KIP off.
        source_statistics: BatchNorm statistics of the source model: "source" or "batch".
        output: time of the adapting model's logits in the prediction: "before" or "after" its update; those of the average are
            from before its update either way.
        batched: whether the three forwards are one.

    Raises:
        ValueError: ``models`` is empty or names a model that there is not.
    """

    primary: Literal["adapting", "ema"] = "adapting"
    minimise: Filter = "soft"
    maximise: Filter = "hard"
    models: tuple[str, ...] = MODELS
    source_statistics: Literal["source", "batch"] = "source"
    output: Literal["before", "after"] = "before"
    batched: bool = False

    def __post_init__(self) -> None:
        if not self.models or set(self.models) - set(MODELS):
            raise ValueError(f"models are one or more of {MODELS}, got {self.models}")


class Integrated(nn.Module):
    """The knowledge-integrated prediction of several models, as a module.

    Args:
        models: models by name.
        gamma: exponent of :func:`knowledge_integrated`.
    """

    def __init__(self, models: dict[str, nn.Module], gamma: float) -> None:
        super().__init__()
        self.models, self.gamma = nn.ModuleDict(models), gamma

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, C)."""
        return knowledge_integrated([model(x) for model in self.models.values()], self.gamma)


@final
class PAFKIP(Adapter):
    """Two filters decide who is learned from, three models decide what is answered.

    Args:
        model: any classifier with normalisation layers.
        classes: C, the number of known classes.
        optimizer: the paper's are ``adam(1e-3)`` (CIFAR) and ``sgd(2.5e-4)`` (ImageNet).
        margin: tau as a fraction of log C.
        alpha: weight of the entropy maximisation, 2.0 (CIFAR), 0.7 (ImageNet); 0 switches it off.
        decay: beta, the weight of the past in the average; below 0.99 it fails (figure 7 of the paper).
        gamma: weight of confidence in the integrated prediction; 0 is the mean of the models.
        augment: the view x~, within the model's invariances; ``testtime.parts.identity`` switches randomness off.
        options: settings that are rarely changed.
        norm: the policy of the BatchNorm layers in the adapting and the average model.
        seed: random seed of the augmentation.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    >>> adapter = PAFKIP(net, classes=2)
    >>> y = adapter(torch.rand(8, 3, 8, 8))
    >>> y.shape, y.score.shape, sorted(y.selected)
    (torch.Size([8, 2]), torch.Size([8]), ['maximised', 'minimised'])
    """

    name, label = "paf-kip", "PAF+KIP"
    needs = ("classifier", "norm", "views")
    venue = "BMVC 2025"
    paper = (
        "Lee, Lee and Lee, Stabilizing Open-Set Test-Time Adaptation via Primary-Auxiliary Filtering and "
        "Knowledge-Integrated Prediction"
    )
    stochastic = True
    cost = (3, 1)

    def __init__(
        self,
        model: nn.Module,
        classes: int,
        optimizer: OptimizerFactory = adam(1e-3),  # noqa: B008
        margin: float = 0.4,
        alpha: float = 2.0,
        decay: float = 0.999,
        gamma: float = 0.1,
        augment: Augmentation = random_crop_flip,
        options: PAFKIPOptions = PAFKIPOptions(),
        norm: Callable[[nn.Module], nn.Module] = batch_statistics,
        seed: int = 0,
    ) -> None:
        super().__init__(norm(model), seed)
        self.classes, self.optimizer, self.margin, self.alpha = classes, optimizer, margin, alpha
        self.decay, self.gamma, self.options, self.norm = decay, gamma, options, norm
        self.augment = preserving(augment, self.model)
        self.output = options.output
        self.cost = (3 if options.output == "before" else 4, 1)
        affine = norm_affine(self.model)
        self.adapt(affine, optimizer)
        self.ema = Teacher(self.model, affine, decay)
        self.origin = twin(self.model, own=affine)
        if options.source_statistics == "source":
            swap_policy(self.origin, SourceStatistics, again=True)
        self.stack = grouped([self.origin, self.model, self.ema.model]) if options.batched else None

    @property
    def tau(self) -> float:
        """The threshold in nats."""
        return self.margin * math.log(self.classes)

    def _three(self, x: Tensor, view: Tensor) -> dict[str, Tensor]:
        """Logits by model: the source sees x, the other two the view."""
        if self.stack is not None:
            return dict(zip(MODELS, self.stack(torch.cat([x, view, view])).chunk(3), strict=True))
        with torch.no_grad():
            source, ema = self.origin(x), self.ema(view)
        return {"source": source, "adapting": self.model(view), "ema": ema}

    def _predict_batch(self, x: Tensor) -> Tensor:
        return self._answer(self._three(x, x))

    def _answering(self) -> nn.Module:
        models = {"source": self.origin, "adapting": self.model, "ema": self.ema.model}
        return Integrated({name: models[name] for name in self.options.models}, self.gamma)

    def _answer(self, logits: dict[str, Tensor], selected: dict[str, Tensor] | None = None) -> Prediction:
        z = knowledge_integrated([logits[name].detach() for name in self.options.models], self.gamma)
        return Prediction(z, score=energy(logits["adapting"].detach()), selected=selected)

    def step(self, x: Tensor) -> Tensor:
        view = self.augment(x, generator(self.seed, int(self.clock), "view"))
        logits = self._three(x, view)
        auxiliary = entropy(logits["ema"].detach())
        adapting = entropy(logits["adapting"])
        decides = adapting if self.options.primary == "adapting" else auxiliary
        loss, selected = primary_auxiliary_loss(
            adapting, auxiliary, self.tau, self.alpha, self.options.minimise, self.options.maximise, decides
        )
        self.update(loss)
        if self.options.output == "after":
            with torch.no_grad():
                logits["adapting"] = self.model(view)
        self.ema.update()
        return self._answer(logits, selected)
