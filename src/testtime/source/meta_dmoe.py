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


Mask = Literal["zero", "drop"]


@final
class Featured(nn.Module):
    """A classifier that gives its logits (N, C), and the features (N, D) that its linear head was given.

    Args:
        network: a tree of one's own.
        head: the name of the linear head; the last linear layer unless given.

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
    """A transformer over what the experts say of an image.

    Args:
        wide: D, of the features.
        classes: C, of the classifier that it is pre-trained with.
        depth: how many blocks.
        heads: of attention, at most; as many as divide D.
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
        depth, heads, seed: of the aggregator, and of its first weights.
        head: the name of the linear head; the last linear layer unless given.

    Attributes:
        learned: whether an adapter's ``prepare`` taught it; then it belongs to the adapter's state.
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
            tokens: what the experts say of it, (N, K, D).
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

    def __contains__(self, lesson: object) -> bool:
        return any(lesson is one for one in self)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, int]]:
        shown = [iter(batches) for batches in self.domains]
        for k in self.order:
            x, y = next(shown[k])
            yield x, y, k


@dataclass(frozen=True)
class Recipe:
    """How a mixture is trained: passes and rates of its three stages, and the episodes of the last."""

    passes: tuple[int, int, int]
    rates: tuple[float, float, float]
    aggregator_rate: float
    inner_rate: float
    support: float
    mask: Mask
    decay: float = 0.96

    def episodes(self) -> dict[str, Any]:
        """What the last stage depends on, for its checkpoint."""
        return {name: getattr(self, name) for name in ("aggregator_rate", "inner_rate", "support", "mask")}

    def split(self, x: Tensor) -> int:
        """How many images of a batch are the support."""
        n = round(self.support * len(x))
        if not 0 < n < len(x):
            raise ValueError(
                f"a batch of {len(x)} images cannot be parted into {self.support:g} to adapt to and the rest to answer; "
                "expected larger batches (of a loader, drop the last one)"
            )
        return n


def train_mixture(
    mixture: Mixture,
    domains: Mapping[str, Batches],
    recipe: Recipe,
    folder: Path | None = None,
    title: str | None = None,
) -> None:
    """Train experts, aggregator and student, in place."""
    described = {"kind": "train_meta_dmoe", "domains": list(domains), "seed": mixture.seed}

    def run(
        part: str,
        stage: int,
        batches: Collection[tuple[Any, ...]],
        module: nn.Module,
        groups: Sequence[dict[str, Any]],
        loss: Callable[..., Tensor],
    ) -> None:
        own = [p for group in groups for p in group["params"]]
        rate = recipe.rates[stage]
        before = [p.requires_grad for p in own]
        for p in own:
            p.requires_grad_(True)
        for _ in passes_over(
            batches,
            recipe.passes[stage],
            module,
            torch.optim.Adam(groups, rate),
            loss,
            lambda done: rate * recipe.decay**done,
            title and f"{title}, {part}",
            None if folder is None else folder / f"{part}.safetensors",
            described | {"part": part, "rate": rate} | (recipe.episodes() if part == "meta" else {}),
        ):
            pass
        for p, flag in zip(own, before, strict=True):
            p.requires_grad_(flag)

    for (name, batches), expert in zip(domains.items(), mixture.experts, strict=True):
        run(
            f"expert {name}",
            0,
            batches,
            expert,
            [{"params": list(expert.parameters())}],
            lambda x, y, expert=expert: F.cross_entropy(expert(x)[0], y),
        )
    together, aggregator, student = (
        _Together(list(domains.values()), mixture.seed),
        mixture.aggregator,
        mixture.student,
    )
    run(
        "aggregator",
        1,
        together,
        aggregator,
        [{"params": list(aggregator.parameters())}],
        lambda x, y, _: F.cross_entropy(aggregator.classify(mixture.ask(x)), y),
    )

    def after_a_step(x: Tensor, y: Tensor, k: int) -> Tensor:
        n, encoder = recipe.split(x), dict[str, Tensor](student.encoder())
        tokens = masked(mixture.ask(x[:n]), k, recipe.mask)
        gradients = torch.autograd.grad(
            mixture.distance(x[:n], tokens, encoder),
            list(encoder.values()),
            create_graph=True,
            materialize_grads=True,
        )
        moved = {
            name: p - recipe.inner_rate * g for (name, p), g in zip(encoder.items(), gradients, strict=True)
        }
        logits, _ = torch.func.functional_call(student, moved, (x[n:],))
        return F.cross_entropy(logits, y[n:])

    within = [p for name, p in aggregator.named_parameters() if name.startswith("blocks.")]
    run(
        "meta",
        2,
        together,
        nn.ModuleDict({"student": student, "aggregator": aggregator}),
        [
            {"params": list(student.parameters())},
            {"params": within, "times": recipe.aggregator_rate / recipe.rates[2]},
        ],
        after_a_step,
    )
    mixture.taught.fill_(True)


