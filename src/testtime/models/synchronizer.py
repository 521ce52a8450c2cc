r"""The branch of S4T: the projection into task-specific latents, and the Task Behavior Synchronizer over them.

.. math:: z_i = P_i(z), \qquad y_i^{TP} = h_i(z_i), \qquad \{y_i^{TBS}\} = T(\{M_i(z_i)\})

A small masked autoencoder over what the tasks make of the latent z. Everything is keyed by task name: the released code
stacks the tasks by position, and on a target with another order compares the classes of one with the normals of another.

Reference: Jeong, Cho, Yoon and Yoon, Synchronizing Task Behavior: Aligning Multiple Tasks during Test-Time Training,
ICCV 2025, section 3.3; sizes and initialisation from its released code, whose numbers of parameters these are.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor, nn

from testtime.models.assisted import Branch
from testtime.models.multitask import resized
from testtime.moved import takes_former
from testtime.tasks import Reconstruction, Task, Tasks

__all__ = [
    "Layout",
    "Strategy",
    "Synchronizer",
    "SynchronizerOptions",
    "legacy_order",
    "position_embedding",
    "visible_tokens",
]

Strategy = Literal["same", "random", "disjoint", "hide"]
Layout = Literal["channels", "per_task"]


@final
@dataclass(frozen=True)
class SynchronizerOptions:
    """Masks, losses and ablations of a :class:`Synchronizer`.

    Args:
        ratio: fraction of the tokens that are masked; 0 masks nothing.
        strategy: masked tokens (figure 5): the "same" for all tasks, "random" ones for each, "disjoint" (no place is visible
            in two tasks), or "hide" (some tasks entirely).
        layout: "channels": a token is a place, with all tasks stacked in its channels (the released code, only "same");
            "per_task": a token is a place of one task (the paper's wording).
        projection: whether there is a projection; without it the synchronizer reads z itself (table 2).
        reconstruct: whether the image is predicted instead of the tasks (table 2).
        lambda_tp, lambda_tbs: weights of the two losses in joint training (eq. 7).
        layers: name of the layer of the network that gives z.

    Raises:
        ValueError: a ratio outside [0, 1), or a strategy or a missing projection that the layout does not allow.
    """

    ratio: float = 0.8
    strategy: Strategy = "same"
    layout: Layout = "channels"
    projection: bool = True
    reconstruct: bool = False
    lambda_tp: float = 1.0
    lambda_tbs: float = 1.0
    layers: Sequence[str] = ("encoder",)

    def __post_init__(self) -> None:
        if not 0 <= self.ratio < 1:
            raise ValueError(f"ratio is the masked share and lies in [0, 1), got {self.ratio}")
        if self.layout == "channels" and self.strategy != "same":
            raise ValueError(
                f"strategy {self.strategy!r} masks tasks differently, but in layout 'channels' a token holds all tasks; "
                "pass layout='per_task'"
            )
        if self.layout == "per_task" and not self.projection:
            raise ValueError(
                "without the projection there are no task-specific latents; pass layout='channels'"
            )


@takes_former
class Synchronizer(Branch):
    """Task-specific projection and Task Behavior Synchronizer.

    Args:
        tasks: tasks that the branch predicts, by name; they may be fewer than the network's (table 8 adapts with one).
        channels: channels of the latent z.
        features: channels of every task-specific latent z_i.
        size: side in pixels of the square the latents are brought to.
        patch: side in pixels of a token.
        width: width of the transformer.
        depth, decoder_depth: blocks of its encoder and decoder.
        heads: attention heads.
        options: masks, losses and ablations.

    Raises:
        ValueError: a size that the patches do not divide, or options that do not fit the tasks.

    >>> from testtime.multitask import Depth, Edges, Normals, Segmentation
    >>> tasks = {t.name: t for t in (Segmentation(tuple("abcdefg")), Depth(), Normals(), Edges())}
    >>> sum(p.numel() for p in Synchronizer(tasks, 3840).parameters())  # 29.24 M - 23.55 M
    5682508
    """

    def __init__(
        self,
        tasks: Tasks,
        channels: int,
        features: int = 64,
        size: int = 256,
        patch: int = 16,
        width: int = 64,
        depth: int = 4,
        decoder_depth: int = 2,
        heads: int = 4,
        options: SynchronizerOptions = SynchronizerOptions(),
    ) -> None:
        super().__init__()
        if size % patch:
            raise ValueError(f"size must be a multiple of patch, got {size} and {patch}")
        if options.strategy == "hide" and len(tasks) < 2:
            raise ValueError("strategy 'hide' needs two tasks at least: one to hide and one to see")
        self.tasks: dict[str, Task] = dict(tasks)
        self.size, self.patch, self.ratio, self.options = size, patch, options.ratio, options
        self.layers = tuple(options.layers)
        layout, projection = options.layout, options.projection
        names = list(tasks) if projection else ["z"]
        self.project = nn.ModuleDict(
            {name: nn.Conv2d(channels, features, 1) for name in tasks} if projection else {}
        )
        self.read = nn.ModuleDict(
            {name: nn.Conv2d(features, t.channels, 1) for name, t in tasks.items()} if projection else {}
        )
        into = features if projection else channels
        self.embed = nn.ModuleDict({name: nn.Conv2d(into, width, patch, patch, bias=False) for name in names})
        self.embed_bias = nn.Parameter(torch.zeros(width))
        self.groups = len(names) if layout == "per_task" else 1
        self.places = (size // patch) ** 2
        if layout == "per_task":
            self.task_embedding = nn.Parameter(torch.empty(self.groups, 1, width).normal_(std=0.02))
            self.task_embedding_out = nn.Parameter(torch.empty(self.groups, 1, width).normal_(std=0.02))
        self.register_buffer("position", position_embedding(size // patch, width), persistent=False)
        self.encoder = nn.ModuleList(_block(width, heads) for _ in range(depth))
        self.encoder_norm = nn.LayerNorm(width, eps=1e-6)
        self.between = nn.Linear(width, width)
        self.mask_token = nn.Parameter(torch.empty(width).normal_(std=0.02))
        self.decoder = nn.ModuleList(_block(width, heads) for _ in range(decoder_depth))
        self.decoder_norm = nn.LayerNorm(width, eps=1e-6)
        predicted: Tasks = {"image": Reconstruction()} if options.reconstruct else tasks
        self.predict = nn.ModuleDict(
            {name: nn.Linear(width, patch * patch * t.channels) for name, t in predicted.items()}
        )
        self._initialise(len(names) * into)

    position: Tensor

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Which tokens are seen, (n, seen) indices; drawn on the generator's device."""
        return visible_tokens(n, self.groups, self.places, self.ratio, self.options.strategy, generator)

    def forward(
        self, z: Tensor, size: Sequence[int], seen: Tensor | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The outputs of the projection, y_TP, and of the synchronizer, y_TBS, by task and of the given size.

        Args:
            z: the latent (N, channels, h, w).
            size: (H, W) of the outputs.
            seen: indices (N, seen) of the tokens that are not masked; None masks nothing.
        """
        latents = {name: conv(z) for name, conv in self.project.items()}
        projected = {name: resized(self.read[name](zi), size) for name, zi in latents.items()}
        return projected, self.synchronise(latents or {"z": z}, size, seen)

    def synchronise(
        self, latents: Mapping[str, Tensor], size: Sequence[int], seen: Tensor | None = None
    ) -> dict[str, Tensor]:
        """y_TBS of the task-specific latents."""
        square = (self.size, self.size)
        parts = [
            self.embed[name](resized(zi, square)).flatten(2).transpose(1, 2) for name, zi in latents.items()
        ]
        tokens = torch.stack(parts, 1) if self.groups > 1 else torch.stack(parts).sum(0)[:, None]
        tokens = tokens + self.embed_bias + self.position
        if self.options.layout == "per_task":
            tokens = tokens + self.task_embedding
        tokens = tokens.flatten(1, 2)
        n, count, width = tokens.shape
        if seen is not None:
            seen = seen.to(tokens.device)[..., None].expand(-1, -1, width)
            tokens = tokens.gather(1, seen)
        for block in self.encoder:
            tokens = block(tokens)
        tokens = self.between(self.encoder_norm(tokens))
        if seen is not None:
            tokens = self.mask_token.to(tokens.dtype).expand(n, count, -1).scatter(1, seen, tokens)
        tokens = tokens.unflatten(1, (self.groups, self.places)) + self.position
        if self.options.layout == "per_task":
            tokens = tokens + self.task_embedding_out
        tokens = tokens.flatten(1, 2)
        for block in self.decoder:
            tokens = block(tokens)
        groups = self.decoder_norm(tokens).unflatten(1, (self.groups, self.places)).unbind(1)
        return {
            name: resized(self._picture(linear(groups[i % self.groups])), size)
            for i, (name, linear) in enumerate(self.predict.items())
        }

    def source_loss(
        self,
        network: nn.Module,
        x: Tensor,
        seen: Sequence[Tensor],
        labels: Mapping[str, Tensor],
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        r"""By task, :math:`\lambda_{TP} L_i(y_i^{TP}) + \lambda_{TBS} L_i(y_i^{TBS})` (eq. 4, 5)."""
        projected, synchronised = self(seen[0], x.shape[-2:], self.draw(len(x), generator))
        losses = {
            name: self.options.lambda_tp * task.loss(projected[name], labels[name])
            for name, task in self.tasks.items()
            if name in projected and name in labels
        }
        if self.options.reconstruct:
            return {
                **losses,
                "image": self.options.lambda_tbs * Reconstruction().loss(synchronised["image"], x),
            }
        for name, task in self.tasks.items():
            if name in labels:
                losses[name] = losses.get(name, 0) + self.options.lambda_tbs * task.loss(
                    synchronised[name], labels[name]
                )
        return losses

    def _initialise(self, channels: int) -> None:
        """Initialise linear layers and patch embeddings; ``channels`` is the number of input channels of all tasks."""
        for module in (
            *self.encoder.modules(),
            *self.decoder.modules(),
            *self.predict.modules(),
            self.between,
        ):
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        # The kernels of all tasks are one kernel over their stacked channels, and its fan counts.
        bound = math.sqrt(6 / (channels * self.patch**2 + self.embed_bias.numel()))
        for conv in self.embed.values():
            nn.init.uniform_(conv.weight, -bound, bound)  # type: ignore[arg-type]

    def _picture(self, patches: Tensor) -> Tensor:
        """Patches (N, places, patch * patch * C) as a map (N, C, size, size)."""
        side, n = self.size // self.patch, len(patches)
        grid = patches.view(n, side, side, self.patch, self.patch, -1)
        return grid.permute(0, 5, 1, 3, 2, 4).reshape(n, -1, self.size, self.size)


def legacy_order(branch: Synchronizer, source: Sequence[str], target: Sequence[str]) -> Synchronizer:
    """A copy whose outputs are misplaced as by the released code's transfer; for experiments on that defect alone.

    That code stacks the output channels of the tasks in the order of the data set it was trained on and reads them in the
    order of the target's: trained on Taskonomy (depth, edge, normals, semseg) and read as NYUD-v2 (semseg, depth, normals,
    edge), the first class is compared with the depth. The blocks of projection and patch embedding change places together,
    which changes nothing.

    Args:
        branch: trained, on tasks that it predicts itself.
        source, target: the names of its tasks, in the order of training and of reading.

    Raises:
        ValueError: an order does not name every task once, or the branch reconstructs images.
    """
    for order in (source, target):
        if sorted(order) != sorted(branch.predict):
            raise ValueError(f"expected the tasks {sorted(branch.predict)} in some order, got {list(order)}")
    moved = copy.deepcopy(branch)
    widths = [branch.tasks[name].channels for name in target]
    with torch.no_grad():
        for kind in ("weight", "bias"):
            stacked = [
                getattr(branch.predict[name], kind).unflatten(0, (branch.patch**2, -1)) for name in source
            ]
            for name, part in zip(target, torch.cat(stacked, 1).split(widths, 1), strict=True):
                getattr(moved.predict[name], kind).copy_(part.flatten(0, 1))
    return moved


def visible_tokens(
    n: int, tasks: int, places: int, ratio: float, strategy: Strategy, generator: torch.Generator
) -> Tensor:
    """Draw the tokens that each of n images shows: indices (n, seen) into tasks x places (figure 5).

    "same" and "random" show int(places (1 - ratio)) places of every task, "disjoint" at most places // tasks of each,
    no place twice; "hide" hides round(ratio tasks) tasks, at least one and not all.

    >>> visible_tokens(1, 2, 4, 0.5, "disjoint", torch.Generator().manual_seed(0)).shape
    torch.Size([1, 4])
    """
    keep = max(1, int(places * (1 - ratio)))

    def order(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator).argsort(-1)

    offsets = torch.arange(tasks) * places
    if strategy == "same":
        return (order(n, 1, places)[..., :keep] + offsets[:, None]).flatten(1)
    if strategy == "random":
        return (order(n, tasks, places)[..., :keep] + offsets[:, None]).flatten(1)
    if strategy == "disjoint":
        keep = max(1, min(keep, places // tasks))
        return (order(n, places)[:, : tasks * keep].unflatten(1, (tasks, keep)) + offsets[:, None]).flatten(1)
    if strategy == "hide":
        hidden = min(max(1, round(ratio * tasks)), tasks - 1)
        shown = order(n, tasks)[:, hidden:].sort(1).values
        return (shown[..., None] * places + torch.arange(places)).flatten(1)
    raise ValueError(f"strategy is one of same, random, disjoint, hide; got {strategy!r}")


def position_embedding(side: int, width: int) -> Tensor:
    """The fixed 2-D sine-cosine embedding (side * side, width) of masked autoencoders.

    Half of the width encodes the column, half the row, each as sines and then cosines of places over 10000^(2k/width).

    Raises:
        ValueError: width is not a multiple of four.

    Source: He et al., Masked Autoencoders Are Scalable Vision Learners, CVPR 2022 (its code's order).
    """
    if width % 4:
        raise ValueError(f"the width of a 2-D sine-cosine embedding is a multiple of four, got {width}")
    frequency = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    place = torch.arange(side, dtype=torch.float64)
    rows, columns = torch.meshgrid(place, place, indexing="ij")
    angles = [axis.flatten()[:, None] * frequency for axis in (columns, rows)]
    return torch.cat([f(a) for a in angles for f in (torch.sin, torch.cos)], dim=1).float()


def _block(width: int, heads: int) -> nn.Module:
    """A pre-norm transformer block, without dropout."""
    return nn.TransformerEncoderLayer(
        width, heads, 4 * width, 0.0, "gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
    )
