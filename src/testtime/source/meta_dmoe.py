"""What Meta-DMoE learns on source data: experts of domains, their aggregator, and a student that learns from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from testtime.intake.outputs import Logits
from testtime.intake.sharing import AtLeastFloat32, Stateful, duplicate
from testtime.moved import takes_former
from testtime.norm import source_statistics
from testtime.parts import generator
from testtime.parts.features import head_tap, with_features
from testtime.parts.taps import Tap
from testtime.source.passes import passes_over

__all__ = [
    "Aggregator",
    "Batches",
    "Featured",
    "Mask",
    "Mixture",
    "Recipe",
    "masked",
    "mixture_of",
    "train_meta_dmoe",
    "train_mixture",
]


Batches = Collection[tuple[Tensor, Tensor]]
"""Batches of images (N, C, H, W) and class indices (N,)."""


Mask = Literal["zero", "drop"]
"""How an expert is masked: its features are zero, or it is left out."""


@final
class Featured(nn.Module):
    """A classifier that gives its logits (N, C), and the features (N, D) that its linear head was given.

    Args:
        network: a tree of one's own.
        head: name of the linear head; the last linear layer unless given.

    Raises:
        ValueError: there is no linear head.
    """

    def __init__(self, network: nn.Module, head: str | None = None) -> None:
        super().__init__()
        self.network = network
        self._taps: list[Tap] = [
            head_tap(network, head)
        ]  # in a list, for it is a part of the network already

    def last(self) -> nn.Linear:
        """The head."""
        layer = self._taps[0].layer
        assert isinstance(layer, nn.Linear)
        return layer

    def encoder(self) -> dict[str, nn.Parameter]:
        """All parameters but the head's, by name."""
        head = {id(p) for p in self.last().parameters()}
        return {name: p for name, p in self.named_parameters() if id(p) not in head}

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits, features = with_features(self.network, self._taps[0], x)
        return logits, features.to(torch.promote_types(features.dtype, torch.float32))


