"""The contact sheet shows the stored values."""

from __future__ import annotations

import numpy as np
import pytest

from testtime.scenes.disk import make, read_scenes, render_space
from testtime.scenes.sheet import COLUMNS, RAMP, contact_sheet, depth_colours, palette, write_sheet


def test_each_picture_is_its_modality(fake):
    scenes = render_space(4, 2, (16, 16))
    sheet = np.asarray(contact_sheet(scenes, [1, 0], width=64))
    colours = palette(5)
    for row, index in enumerate([1, 0]):
        top = 30 + row * (64 + 16 + 17 + 14)  # the caption takes one line
        semantic, occlusion = scenes.stored("semantic", index), scenes.stored("occlusion", index)
        depth, normal = scenes.stored("depth", index), scenes.stored("normal", index)

        def drawn(title: str, top: int = top) -> np.ndarray:
            left = 6 + COLUMNS.index(title) * (64 + 6)
            return sheet[top + 2 : top + 64 : 4, left + 2 : left + 64 : 4]  # the middle of each pixel

        np.testing.assert_array_equal(drawn("semantic")[1:], colours[semantic[1:]])
        assert (drawn("semantic")[0] == 255).all()  # no class
        np.testing.assert_array_equal(drawn("occlusion")[..., 1], occlusion)
        np.testing.assert_array_equal(drawn("normal"), normal)
        assert (drawn("depth")[0] == 0).all()
        near, far = np.unravel_index(np.where(depth > 0, depth, 10**6).argmin(), depth.shape), depth.argmax()
        np.testing.assert_array_equal(drawn("depth")[near], RAMP[0])
        np.testing.assert_array_equal(drawn("depth")[np.unravel_index(far, depth.shape)], RAMP[-1])
        assert (drawn("instance")[scenes.stored("instance", index) == 0] == 0).all()


def test_colours():
    colours = palette(400).astype(int)
    assert len(np.unique(colours, axis=0)) == 400
    apart = np.abs(colours[:34, None] - colours[None, :34]).sum(axis=2) + 999 * np.eye(34)
    assert apart.min() >= 60
    half = depth_colours(np.array([[2.0]]), 0.0, 4.0)[0, 0]
    np.testing.assert_allclose(half, (RAMP[4] + RAMP[5]) / 2, atol=0.51)


def test_a_sheet_has_evenly_spaced_frames(fake, tmp_path, monkeypatch):
    from testtime.scenes import sheet
    from testtime.scenes.disk import Recipe

    make(tmp_path, [Recipe(seed, frames=3, size=(8, 8)) for seed in range(3)])
    shown = []
    genuine = sheet.contact_sheet
    monkeypatch.setattr(sheet, "contact_sheet", lambda s, rows, w: shown.append(rows) or genuine(s, rows, w))
    assert write_sheet(tmp_path, frames=3, width=32) == tmp_path / "sheet.png"
    write_sheet(tmp_path, tmp_path / "a/b.png", ["default_00001"], frames=99, width=32)
    assert shown == [[0, 4, 8], [0, 1, 2]]
    assert (tmp_path / "a/b.png").is_file()
    with pytest.raises(ValueError, match="expected frames to draw, 32 pixels wide or more, got 0 of 32"):
        write_sheet(tmp_path, frames=0, width=32)
    with pytest.raises(ValueError, match="got 1 of 8"):
        contact_sheet(read_scenes(tmp_path), [0], 8)
