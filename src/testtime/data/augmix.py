"""AugMix (Hendrycks et al. 2020) on whole batches: operations, strengths and weights are drawn for each image.

The nine operations take images, uint8 (N, C, H, W), and a strength for each image, and return uint8 (N, C, H, W); their values
are those of Pillow.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

WIDTH = 3
LEVELS = 256


def autocontrast(x: Tensor, strength: Tensor) -> Tensor:
    """Stretch each channel to the full range; a constant channel is unchanged.

    Args:
        x: images, uint8 (N, C, H, W).
        strength: not used, (N,).
    """
    values = x.double()
    low, high = values.amin((2, 3), True), values.amax((2, 3), True)
    scale = torch.full_like(low, LEVELS - 1) / (high - low).clamp(min=1)
    stretched = (values * scale - low * scale).clamp(0, LEVELS - 1).floor().to(torch.uint8)
    return torch.where(high > low, stretched, x)


def equalize(x: Tensor, strength: Tensor) -> Tensor:
    """Equalise the histogram of each channel.

    Args:
        x: images, uint8 (N, C, H, W).
        strength: not used, (N,).
    """
    flat = x.flatten(2).long()
    counts = torch.zeros(*flat.shape[:2], LEVELS, dtype=torch.long, device=x.device)
    counts.scatter_add_(2, flat, torch.ones_like(flat))
    last = counts.gather(2, flat.amax(2, True))  # how many pixels have the brightest value
    step = (flat.shape[2] - last) // (LEVELS - 1)
    before = counts.cumsum(2) - counts
    table = ((before + step // 2) // step.clamp(min=1)).clamp(max=LEVELS - 1)
    return torch.where(step > 0, table.gather(2, flat), flat).view(x.shape).to(torch.uint8)


def posterize(x: Tensor, strength: Tensor) -> Tensor:
    """Keep the highest 4 bits, or fewer, of each value.

    Args:
        x: images, uint8 (N, C, H, W).
        strength: strength of each image, (N,), in [0, 1]; 4 - int(4 strength) bits are kept.
    """
    dropped = 4 + (strength * 4).long()
    return ((x.long() >> _each(dropped)) << _each(dropped)).to(torch.uint8)


def solarize(x: Tensor, strength: Tensor) -> Tensor:
    """Invert the values from a threshold on.

    Args:
        x: images, uint8 (N, C, H, W).
        strength: strength of each image, (N,), in [0, 1]; the threshold is 256 - int(256 strength).
    """
    threshold = LEVELS - (strength * LEVELS).long()
    return torch.where(x.long() < _each(threshold), x, 255 - x)


def rotate(x: Tensor, strength: Tensor) -> Tensor:
    """Rotate about the centre, counter-clockwise for a positive strength.

    Args:
        x: images, uint8 (N, C, H, W).
        strength: strength of each image, (N,), in [-1, 1]; the angle is int(30 strength) degrees.
    """
    angle = -(strength * 30).trunc().double() * (math.pi / 180)
    cos, sin = angle.cos(), angle.sin()
    cx, cy = x.shape[3] / 2, x.shape[2] / 2
    return affine(x, cos, sin, cx - cos * cx - sin * cy, -sin, cos, cy + sin * cx - cos * cy)


def shear_x(x: Tensor, strength: Tensor) -> Tensor:
    """Shift each row by its height times 0.3 strength.

    Args:
        x: images, uint8 (N, C, H, W).
        strength: strength of each image, (N,), in [-1, 1].
    """
    return affine(x, b=strength * 0.3)


def shear_y(x: Tensor, strength: Tensor) -> Tensor:
    """Shift each column by its position times 0.3 strength.

    Args:
        x: images, uint8 (N, C, H, W).
        strength: strength of each image, (N,), in [-1, 1].
    """
    return affine(x, d=strength * 0.3)


def translate_x(x: Tensor, strength: Tensor) -> Tensor:
    """Shift left by int(W/3 strength) pixels.

    Args:
        x: images, uint8 (N, C, H, W).
        strength: strength of each image, (N,), in [-1, 1].
    """
    return affine(x, c=(strength * (x.shape[3] / 3)).trunc())


def translate_y(x: Tensor, strength: Tensor) -> Tensor:
    """Shift up by int(H/3 strength) pixels.

    Args:
        x: images, uint8 (N, C, H, W).
        strength: strength of each image, (N,), in [-1, 1].
    """
    return affine(x, f=(strength * (x.shape[2] / 3)).trunc())


def affine(
    x: Tensor,
    a: Tensor | float = 1.0,
    b: Tensor | float = 0.0,
    c: Tensor | float = 0.0,
    d: Tensor | float = 0.0,
    e: Tensor | float = 1.0,
    f: Tensor | float = 0.0,
) -> Tensor:
    """Sample each image bilinearly at (a x + b y + c, d x + e y + f); pixels outside of the image are black.

    Args:
        x: images, uint8 (N, C, H, W).
        a, b, c, d, e, f: coefficients of the map, (N,) or numbers, in pixels from the upper left corner; the centre of a pixel
            is at one half.
    """
    n, channels, height, width = x.shape
    a, b, c, d, e, f = (
        torch.as_tensor(v, device=x.device).double().reshape(-1, 1, 1) for v in (a, b, c, d, e, f)
    )
    v = torch.arange(height, device=x.device, dtype=torch.float64).view(1, -1, 1) + 0.5
    u = torch.arange(width, device=x.device, dtype=torch.float64).view(1, 1, -1) + 0.5
    px = (a * u + b * v + c).expand(n, height, width)
    py = (d * u + e * v + f).expand(n, height, width)
    inside = (px >= 0) & (px < width) & (py >= 0) & (py < height)
    left, top = (px - 0.5).floor(), (py - 0.5).floor()
    wx, wy = (px - 0.5 - left).unsqueeze(1), (py - 0.5 - top).unsqueeze(1)
    flat = x.flatten(2).double()

    def at(row: Tensor, column: Tensor) -> Tensor:
        index = row.clamp(0, height - 1).long() * width + column.clamp(0, width - 1).long()
        index = index.view(n, 1, -1).expand(-1, channels, -1)
        return flat.gather(2, index).view(x.shape)

    def between(first: Tensor, second: Tensor, share: Tensor) -> Tensor:
        return first + (second - first) * share  # in this form it rounds as Pillow does

    upper = between(at(top, left), at(top, left + 1), wx)
    lower = between(at(top + 1, left), at(top + 1, left + 1), wx)
    return (between(upper, lower, wy) * inside.unsqueeze(1)).floor().to(torch.uint8)


Operation = Callable[[Tensor, Tensor], Tensor]
OPERATIONS: tuple[Operation, ...] = (
    autocontrast,
    equalize,
    posterize,
    rotate,
    solarize,
    shear_x,
    shear_y,
    translate_x,
    translate_y,
)
SIGNED = {rotate, shear_x, shear_y, translate_x, translate_y}


def augmix(x: Tensor, generator: torch.Generator, severity: float = 3.0, depth: int | None = None) -> Tensor:
    """Mix each image with three random chains of operations (AugMix).

    Args:
        x: images, uint8 (N, C, H, W).
        generator: random generator, on the CPU.
        severity: upper end of the distribution of strengths, U(0.1, severity) / 10; at most 10.
        depth: number of operations in a chain; None draws 1 to 3 for each image.

    Returns:
        Mixed images, float (N, C, H, W) in [0, 1]: ``(1 - m) x + m sum_i w_i chain_i(x)``, m ~ Beta(1, 1), w ~ Dirichlet(1).

    Source: Hendrycks et al., *AugMix*, ICLR 2020, algorithm 1.

    >>> mixed = augmix(torch.full((2, 3, 8, 8), 255, dtype=torch.uint8), torch.Generator().manual_seed(0))
    >>> tuple(mixed.shape), bool((mixed >= 0).all() and (mixed <= 1).all())
    ((2, 3, 8, 8), True)
    """
    n = len(x)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    weights = (
        -uniform(WIDTH, n).clamp(min=1e-300).log()
    )  # exponential variables, normalised: Dirichlet(1, 1, 1)
    weights = (weights / weights.sum(0)).float().to(x.device)
    share = uniform(n).float().to(x.device)
    mixed = torch.zeros(x.shape, device=x.device)
    for chain in range(WIDTH):
        steps = (
            torch.randint(1, WIDTH + 1, (n,), generator=generator)
            if depth is None
            else torch.full((n,), depth)
        )
        out = x
        for step in range(int(steps.max())):
            out = _one_operation(out, steps > step, uniform(3, n), severity)
        mixed += _each(weights[chain]) * (out.float() / 255)
    return (1 - _each(share)) * (x.float() / 255) + _each(share) * mixed


def _one_operation(x: Tensor, active: Tensor, draw: Tensor, severity: float) -> Tensor:
    """Apply a random operation to each active image.

    Args:
        x: images, uint8 (N, C, H, W).
        active: whether each image is changed, (N,).
        draw: uniform random numbers that determine operation, strength and sign, (3, N).
        severity: argument of :func:`augmix`.
    """
    choice = (draw[0] * len(OPERATIONS)).long()
    strength = (0.1 + draw[1] * (severity - 0.1)) / 10
    sign = torch.where(draw[2] < 0.5, -1.0, 1.0)
    out = x.clone()
    for number, operation in enumerate(OPERATIONS):
        rows = (active & (choice == number)).nonzero().flatten()
        if len(rows):
            amount = strength[rows] * sign[rows] if operation in SIGNED else strength[rows]
            out[rows.to(x.device)] = operation(x[rows.to(x.device)], amount.to(x.device))
    return out


def jsd_loss(clean: Tensor, first: Tensor, second: Tensor, labels: Tensor, weight: float = 12.0) -> Tensor:
    """Return the loss of AugMix: cross-entropy of the clean view plus the Jensen-Shannon divergence of all three views.

    Args:
        clean: logits of the clean images, (N, C).
        first: logits of one augmentation of the images, (N, C).
        second: logits of another augmentation, (N, C).
        labels: class indices, (N,) integers.
        weight: weight of the divergence, lambda in the paper.

    The mean distribution is clamped to at least 1e-7 before its logarithm, as in the official code.
    """
    views = [F.softmax(logits.float(), 1) for logits in (clean, first, second)]
    mean = torch.stack(views).mean(0).clamp(1e-7, 1).log()
    divergence = sum(
        (F.kl_div(mean, view, reduction="batchmean") for view in views), torch.zeros(()).to(mean)
    )
    return F.cross_entropy(clean.float(), labels) + weight * divergence / len(views)


def _each(values: Tensor) -> Tensor:
    """Reshape values of images (N,) for broadcasting over (N, C, H, W)."""
    return values.view(-1, 1, 1, 1)
