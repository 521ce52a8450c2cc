r"""FOA: prompts of a vision transformer, found by an evolution strategy from forwards alone.

:math:`N_p` prompt tokens p are added to the tokens of an image. With the summary token :math:`e_i` of a layer i (the class
token), its mean and deviation :math:`\mu_i, \sigma_i` over a batch X of B images, and those of the source,
:math:`\mu_i^S, \sigma_i^S`, the fitness of a prompt, lower is better, is

.. math::
    v(p) = \sum_{x \in X} H(f(p, x)) + \lambda \tfrac{B}{64} \sum_i \big( \lVert \mu_i(X) - \mu_i^S \rVert_2
        + \lVert \sigma_i(X) - \sigma_i^S \rVert_2 \big)

and with the feature z that the head is given, the head reads

.. math:: z + \gamma (\mu_z^S - \bar\mu_z), \qquad \bar\mu_z \leftarrow (1 - \alpha)\, \bar\mu_z + \alpha\, \mu_z(X)

A step:
    1. draw K prompts (CMA-ES, :mod:`testtime.parts.cma_es`) and predict the batch with each;
    2. answer with the one of lowest fitness, its features shifted;
    3. move the distribution of the prompts towards those of low fitness.

``prepare`` computes the statistics of the source; 32 images are enough in the paper. ``predict`` uses the mean of the
distribution. No gradient is taken and no weight moves: the step saves nothing for a backward.

Departures:
    Written from the description of the paper; the published code was not read. Not known from it, and chosen here: the shift
    takes no part in the fitness, the running mean begins at the first batch, prompts start as uniform draws of Glorot's width,
    the deviations are the biased ones, and those of a single image are left out.
    The strategy is CMA-ES of its tutorial; its usual implementation also gives negative weights to the worse half.
    A transformer without a class token is read by the mean of its tokens. The prompts are taken away behind the last block, so
    that whatever follows finds the tokens that it knows.
    The paper's lambda is 0.4 (ImageNet-C) or 0.2 (ImageNet-R), and K = 28 for ViT-B.

Cost: K forwards. With n numbers in the prompts, 3 x 768 for a ViT-B, the distribution takes two n x n matrices of float64
(81 MiB), and their decomposition a few seconds of a processor every ninth step.

Reference: Niu, Miao, Chen, Wu and Zhao, Test-Time Model Adaptation with Only Forward Passes, ICML 2024.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, final

import torch
from torch import Tensor, nn

from testtime.adapter import Adapter
from testtime.intake.arguments import Positive
from testtime.intake.shards import shards_of
from testtime.intake.sharing import Stateful, twin
from testtime.parts import entropy
from testtime.parts.cma_es import CMAES
from testtime.parts.features import head_tap, headless, linear_head, with_features
from testtime.parts.randomness import generator

__all__ = ["FOA", "PromptedBlock", "SourceTokens"]

CLASS_TOKENS = ("cls_token", "class_token", "class_embedding")
"""Names of the parameter that holds a class token."""


@final
class FOA(Adapter):
    """Prompts of a vision transformer, found by an evolution strategy from forwards alone.

    Args:
        model: a classifier that is a vision transformer: a run of equal blocks on tokens (N, T, D), and a linear head.
        prompts: N_p, number of prompt tokens.
        population: K, number of prompts that are tried on a batch.
        weight: lambda, weight of the distance to the source's statistics.
        sigma: the first step size of the strategy.
        shift: gamma, factor of the shift of the features; 0 leaves it out.
        momentum: alpha, the weight of a batch in the running mean of the features.
        seed: random seed of the prompts.

    Raises:
        ValueError: the model is no vision transformer of this form, or has no linear head.
        RuntimeError: it is called before ``prepare``.

    >>> from testtime.laws.worlds import WORLDS
    >>> foa = FOA(WORLDS["vit"].network(), population=4)
    >>> foa.prepare(torch.rand(2, 16, 3, 8, 8).unbind())
    >>> y = foa(torch.rand(8, 3, 8, 8))
    >>> y.shape, y.updated, foa.cost
    (torch.Size([8, 5]), True, (4, 0))
    """

    name, label = "foa", "FOA"
    needs = ("classifier", "linear head", "transformer")
    venue = "ICML 2024"
    paper = "Niu, Miao, Chen, Wu and Zhao, Test-Time Model Adaptation with Only Forward Passes"
    source = "statistics"
    stochastic = True
    cost = (28, 0)

    running: Tensor

    def __init__(
        self,
        model: nn.Module,
        prompts: Positive = 3,
        population: Annotated[int, 4] = 28,
        weight: float = 0.4,
        sigma: float = 1.0,
        shift: float = 1.0,
        momentum: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__(model, seed)
        self.prompts, self.population, self.weight, self.sigma = prompts, population, weight, sigma
        self.shift, self.momentum = shift, momentum
        self.cost = (population, 0)
        self._blocks = prompt_blocks(self.model)
        self._head, self._tap = linear_head(self.model)[1], head_tap(self.model)
        width, read = self._blocks[0].width, self._head.weight.shape[1]
        if read != width:
            raise ValueError(
                f"FOA shifts the features of a head that reads tokens of the width {width}, and the head of this model reads "
                f"{read} numbers (class token and mean of the others, as in DINOv2?); use another method without gradients: "
                "T3A, LAME"
            )
        bound = math.sqrt(6 / (2 * width))
        draw = torch.rand(prompts * width, generator=generator(seed, 0, "prompts"), dtype=torch.float64)
        device = self._head.weight.device
        self.search = CMAES((bound * (2 * draw - 1)).to(device), sigma, population, seed)
        self.tokens = SourceTokens()
        self.register_buffer("running", torch.empty(0, device=device))  # unknown before the first batch

    def _prepare(self, batches: Iterable[Tensor]) -> None:
        self.tokens.clear()
        with torch.no_grad():
            for x in batches:
                self.tokens.update(self._answered(x, None)[2])
        if not int(self.tokens.images):
            raise ValueError("expected batches of source images (N, C, H, W) to summarise, got none")

    def _answered(self, x: Tensor, prompts: Tensor | None) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Logits (N, C), features (N, D) and the summary token of every layer (N, D), then the features again."""
        for block in self._blocks:
            block.open, block.count = True, 0 if prompts is None else self.prompts
        self._blocks[0].prompts = None if prompts is None else prompts.view(self.prompts, -1)
        try:
            logits, z = with_features(self.model, self._tap, x)
            found = [block.seen for block in self._blocks if block.seen is not None]
        finally:
            for block in self._blocks:
                block.open, block.seen, block.prompts, block.count = False, None, None, 0
        shards = shards_of(self.model)
        seen = [t if shards is None else shards.whole(t, len(x)) for t in found]
        if len(seen) < len(self._blocks) or any(len(t) != len(x) for t in seen):
            raise ValueError(
                "FOA reads the tokens (N, T, D) behind every block of the transformer; some blocks took no part in the "
                "forward, or take tokens in another order: build the model with batch_first=True"
            )
        return logits, z, [*seen, z]

    def _shifted(self, logits: Tensor, z: Tensor, running: Tensor) -> Tensor:
        """Logits of the features, moved towards the mean of the source."""
        if not self.shift or not running.numel():
            return logits
        away = self.shift * (self.tokens.mean[-1] - running)
        return self._head((z + away).to(self._head.weight.dtype)).to(logits.dtype)

    def _known(self) -> None:
        if not int(self.tokens.images):
            raise RuntimeError(
                "FOA has not seen its source: call adapter.prepare(batches) with unlabelled source batches first"
            )

    def _predict_batch(self, x: Tensor) -> Tensor:
        self._known()
        logits, z, _ = self._answered(x, self.search.mean)
        return self._shifted(logits, z, self.running)

    def _answering(self) -> nn.Module:
        self._known()
        moved = bool(self.shift and self.running.numel())
        tree = headless(self.model) if moved else twin(self.model)
        with_fixed_prompts(tree, self.search.mean.view(self.prompts, -1).clone())
        if not moved:
            return tree
        return Moved(tree, self._head, self.shift * (self.tokens.mean[-1] - self.running))

    @torch.no_grad()
    def step(self, x: Tensor) -> Tensor:
        self._known()
        draws, fitness = self.search(), list[Tensor]()
        best: tuple[Tensor, Tensor, Tensor] | None = None
        for prompts in draws:
            logits, z, seen = self._answered(x, prompts)
            fitness.append(self.fitness(logits, seen).nan_to_num(torch.inf, torch.inf, torch.inf))
            if best is None or bool(fitness[-1] < best[0]):
                best = fitness[-1], logits, z
        assert best is not None
        _, logits, z = best
        mean = z.to(self.tokens.mean.dtype).mean(dim=0)
        self.running = self.running.lerp(mean, self.momentum) if self.running.numel() else mean
        self.search.update(draws, torch.stack(fitness))
        self._updated = True
        return self._shifted(logits, z, self.running)

    def fitness(self, logits: Tensor, seen: Sequence[Tensor]) -> Tensor:
        """The fitness of a prompt, a float64 scalar; lower is better.

        Args:
            logits: (N, C).
            seen: (N, D), the summary token of every layer, then the features.
        """
        total = entropy(logits.double()).sum()
        return total + self.weight * len(logits) / 64 * self.tokens(seen[:-1]).double()


