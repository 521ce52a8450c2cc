r"""Meta-DMoE: a student learns, in one step, what experts of the source domains say together of a new one.

With an expert :math:`M_k` for each of K source domains, an aggregator :math:`A_\phi`, and a student of an encoder
:math:`f_{\theta_e}` and a head :math:`h_{\theta_c}`, all experts and the student giving features of D values,

.. math::
    t(x) &= A_\phi\big(M_1(x), \dots, M_K(x)\big), \qquad
    \theta_e' = \theta_e - \alpha\, \nabla_{\theta_e} \tfrac{1}{ND} \sum_i \lVert t(x_i) - f_{\theta_e}(x_i) \rVert^2

The aggregator takes each expert's features as a token: a transformer, and the mean of what it gives. It and the student are
meta-trained so that this step helps: with images :math:`x_s` and labelled images :math:`(x_q, y_q)` of a source domain,
whose own expert is left out,

.. math::
    \min_{\phi, \theta_e, \theta_c} \; -\log p_{\theta_e', \theta_c}(y_q \mid x_q), \qquad
    \theta_e' \text{ from } x_s.

A step, for a network of :func:`train_meta_dmoe` or after ``prepare``:
    1. the experts see the batch, and the aggregator makes of it what the student's features should be;
    2. move the student's encoder once towards them;
    3. answer with the student after that. As in the paper, this is done for the first batch of a domain, and the batches
       after it are only predicted: ``reset`` begins the next domain. ``when="every"`` learns from every batch.

Departures:
    Of the paper's text the abstract and Algorithm 1 were at hand; all else follows the published code. Algorithm 1 puts 0 in
    the place of what the domain's own expert says (``mask="zero"``); the code leaves it out, as here. With the zero, the mean
    over experts has another scale in training than at test, where none is masked: with three of them the step then did harm.
    Of the step's norm the paper's notation does not say whether it is squared; the code takes the mean of squares, as here.
    One domain makes a meta-batch, as in the code. There the batches of a domain are drawn anew; here the batches of all
    domains are shown in one random order, the same in every pass.
    The published code pre-trains the student on all domains together; here it is the network that is given. Its experts begin
    at ImageNet and train BatchNorm's statistics; here they begin at the network given and keep them (``norm``).
    The code makes its optimizers anew in every pass, so that Adam forgets; here it does not. It keeps the weights that were
    best on a validation domain; here the last ones are taken. Its aggregator has dropout of 0.1 while it is pre-trained; here
    none. Of its 16 heads of attention there are here as many as divide D.
    For a network that comes alone, ``prepare`` takes corruptions of the unlabelled source images for domains, and the network's
    own answers to the clean ones for labels.
    The published settings are of WILDS; the defaults are those of Camelyon17, but for weight decay. Published code step by
    step, up to these: ``MetaDMoE(train_meta_dmoe(model, domains))`` on batches of 64, reset for every domain.

Cost: two forwards and one for each expert, one backward; afterwards, one forward. ``prepare`` costs a forward of each batch,
and then, for each corruption and pass, two forwards and backwards, up to two forwards of each expert, and a backward through
a backward.
The experts are networks of the same size as the student; those of ``prepare`` are part of the state.

Reference: Zhong, Chi, Gu, Wang, Yu and Tang, Meta-DMoE: Adapting to Domain Shift by Meta-Distillation from
Mixture-of-Experts, NeurIPS 2022.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from testtime.adapter import Adapter
from testtime.corruptions import corrupt
from testtime.facts import SourceData
from testtime.intake.outputs import Logits
from testtime.intake.sharing import AtLeastFloat32, Stateful, duplicate, share
from testtime.norm import observing, source_statistics
from testtime.parts import generator, sgd
from testtime.parts.features import head_tap, with_features
from testtime.parts.optimizers import OptimizerFactory
from testtime.parts.taps import Tap
from testtime.source.branches import images_of
from testtime.source.passes import passes_over

__all__ = ["Aggregator", "Featured", "MetaDMoE", "Mixture", "train_meta_dmoe"]

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
class _Recipe:
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


def _train(
    mixture: Mixture,
    domains: Mapping[str, Batches],
    recipe: _Recipe,
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
    tree = _of(norm(mixture))  # on the memory of the mixture, which so is trained too
    assert tree is not None
    recipe = _Recipe(
        (expert_passes, aggregator_passes, passes),
        (expert_rate, pretrain_rate, rate),
        aggregator_rate,
        inner_rate,
        support,
        mask,
    )
    _train(tree, domains, recipe, None if folder is None else Path(folder), title)
    mixture.taught.fill_(True)
    return mixture


def _of(model: nn.Module) -> Mixture | None:
    """The mixture that a network is, if it is one."""
    inner = model.network if isinstance(model, Logits) else model
    return inner if isinstance(inner, Mixture) else None


@final
class MetaDMoE(Adapter):
    """A student learns, in one step, what experts of the source domains say together of a new one.

    Args:
        model: a network of :func:`train_meta_dmoe`; any other classifier with a linear head needs ``prepare``.
        optimizer: moves the student's encoder; without momentum, at the ``inner_rate`` it was meta-trained with (1e-3 for
            Camelyon17, 3e-4 for iWildCam, 1e-4 for RxRx1 and FMoW).
        when: "first" learns from the first batch after birth or a reset, which is the paper's; "every" from every batch.
        tasks: the corruptions of the source that ``prepare`` takes for domains.
        severity: theirs, 1 to 5.
        passes, rate: of each stage of ``prepare``; the last one has a tenth of the rate.
        support, mask, depth, heads, head: of ``prepare``, as for :func:`train_meta_dmoe`.
        norm: the policy of the BatchNorm layers in student and experts, also while ``prepare`` trains them.
        seed: of the aggregator's first weights, in ``prepare``.

    Raises:
        ValueError: ``when`` or ``mask`` is no such word, there are fewer than two tasks, or the model has no linear head.
        RuntimeError: it is called before ``prepare``, and the network is not one of :func:`train_meta_dmoe`.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    >>> lessons = [(torch.rand(8, 3, 4, 4), torch.randint(2, (8,)))] * 3
    >>> dmoe = MetaDMoE(train_meta_dmoe(net, {"day": lessons, "night": lessons}, title=None))
    >>> [dmoe(torch.rand(8, 3, 4, 4)).updated for _ in range(3)]
    [True, False, False]
    """

    name, label = "meta-dmoe", "Meta-DMoE"
    needs = ("classifier", "linear head", "images")
    venue = "NeurIPS 2022"
    paper = (
        "Zhong, Chi, Gu, Wang, Yu and Tang, Meta-DMoE: Adapting to Domain Shift by Meta-Distillation from "
        "Mixture-of-Experts"
    )
    output = "after"
    source: SourceData = "data"
    cost = (6, 1)

    distilled: Tensor

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerFactory = sgd(1e-3, momentum=0.0),  # noqa: B008 - a frozen value
        when: Literal["first", "every"] = "first",
        tasks: Sequence[str] = ("gaussian_noise", "defocus_blur", "fog", "contrast"),
        severity: int = 3,
        passes: int = 1,
        rate: float = 1e-3,
        support: float = 2 / 3,
        mask: Mask = "drop",
        depth: int = 1,
        heads: int = 16,
        head: str | None = None,
        norm: Callable[[nn.Module], nn.Module] = source_statistics,
        seed: int = 0,
    ) -> None:
        if when not in ("first", "every") or mask not in ("zero", "drop"):
            raise ValueError(
                f"when is 'first' or 'every', and mask 'zero' or 'drop', got {when!r} and {mask!r}"
            )
        if len(tasks) < 2:
            raise ValueError(f"expected at least two tasks, got {tasks}")
        brought = _of(model) is not None
        if not brought:
            model = share(model)
            model = Mixture(model, [duplicate(model) for _ in tasks], tasks, depth, heads, seed, head)
        super().__init__(norm(model), seed)
        self.optimizer, self.when, self.tasks, self.severity = optimizer, when, tuple(tasks), severity
        self.passes, self.rate, self.support, self.mask = passes, rate, support, mask
        self.depth, self.heads, self.head, self.norm = depth, heads, head, norm
        mixture = _of(self.model)
        assert mixture is not None
        self.mixture, self.cost = mixture, (2 + len(mixture.experts), 1)
        self.register_buffer("distilled", torch.zeros((), dtype=torch.bool))
        if brought:
            self.source = "none"
        else:
            mixture.learned = True
            for p in mixture.student.last().parameters():
                p.data = p.data.clone()
        self.adapt(mixture.student.encoder().values(), optimizer)
        self._origin = [p.detach().clone() for p in mixture.student.parameters()] if not brought else []
        if not brought:
            self.remember_birth()

    def _learn(self, batches: Iterable[Tensor]) -> None:
        if not self.mixture.learned:
            return
        images = [x.clone() if x.is_inference() else x for x in images_of(batches)]
        self._begin()
        with torch.no_grad():
            answers = [self.model(x).argmax(dim=1) for x in images]
        seeds = torch.arange(sum(len(x) for x in images)).split([len(x) for x in images])
        domains = {
            task: [
                (corrupt(x, task, self.severity, seeds=s), y)
                for x, s, y in zip(images, seeds, answers, strict=True)
            ]
            for task in self.tasks
        }
        assert self._optimizer is not None
        inner_rate = float(self._optimizer.param_groups[0]["lr"])
        recipe = _Recipe(
            (self.passes,) * 3,
            (self.rate, self.rate, self.rate / 10),
            self.rate / 10,
            inner_rate,
            self.support,
            self.mask,
        )
        _train(self.mixture, domains, recipe)

    @torch.no_grad()
    def _begin(self) -> None:
        """Student, experts and aggregator as they were before any ``prepare``."""
        mixture = self.mixture
        for network in (mixture.student, *mixture.experts):
            for p, first in zip(network.parameters(), self._origin, strict=True):
                p.copy_(first)
        mixture.aggregator.load_state_dict(mixture.fresh().state_dict())

    def step(self, x: Tensor) -> Tensor:
        if not self.mixture.taught:
            raise RuntimeError(
                "MetaDMoE has no trained experts: call adapter.prepare(batches) with unlabelled source batches first, or give "
                "it the network of train_meta_dmoe(model, labelled domains)"
            )
        if self.when == "first" and bool(self.distilled):
            with observing(self.model):
                answer: Tensor = self.model(x)
            return answer
        encoder = dict[str, Tensor](self.mixture.student.encoder())
        with observing(self.model):
            tokens = self.mixture.ask(x)
            distance = self.mixture.distance(x, tokens, encoder)
        self.update(distance)
        self.distilled.fill_(True)
        with torch.no_grad():
            answer = self.model(x)
        return answer
