r"""AdaContrast: pseudo-labels by the vote of near neighbours, and contrast with those that are labelled otherwise.

With unit features q of one strong view of an image by the student, k of another by the teacher, the keys
:math:`k_j` of past images with their labels :math:`\hat y_j`, and the label :math:`\hat y` that the mean prediction of the
K nearest images gives to a weak view,

.. math::
    L_{cls} &= -\log p_\theta(\hat y \mid x^q), \qquad
    L_{ctr} = -\log \frac{\exp(q \cdot k / \tau)}
        {\exp(q \cdot k / \tau) + \sum_{j :\, \hat y_j \ne \hat y} \exp(q \cdot k_j / \tau)} \\
    L &= \tfrac1N \sum_i \big( L_{cls} + \gamma_{ctr} L_{ctr} \big) - \gamma_{div} H(\bar p), \qquad
    \theta' \leftarrow \beta\, \theta' + (1 - \beta)\, \theta

where :math:`\bar p` is the mean prediction of the batch's strong views.

A step:
    1. the student predicts a weak view; its K nearest in the memory vote on the label, after ``begin`` images, and
       before that its own prediction is the label;
    2. the teacher follows the student, and both predict a strong view each;
    3. update all parameters once on L, at the share of the learning rate that a batch smaller than ``full_batch`` gets;
    4. the keys with their labels, and the teacher's features and predictions of the weak view, enter the memory, from which
       the oldest leave;
    5. the student answers.

Departures:
    The published code goes through the test set for several epochs and begins with the neighbours of all of it; this is
    the online form, as the common benchmark of continual adaptation runs it, with the features that the head is given.
    There the memory of keys begins with random keys of random labels; here it begins empty. There the labels of the batch
    replace those of the oldest keys before these are compared, so that old keys are compared under new labels; here keys and
    labels enter together, after.
    The published learning rate, 2e-4, belongs to batches of 128 images. A smaller batch gets it in proportion, a batch of 16
    an eighth (the linear scaling rule of Goyal et al., 2017): at the whole rate a stream of such batches loses accuracy even
    on images of the source. ``full_batch=None`` takes the whole rate for every batch.
    The published code multiplies the learning rate of bottleneck and head by ten, and decays it by a cosine; this does not.
    BatchNorm statistics follow the weak views, once per batch and after the answer; there they follow every view.
    The neighbours that vote are at most as many as a class has in the memory on average: of 32 images of 10 classes, ten
    nearest hold other classes for certain. At the published sizes this changes nothing.
    The strong views of the published ImageNet-sized code are also blurred (:func:`testtime.parts.simclr` is CIFAR's).
    Published code step by step, up to these: ``AdaContrast(model, options=AdaContrastOptions(full_batch=None))``.

Cost: five forwards, one backward.

Reference: Chen, Wang, Darrell and Ebrahimi, Contrastive Test-Time Adaptation, CVPR 2022.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from testtime.adapter import Adapter
from testtime.intake.arguments import Positive
from testtime.intake.sharing import Stateful
from testtime.norm import observing, running_statistics
from testtime.parts import Teacher, generator, marginal_entropy, random_crop_flip, sgd, simclr
from testtime.parts.augment import Augmentation
from testtime.parts.features import head_tap, linear_head, with_features
from testtime.parts.optimizers import OptimizerFactory
from testtime.parts.taps import Tap
from testtime.parts.views import preserving

__all__ = ["AdaContrast", "AdaContrastOptions", "NeighbourMemory", "class_contrast"]


def class_contrast(
    q: Tensor, k: Tensor, label: Tensor, keys: Tensor, labels: Tensor, temperature: float
) -> Tensor:
    """InfoNCE in which keys of the same label do not repel, in nats.

    Args:
        q, k: unit vectors (N, D) of two views.
        label: (N,) of the images.
        keys: unit vectors (M, D).
        labels: (M,) of the keys.
        temperature: tau.

    Returns:
        a scalar; zero where nothing repels.

    >>> class_contrast(torch.eye(2), torch.eye(2), torch.tensor([0, 1]), torch.eye(2), torch.tensor([1, 1]), 1.0)
    tensor(0.4310)
    """
    with torch.autocast(q.device.type, enabled=False):
        repel = (q @ keys.T / temperature).masked_fill(label[:, None] == labels, -torch.inf)
        attract = (q * k).sum(dim=1, keepdim=True) / temperature
    likeness = torch.cat([attract, repel], dim=1)
    return -likeness.log_softmax(dim=1)[:, 0].mean()


@final
class NeighbourMemory(Stateful):
    """The last images of a stream: a key and a label, a feature and a prediction of each.

    Args:
        head: the linear layer that the features are given to.
        capacity: largest number of images; beyond, the oldest leave.

    Attributes:
        keys, features: (capacity, D) unit vectors, at least in float32.
        label: (capacity,); -1 is a free place.
        probability: (capacity, C).
        met: images so far.
    """

    keys: Tensor
    features: Tensor
    label: Tensor
    probability: Tensor
    met: Tensor

    def __init__(self, head: nn.Linear, capacity: int) -> None:
        super().__init__()
        like = torch.promote_types(head.weight.dtype, torch.float32)
        for name, width in (
            ("keys", head.in_features),
            ("features", head.in_features),
            ("probability", head.out_features),
        ):
            self.register_buffer(name, head.weight.new_zeros(capacity, width, dtype=like).detach())
        self.register_buffer("label", torch.full((capacity,), -1, device=head.weight.device))
        self.register_buffer("met", torch.zeros((), dtype=torch.int64))

    def vote(self, z: Tensor, neighbours: int) -> Tensor:
        """The mean prediction (N, C) of those nearest to each unit feature (N, D), at most a class's share of the memory."""
        held = self.label >= 0
        with torch.autocast(z.device.type, enabled=False):
            likeness = z @ self.features[held].T
        share = max(1, likeness.shape[1] // self.probability.shape[1])
        nearest = likeness.topk(min(neighbours, share), dim=1).indices
        return self.probability[held][nearest].mean(dim=1)

    def update(self, keys: Tensor, label: Tensor, features: Tensor, probability: Tensor) -> None:
        """Remember N images, of which the last find room."""
        capacity, n = len(self.label), len(label)
        places = (int(self.met) + torch.arange(n, device=label.device))[-capacity:] % capacity
        for name, new in (
            ("keys", keys),
            ("label", label),
            ("features", features),
            ("probability", probability),
        ):
            old = self.get_buffer(name)
            self._buffers[name] = old.index_copy(0, places, new[-capacity:].to(old.dtype))
        self.met = self.met + n


@final
@dataclass(frozen=True)
class AdaContrastOptions:
    """Settings of AdaContrast that are rarely changed.

    Args:
        contrast: gamma_ctr, weight of the contrast.
        diversity: gamma_div, weight of the entropy of the mean prediction.
        begin: number of images that are processed before neighbours vote.
        capacity: number of images in the memory.
        head: name of the linear head; the last linear layer unless given.
        full_batch: smallest number of images that is learned from at the whole learning rate of the optimizer; smaller
            batches are learned from at their share of it. None: all are at the whole rate.

    Raises:
        ValueError: begin, capacity or full_batch is below 1.
    """

    contrast: float = 1.0
    diversity: float = 1.0
    begin: int = 1024
    capacity: int = 16384
    head: str | None = None
    full_batch: int | None = 128

    def __post_init__(self) -> None:
        if min(self.begin, self.capacity) < 1:
            raise ValueError(
                f"begin and capacity count images and are at least 1, got {self.begin} and {self.capacity}"
            )
        if self.full_batch is not None and self.full_batch < 1:
            raise ValueError(f"full_batch counts images and is at least 1, or None, got {self.full_batch}")


@final
class AdaContrast(Adapter):
    """Pseudo-labels by the vote of near neighbours, and contrast with those that are labelled otherwise.

    Args:
        model: any classifier that ends in a linear head.
        optimizer: moves all parameters.
        neighbours: K.
        temperature: tau.
        decay: beta, the weight of the past in the teacher.
        weak, strong: make a view within the model's invariances.
        options: settings that are rarely changed.
        norm: the policy of the BatchNorm layers in both models.
        seed: random seed of the views.

    Raises:
        ValueError: the model has no linear head, or neighbours is below 1.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    >>> adacontrast = AdaContrast(net, options=AdaContrastOptions(capacity=64))
    >>> y = adacontrast(torch.rand(8, 3, 8, 8))
    >>> y.shape, y.updated
    (torch.Size([8, 2]), True)
    """

    name, label = "adacontrast", "AdaContrast"
    needs = ("classifier", "linear head", "views")
    venue = "CVPR 2022"
    paper = "Chen, Wang, Darrell and Ebrahimi, Contrastive Test-Time Adaptation"
    output = "after"
    stochastic = True
    cost = (5, 1)

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerFactory = sgd(2e-4, weight_decay=1e-4),  # noqa: B008 - a frozen value
        neighbours: Positive = 10,
        temperature: float = 0.07,
        decay: float = 0.999,
        weak: Augmentation = random_crop_flip,
        strong: Augmentation = simclr,
        options: AdaContrastOptions = AdaContrastOptions(),
        norm: Callable[[nn.Module], nn.Module] = running_statistics,
        seed: int = 0,
    ) -> None:
        super().__init__(norm(model), seed)
        self.optimizer, self.neighbours, self.options, self.norm = optimizer, neighbours, options, norm
        self.temperature, self.decay = temperature, decay
        self.weak, self.strong = preserving(weak, self.model), preserving(strong, self.model)
        name, linear = linear_head(self.model, options.head)
        self._tap = head_tap(self.model, options.head)
        self.adapt(self.model.parameters(), optimizer)
        self.teacher = Teacher(self.model, self._adapted, decay)
        self._teachers_tap = self.teacher.model.get_submodule(name)
        self.memory = NeighbourMemory(linear, options.capacity)

    def _see(self, model: nn.Module, at_head: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N, C), and unit features (N, D) at least in float32, of a batch that is learned from."""
        assert isinstance(at_head, Tap)
        with observing(model):
            logits, z = with_features(model, at_head, x)
        return logits, F.normalize(z.to(self.memory.features.dtype), dim=1)

    def step(self, x: Tensor) -> Tensor:
        def view(of: str, draw: Augmentation) -> Tensor:
            return draw(x, generator(self.seed, int(self.clock), of, x.device))

        memory, weak = self.memory, view("weak", self.weak)
        with torch.no_grad():
            logits, z = self._see(self.model, self._tap, weak)
            voted = int(memory.met) >= self.options.begin
            label = (memory.vote(z, self.neighbours) if voted else logits).argmax(dim=1)
            self.teacher.update()
            _, k = self._see(self.teacher.model, self._teachers_tap, view("key", self.strong))
        logits, q = self._see(self.model, self._tap, view("query", self.strong))
        loss = F.cross_entropy(logits, label)
        loss = loss + self.options.contrast * class_contrast(
            q, k, label, *self._held(), temperature=self.temperature
        )
        full = self.options.full_batch
        share = 1.0 if full is None else min(1.0, len(x) / full)
        self.update(loss - self.options.diversity * marginal_entropy(logits), rate=share)
        with torch.no_grad():
            slow, z = self._see(self.teacher.model, self._teachers_tap, weak)
            memory.update(k, label, z, slow.softmax(dim=1, dtype=z.dtype))
            return self.model(x)

    def _held(self) -> tuple[Tensor, Tensor]:
        """The keys (M, D) in the memory, and their labels (M,)."""
        held = self.memory.label >= 0
        return self.memory.keys[held], self.memory.label[held]
