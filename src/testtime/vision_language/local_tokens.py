r"""Local tokens of an image encoder: value-value attention, similarity to prompts, and a control without any text.

The attention of an encoder that was trained for one embedding of the image mixes its tokens; attention of the values with
themselves,

.. math:: \operatorname{softmax}\!\Big( \frac{v v^\top}{\sqrt d} \Big) v,

keeps a token near those that are like it, so that its place is not lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "ABNORMAL",
    "NORMAL",
    "checked_embeddings",
    "distance_to_mean",
    "ensemble",
    "patches_of",
    "state_prompts",
    "token_map",
]
__all__ += ["value_attention"]

NORMAL = ("flawless {}", "perfect {}", "unblemished {}", "{} without a defect", "intact {}")
"""States of a normal object, for :func:`state_prompts`."""
ABNORMAL = ("damaged {}", "broken {}", "{} with a flaw", "{} with a scratch", "{} with a stain")
"""States of an abnormal one."""
TEMPLATES = ("a photo of {}.", "a close-up photo of {}.", "a blurry photo of {}.")


def state_prompts(
    name: str, states: Sequence[str] = NORMAL, templates: Sequence[str] = TEMPLATES
) -> list[str]:
    """Return a prompt for every template and state of an object.

    Raises:
        ValueError: there is no name, or a state or a template has not ``{}`` once.

    >>> state_prompts("leather", ["intact {}"], ["a photo of {}."])
    ['a photo of intact leather.']
    """
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"expected the name of an object, such as 'leather', got {name!r}")
    states, templates = ((v,) if isinstance(v, str) else tuple(v) for v in (states, templates))
    for text in (*states, *templates):
        if not isinstance(text, str) or text.count("{}") != 1:
            raise ValueError(f"states and templates have {{}} once, such as 'a photo of {{}}.', got {text!r}")
    return [t.replace("{}", s.replace("{}", name)) for t in templates for s in states]


def checked_embeddings(of: str, value: Tensor) -> Tensor:
    """Return embeddings of prompts.

    Args:
        of: name of what they are embeddings of.
        value: (K, D).

    Raises:
        TypeError: they are no tensor, such as the prompts themselves.
        ValueError: they are none, of another shape, not finite, or one of them is zero.
    """
    make = "pair.encode_texts(prompts) makes them"
    if not isinstance(value, Tensor):
        raise TypeError(f"expected embeddings of {of} (K, D), got {type(value).__name__}; {make}")
    if value.dim() != 2 or not len(value) or not bool(value.isfinite().all()):
        what = f"shape {tuple(value.shape)}" if value.dim() != 2 or not len(value) else "NaN or infinity"
        raise ValueError(f"expected finite embeddings of {of} (K, D), got {what}; {make}")
    if zero := (value == 0).all(dim=1).nonzero()[:, 0].tolist():
        raise ValueError(f"embedding {zero[0]} of {of} is zero and has no direction; {make}")
    return value


def value_attention(attention: nn.MultiheadAttention, x: Tensor) -> Tensor:
    r"""Run a trained attention layer on its values alone: :math:`W_o \operatorname{softmax}(v v^\top / \sqrt d) v + b_o`.

    Args:
        attention: self-attention with ``batch_first=True``.
        x: tokens (N, T, D).

    Returns:
        (N, T, D).

    Raises:
        ValueError: the layer is not batch-first or has keys and values of other widths, or x is not (N, T, D).
    """
    if attention.in_proj_weight is None or not attention.batch_first:
        raise ValueError("expected nn.MultiheadAttention(..., batch_first=True) without kdim and vdim")
    width, heads = attention.embed_dim, attention.num_heads
    if x.dim() != 3 or x.shape[2] != width:
        raise ValueError(f"expected tokens (N, T, {width}), got {tuple(x.shape)}")
    bias = None if attention.in_proj_bias is None else attention.in_proj_bias[2 * width :]
    v = F.linear(x, attention.in_proj_weight[2 * width :], bias)
    v = v.unflatten(2, (heads, width // heads)).transpose(1, 2)  # (N, heads, T, d)
    mixed = F.scaled_dot_product_attention(v, v, v)
    return F.linear(mixed.transpose(1, 2).flatten(2), attention.out_proj.weight, attention.out_proj.bias)


def patches_of(model: nn.Module) -> Any:
    """Return the part of a tree of modules that has local tokens, a method ``patches(x) -> (N, P, D)``.

    Raises:
        ValueError: there is none.
    """
    for module in model.modules():
        if getattr(module, "has_patches", None) is False:
            break  # a pair speaks for its encoders
        if callable(getattr(module, "patches", None)) and getattr(module, "has_patches", True):
            return module
    raise ValueError(
        f"expected a model with local tokens, got {type(model).__name__} without; give the image encoder of ImageText a method "
        "patches(x) -> (N, P, D) in the space of the texts"
    )


def ensemble(embeddings: Tensor) -> Tensor:
    """Return the mean of normalised embeddings (K, D), normalised, (D,)."""
    return F.normalize(F.normalize(embeddings, dim=-1).mean(0), dim=-1)


def token_map(values: Tensor, size: tuple[int, int], smooth: bool = True) -> Tensor:
    """Spread values of the patches of a square grid over the pixels, bilinearly.

    Args:
        values: (N, P), P a square number, in row-major order.
        size: (H, W) of the images.
        smooth: whether each value becomes the mean of its 3 x 3 neighbours first, with the border repeated.

    Returns:
        (N, H, W).

    Raises:
        ValueError: the patches form no square.
    """
    n, p = values.shape
    side = round(p**0.5)
    if side * side != p:
        raise ValueError(
            f"expected the patches of a square grid, got {p}; resize images to a square, and leave out the class token"
        )
    grid = values.reshape(n, 1, side, side)
    if smooth:
        grid = F.avg_pool2d(F.pad(grid, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return F.interpolate(grid, size, mode="bilinear", align_corners=side > 1)[:, 0]


def distance_to_mean(tokens: Tensor) -> Tensor:
    r"""Return :math:`1 - \cos(z_p, \bar z)` of each token to the mean token of its image: an anomaly score without text.

    Args:
        tokens: (N, P, D).

    Returns:
        (N, P).

    >>> import torch
    >>> z = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
    >>> distance_to_mean(z).argmax().item()
    3
    """
    z = F.normalize(tokens, dim=-1)
    return 1 - F.cosine_similarity(z, z.mean(1, keepdim=True), dim=-1)
