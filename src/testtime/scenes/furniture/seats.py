"""Beds, sofas and chairs."""

from __future__ import annotations

import numpy as np

from testtime.scenes.furniture.model import Model, Surface, assembled, legs
from testtime.scenes.geometry import box, cushion, cylinder, sphere
from testtime.scenes.style import Style

__all__ = ["armchair", "bed", "chair", "office_chair", "sofa"]


def bed(style: Style, rng: np.random.Generator) -> Model:
    m, (fw, fd, fh) = style.material, style.proportions
    w = float(rng.choice([0.95, 1.45, 1.65])) * fw**0.5
    d = 2.05 * fd**0.3
    top = 0.48 * fh
    head = rng.uniform(0.85, 1.15) * fh
    frame = m("wood2")
    parts = [
        box((0, 0.06, 0.12), (w, d, top - 0.2), frame),
        *legs(style, (0.02, 0.08, 0), (w - 0.02, d - 0.02, 0.13), 0.08, frame),
        cushion((0.03, 0.07, top - 0.22), (w - 0.03, d - 0.03, top), 0.06, m("sheet")),
        cushion((-0.01, d * 0.34, top - 0.17), (w + 0.01, d + 0.01, top + 0.05), 0.07, m("bed_cover")),
        cushion((0.0, d * 0.30, top - 0.06), (w, d * 0.42, top + 0.075), 0.05, m("pillow2")),
    ]
    if rng.random() < 0.5:
        parts.append(cushion((-0.02, 0, 0.1), (w + 0.02, 0.1, head), 0.05, m("sofa_cushion")))
    else:
        parts.append(box((-0.02, 0, 0), (w + 0.02, 0.05, head), frame))
    spots = Surface((0.08, 0.1), (w - 0.08, d * 0.32), top + 0.0, 1.0, ("pillow",))
    foot = Surface((0.1, d * 0.5), (w - 0.1, d - 0.1), top + 0.05, 1.0, ("pillow", "book"))
    return assembled("bed", parts, [spots, foot])


def sofa(style: Style, rng: np.random.Generator) -> Model:
    m, (fw, fd, fh) = style.material, style.proportions
    seats = int(rng.integers(2, 4))
    seat, arm = 0.62 * fw**0.5, rng.uniform(0.14, 0.24)
    w, d = seats * seat + 2 * arm, 0.9 * fd**0.7
    sit, back, arms = 0.43 * fh**0.6, 0.82 * fh, rng.uniform(0.55, 0.66) * fh**0.6
    f, c, foot = m("sofa"), m("sofa_cushion") if rng.random() < 0.35 else m("sofa"), 0.09
    parts = [
        cushion((arm * 0.5, 0.02, foot), (w - arm * 0.5, d - 0.03, sit - 0.12), 0.04, f),
        cushion((arm * 0.6, 0, foot), (w - arm * 0.6, 0.22, back), 0.08, f),
        cushion((0, 0.02, foot), (arm, d, arms), 0.07, f),
        cushion((w - arm, 0.02, foot), (w, d, arms), 0.07, f),
        *legs(style, (0.03, 0.04, 0), (w - 0.03, d - 0.04, foot + 0.02), 0.06, m("wood2")),
    ]
    for i in range(seats):
        x = arm + i * seat
        parts.append(cushion((x + 0.006, 0.2, sit - 0.14), (x + seat - 0.006, d + 0.01, sit), 0.06, c))
        parts.append(cushion((x + 0.012, 0.14, sit - 0.02), (x + seat - 0.012, 0.34, back + 0.04), 0.08, c))
    spots = Surface((arm + 0.02, 0.34), (w - arm - 0.02, d - 0.05), sit, 1.0, ("pillow",))
    return assembled("sofa", parts, [spots])


