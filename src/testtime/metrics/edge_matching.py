"""Thinning of edge maps, and the one-to-one matching of their pixels with those of a label."""

from __future__ import annotations

from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from testtime.metrics.dense import Flags, Floats

__all__ = ["grow_matching", "ridges", "thinned", "untied"]


def grow_matching(found: NDArray[np.intp], edges: Flags, reach: float) -> Flags:
    """Return which found pixels increase the size of the largest one-to-one matching, if they are added in this order.

    Args:
        found: flat indices of the found pixels in the image, (N,), without duplicates.
        edges: mask of the pixels to be matched, (H, W).
        reach: largest distance of a pair, in pixels.

    Returns:
        A flag for each found pixel, (N,); the number of True among the first n is the size of their largest matching.

    >>> grow_matching(np.array([0, 2, 4]), np.array([[False, True, False, True, False]]), 1).tolist()
    [True, True, False]
    """
    margin = int(reach)
    width = edges.shape[1] + 2 * margin
    down, right = np.mgrid[-margin : margin + 1, -margin : margin + 1]
    squares = (down**2 + right**2).ravel()
    near = [k for k in np.argsort(squares, kind="stable") if squares[k] <= reach**2 + 1e-9]
    shifts: list[int] = (down * width + right).ravel()[near].tolist()
    rows, columns = np.divmod(found, edges.shape[1])
    places: list[int] = ((rows + margin) * width + columns + margin).tolist()

    # An edge pixel is open until a search shows that it cannot give a further pair.
    is_open = bytearray(np.pad(edges, margin).tobytes())
    holder: dict[int, int] = {}
    held: dict[int, int] = {}
    grown = np.zeros(len(places), dtype=bool)
    for i, start in enumerate(places):
        reached: dict[int, int] = {}
        queue = [start]
        end = -1
        for place in queue:
            for shift in shifts:
                edge = place + shift
                if is_open[edge] and edge not in reached:
                    reached[edge] = place
                    if edge not in holder:
                        end = edge
                        break
                    queue.append(holder[edge])
            if end >= 0:
                break
        if end < 0:
            # All reached edge pixels are matched to pixels that reach no others: no augmenting path can pass here.
            for edge in reached:
                is_open[edge] = 0
            continue
        grown[i] = True
        while True:
            place = reached[end]
            holder[end] = place
            end, held[place] = held.get(place, -1), end
            if place == start:
                break
    return grown


def thinned(mask: Flags, height: Floats) -> Flags:
    """Thin a mask to lines of one pixel: pixels are removed in ascending order, unless they connect two parts or end a line.

    Every part of the result above a threshold of the height is as thin.

    Args:
        mask: mask to thin, (H, W).
        height: order of the removal, (H, W), preferably without ties.

    Reference: Pudney, Distance-Ordered Homotopic Thinning, CVIU 1998, with this height for the distance.

    >>> mask = np.ones((3, 4), dtype=bool)
    >>> thinned(mask, np.array([[1.0, 5, 6, 2], [9, 9, 9, 9], [3, 7, 8, 4]])).astype(int).tolist()
    [[0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]]
    """
    width = mask.shape[1] + 2
    rows, columns = np.nonzero(mask)
    order = np.argsort(height[rows, columns], kind="stable")
    places: list[int] = ((rows + 1) * width + columns + 1)[order].tolist()
    on = bytearray(np.pad(mask, 1).tobytes())
    while True:
        kept = []
        for at in places:
            up, down = at - width, at + width
            around = (
                on[up],
                on[up + 1],
                on[at + 1],
                on[down + 1],
                on[down],
                on[down - 1],
                on[at - 1],
                on[up - 1],
            )
            if around in REMOVABLE:
                on[at] = 0
            else:
                kept.append(at)
        if len(kept) == len(places):
            break
        places = kept
    whole = np.frombuffer(on, dtype=bool).reshape(-1, width)
    return whole[1:-1, 1:-1].copy()


def _removable(around: tuple[int, ...]) -> bool:
    """Return whether a pixel with these neighbours, clockwise from above, neither connects two parts nor ends a line.

    The two tests are those of Guo and Hall, Parallel Thinning with Two-Subiteration Algorithms, CACM 1989.
    """
    n, ne, e, se, s, sw, w, nw = around
    parts = sum(
        not here and (beside or after)
        for here, beside, after in ((n, ne, e), (e, se, s), (s, sw, w), (w, nw, n))
    )
    lines = min(sum((nw | n, ne | e, se | s, sw | w)), sum((n | ne, e | se, s | sw, w | nw)))
    return parts == 1 and lines >= 2


REMOVABLE = frozenset(around for around in product((0, 1), repeat=8) if _removable(around))


def ridges(p: Tensor) -> Flags:
    """Return where probabilities (N, H, W) are not lower than either neighbour across their ridge."""
    height, width = p.shape[-2:]
    if min(height, width) < 2:
        return np.ones(tuple(p.shape), dtype=bool)
    down, right = torch.gradient(_blurred(p), dim=(1, 2))
    (yy, yx), (_, xx) = (torch.gradient(d, dim=(1, 2)) for d in (down, right))
    # The direction of the strongest curvature, which on a crest is downward: across the ridge.
    angle = torch.atan2(2 * yx, xx - yy) / 2 + torch.where(xx + yy > 0, 0, torch.pi / 2)
    q = untied(p)
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    kept = torch.ones_like(p, dtype=torch.bool)
    for sign in (-1, 1):
        y, x = rows + sign * angle.sin(), columns + sign * angle.cos()
        grid = torch.stack([2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1], -1)
        beside = F.grid_sample(q[:, None], grid, padding_mode="border", align_corners=True)[:, 0]
        kept &= q >= beside - 1e-14
    return kept.numpy()


def untied(p: Tensor) -> Tensor:
    """Return maps (N, H, W) in which ties are broken by the neighbourhood, and then by the position."""
    ramp = torch.linspace(0, 1e-8, p.shape[-2] * p.shape[-1], dtype=p.dtype).view(p.shape[-2:])
    return p + 1e-4 * _blurred(p) + ramp


def _blurred(p: Tensor) -> Tensor:
    """Blur maps (N, H, W) with a Gaussian of one pixel, with a repeated border."""
    kernel = torch.exp(-(torch.arange(-3, 4, dtype=p.dtype) ** 2) / 2)
    kernel = kernel / kernel.sum()
    wide = F.pad(p[:, None], (3, 3, 3, 3), mode="replicate")
    return F.conv2d(F.conv2d(wide, kernel.view(1, 1, 7, 1)), kernel.view(1, 1, 1, 7))[:, 0]