@final
class SourceTokens(Stateful):
    """Mean and deviation of the summary tokens of every layer over the source images.

    Attributes:
        images: number of images seen.
        mean, var: (L, D), of the layers and, last, of the features.

    ``update`` learns from one batch more, calling gives the distance of another batch, a scalar.
    """

    learned = True
    images: Tensor
    mean: Tensor
    var: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("images", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.empty(0))
        self.register_buffer("var", torch.empty(0))

    def clear(self) -> None:
        """Forget the source."""
        self.images = torch.zeros_like(self.images)

    @torch.no_grad()
    def update(self, seen: Sequence[Tensor]) -> None:
        """Merge the moments of a batch, (N, D) of each layer, into those so far (Chan et al., 1979)."""
        old, new = int(self.images), len(seen[0])
        mean, var = _moments(seen)
        if old:
            share, gap = new / (old + new), mean - self.mean
            mean = self.mean + share * gap
            var = (1 - share) * (self.var + share * gap.square()) + share * var
        self.mean, self.var, self.images = mean, var, self.images + new

    def forward(self, seen: Sequence[Tensor]) -> Tensor:
        mean, var = _moments(seen)
        n = len(mean)
        total = (mean - self.mean[:n]).norm(dim=1).sum()
        if len(seen[0]) > 1:
            total = total + (var.sqrt() - self.var[:n].sqrt()).norm(dim=1).sum()
        return total


