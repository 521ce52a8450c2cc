r"""Meta-DMoE: a student learns, in one step, the joint output of experts of the source domains on a new one.

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

A step, for a network of ``train_meta_dmoe`` or after ``prepare``:
    1. the experts see the batch, and the aggregator makes of it what the student's features should be;
    2. move the student's encoder once towards them;
    3. answer with the student after that. As in the paper, this is done for the first batch of a domain, and the batches
       after it are only predicted: ``reset`` begins the next domain. ``when="every"`` learns from every batch.

What is learned on source data lies in :mod:`testtime.source.meta_dmoe`.

Departures:
    Of the paper's text the abstract and Algorithm 1 were at hand; all else follows the published code. Algorithm 1 puts 0 in
    the place of the domain's own expert (``mask="zero"``); the code leaves it out, as here. With the zero, the mean
    over experts has another scale in training than at test, where none is masked: with three of them the step then did harm.
    Of the step's norm the paper's notation leaves open whether it is squared; the code takes the mean of squares, as here.
    One domain makes a meta-batch, as in the code. There the batches of a domain are newly drawn; here the batches of all
    domains are shown in one random order, the same in every pass.
    The published code pre-trains the student on all domains together; here it is the network that is given. Its experts begin
    at ImageNet and train BatchNorm's statistics; here they begin at the network given and keep them (``norm``).
    The code makes new optimizers in every pass, so that Adam forgets; here it does not. It keeps the weights that were
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

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor, nn

from testtime.adapter import Adapter
from testtime.facts import SourceData
from testtime.intake.sharing import duplicate, share
from testtime.moved import renamed
from testtime.norm import observing, source_statistics
from testtime.parts import sgd
from testtime.parts.optimizers import OptimizerFactory
from testtime.source.branches import images_of
from testtime.source.corrupted import corrupted_domains
from testtime.source.meta_dmoe import Mask, Mixture, Recipe, mixture_of, train_mixture

__all__ = ["MetaDMoE", "MetaDMoEOptions"]

__getattr__ = renamed(
    __name__,
    {
        "Featured": "testtime.source.meta_dmoe:Featured",
        "Aggregator": "testtime.source.meta_dmoe:Aggregator",
        "masked": "testtime.source.meta_dmoe:masked",
        "train_meta_dmoe": "testtime.source.meta_dmoe:train_meta_dmoe",
    },
)


@final
@dataclass(frozen=True)
class MetaDMoEOptions:
    """Settings of MetaDMoE that are rarely changed.

    Args:
        tasks: names of the corruptions of the source that are the domains of ``prepare``.
        severity: severity of the corruptions, 1 to 5.
        passes, rate: number of passes and learning rate of each stage of ``prepare``; the last one has a tenth of the rate.
        support, mask: settings of the last stage of ``prepare`` (:class:`testtime.source.meta_dmoe.Recipe`).
        depth, heads: number of blocks and of heads of attention of the aggregator.
        head: name of the linear head; the last linear layer unless given.

    Raises:
        ValueError: there are fewer than two tasks, or ``mask`` is neither "drop" nor "zero".
    """

    tasks: Sequence[str] = ("gaussian_noise", "defocus_blur", "fog", "contrast")
    severity: int = 3
    passes: int = 1
    rate: float = 1e-3
    support: float = 2 / 3
    mask: Mask = "drop"
    depth: int = 1
    heads: int = 16
    head: str | None = None

    def __post_init__(self) -> None:
        if self.mask not in ("zero", "drop"):
            raise ValueError(f"mask is 'zero' or 'drop', got {self.mask!r}")
        if len(self.tasks) < 2:
            raise ValueError(f"expected at least two tasks, got {self.tasks}")


@final
class MetaDMoE(Adapter):
    """A student learns, in one step, the joint output of experts of the source domains on a new one.

    Args:
        model: a network of ``train_meta_dmoe``; any other classifier with a linear head needs ``prepare``.
        optimizer: moves the student's encoder; without momentum, at the ``inner_rate`` it was meta-trained with (1e-3 for
            Camelyon17, 3e-4 for iWildCam, 1e-4 for RxRx1 and FMoW).
        when: "first" learns from the first batch after construction or a reset, which is the paper's; "every" from every batch.
        options: settings that are rarely changed.
        norm: the policy of the BatchNorm layers in student and experts, also while ``prepare`` trains them.
        seed: random seed of the initial weights of the aggregator, in ``prepare``.

    Raises:
        ValueError: ``when`` is neither "first" nor "every", or the model has no linear head.
        RuntimeError: it is called before ``prepare``, and the network is not one of ``train_meta_dmoe``.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    >>> examples = [(torch.rand(8, 3, 4, 4), torch.randint(2, (8,)))] * 3
    >>> from testtime.source.meta_dmoe import train_meta_dmoe
    >>> dmoe = MetaDMoE(train_meta_dmoe(net, {"day": examples, "night": examples}, title=None))
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
        options: MetaDMoEOptions = MetaDMoEOptions(),
        norm: Callable[[nn.Module], nn.Module] = source_statistics,
        seed: int = 0,
    ) -> None:
        brought = mixture_of(model) is not None
        if not brought:
            model = share(model)
            experts, o = [duplicate(model) for _ in options.tasks], options
            model = Mixture(model, experts, o.tasks, o.depth, o.heads, seed, o.head)
        super().__init__(norm(model), seed)
        self.optimizer, self.when, self.options, self.norm = optimizer, when, options, norm
        mixture = mixture_of(self.model)
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

    def _prepare(self, batches: Iterable[Tensor]) -> None:
        if not self.mixture.learned:
            return
        images = images_of(batches)
        self._begin()
        with torch.no_grad():
            predicted = [self.model(x).argmax(dim=1) for x in images]
        options = self.options
        domains = corrupted_domains(images, predicted, options.tasks, options.severity)
        assert self._optimizer is not None
        recipe = Recipe(
            *(options.passes,) * 3,
            rate=options.rate / 10,
            expert_rate=options.rate,
            pretrain_rate=options.rate,
            aggregator_rate=options.rate / 10,
            inner_rate=float(self._optimizer.param_groups[0]["lr"]),
            support=options.support,
            mask=options.mask,
        )
        train_mixture(self.mixture, domains, recipe)

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
