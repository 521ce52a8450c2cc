r"""Self-distillation of images: a student predicts from every view the output of its moving average for the widest (TST-DINO).

With the student :math:`s`, the teacher :math:`t`, two wide views :math:`W` of an image, these and a few narrow ones
:math:`V \supset W`, and the features of a view averaged over its patches before the head,

.. math::
    L = \frac{1}{|P|} \sum_{(g, v) \in P} - \operatorname{softmax}\!\Big(\frac{t(g) - c}{\tau_t}\Big)^{\!\top}
        \log \operatorname{softmax}\!\Big(\frac{s(v)}{\tau_s}\Big), \qquad P = \{(g, v) : g \in W, v \in V, g \ne v\}

and after every step

.. math::
    \theta_t \leftarrow \lambda \theta_t + (1 - \lambda) \theta_s, \qquad c \leftarrow m c + (1 - m) \, \overline{t(g)}, \qquad
    \lambda = 1 - \tfrac12 (1 - \lambda_0) \big(1 + \cos \tfrac{\pi k}{K}\big)

The centre :math:`c` keeps the teacher from a constant output, its low temperature from a uniform one. With ``patches`` some
patches of half of the student's wide views are masked, and it predicts the teacher's output for them (iBOT, as in DINOv2), by
the same head, with a centre of their own.

Views and masks are a function of ``seed``, of the number of steps, and of the position in the batch: ``forward`` draws from no
global generator, and the whole state is in buffers, so that a run is resumed exactly. Where a batch is computed in parts, every
part uses the same draws.

Departures:
    Images are augmented by crop, mirror, colours and grey; there is neither blur nor solarisation.
    The encoder has no class token: the mean over patches feeds the head. It is otherwise 4M's (:mod:`testtime.space.mae`).
    Masked patches are random ones, not blocks; of DINOv2 there are no Sinkhorn-Knopp centring, no KoLeo term, no second head.
    The head's last layer is trained from the first step on. The temperature rises step by step, not epoch by epoch.

Reference: Caron et al., Emerging Properties in Self-Supervised Vision Transformers, ICCV 2021 (DINO); Zhou et al., iBOT: Image
BERT Pre-Training with Online Tokenizer, ICLR 2022; Oquab et al., DINOv2: Learning Robust Visual Features without Supervision,
TMLR 2024. Used as Singh, Garjani et al. do (Multimodality as Supervision), where it is the method for one modality alone.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from testtime.moved import takes_former
from testtime.parts.augment import _brightness, _contrast, _grey, _hue, _saturation
from testtime.parts.randomness import generator
from testtime.space.mae import PictureEncoder
from testtime.space.model import Batch, Size

__all__ = ["DistillationOptions", "ProjectionHead", "SelfDistilled"]


@final
class ProjectionHead(nn.Module):
    """Three layers, a unit vector, and its cosine with the direction of every output (weight norm of gain 1).

    Args:
        dim: size of a feature.
        hidden: width of the layers.
        bottleneck: size of the vector.
        outputs: number of outputs.

    >>> ProjectionHead(8, 16, 4, 32)(torch.rand(2, 8)).abs().max() <= 1
    tensor(True)
    """

    def __init__(self, dim: int, hidden: int, bottleneck: int, outputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(dim, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, bottleneck),
        )
        self.directions = nn.Parameter(torch.empty(outputs, bottleneck))
        nn.init.trunc_normal_(self.directions, std=0.02)
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (..., outputs), in [-1, 1], of features (..., dim)."""
        return (
            F.normalize(self.layers(x), dim=-1, eps=1e-6) @ F.normalize(self.directions, dim=-1, eps=1e-6).T
        )


