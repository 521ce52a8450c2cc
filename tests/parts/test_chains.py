"""Each change of AugMix by hand, and the mixture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from testtime.parts import augmix, chains, generator
from testtime.parts.chains import CHANGES, LEVELS


def image(h: int = 6, w: int = 6) -> Tensor:
    return torch.randint(40, 200, (1, 2, h, w), generator=torch.Generator().manual_seed(0)).double() / LEVELS


def changed(name: str, x: Tensor, level: float, sign: float = 1.0) -> np.ndarray:
    change = {c.__name__.strip("_"): c for c in CHANGES}[name]
    return change(x, torch.tensor([level]).double(), torch.tensor([sign]).double()).numpy()


def test_autocontrast() -> None:
    x = image().numpy()
    low, high = x.min((2, 3), keepdims=True), x.max((2, 3), keepdims=True)
    np.testing.assert_allclose(changed("autocontrast", image(), 0.5), (x - low) / (high - low), rtol=1e-12)
    flat = torch.full((1, 1, 3, 3), 0.3)
    assert (changed("autocontrast", flat, 0.5) == flat.numpy()).all()


def test_equalize_counts_as_pillow_does() -> None:
    """The table: n starts at half a step, grows by the count of each level, and is read before it grows."""
    x = torch.randint(60, 90, (1, 2, 32, 32), generator=torch.Generator().manual_seed(1)).double() / LEVELS
    got = changed("equalize", x, 0.5)
    for channel in range(2):
        values = (x[0, channel] * LEVELS).round().long().numpy()
        counts = np.bincount(values.ravel(), minlength=256)
        step = (values.size - counts[counts.nonzero()[0][-1]]) // 255
        assert step > 0
        table, n = [], step // 2
        for count in counts:
            table.append(min(n // step, 255))
            n += count
        np.testing.assert_allclose(got[0, channel], np.array(table)[values] / LEVELS, rtol=1e-12)
    few = image()  # too few pixels for a step: unchanged
    np.testing.assert_allclose(changed("equalize", few, 0.5), few.numpy(), atol=1e-12)


def test_posterize_keeps_four_bits_and_solarize_inverts_the_brightest() -> None:
    x = torch.tensor([0, 15, 16, 200, 235, 240, 255]).double().view(1, 1, 1, -1) / LEVELS
    np.testing.assert_allclose(changed("posterize", x, 0.5)[0, 0, 0] * LEVELS, [0, 0, 16, 192, 224, 240, 240])
    np.testing.assert_allclose(changed("solarize", x, 0.8)[0, 0, 0] * LEVELS, [0, 15, 16, 200, 235, 15, 0])


def test_shifts_are_whole_pixels_with_grey_outside() -> None:
    x = image(60, 90)
    right = changed("translate_x", x, 0.7)  # floor(0.7 * 90 / 30) = 2
    np.testing.assert_allclose(right[..., :-2], x.numpy()[..., 2:], atol=1e-12)
    np.testing.assert_allclose(right[..., -2:], 0.5)
    up = changed("translate_y", x, 0.9, -1.0)  # floor(0.9 * 60 / 30) = 1
    np.testing.assert_allclose(up[:, :, 1:], x.numpy()[:, :, :-1], atol=1e-12)
    np.testing.assert_allclose(up[:, :, 0], 0.5)


def test_turns_and_shears_look_up_where_they_should() -> None:
    """On a plane of grey values, linear interpolation is exact: what is found is the plane at the mapped place."""
    h, w = 16, 24
    rows, columns = np.mgrid[:h, :w] - np.array([(h - 1) / 2, (w - 1) / 2])[:, None, None]

    def plane(down: np.ndarray, across: np.ndarray) -> np.ndarray:
        return 0.5 + 0.01 * down + 0.007 * across

    x = torch.from_numpy(plane(rows, columns))[None, None]
    angle = np.deg2rad(2)  # floor(0.8 * 3)
    cases = {
        "rotate": (
            np.sin(angle) * columns + np.cos(angle) * rows,
            np.cos(angle) * columns - np.sin(angle) * rows,
        ),
        "shear_x": (rows, columns + 0.024 * rows),
        "shear_y": (rows + 0.024 * columns, columns),
    }
    for name, (down, across) in cases.items():
        got = changed(name, x, 0.8)[0, 0]
        inside = slice(2, -2), slice(2, -2)
        np.testing.assert_allclose(got[inside], plane(down, across)[inside], atol=1e-12, err_msg=name)


def test_each_image_draws_for_itself_and_stays_in_range() -> None:
    x = image(32, 32)[:, :1].expand(20, 3, 32, 32).float()
    y = augmix(x, generator(0, 0, "a"))
    assert y.shape == x.shape
    assert y.dtype == torch.float32
    assert 0 <= y.min() <= y.max() <= 1
    assert len({float(v.sum()) for v in y}) == 20
    assert y.equal(augmix(x, generator(0, 0, "a")))


def test_the_mixture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the changes change nothing it is the cropped image; where they blacken it, the image's share is uniform."""
    x = torch.full((400, 1, 4, 4), 0.8, dtype=torch.float64)
    monkeypatch.setattr(chains, "CHANGES", (lambda x, level, sign: x,))
    torch.testing.assert_close(augmix(x, generator(0, 0, "a")), x, rtol=0, atol=1e-7)
    monkeypatch.setattr(chains, "CHANGES", (lambda x, level, sign: torch.zeros_like(x),))
    share = augmix(x, generator(0, 0, "a"))[:, 0, 0, 0].numpy() / 0.8
    np.testing.assert_allclose(
        np.quantile(share, [0, 0.25, 0.5, 0.75, 1]), [0, 0.25, 0.5, 0.75, 1], atol=0.08
    )


def test_levels_and_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chain has one to three changes, of a level from 0.1 to 1, to either side."""
    met: list[Tensor] = []

    def change(x: Tensor, level: Tensor, sign: Tensor) -> Tensor:
        met.append(torch.stack([level, sign]))
        return x

    monkeypatch.setattr(chains, "CHANGES", (change,))
    augmix(torch.rand(300, 1, 2, 2), generator(0, 0, "a"))
    first, second, third = (sum(m.shape[1] for m in met[i::3]) / 900 for i in range(3))
    assert first == 1
    np.testing.assert_allclose([second, third], [2 / 3, 1 / 3], atol=0.06)
    level, sign = torch.cat(met, dim=1).numpy()
    np.testing.assert_allclose([level.min(), level.mean(), level.max()], [0.1, 0.55, 1], atol=0.03)
    assert abs(sign.mean()) < 0.1
    assert set(sign) == {-1.0, 1.0}