def armchair(style: Style, rng: np.random.Generator) -> Model:
    m, (fw, fd, fh) = style.material, style.proportions
    w, d, sit, back, arm = 0.82 * fw**0.6, 0.82 * fd**0.7, 0.42 * fh**0.6, 0.85 * fh, 0.13
    f, c = m("sofa"), m("sofa_cushion")
    parts = [
        cushion((0.06, 0.04, 0.12), (w - 0.06, d - 0.02, sit - 0.08), 0.04, f),
        cushion((arm, 0.16, sit - 0.1), (w - arm, d, sit + 0.02), 0.06, c),
        cushion((0.04, 0, 0.12), (w - 0.04, 0.2, back), 0.09, f),
        cushion((0, 0.03, 0.12), (arm, d - 0.04, sit + 0.17), 0.06, f),
        cushion((w - arm, 0.03, 0.12), (w, d - 0.04, sit + 0.17), 0.06, f),
        *legs(style, (0.05, 0.05, 0), (w - 0.05, d - 0.05, 0.14), 0.06, m("wood2")),
    ]
    return assembled(
        "chair", parts, [Surface((arm + 0.02, 0.2), (w - arm - 0.02, d - 0.1), sit + 0.02, 1.0, ("pillow",))]
    )


def chair(style: Style, rng: np.random.Generator) -> Model:
    m, (fw, fd, fh) = style.material, style.proportions
    w, d, sit, back = 0.45 * fw**0.5, 0.46 * fd**0.5, 0.46 * fh**0.4, 0.9 * fh
    wood, t = m("wood"), 0.04
    kind = int(rng.integers(3))
    parts = [*legs(style, (0, 0, 0), (w, d, sit - 0.03), t, wood)]
    if kind == 0:
        parts.append(box((0, 0, sit - 0.035), (w, d + 0.01, sit), wood))
    else:
        parts.append(
            cushion((-0.005, 0, sit - 0.05), (w + 0.005, d + 0.01, sit + 0.02), 0.025, m("chair_seat"))
        )
    posts = [box((x, 0, sit - 0.03), (x + t, t, back), wood) for x in (0, w - t)]
    if kind == 0:
        slats = [
            box((t, 0.008, z), (w - t, 0.03, z + 0.07), wood) for z in np.linspace(sit + 0.12, back - 0.08, 3)
        ]
        parts += [*posts, *slats]
    elif kind == 1:
        bars = [
            box((x, 0.01, sit), (x + 0.022, 0.03, back - 0.05), wood)
            for x in np.linspace(t + 0.03, w - t - 0.05, 4)
        ]
        parts += [*posts, *bars, box((0, 0, back - 0.07), (w, t, back), wood)]
    else:
        parts += [*posts, cushion((0.0, 0.0, sit + 0.12), (w, 0.06, back + 0.02), 0.025, m("chair_seat"))]
    return assembled("chair", parts)


def office_chair(style: Style, rng: np.random.Generator) -> Model:
    m, (_, _, fh) = style.material, style.proportions
    sit, seat = 0.47 * fh**0.3, m("chair_seat")
    parts = [
        cylinder((0, 0, 0.08), 0.03, sit - 0.1, m("dark"), segments=8),
        cushion((-0.24, -0.23, sit - 0.05), (0.24, 0.25, sit + 0.04), 0.04, seat),
        cushion((-0.21, -0.27, sit + 0.14), (0.21, -0.2, sit + 0.58 * fh), 0.035, seat),
        box((-0.03, -0.27, sit - 0.02), (0.03, -0.24, sit + 0.2), m("dark")),
    ]
    for k in range(5):
        arm = box((0, -0.02, 0.05), (0.27, 0.02, 0.09), m("dark")).moved(yaw=2 * np.pi * k / 5 + np.pi / 2)
        wheel = sphere((0.26, 0, 0.03), 0.03, m("dark"), 6).moved(yaw=2 * np.pi * k / 5 + np.pi / 2)
        parts += [arm, wheel]
    return assembled("chair", parts)