@final
class Aggregator(AtLeastFloat32):
    """A transformer over the outputs of the experts for an image.

    Args:
        wide: D, of the features.
        classes: C, of the classifier that it is pre-trained with.
        depth: number of blocks.
        heads: largest number of heads of attention; as many as divide D are used.
    """

    def __init__(self, wide: int, classes: int, depth: int = 1, heads: int = 16) -> None:
        super().__init__()
        heads = math.gcd(heads, wide)
        blocks = [
            nn.TransformerEncoderLayer(wide, heads, 2 * wide, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(depth)
        ]
        self.blocks = nn.Sequential(*blocks)
        self.norm, self.head = nn.LayerNorm(wide), nn.Linear(wide, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Features (N, D) from those of the experts (N, K, D)."""
        aggregated: Tensor = self.blocks(tokens).mean(dim=1)
        return aggregated

    def classify(self, tokens: Tensor) -> Tensor:
        """Logits (N, C) from the features of the experts (N, K, D)."""
        logits: Tensor = self.head(self.norm(self(tokens)))
        return logits


@final
class Mixture(Stateful):
    """A student, the experts of the source domains and their aggregator; it answers as the student does.

    Args:
        student: a classifier.
        experts: one of the same form for each of ``domains``.
        domains: their names.
        depth, heads, seed: number of blocks and heads of the aggregator, and random seed of its initial weights.
        head: name of the linear head; the last linear layer unless given.

    Attributes:
        learned: whether an adapter's ``prepare`` trained it; then it belongs to the adapter's state.
        taught: (), bool; whether it was trained.
    """

    taught: Tensor

    def __init__(
        self,
        student: nn.Module,
        experts: Sequence[nn.Module],
        domains: Sequence[str],
        depth: int = 1,
        heads: int = 16,
        seed: int = 0,
        head: str | None = None,
    ) -> None:
        super().__init__()
        self.domains, self.depth, self.heads, self.seed = tuple(domains), depth, heads, seed
        self.student = Featured(student, head)
        self.experts = nn.ModuleList(Featured(expert, head) for expert in experts)
        self.aggregator = self.fresh()
        self.register_buffer("taught", torch.zeros((), dtype=torch.bool))

    def fresh(self) -> Aggregator:
        """An aggregator that has not learned, at least in float32."""
        last = self.student.last()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(generator(self.seed, 0, "aggregator").initial_seed())
            made = Aggregator(last.in_features, last.out_features, self.depth, self.heads)
        dtype = torch.promote_types(last.weight.dtype, torch.float32)
        return made.to(last.weight.device, dtype).requires_grad_(False)

    def moving(self) -> dict[str, Tensor]:
        if not self.learned:
            return {}
        encoder = {id(p) for p in self.student.encoder().values()}  # which the adapter adapts
        own = {name: p for name, p in self.named_parameters() if id(p) not in encoder}
        return {"taught": self.taught, **own}

    def restore(self, name: str, value: Tensor) -> None:
        with torch.no_grad():
            (self.taught if name == "taught" else self.get_parameter(name)).copy_(value)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.student(x)[0]
        return logits

    @torch.no_grad()
    def ask(self, x: Tensor) -> Tensor:
        """The experts' features (N, K, D) of a batch, without a graph."""
        return torch.stack([expert(x)[1] for expert in self.experts], dim=1)

    def distance(self, x: Tensor, tokens: Tensor, encoder: dict[str, Tensor]) -> Tensor:
        """Of the student's features to the aggregated ones, a mean of squares.

        Args:
            x: (N, ...).
            tokens: features of the experts, (N, K, D).
            encoder: the weights of the student's encoder, by name.
        """
        _, features = torch.func.functional_call(self.student, encoder, (x,))
        return F.mse_loss(features, self.aggregator(tokens))


def masked(tokens: Tensor, k: int, mask: Mask) -> Tensor:
    """The experts' features (N, K, D) without the k-th: zero in its place, or K - 1 of them.

    >>> masked(torch.ones(1, 3, 1), 1, "zero").flatten(), masked(torch.ones(1, 3, 1), 1, "drop").shape
    (tensor([1., 0., 1.]), torch.Size([1, 2, 1]))
    """
    kept = torch.arange(tokens.shape[1], device=tokens.device) != k
    return tokens * kept[:, None] if mask == "zero" else tokens[:, kept]


@final
class _Together:
    """The batches of all domains in one random order: images, labels and which domain it is."""

    def __init__(self, domains: Sequence[Batches], seed: int) -> None:
        self.domains = domains
        whose = torch.arange(len(domains)).repeat_interleave(torch.tensor([len(b) for b in domains]))
        self.order = whose[torch.randperm(len(whose), generator=generator(seed, 0, "order"))].tolist()

    def __len__(self) -> int:
        return len(self.order)

    def __contains__(self, example: object) -> bool:
        return any(example is one for one in self)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, int]]:
        shown = [iter(batches) for batches in self.domains]
        for k in self.order:
            x, y = next(shown[k])
            yield x, y, k