def _moments(seen: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over the images, (L, D), of (N, D) for each layer, at least in float32."""
    z = torch.stack([t.to(torch.promote_types(t.dtype, torch.float32)) for t in seen])
    mean = z.mean(dim=1)
    return mean, (z - mean[:, None]).square().mean(dim=1)


class Around(nn.Module):
    """A module around a block of a transformer.

    Args:
        block: maps tokens (N, T, D) to such tokens.
        classed: whether the first token is a class token; prompts stand behind it.
    """

    def __init__(self, block: nn.Module, classed: bool) -> None:
        super().__init__()
        self.block, self.classed = block, classed

    def __getattr__(self, name: str) -> Any:
        """What this does not know it asks the block, as a transformer of torch asks its layers."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "block" or name.startswith("__"):
                raise
            return getattr(self.block, name)

    def added(self, x: Tensor, prompts: Tensor) -> Tensor:
        """Tokens (N, P + T, D) with prompts (P, D) beside those of x (N, T, D)."""
        first = int(self.classed)
        return torch.cat([x[:, :first], prompts.to(x.dtype).expand(x.shape[0], -1, -1), x[:, first:]], dim=1)

    def removed(self, y: Tensor, count: int) -> Tensor:
        """Tokens (N, T, D) without the ``count`` prompts."""
        first = int(self.classed)
        return torch.cat([y[:, :first], y[:, first + count :]], dim=1) if count else y

    def run(self, x: Tensor, count: int, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """What the block returns for tokens (N, P + T, D) with ``count`` prompts, and masks for T tokens."""
        whole, first = x.shape[1], int(self.classed)

        def fitted(given: Any) -> Any:
            is_mask = isinstance(given, Tensor) and given.dim() == 4 and given.shape[3] == whole - count
            return widened(given, first, count) if is_mask and count else given

        return self.block(x, *map(fitted, args), **{name: fitted(given) for name, given in kwargs.items()})


class PromptedBlock(Around):
    """A block of a transformer that keeps the summary token of each image, and may add prompts or take them away.

    Args:
        block: maps tokens (N, T, D) to such tokens.
        classed: whether the first token is a class token; prompts stand behind it.
        last: whether the prompts go behind this block.
        width: D.
    """

    def __init__(self, block: nn.Module, classed: bool, last: bool, width: int) -> None:
        super().__init__(block, classed)
        self.last, self.width = last, width
        self.open, self.count = False, 0
        self.seen: Tensor | None = None
        self.prompts: Tensor | None = None

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not self.open:
            return self.block(x, *args, **kwargs)
        if x.dim() != 3 or x.shape[2] != self.width:
            raise ValueError(
                f"FOA adds prompts to the tokens (N, T, {self.width}) of a vision transformer, and a block of this model is "
                f"given {tuple(x.shape)}; for other networks use a method without prompts: BNAdapt, T3A, LAME"
            )
        if self.prompts is not None:
            x = self.added(x, self.prompts)
        output = self.run(x, self.count, args, kwargs)
        y = output[0] if isinstance(output, tuple) else output
        kept = self.removed(y, self.count)
        self.seen = y[:, 0] if self.classed else kept.mean(dim=1)
        if not self.last or not self.count:
            return output
        return (kept, *output[1:]) if isinstance(output, tuple) else kept


class FixedBlock(Around):
    """A block of a transformer on tokens with fixed prompts among them.

    Args:
        block, classed: arguments of :class:`Around`.
        prompts: (P, D).
        first: whether the prompts are added before this block.
        last: whether they are removed behind it.
    """

    prompts: Tensor

    def __init__(self, block: nn.Module, classed: bool, prompts: Tensor, first: bool, last: bool) -> None:
        super().__init__(block, classed)
        self.first, self.last, self.count = first, last, len(prompts)
        if first:
            self.register_buffer("prompts", prompts)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        output = self.run(self.added(x, self.prompts) if self.first else x, self.count, args, kwargs)
        if not self.last:
            return output
        if isinstance(output, tuple):
            return (self.removed(output[0], self.count), *output[1:])
        return self.removed(output, self.count)


class Moved(nn.Module):
    """A linear head on features that are moved by a constant, as a module.

    Args:
        features: network from a batch to features (N, D).
        head: linear layer.
        away: shift of the features, (D,).
    """

    away: Tensor

    def __init__(self, features: nn.Module, head: nn.Module, away: Tensor) -> None:
        super().__init__()
        self.features, self.head = features, head
        self.register_buffer("away", away)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, C)."""
        z = self.features(x)
        return self.head((z + self.away).to(self.head.weight.dtype)).to(z.dtype)


def with_fixed_prompts(tree: nn.Module, prompts: Tensor) -> None:
    """Put fixed prompts (P, D) in place of the blocks of :func:`prompt_blocks`, in place."""
    for parent in list(tree.modules()):
        blocks = [(name, m) for name, m in parent.named_children() if isinstance(m, PromptedBlock)]
        for i, (name, m) in enumerate(blocks):
            setattr(parent, name, FixedBlock(m.block, m.classed, prompts, i == 0, m.last))


def widened(mask: Tensor, first: int, count: int) -> Tensor:
    """Make room for prompts in an attention mask, as ``scaled_dot_product_attention`` takes it.

    Args:
        mask: (N, H, T or 1, T); true, or 0 where it is a number that is added, for a token that is attended to.
        first: number of tokens before the prompts.
        count: P, number of prompts: each token attends to them, and they attend to what the first token attends to.

    Returns:
        (N, H, P + T or 1, P + T).
    """
    seen = mask.new_full((*mask.shape[:3], count), mask.dtype == torch.bool)
    mask = torch.cat([mask[..., :first], seen, mask[..., first:]], dim=3)
    if mask.shape[2] == 1:
        return mask
    rows = mask[:, :, :1].expand(-1, -1, count, -1)
    return torch.cat([mask[:, :, :first], rows, mask[:, :, first:]], dim=2)


def prompt_blocks(model: nn.Module) -> list[PromptedBlock]:
    """Put a :class:`PromptedBlock` around each block of a vision transformer, in place.

    The blocks are the longest run of modules of one class, each with layer normalisation and linear layers and without
    convolutions.

    Args:
        model: a tree of one's own (:func:`testtime.intake.sharing.share`).

    Raises:
        ValueError: there is no such run.
    """
    runs = [m for m in model.modules() if isinstance(m, nn.Sequential | nn.ModuleList) and _is_run(m)]
    if not runs:
        raise ValueError(
            "FOA adds prompts to the tokens of a vision transformer, and this model has no run of equal blocks with layer "
            "normalisation and linear layers; expected a ViT (timm, torchvision, transformers or of this form); for other "
            "networks use a forward-only method without prompts: BNAdapt, T3A, LAME"
        )
    run = max(runs, key=len)
    norm = next(m for m in run[0].modules() if isinstance(m, nn.LayerNorm | nn.RMSNorm))
    classed = any(name.rpartition(".")[2] in CLASS_TOKENS for name, _ in model.named_parameters())
    width = norm.normalized_shape[-1]
    prompted = [PromptedBlock(block, classed, i == len(run) - 1, width) for i, block in enumerate(run)]
    for i, block in enumerate(prompted):
        run[i] = block
    return prompted


def _is_run(blocks: nn.Sequential | nn.ModuleList) -> bool:
    def has(block: nn.Module, *kinds: type[nn.Module]) -> bool:
        return any(isinstance(m, kinds) for m in block.modules())

    return (
        len(blocks) > 1
        and len({type(b) for b in blocks}) == 1
        and all(has(b, nn.LayerNorm, nn.RMSNorm) and has(b, nn.Linear) for b in blocks)
        and not any(has(b, nn.Conv1d, nn.Conv2d, nn.Conv3d) for b in blocks)
    )
