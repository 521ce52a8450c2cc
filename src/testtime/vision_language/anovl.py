r"""AnoVL: find and localise anomalies by words, with an adapter of the local tokens that is learned on each image alone.

With unit tokens :math:`z_p` of the patches, unit embeddings :math:`t_n, t_a` of "normal" and "abnormal" (means of ensembles of
prompts), and an adapter :math:`g(z) = \tfrac12 z + \tfrac12 E^\top \tanh(A z + b)`, where the rows of E are the embeddings of
all prompts,

.. math:: p(z) = \operatorname{softmax}\big( s \cos(g(z), t_n),\; s \cos(g(z), t_a) \big)

.. math:: \min_{A, b} \; \frac1P \sum_p \Big[ -\sum_{k} p_k(z_p) \log p_k(z_p) \;-\; \lambda \log p_a(z_p + \epsilon_p) \Big]

A step, for each image of the batch:
    1. take a new adapter, whose weights depend on the seed alone;
    2. minimise the entropy of its tokens, and call noised tokens abnormal;
    3. the map is :math:`p_a(z_p)`, smoothed over 3 x 3 patches and interpolated to the pixels.

Nothing is carried from image to image: the images of a batch have an adapter each, and an answer depends neither on its
neighbours nor on what came before it.

Departures:
    The published optimizer is not reset with the adapter, so that its moments leak from image to image; here it is.
    Published code also calls the unchanged tokens normal: ``clean=0.5``.
    Published images are answered by the softmax of the embedding of the whole image, which no step changes: "score". The
    largest value of the map, "peak", is added.
    The published adapter is another draw for each image, so that the level of a map is partly that of the draw, and images are
    compared by it. Here all images start from the same adapter and get the same noise, those of the seed.

Cost: one forward of the encoder; ``steps`` forwards and backwards of the adapter.

Reference: Deng, Zhang, Bao and Li, AnoVL: Adapting Vision-Language Models for Unified Zero-shot Anomaly Localization, 2023;
github.com/hq-deng/AnoVL (MIT).
"""

from __future__ import annotations

from functools import partial
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from testtime.adapter import Adapter
from testtime.intake.arguments import Natural
from testtime.parts import generator
from testtime.parts.optimizers import OptimizerFactory
from testtime.vision_language.local_tokens import checked_embeddings, ensemble, patches_of, token_map

__all__ = ["AnoVL", "anomaly_loss", "state_probabilities"]

SAME = 1e-4  # distance of two unit embeddings that is taken for rounding


def state_probabilities(tokens: Tensor, states: Tensor, scale: float) -> Tensor:
    r"""Return :math:`\log \operatorname{softmax}(s \cos(z, t))` of tokens (..., D) over two states (2, D): (..., 2)."""
    return (scale * F.normalize(tokens, dim=-1) @ states.T).log_softmax(-1)


def anomaly_loss(clean: Tensor, noised: Tensor, weight: float, clean_weight: float = 0.0) -> Tensor:
    """Return the loss of each image (N,): entropy of the tokens, noised tokens abnormal, unchanged tokens normal.

    Args:
        clean: log-probabilities (N, P, 2) of the tokens, normal and abnormal.
        noised: log-probabilities (N, P, 2) of the noised tokens.
        weight: lambda, weight of the noised tokens.
        clean_weight: weight of the cross-entropy of the tokens with normal.
    """
    entropy = -(clean.exp() * clean).sum(-1)
    return (entropy - weight * noised[..., 1] - clean_weight * clean[..., 0]).mean(1)


