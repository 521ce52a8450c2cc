r"""RMT: a mean teacher with a symmetric loss, held near the source by its prototypes and by replay.

With the teacher :math:`\theta'`, a view :math:`\tilde x_i` of every image, the symmetric cross-entropy
:math:`S(p, q) = -\tfrac12 \sum_c (q_c \log p_c + p_c \log q_c)`, and unit projections :math:`u_{i1}, u_{i2}, u_{i3}` of
the features of :math:`x_i`, of :math:`\tilde x_i`, and of the source prototype that is nearest to :math:`x_i` by the cosine,

.. math::
    L_{SCE} &= \frac{1}{2N} \sum_i S\big(p_\theta(x_i), p_{\theta'}(x_i)\big)
               + S\big(p_\theta(\tilde x_i), p_{\theta'}(x_i)\big) \\
    L_{CL} &= -\frac{1}{6N} \sum_{i,v} \sum_{w \ne v}
        \log \frac{\exp(u_{iv} \cdot u_{iw} / \tau)}{\sum_{(j, k) \ne (i, v)} \exp(u_{iv} \cdot u_{jk} / \tau)} \\
    L &= L_{SCE} + \lambda_{CL}\, L_{CL} + \lambda_{CE}\, L_{CE}^{source}, \qquad
    \theta' \leftarrow \beta\, \theta' + (1 - \beta)\, \theta

A step, after ``prepare(batches)`` has taken the prototypes, kept images to replay, and warmed both models up:
    1. student and teacher predict the batch; the answer is the mean of their logits;
    2. the student sees a view of every image, and as many source images;
    3. update all parameters and the projection once on L, then the teacher.

What is learned on source data lies in :mod:`testtime.source.rmt`.

Departures:
    The paper knows the source's labels. ``prepare`` takes them with the images, ``prepare([(images, labels), ...])``; where
    only images are given, prototypes and replay take the source model's own predictions for labels.
    The published code replays the whole source, in the batches of its loader; here ``replay`` images of it are held, in the
    state, and drawn in an order of the seed. ``replay=n, shuffle=False``, with at least as many images as the source has,
    replays the batches that ``prepare`` was given in their order.
    The published answer is the sum of the two logits (``ensemble="sum"``): the same classes, at twice the scale.
    The published code warms up on 50,000 source images; this on ``warm_up`` passes over what ``prepare`` is shown (the
    rate rising linearly, the loss S between student and teacher). Its result is the initial state, and a part of the state.
    The published views change all images alike (``augment=partial(katana, alike=True)``); here each draws for itself.
    Published code step by step, up to the draws: ``RMT(model, options=RMTOptions(replay=n, shuffle=False, ensemble="sum"))``
    (CIFAR; ImageNet with ``sgd(1e-2)``) prepared with labelled batches; for DomainNet-126 it has no projection
    (``projection=None``).

Cost: four forwards, three backwards; without replay three and two. ``cost`` counts replayed batches of the size of the test
batch; those of ``shuffle=False`` have the size of the source's. ``prepare`` costs one forward a batch, and with every pass two
more and a backward.

Reference: Döbler, Marsden and Yang, Robust Mean Teacher for Continual and Gradual Test-Time Adaptation, CVPR 2023.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from testtime.adapter import Adapter
from testtime.intake.arguments import Natural, Positive
from testtime.intake.sharing import share, twin
from testtime.moved import renamed
from testtime.norm import batch_statistics
from testtime.parts import Teacher, adam, generator, katana, soft_cross_entropy
from testtime.parts.augment import Augmentation
from testtime.parts.features import head_tap, linear_head, with_features
from testtime.parts.optimizers import OptimizerFactory
from testtime.parts.randomness import epochs
from testtime.parts.views import preserving
from testtime.source.branches import labelled_images_of, labels_or_predictions
from testtime.source.rmt import SourceReplay, projector

__all__ = ["RMT", "RMTOptions", "attract"]

__getattr__ = renamed(
    __name__,
    {
        "Projector": "testtime.source.rmt:Projector",
    },
)


def attract(views: Tensor, temperature: float) -> Tensor:
    """The contrastive loss of several views: those of one image attract, all others repel. In nats.

    Args:
        views: (N, V, D), V views of N images, of any length.
        temperature: tau.

    Returns:
        a scalar.

    Reference: Khosla et al., Supervised Contrastive Learning, NeurIPS 2020.

    >>> attract(torch.eye(2)[:, None].repeat(1, 2, 1), 1.0)  # log(1 + 2 / e)
    tensor(0.5514)
    """
    n, count, _ = views.shape
    u = F.normalize(views.flatten(0, 1), dim=1)
    with torch.autocast(u.device.type, enabled=False):
        log_p = (u @ u.T / temperature).fill_diagonal_(-torch.inf).log_softmax(dim=1)
    image = torch.arange(n, device=u.device).repeat_interleave(count)
    positive = (image[:, None] == image).fill_diagonal_(False)
    return -log_p[positive].mean()


def symmetric(z: Tensor, other: Tensor) -> Tensor:
    """The symmetric cross-entropy S (N,) of two predictions, from logits."""
    return (soft_cross_entropy(z, other) + soft_cross_entropy(other, z)) / 2


@final
@dataclass(frozen=True)
class RMTOptions:
    """Settings of RMT that are rarely changed.

    Args:
        replay: number of source images that are held.
        shuffle: whether source images are replayed in a random order, as many as a batch has; otherwise the batches of
            ``prepare`` are replayed one after the other, of which the first ``replay`` images are held.
        ensemble: prediction from the two logits: their "mean" or their "sum".
        warm_up: number of passes over the source in ``prepare``.
        head: name of the linear head; the last linear layer unless given.

    Raises:
        ValueError: replay is below 1, or ensemble is neither "mean" nor "sum".
    """

    replay: int = 2048
    shuffle: bool = True
    ensemble: Literal["mean", "sum"] = "mean"
    warm_up: Natural = 1
    head: str | None = None

    def __post_init__(self) -> None:
        if self.replay < 1:
            raise ValueError(
                f"replay counts the source images that are held and is at least 1, got {self.replay}; lambda_ce=0 holds none"
            )
        if self.ensemble not in ("mean", "sum"):
            raise ValueError(f"ensemble is 'mean' or 'sum', got {self.ensemble!r}")


def together(student: Tensor, teacher: Tensor, ensemble: Literal["mean", "sum"]) -> Tensor:
    """The prediction (N, C) from the logits (N, C) of two models."""
    return student + teacher if ensemble == "sum" else (student + teacher) / 2


class Both(nn.Module):
    """The prediction from the logits of two models, as a module.

    Args:
        student, teacher: networks from a batch to logits (N, C).
        ensemble: "mean" or "sum" of the logits.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, ensemble: Literal["mean", "sum"]) -> None:
        super().__init__()
        self.student, self.teacher, self.ensemble = student, teacher, ensemble

    def forward(self, x: Tensor) -> Tensor:
        """Return the prediction (N, C)."""
        return together(self.student(x), self.teacher(x), self.ensemble)