@final
@dataclass(frozen=True)
class Recipe:
    """Settings of the three stages of training.

    Args:
        passes, expert_passes, aggregator_passes: number of passes of meta-training, of the experts and of the aggregator.
        rate: learning rate beta of the student in meta-training.
        expert_rate: learning rate of the experts.
        pretrain_rate, aggregator_rate: learning rates of the aggregator, as a classifier and in meta-training; a small network
            needs higher ones.
        inner_rate: learning rate alpha of the step that is meta-trained; that of the adapter should be the same.
        support: share of a batch that the student takes a step on; the loss is that of the rest.
        mask: treatment of the domain's own expert: "drop", the published code's, leaves it out; "zero", the paper's, sets its
            features to 0.
        decay: factor of all learning rates after every pass.

    Raises:
        ValueError: ``mask`` is neither "drop" nor "zero".
    """

    passes: int = 10
    expert_passes: int = 5
    aggregator_passes: int = 5
    rate: float = 1e-4
    expert_rate: float = 1e-3
    pretrain_rate: float = 3e-6
    aggregator_rate: float = 1e-6
    inner_rate: float = 1e-3
    support: float = 2 / 3
    mask: Mask = "drop"
    decay: float = 0.96

    def __post_init__(self) -> None:
        if self.mask not in ("zero", "drop"):
            raise ValueError(f"mask is 'zero' or 'drop', got {self.mask!r}")

    def episodes(self) -> dict[str, Any]:
        """Return what the last stage depends on, for its checkpoint."""
        return {name: getattr(self, name) for name in ("aggregator_rate", "inner_rate", "support", "mask")}

    def split(self, x: Tensor) -> int:
        """Return how many images of a batch are the support."""
        n = round(self.support * len(x))
        if not 0 < n < len(x):
            raise ValueError(
                f"a batch of {len(x)} images cannot be parted into {self.support:g} to adapt to and the rest to answer; "
                "expected larger batches (of a loader, drop the last one)"
            )
        return n


@final
class _Stage:
    """One stage of training after another, each with a checkpoint of its own."""

    def __init__(
        self, described: Mapping[str, Any], recipe: Recipe, folder: Path | None, title: str | None
    ) -> None:
        self.described, self.recipe, self.folder, self.title = described, recipe, folder, title

    def run(
        self,
        part: str,
        passes: int,
        rate: float,
        batches: Collection[tuple[Any, ...]],
        module: nn.Module,
        groups: Sequence[dict[str, Any]],
        loss: Callable[..., Tensor],
    ) -> None:
        """Train the parameters of the groups, which require gradients meanwhile."""
        own = [p for group in groups for p in group["params"]]
        before = [p.requires_grad for p in own]
        for p in own:
            p.requires_grad_(True)
        for _ in passes_over(
            batches,
            passes,
            module,
            torch.optim.Adam(groups, rate),
            loss,
            lambda done: rate * self.recipe.decay**done,
            self.title and f"{self.title}, {part}",
            None if self.folder is None else self.folder / f"{part}.safetensors",
            {**self.described, "part": part, "rate": rate}
            | (self.recipe.episodes() if part == "meta" else {}),
            self.described["seed"],
        ):
            pass
        for p, flag in zip(own, before, strict=True):
            p.requires_grad_(flag)


def _after_a_step(mixture: Mixture, recipe: Recipe, x: Tensor, y: Tensor, k: int) -> Tensor:
    """The loss of some images of domain k after a step of the student on the others, a scalar."""
    n, encoder = recipe.split(x), dict[str, Tensor](mixture.student.encoder())
    tokens = masked(mixture.ask(x[:n]), k, recipe.mask)
    gradients = torch.autograd.grad(
        mixture.distance(x[:n], tokens, encoder),
        list(encoder.values()),
        create_graph=True,
        materialize_grads=True,
    )
    moved = {name: p - recipe.inner_rate * g for (name, p), g in zip(encoder.items(), gradients, strict=True)}
    logits, _ = torch.func.functional_call(mixture.student, moved, (x[n:],))
    return F.cross_entropy(logits, y[n:])