def _wide(values: Tensor) -> Tensor:
    """Values in float32 at least, in which the adapters are learned."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


@final
class AnoVL(Adapter):
    """Find and localise anomalies by words, with an adapter of the local tokens that is learned on each image alone.

    Args:
        model: :class:`testtime.vision_language.ImageText` whose image encoder has local tokens of a square grid, or any module
            (N, C, H, W) -> (N, D) with a method ``patches(x)`` -> (N, P, D) in the same space.
        normal: embeddings (K, D) of prompts for normal images.
        abnormal: embeddings (M, D) of prompts for abnormal ones.
        optimizer: moves the adapters; it must treat each value alone, as Adam and SGD do.
        steps: number of steps on an image; 0 leaves the tokens as they are, without an adapter.
        scale: s, inverse temperature of the similarities.
        weight: lambda, weight of the noised tokens.
        clean: weight of the cross-entropy of the tokens with normal; 0.5 in the published code.
        noise: standard deviation of the noise of a token of length 1.
        seed: random seed of adapters and noise.

    Returns:
        A call returns ``{"map": (N, H, W), "peak": (N,), "score": (N,)}``, probabilities of "abnormal": of the pixels, the
        largest of these, and of the whole image by its embedding, which no step changes.

    Raises:
        TypeError: the embeddings are no tensors.
        ValueError: the model has no local tokens, or the embeddings have other widths, are not finite, or are the same for
            both states.

    >>> colours = F.normalize(torch.randn(3, 64, generator=torch.Generator().manual_seed(0)), dim=1)
    >>> class Pair(nn.Module):  # tokens are the colours of patches of 4 x 4 pixels
    ...     def patches(self, x):
    ...         return F.avg_pool2d(x, 4).flatten(2).transpose(1, 2) @ colours
    ...     def forward(self, x):
    ...         return x.mean((2, 3)) @ colours
    >>> adapter = AnoVL(Pair(), normal=colours[:1], abnormal=colours[1:2], scale=10.0)
    >>> x = torch.zeros(1, 3, 16, 16)
    >>> x[:, 0], x[0, :, :4, 8:12] = 1, torch.tensor([0.0, 1.0, 0.0]).view(3, 1, 1)  # red, with a green square
    >>> y = adapter(x)["map"][0]
    >>> bool(y[:4, 8:12].mean() > 10 * y[8:].mean())
    True
    """

    name, label = "anovl", "AnoVL"
    needs = ("images",)
    answers_with = "tokens that an adapter of the image corrects"
    venue = "arXiv 2023"
    paper = "Deng, Zhang, Bao and Li, AnoVL: Adapting Vision-Language Models for Unified Zero-shot Anomaly Localization"
    code = "github.com/hq-deng/AnoVL"
    episodic = True
    output = "after"
    stochastic = True  # by its seed
    cost = (2, 0)

    def __init__(
        self,
        model: nn.Module,
        normal: Tensor,
        abnormal: Tensor,
        optimizer: OptimizerFactory = partial(torch.optim.AdamW, lr=1e-3),  # noqa: B008
        steps: Natural = 5,
        scale: float = 100.0,
        weight: float = 0.5,
        clean: float = 0.0,
        noise: float = 0.055,
        seed: int = 0,
    ) -> None:
        checked_embeddings("normal prompts", normal)
        checked_embeddings("abnormal prompts", abnormal)
        if normal.shape[1] != abnormal.shape[1]:
            raise ValueError(
                "expected embeddings of normal and abnormal prompts, (K, D) and (M, D), got "
                f"{tuple(normal.shape)} and {tuple(abnormal.shape)}; embed prompts: pair.encode_texts(state_prompts('leather'))"
            )
        states = torch.stack([ensemble(normal.detach()), ensemble(abnormal.detach())])
        if float((states[0] - states[1]).norm()) < SAME:
            raise ValueError(
                "the prompts for normal and for abnormal images have the same mean embedding, by which every image would be "
                "abnormal with probability 0.5; expected prompts of two states: state_prompts(name, NORMAL) and "
                "state_prompts(name, ABNORMAL)"
            )
        super().__init__(model, seed)
        self.optimizer, self.steps, self.scale = optimizer, steps, scale
        self.weight, self.clean, self.noise = weight, clean, noise
        self.normal, self.abnormal = normal, abnormal
        self._pair = [patches_of(self.model)]  # in a list: part of the model already
        prompts = F.normalize(torch.cat([normal, abnormal]).detach(), dim=-1)
        self.register_buffer("prompts", prompts, persistent=False)
        self.register_buffer("states", states, persistent=False)

    prompts: Tensor
    states: Tensor

    def _tokens(self, x: Tensor) -> Tensor:
        tokens = self._pair[0].patches(x)
        if tokens.dim() != 3 or len(tokens) != len(x) or tokens.shape[2] != self.states.shape[1]:
            raise ValueError(
                f"patches(x) returned {tuple(tokens.shape)}, expected ({len(x)}, P, {self.states.shape[1]}), as wide as the "
                "embeddings of the prompts; project the tokens into the space of the texts"
            )
        return F.normalize(_wide(tokens), dim=-1)

    def _answer(self, x: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        states = self.states.to(tokens.dtype)
        abnormal = state_probabilities(tokens, states, self.scale)[..., 1].exp()
        pixels = token_map(abnormal, (x.shape[2], x.shape[3]))
        whole = state_probabilities(self._pair[0](x).to(tokens.dtype), states, self.scale)[:, 1].exp()
        y = {"map": pixels, "peak": pixels.flatten(1).amax(1), "score": whole}
        return {name: value.to(x.dtype) for name, value in y.items()}

    @torch.no_grad()
    def _predict_batch(self, x: Tensor) -> dict[str, Tensor]:
        return self._answer(x, self._tokens(x))

    def step(self, x: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            tokens = self._tokens(x)  # (N, P, D)
        if not self.steps:
            with torch.no_grad():
                return self._answer(x, tokens)
        (n, p, d), k, device = tokens.shape, len(self.prompts), tokens.device
        draw = partial(generator, self.seed, 0, device=device)  # the same image gets the same answer
        first = (2 * torch.rand(k, d + 1, generator=draw("adapter"), device=device) - 1) / d**0.5
        first = first.to(tokens.dtype).expand(n, k, d + 1)
        matrix, bias = (
            nn.Parameter(first[..., :d].clone()),
            nn.Parameter(first[..., d].clone().unsqueeze(1)),
        )
        noise = self.noise * torch.randn(p, d, generator=draw("noise"), device=device).to(tokens.dtype)
        prompts, states = self.prompts.to(tokens.dtype), self.states.to(tokens.dtype)

        def adapted(z: Tensor) -> Tensor:
            return 0.5 * z + 0.5 * torch.tanh(torch.baddbmm(bias, z, matrix.mT)) @ prompts

        optimizer = self.optimizer([matrix, bias])
        for _ in range(self.steps):
            clean, noised = (
                state_probabilities(adapted(z), states, self.scale) for z in (tokens, tokens + noise)
            )
            loss = anomaly_loss(clean, noised, self.weight, self.clean).sum()  # images share no parameter
            matrix.grad, bias.grad = torch.autograd.grad(loss, [matrix, bias])
            optimizer.step()
        with torch.no_grad():
            return self._answer(x, adapted(tokens))
