"""The base of every policy: a BatchNorm layer with a rule for the statistics to use, and the finding of norm layers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from testtime.intake.shards import Shards, current_shards
from testtime.intake.sharing import Stateful, share
from testtime.intake.trees import modules_of

__all__ = [
    "TOP_LAYERS",
    "NormPolicy",
    "advance",
    "has_batch_norm",
    "norm_affine",
    "norm_layers",
    "observing",
    "policies_of",
    "swap_policy",
]

KINDS: tuple[type[nn.Module], ...] = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
TOP_LAYERS = ("layer4", "blocks.9", "blocks.10", "blocks.11", "norm")
"""The top of a ResNet and of a ViT-B, which SAR (Niu et al., ICLR 2023) and its successors do not adapt."""


class NormPolicy(Stateful, ABC):
    """A BatchNorm layer whose statistics follow a policy.

    The wrapped layer keeps its parameters, its source statistics and whatever a subclass does after normalising (an
    activation, say). Statistics that move are buffers; a forward only proposes their next value, and :func:`advance`
    takes the first proposal once per observed batch, however many forwards there were.

    Attributes:
        needs_source: whether the policy starts from the source's statistics. A layer with ``track_running_stats=False``
            holds none, and normalises every batch by its own in the source model too.
        source_mean, source_var: running statistics (C,) of the source; None where the layer holds none.
    """

    needs_source: ClassVar[bool] = True

    def __init__(self, layer: _BatchNorm) -> None:
        super().__init__()
        self.layer = layer
        self.observing = False
        self.rests = False  # in a frozen model
        self._observed = False
        self._shards: Shards | None = None
        self.proposal: dict[str, Tensor] | None = None
        # A subclass may act on its own after normalising: it gets normalised input and unit statistics.
        self.plain = type(layer) in PLAIN
        if self.needs_source and layer.running_mean is None:
            raise ValueError(
                f"{type(self).__name__} starts from the running statistics of the source, and this model's BatchNorm layers "
                "hold none (track_running_stats=False); pass norm=testtime.norm.batch_statistics, which needs none: these "
                "layers normalise by the batch in the source model too"
            )
        self.register_buffer("source_mean", layer.running_mean, persistent=False)
        self.register_buffer("source_var", layer.running_var, persistent=False)
        if not self.plain:
            like = next((t for t in (layer.running_mean, layer.weight) if t is not None), torch.empty(0))
            layer.running_mean = like.new_zeros(layer.num_features)
            layer.running_var = like.new_ones(layer.num_features) - layer.eps

    source_mean: Tensor
    source_var: Tensor

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor: ...

    def observes(self) -> bool:
        """Whether this forward is of a batch to learn from: it is :func:`observing`, or repeats a forward that was.

        ``torch.utils.checkpoint`` repeats a forward in the backward, which may have left :func:`observing`.
        """
        repeats = torch._C._current_graph_task_id() != -1
        if torch.is_grad_enabled() and not repeats:
            self._observed = self.observing
        return self._observed if repeats else self.observing

    def shards(self) -> Shards | None:
        """The processes that share out the batch of this forward, or of the one that it repeats (see :meth:`observes`)."""
        if not Shards.used:  # torch.compile traces no more than this
            return None
        if torch._C._current_graph_task_id() == -1 and self._shards is not (found := current_shards()):
            self._shards = found
        return self._shards

    def lacks_spread(self, x: Tensor) -> bool:
        """Whether a batch (N, C, ...) has one value per channel, in all processes that share it."""
        shards = self.shards()
        return x.numel() == x.shape[1] if shards is None else shards.values(x) == 1

    def normalise(self, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        """Normalise (N, C, ...) with the statistics (C,), or (N, C) where each instance has its own; then scale and shift.

        Gradients flow through the statistics.
        The answer has the type of x, also where the statistics are kept in a wider one (autocast).
        """
        shape = (-1, x.shape[1]) + (1,) * (x.dim() - 2)
        scale = torch.rsqrt(var + self.layer.eps)
        if self.plain and self.layer.weight is not None:
            scale = scale * self.layer.weight
            return (x * scale.view(shape) + (self.layer.bias - mean * scale).view(shape)).to(x.dtype)
        x = ((x - mean.view(shape)) * scale.view(shape)).to(x.dtype)
        return x if self.plain else self.layer(x)

    def normalise_by_batch(self, x: Tensor) -> Tensor:
        """Normalise with the statistics of the batch itself; one value per channel has none: the source's serve.

        Raises:
            ValueError: one value per channel, and the source holds no statistics (torch refuses it too).
        """
        if self.lacks_spread(x):
            if self.source_mean is None:
                raise ValueError(
                    f"a BatchNorm layer got one value per channel, {tuple(x.shape)}, which has no spread to normalise by, and "
                    "it holds no running statistics (track_running_stats=False); pass a batch of two images or more"
                )
            return self.normalise_by(x, self.source_mean, self.source_var)
        layer, shards = self.layer, self.shards()
        if shards is not None:
            return self.normalise(x, *shards.moments(x.to(torch.promote_types(x.dtype, torch.float32))))
        if self.plain:
            return F.batch_norm(x, None, None, layer.weight, layer.bias, True, 0.0, layer.eps)
        return layer(F.batch_norm(x, None, None, None, None, True, 0.0, layer.eps))

    def normalise_by(self, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        """Normalise with fixed statistics (C,)."""
        layer = self.layer
        if self.plain:
            return F.batch_norm(x, mean, var, layer.weight, layer.bias, False, 0.0, layer.eps)
        return layer(F.batch_norm(x, mean, var, None, None, False, 0.0, layer.eps))

    def moments(self, x: Tensor, unbiased: bool = False) -> tuple[Tensor, Tensor]:
        """Mean and variance (C,) of the batch over all but the channel dimension, in the source's type."""
        if self.lacks_spread(x):
            return self.source_mean, self.source_var
        x, over, shards = x.to(self.source_mean.dtype), [0, *range(2, x.dim())], self.shards()
        if shards is not None:
            mean, var = shards.moments(x)
            values = shards.values(x)
            return mean, var * (values / (values - 1)) if unbiased else var
        # Two passes: torch.var_mean over several dimensions takes several times as long on a CPU.
        mean = x.mean(dim=over, keepdim=True)
        var = (x - mean).square().mean(dim=over)
        n = x.numel() / x.shape[1]
        return mean.flatten(), var * (n / (n - 1)) if unbiased else var

    def instance_moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and biased variance (N, C) of each instance over its places, in at least float32."""
        x = x.to(torch.promote_types(self.source_mean.dtype, torch.float32)).flatten(2)
        mean = x.mean(dim=2, keepdim=True)
        return mean.squeeze(2), (x - mean).square().mean(dim=2)

    def statistics(self) -> tuple[Tensor, Tensor] | None:
        """Mean and variance (C,) by which a prediction is normalised; None where they depend on the batch."""
        return None

    def settled(self) -> nn.Module:
        """What normalises predictions as this policy does now, and never learns: a plain layer, or the policy, by the batch.

        The policy is used up; its buffers are then all saved.
        """
        if (fixed := self.statistics()) is None:
            self.rests, self.proposal = True, None
            self._non_persistent_buffers_set.clear()
            if self.plain:  # its layer is not run, and shares these
                self.layer.running_mean = self.layer.running_var = None
            return self
        self.layer.running_mean, self.layer.running_var = fixed
        return self.layer

    def propose(self, **buffers: Tensor) -> None:
        """Propose the next value of moving buffers; the first proposal of a step counts."""
        if self.proposal is None and not self.rests:
            self.proposal = {name: value.detach() for name, value in buffers.items()}


def policies_of(model: nn.Module) -> list[NormPolicy]:
    """The layers of a tree that follow a policy."""
    return modules_of(model, NormPolicy)  # type: ignore[type-abstract]


def advance(model: nn.Module | Iterable[NormPolicy], *, accept: bool = True) -> None:
    """Let the statistics of every policy in the model take their proposed value (or forget it)."""
    for policy in policies_of(model) if isinstance(model, nn.Module) else model:
        if policy.proposal is not None:
            if accept:
                for name, value in policy.proposal.items():
                    policy.restore(name, value)
            policy.proposal = None


@contextmanager
def observing(model: nn.Module) -> Iterator[None]:
    """Inside, policies that distinguish predicting from observing (robust, running) observe: the batch is one to learn from."""
    flags = [vars(m) for m in policies_of(model)]  # an attribute of a module takes 3 microseconds to set
    for of_one in flags:
        of_one["observing"] = True
    try:
        yield
    finally:
        for of_one in flags:
            of_one["observing"] = False


def swap_policy(
    model: nn.Module, make: Callable[[_BatchNorm], nn.Module], *, again: bool = False
) -> nn.Module:
    """Replace every BatchNorm layer of the tree, in place; with ``again`` also those that follow a policy already."""
    for parent in list(model.modules()):
        if isinstance(parent, NormPolicy):
            continue
        for name, child in list(parent.named_children()):
            if isinstance(child, _BatchNorm):
                setattr(parent, name, make(child))
            elif again and isinstance(child, NormPolicy):
                child.layer.running_mean, child.layer.running_var = child.source_mean, child.source_var
                setattr(parent, name, make(child.layer))
    return model.eval()


def policy(model: nn.Module, make: Callable[[_BatchNorm], nn.Module]) -> nn.Module:
    """A tree on the memory of ``model`` whose BatchNorm layers, unless they follow a policy already, follow this."""
    with torch.inference_mode(False):
        return swap_policy(share(model), make)


def norm_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The normalisation layers by name, found by kind: BatchNorm, InstanceNorm, LayerNorm, GroupNorm, RMSNorm."""
    return {name: m for name, m in model.named_modules() if isinstance(m, KINDS)}


def norm_affine(model: nn.Module, skip: Iterable[str] = ()) -> list[nn.Parameter]:
    """Scale and shift of every normalisation layer (gamma and beta), in the order of the layers.

    Args:
        model: any module.
        skip: parts of dotted names, such as :data:`TOP_LAYERS`; a layer whose name holds one is left out.

    Raises:
        ValueError: ``skip`` leaves out every layer there is.
    """
    layers, skip = norm_layers(model), tuple(skip)
    kept = [m for name, m in layers.items() if not any(f".{part}." in f".{name}." for part in skip)]
    if layers and not kept:
        raise ValueError(
            f"skip={skip} leaves none of this model's {len(layers)} normalisation layers; pass skip=()"
        )
    return [p for m in kept for p in (m.weight, getattr(m, "bias", None)) if isinstance(p, nn.Parameter)]


def has_batch_norm(model: nn.Module) -> bool:
    """Whether the model holds at least one BatchNorm layer (under a policy or not)."""
    return any(isinstance(m, _BatchNorm) for m in model.modules())