def train_meta_dmoe(
    model: nn.Module,
    domains: Mapping[str, Batches],
    passes: int = 10,
    expert_passes: int = 5,
    aggregator_passes: int = 5,
    rate: float = 1e-4,
    expert_rate: float = 1e-3,
    pretrain_rate: float = 3e-6,
    aggregator_rate: float = 1e-6,
    inner_rate: float = 1e-3,
    support: float = 2 / 3,
    mask: Mask = "drop",
    depth: int = 1,
    heads: int = 16,
    head: str | None = None,
    norm: Callable[[nn.Module], nn.Module] = source_statistics,
    seed: int = 0,
    folder: str | Path | None = None,
    title: str | None = "Meta-DMoE",
) -> Mixture:
    """A student with experts of the source domains, meta-trained to learn from them, by Adam.

    First an expert for each domain, then the aggregator as a classifier over all of them, then aggregator and student
    together through the step that the student will take. All rates fall by 4 % with every pass.

    Args:
        model: trained on all domains; experts and student begin there. It is left as it is.
        domains: by name, batches of images (N, C, H, W) and labels (N,); a loader that shuffles is one.
        passes, expert_passes, aggregator_passes: of the three stages.
        rate: beta, the learning rate of the student in meta-training.
        expert_rate: of the experts.
        pretrain_rate, aggregator_rate: of the aggregator, as a classifier and in meta-training; a small network wants more.
        inner_rate: alpha, the learning rate of the step; the adapter's is to be the same.
        support: the share of a batch that the student takes a step on; it is judged on the rest.
        mask: what becomes of the domain's own expert: "drop", the published code's, leaves it out; "zero", the paper's, has it
            say 0.
        depth, heads: of the aggregator; of heads, as many as divide the features.
        head: the name of the linear head; the last linear layer unless given.
        norm: the policy of the BatchNorm layers while training: the one the student is to be adapted under.
        seed: of the aggregator's first weights and of the order of the batches.
        folder: for checkpoints after every pass, from which the same call continues; None for none.
        title: says how far the training is; None says nothing.

    Returns:
        the student, in evaluation mode, with its experts and their aggregator.

    Raises:
        ValueError: there are fewer than two domains, ``mask`` is neither, the model has no linear head, a batch is too small to
            be parted, a loss is not finite, or a file in the folder belongs to another training.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    >>> lessons = [(torch.rand(8, 3, 4, 4), torch.randint(2, (8,)))] * 3
    >>> train_meta_dmoe(net, {"day": lessons, "night": lessons}, title=None).domains
    ('day', 'night')
    """
    if len(domains) < 2:
        raise ValueError(
            f"expected at least two domains, each as labelled batches by its name, got {len(domains)}"
        )
    if mask not in ("zero", "drop"):
        raise ValueError(f"mask is 'zero' or 'drop', got {mask!r}")
    networks = [duplicate(model).eval().requires_grad_(False) for _ in range(1 + len(domains))]
    mixture = Mixture(networks[0], networks[1:], list(domains), depth, heads, seed, head)
    tree = mixture_of(norm(mixture))  # on the memory of the mixture, which so is trained too
    assert tree is not None
    recipe = Recipe(
        (expert_passes, aggregator_passes, passes),
        (expert_rate, pretrain_rate, rate),
        aggregator_rate,
        inner_rate,
        support,
        mask,
    )
    train_mixture(tree, domains, recipe, None if folder is None else Path(folder), title)
    mixture.taught.fill_(True)
    return mixture


def mixture_of(model: nn.Module) -> Mixture | None:
    """The mixture that a network is, if it is one."""
    inner = model.network if isinstance(model, Logits) else model
    return inner if isinstance(inner, Mixture) else None