@final
class RMT(Adapter):
    """A mean teacher with a symmetric loss, held near the source by its prototypes and by replay.

    ``prepare`` takes source batches of images, or pairs of images and labels.

    Args:
        model: any classifier that ends in a linear head.
        optimizer: moves all parameters and the projection; the paper's are ``adam(1e-3)`` (CIFAR) and ``sgd(1e-2)``
            (ImageNet).
        lambda_cl: the weight of the contrastive loss.
        lambda_ce: the weight of the replayed source; 0 holds no source images.
        temperature: tau.
        projection: number of outputs of the projection; None for no projection.
        decay: beta, the weight of the past in the teacher.
        augment: makes a view within the model's invariances.
        options: settings that are rarely changed.
        norm: the policy of the BatchNorm layers in both models.
        seed: random seed of the views, of the replay and of the initial weights of the projection.

    Raises:
        ValueError: the model has no linear head.
        RuntimeError: it is called before ``prepare``.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    >>> rmt = RMT(net)
    >>> rmt.prepare(torch.rand(4, 8, 3, 8, 8).unbind())  # four unlabelled batches of the source
    >>> rmt(torch.rand(8, 3, 8, 8)).shape
    torch.Size([8, 2])
    """

    name, label = "rmt", "RMT"
    needs = ("classifier", "linear head", "views")
    venue = "CVPR 2023"
    paper = "Döbler, Marsden and Yang, Robust Mean Teacher for Continual and Gradual Test-Time Adaptation"
    source = "data"
    labelled_source = True
    stochastic = True
    cost = (4, 3)

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerFactory = adam(1e-3),  # noqa: B008 - a frozen value
        lambda_cl: float = 1.0,
        lambda_ce: float = 1.0,
        temperature: float = 0.1,
        projection: Positive | None = 128,
        decay: float = 0.999,
        augment: Augmentation = katana,
        options: RMTOptions = RMTOptions(),
        norm: Callable[[nn.Module], nn.Module] = batch_statistics,
        seed: int = 0,
    ) -> None:
        super().__init__(norm(model), seed)
        self.optimizer, self.lambda_cl, self.lambda_ce = optimizer, lambda_cl, lambda_ce
        self.temperature, self.projection, self.decay = temperature, projection, decay
        self.options, self.norm = options, norm
        self.augment = preserving(augment, self.model)
        if not lambda_ce:
            self.cost = (3, 2)
        self.anchor = share(self.model)
        network, wide = list(self.model.parameters()), linear_head(self.model, options.head)[1].in_features
        self._tap = head_tap(self.model, options.head)
        dtype = torch.promote_types(network[0].dtype, torch.float32)
        # Beside the network, so that the optimizer moves both and the state names both.
        beside = projector(wide, projection, seed).to(network[0].device, dtype)
        self.model.add_module("projector", beside)
        self.adapt([*network, *beside.parameters()], optimizer)
        self.teacher = Teacher(self.model, network, decay)
        self.of_source = SourceReplay()
        self.remember_birth()

    def _prepare(self, batches: Iterable[Tensor | tuple[Tensor, Tensor]]) -> None:
        self._begin()
        images, labels = labelled_images_of(batches)
        with torch.no_grad():
            seen = [self._see(x) for x in images]
        logits = torch.cat([y for y, _ in seen])
        label = labels_or_predictions(labels, logits)
        self.of_source.learn(label, logits.shape[1], torch.cat([z for _, z in seen]))
        order = torch.arange(len(label))
        if self.options.shuffle:
            order = torch.randperm(len(label), generator=generator(self.seed, 0, "replay"))
        self.of_source.hold(images, label, order[: self.options.replay if self.lambda_ce else 0])
        examples = images * self.options.warm_up
        for i, x in enumerate(examples, 1):
            self.update(symmetric(self.model(x), self.teacher(x)).mean(), rate=i / len(examples))
            self.teacher.update()

    @torch.no_grad()
    def _begin(self) -> None:
        """Student, teacher and optimizer as they were before any ``prepare``."""
        for p, average, first in zip(
            self.teacher.student, self.teacher.average, self.anchor.parameters(), strict=True
        ):
            p.copy_(first)
            average.copy_(first)
        for state in self._optimizer.state.values() if self._optimizer else ():
            for value in state.values():
                value.zero_()

    def _see(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The student's logits (N, C), and features (N, D) at least in float32."""
        logits, z = with_features(self.model, self._tap, x)
        return logits, z.to(torch.promote_types(z.dtype, torch.float32))

    def _together(self, student: Tensor, teacher: Tensor) -> Tensor:
        return together(student, teacher, self.options.ensemble)

    def _predict_batch(self, x: Tensor) -> Tensor:
        return self._together(self.model(x), self.teacher(x))

    def _answering(self) -> nn.Module:
        student, teacher = twin(self.model), twin(self.teacher.model)
        del student.projector, teacher.projector  # for learning alone
        return Both(student, teacher, self.options.ensemble)

    def _drawn(self, batch: int) -> Tensor | list[int]:
        """The indices of the source images to replay in this step."""
        source, clock = self.of_source, int(self.clock)
        if self.options.shuffle:
            return epochs(len(source.images), batch, self.seed, clock)
        return (source.batch == clock % (int(source.batch.max()) + 1)).nonzero().flatten()

    def step(self, x: Tensor) -> Tensor:
        source = self.of_source
        if not len(source.prototypes):
            raise RuntimeError(
                "RMT has not seen its source: call adapter.prepare(batches) with unlabelled source batches first"
            )
        (student, z), teacher = self._see(x), self.teacher(x)
        seen, z_seen = self._see(self.augment(x, generator(self.seed, int(self.clock), "view", x.device)))
        loss = (symmetric(student, teacher) + symmetric(seen, teacher)).mean() / 2
        features = torch.stack([source.nearest(z.detach()).to(z), z, z_seen], dim=1)
        views = self.model.get_submodule("projector")(features)
        loss = loss + self.lambda_cl * attract(views, self.temperature)
        if self.lambda_ce:
            drawn = self._drawn(len(x))
            logits = self.model(source.images[drawn])
            loss = loss + self.lambda_ce * F.cross_entropy(logits, source.label[drawn])
        self.update(loss)
        self.teacher.update()
        return self._together(student, teacher)