@final
class Network(nn.Module):
    """An encoder and its head.

    Args:
        encoder: encoder of images.
        head: head on the mean of the features.
    """

    def __init__(self, encoder: PictureEncoder, head: ProjectionHead) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(
        self, images: Tensor, hidden: Tensor | None = None, instead: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return features (N, places, dim), and the logits (N, outputs) of their mean.

        Args:
            images: images (N, 3, H, W) in [0, 1].
            hidden: mask (N, places) of the patches whose content is replaced.
            instead: replacement (dim,) of the content.
        """
        content, embedding = self.encoder.embedded(images)
        if hidden is not None and instead is not None:
            content = torch.where(hidden[..., None], instead.to(content.dtype), content)
        features = self.encoder.encoded(content + embedding)
        return features, self.head(features.mean(1))


@final
@dataclass(frozen=True)
class DistillationOptions:
    """Views, temperatures and moving averages of :class:`SelfDistilled`.

    Args:
        local: (H, W) of narrow views; 3/7 of the images (96 of 224 pixels), in whole patches, unless given.
        wide: range of the fraction of the area in a wide view.
        narrow: range of the fraction of the area in a narrow view.
        temperature: tau_s, temperature of the student.
        sharpening: tau_t, temperature of the teacher, at the beginning and after the warmup.
        warmup: fraction of the steps in which tau_t rises.
        momentum: lambda_0, weight of the teacher's past at the beginning; 1 at the end.
        centring: m, weight of the centre's past.
        patches: whether there is a loss of masked patches.

    Raises:
        ValueError: a number is out of its range.
    """

    local: tuple[int, int] | None = None
    wide: tuple[float, float] = (0.4, 1.0)
    narrow: tuple[float, float] = (0.05, 0.4)
    temperature: float = 0.1
    sharpening: tuple[float, float] = (0.04, 0.07)
    warmup: float = 0.3
    momentum: float = 0.996
    centring: float = 0.9
    patches: bool = True

    def __post_init__(self) -> None:
        wide, narrow = self.wide, self.narrow
        if not (0 < wide[0] <= wide[1] <= 1 and 0 < narrow[0] <= narrow[1] <= 1):
            raise ValueError(
                f"wide and narrow are ranges of shares of the area, in (0, 1], got {wide} and {narrow}"
            )
        if not all(0 < t < math.inf for t in (self.temperature, *self.sharpening)):
            raise ValueError(f"temperatures are above 0, got {self.temperature} and {self.sharpening}")
        if not all(0 <= x <= 1 for x in (self.momentum, self.centring, self.warmup)):
            raise ValueError(
                f"momentum, centring and warmup are in [0, 1], got {self.momentum}, {self.centring} and {self.warmup}"
            )


@final
@takes_former
class SelfDistilled(nn.Module):
    """A student and the teacher that follows it; trained by :func:`testtime.space.pretrain.pretrain`.

    Args:
        size: size of the encoder, a name in :data:`~testtime.space.model.SIZES`, or a :class:`~testtime.space.model.Size`.
        image: (H, W) of images and of wide views, in pixels.
        patch: side of a patch in pixels.
        outputs: number of outputs of the head; the paper's 65536 is for millions of images.
        hidden: width of the head's layers.
        bottleneck: size of the head's vector.
        crops: number of narrow views of an image.
        options: views, temperatures and moving averages.
        seed: random seed of views and masks.

    Raises:
        ValueError: there is no size of that name, the patch does not divide the views, or a number is out of its range.

    >>> model = SelfDistilled("tiny", (32, 32), 8, outputs=64, hidden=32, bottleneck=16, crops=2)
    >>> model.encoder(torch.rand(2, 3, 32, 32)).shape
    torch.Size([2, 16, 96])
    """

    step: Tensor
    centre: Tensor
    patch_centre: Tensor
    sharpness: Tensor

    def __init__(
        self,
        size: str | Size = "S",
        image: tuple[int, int] = (224, 224),
        patch: int = 16,
        outputs: int = 65536,
        hidden: int = 2048,
        bottleneck: int = 256,
        crops: int = 8,
        options: DistillationOptions = DistillationOptions(),
        seed: int = 0,
    ) -> None:
        super().__init__()
        encoder = PictureEncoder(size, image, patch)
        local = options.local or (_share(image[0], patch), _share(image[1], patch))
        if local[0] % patch or local[1] % patch:
            raise ValueError(f"a patch of {patch} does not divide narrow views of {local[0]} x {local[1]}")
        if crops < 0 or outputs < 2 or min(hidden, bottleneck) < 1:
            raise ValueError(
                f"crops is at least 0, outputs at least 2, hidden and bottleneck at least 1, got {crops}, {outputs}, "
                f"{hidden} and {bottleneck}"
            )
        self.image, self.local, self.crops = image, local, crops
        self.options, self.seed = options, seed
        self.student = Network(encoder, ProjectionHead(encoder.dim, hidden, bottleneck, outputs))
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.mask_token = nn.Parameter(torch.zeros(encoder.dim)) if options.patches else None
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_buffer("sharpness", torch.tensor(options.sharpening[0]))
        self.register_buffer("centre", torch.zeros(outputs))
        self.register_buffer("patch_centre", torch.zeros(outputs))
        self._sums: dict[
            str, tuple[Tensor, int]
        ] = {}  # sum and count of the teacher's logits since the last step

    @property
    def encoder(self) -> PictureEncoder:
        """A copy of the teacher's encoder, which the paper transfers, with trainable weights."""
        return copy.deepcopy(self.teacher.encoder).requires_grad_(True)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the losses of a batch's images, in nats: "views", and with ``patches`` "patches"."""
        wide, narrow = self.views(batch.pixels)
        with torch.no_grad():
            teacher_features, teacher_logits = self.teacher(wide)
        hidden = self.hidden(len(wide), wide.device) if self.options.patches else None
        features, logits = self.student(wide, hidden, self.mask_token)
        answers = [*logits.chunk(2)]
        if self.crops:
            answers += self.student(narrow)[1].chunk(self.crops)
        pairs = [
            self._distance(target, answer, self.centre).mean()
            for g, target in enumerate(teacher_logits.chunk(2))
            for v, answer in enumerate(answers)
            if g != v
        ]
        losses = {"views": torch.stack(pairs).mean()}
        self._accumulate("centre", teacher_logits)
        if hidden is not None:
            with torch.no_grad():
                targets = self.teacher.head(teacher_features[hidden])
            distance = self._distance(targets, self.student.head(features[hidden]), self.patch_centre)
            share = (hidden / hidden.sum(1, keepdim=True).clamp(min=1))[
                hidden
            ]  # every image has the same weight
            losses["patches"] = (distance * share).sum() / hidden.any(1).sum().clamp(min=1)
            self._accumulate("patch_centre", targets)
        return losses

    @torch.no_grad()
    def advance(self, step: int, steps: int) -> None:
        """Update teacher, centres and temperature after a step of the student; ``pretrain`` calls it.

        Args:
            step: number of the step that was taken, from 0.
            steps: number of all steps.
        """
        for name, (total, count) in self._sums.items():
            mean = _over_processes(total, count)
            self.get_buffer(name).lerp_(mean, 1 - self.options.centring)
        self._sums.clear()
        theirs, mine = ([p.detach() for p in net.parameters()] for net in (self.teacher, self.student))
        torch._foreach_lerp_(theirs, mine, 1 - self.decay(step, steps))
        self.step.fill_(step + 1)
        self.sharpness.fill_(self.sharpened(step + 1, steps))

    def decay(self, step: int, steps: int) -> float:
        """Return lambda, the weight of the teacher's past after a step.

        Args:
            step: number of the step.
            steps: number of all steps.

        >>> model = SelfDistilled("tiny", (32, 32), 8, outputs=8, hidden=8, bottleneck=4)
        >>> model.decay(0, 10), model.decay(5, 10), model.decay(10, 10)
        (0.996, 0.998, 1.0)
        """
        return 1 - 0.5 * (1 - self.options.momentum) * (1 + math.cos(math.pi * step / steps))

    def sharpened(self, step: int, steps: int) -> float:
        """Return tau_t, the teacher's temperature in a step.

        Args:
            step: number of the step.
            steps: number of all steps.
        """
        begin, end = self.options.sharpening
        risen = min(1.0, step / (self.options.warmup * steps)) if self.options.warmup > 0 else 1.0
        return begin + (end - begin) * risen

    @torch.no_grad()
    def views(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the views of this step, wide (2 N, 3, H, W) and narrow (crops * N, 3, h, w), of images (N, 3, H, W)."""
        wide = [self._view(images, f"wide {i}", self.image, self.options.wide) for i in range(2)]
        narrow = [
            self._view(images, f"narrow {i}", self.local, self.options.narrow) for i in range(self.crops)
        ]
        return torch.cat(wide), torch.cat(narrow) if narrow else images[:0]

    def hidden(self, count: int, device: torch.device) -> Tensor:
        """Draw the mask of this step, (count, places) bool: 10 to 50 % of the patches of half of the views.

        Args:
            count: number of views.
            device: device of the mask.
        """
        rng = generator(self.seed, int(self.step), "hidden")
        places = self.teacher.encoder.grid[0] * self.teacher.encoder.grid[1]
        some = -(-count // 2)
        shares = 0.1 + 0.4 * (torch.arange(some) + torch.rand(some, generator=rng)) / some
        numbers = torch.zeros(count, dtype=torch.int64)
        numbers[torch.randperm(count, generator=rng)[:some]] = (shares * places).long().clamp(min=1)
        rank = torch.rand(count, places, generator=rng).argsort(1).argsort(1)
        return (rank < numbers[:, None]).to(device)

    def _view(
        self, images: Tensor, purpose: str, size: tuple[int, int], scale: tuple[float, float]
    ) -> Tensor:
        rng = generator(self.seed, int(self.step), purpose)
        return coloured(window(images, size, scale, rng), rng)

    def _distance(self, target: Tensor, answer: Tensor, centre: Tensor) -> Tensor:
        """Compute the cross-entropy (N,), in nats, of the student's logits (N, outputs) with the teacher's."""
        wanted = ((target.float() - centre) / self.sharpness).softmax(-1)
        return -(wanted * (answer.float() / self.options.temperature).log_softmax(-1)).sum(-1)

    def _accumulate(self, name: str, logits: Tensor) -> None:
        if self.training:
            total, count = self._sums.get(name, (torch.zeros_like(self.centre), 0))
            self._sums[name] = (total + logits.float().sum(0), count + len(logits))


def window(x: Tensor, size: tuple[int, int], scale: tuple[float, float], rng: torch.Generator) -> Tensor:
    """Crop a random window of every image and resize it, bilinear; half of them are mirrored.

    Args:
        x: images (N, C, H, W).
        size: (h, w) of the result.
        scale: range of the fraction of the area; the aspect ratio is 3/4 to 4/3, and no side exceeds that of the image.
        rng: generator of the augmentation.
    """
    n, _, height, width = x.shape
    draws = torch.rand(n, 5, generator=rng, device=rng.device).to(x.device, x.dtype)
    area = scale[0] + (scale[1] - scale[0]) * draws[:, 0]
    ratio = ((2 * draws[:, 1] - 1) * math.log(4 / 3)).exp()
    across = _line(size[1], (area * ratio * height / width).sqrt(), draws[:, 2])
    down = _line(size[0], (area / ratio * width / height).sqrt(), draws[:, 3])
    across = torch.where(draws[:, 4:] < 0.5, across.flip(1), across)
    places = torch.stack([t.expand(n, *size) for t in (across[:, None, :], down[:, :, None])], -1)
    return F.grid_sample(x, places, mode="bilinear", padding_mode="border", align_corners=False)


def coloured(x: Tensor, rng: torch.Generator) -> Tensor:
    """Change colours as DINO does.

    With probability 0.8, brightness and contrast by 0.6 to 1.4, saturation by 0.8 to 1.2 and hue by +-0.1 of the circle, in an
    order that is drawn once per batch; with probability 0.2, to grey.

    Args:
        x: images (N, 3, H, W) in [0, 1].
        rng: generator of the augmentation.
    """
    order = torch.randperm(4, generator=rng, device=rng.device).tolist()
    draws = torch.rand(len(x), 6, generator=rng, device=rng.device).to(x.device, x.dtype).view(-1, 6, 1, 1, 1)
    changes = (
        (_brightness, 0.6 + 0.8 * draws[:, 0]),
        (_contrast, 0.6 + 0.8 * draws[:, 1]),
        (_saturation, 0.8 + 0.4 * draws[:, 2]),
        (_hue, -0.1 + 0.2 * draws[:, 3]),
    )
    changed = x
    for i in order:
        change, amount = changes[i]
        changed = change(changed, amount)
    x = torch.where(draws[:, 4] < 0.8, changed, x)
    return torch.where(draws[:, 5] < 0.2, _grey(x).expand_as(x), x)


def _line(count: int, part: Tensor, place: Tensor) -> Tensor:
    """Return the positions of samples along a side from -1 to 1, (N, count).

    Args:
        count: number of samples.
        part: fraction (N,) of the side that a window covers.
        place: position (N,) of the window, in [0, 1].
    """
    part = part.clamp(max=1)[:, None]
    centres = (2 * torch.arange(count, device=part.device, dtype=part.dtype) + 1) / count - 1
    return (1 - part) * (2 * place[:, None] - 1) + part * centres


def _share(side: int, patch: int) -> int:
    """Return 3/7 of a side in whole patches, at least one."""
    return max(1, round(side * 3 / 7 / patch)) * patch


def _over_processes(total: Tensor, count: int) -> Tensor:
    """Return the mean over all processes."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        both = torch.cat([total, total.new_tensor([count])])
        torch.distributed.all_reduce(both)
        return both[:-1] / both[-1]
    return total / count