def train_mixture(
    mixture: Mixture,
    domains: Mapping[str, Batches],
    recipe: Recipe,
    folder: Path | None = None,
    title: str | None = None,
) -> None:
    """Train experts, aggregator and student, in place.

    Args:
        mixture: student, experts in the order of the domains, and aggregator.
        domains: labelled batches by the name of a domain.
        recipe: settings of training.
        folder: folder of the checkpoints; None for none.
        title: title of the progress bars; None for none.
    """
    described = {"kind": "train_meta_dmoe", "domains": list(domains), "seed": mixture.seed}
    stage, student, aggregator = _Stage(described, recipe, folder, title), mixture.student, mixture.aggregator
    for (name, batches), expert in zip(domains.items(), mixture.experts, strict=True):
        stage.run(
            f"expert {name}",
            recipe.expert_passes,
            recipe.expert_rate,
            batches,
            expert,
            [{"params": list(expert.parameters())}],
            lambda x, y, expert=expert: F.cross_entropy(expert(x)[0], y),
        )
    together = _Together(list(domains.values()), mixture.seed)
    stage.run(
        "aggregator",
        recipe.aggregator_passes,
        recipe.pretrain_rate,
        together,
        aggregator,
        [{"params": list(aggregator.parameters())}],
        lambda x, y, _: F.cross_entropy(aggregator.classify(mixture.ask(x)), y),
    )
    within = [p for name, p in aggregator.named_parameters() if name.startswith("blocks.")]
    stage.run(
        "meta",
        recipe.passes,
        recipe.rate,
        together,
        nn.ModuleDict({"student": student, "aggregator": aggregator}),
        [
            {"params": list(student.parameters())},
            {"params": within, "times": recipe.aggregator_rate / recipe.rate},
        ],
        lambda x, y, k: _after_a_step(mixture, recipe, x, y, k),
    )
    mixture.taught.fill_(True)


@takes_former
def train_meta_dmoe(
    model: nn.Module,
    domains: Mapping[str, Batches],
    recipe: Recipe = Recipe(),
    depth: int = 1,
    heads: int = 16,
    head: str | None = None,
    norm: Callable[[nn.Module], nn.Module] = source_statistics,
    seed: int = 0,
    folder: str | Path | None = None,
    title: str | None = "Meta-DMoE",
) -> Mixture:
    """Meta-train a student to learn from experts of the source domains, by Adam.

    First an expert for each domain, then the aggregator as a classifier over all of them, then aggregator and student
    together through the step that the student will take.

    Args:
        model: network that was trained on all domains; experts and student begin there. It is left as it is.
        domains: labelled batches, images (N, C, H, W) and labels (N,), by domain; a loader that shuffles works too.
        recipe: settings of training.
        depth, heads: number of blocks and of heads of attention of the aggregator; of heads, as many as divide the features.
        head: name of the linear head; the last linear layer unless given.
        norm: policy of the BatchNorm layers while training: the one the student is to be adapted under.
        seed: random seed of the aggregator's first weights and of the order of the batches.
        folder: folder of checkpoints after every pass, from which the same call continues; None for none.
        title: title of the progress bars; None for none.

    Returns:
        the student, in evaluation mode, with its experts and their aggregator.

    Raises:
        ValueError: there are fewer than two domains, the model has no linear head, a batch is too small to be parted, a loss is
            not finite, or a file in the folder belongs to another training.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    >>> examples = [(torch.rand(8, 3, 4, 4), torch.randint(2, (8,)))] * 3
    >>> train_meta_dmoe(net, {"day": examples, "night": examples}, title=None).domains
    ('day', 'night')
    """
    if len(domains) < 2:
        raise ValueError(
            f"expected at least two domains, each as labelled batches by its name, got {len(domains)}"
        )
    networks = [duplicate(model).eval().requires_grad_(False) for _ in range(1 + len(domains))]
    mixture = Mixture(networks[0], networks[1:], list(domains), depth, heads, seed, head)
    tree = mixture_of(norm(mixture))  # on the memory of the mixture, which so is trained too
    assert tree is not None
    train_mixture(tree, domains, recipe, None if folder is None else Path(folder), title)
    mixture.taught.fill_(True)
    return mixture


def mixture_of(model: nn.Module) -> Mixture | None:
    """The mixture that a network is, if it is one."""
    inner = model.network if isinstance(model, Logits) else model
    return inner if isinstance(inner, Mixture) else None
