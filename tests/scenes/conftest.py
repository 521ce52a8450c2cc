"""A fake house and a fake renderer of random values, for tests of the file format without a tracer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import testtime.scenes

CLASSES = ("wall", "floor", "table", "mug", "tv")


class FakeHouse:
    def __init__(self, seed: int, style: str) -> None:
        self.seed, self.style = seed, style
        self.rooms = [SimpleNamespace(kind="kitchen"), SimpleNamespace(kind="bath")]
        self.objects = [
            SimpleNamespace(instance=1, label=2, name="table", centre=(0.0, 0.0, -2.0), room=0, on=None),
            SimpleNamespace(instance=300, label=3, name="mug", centre=(0.0, 0.5, -2.0), room=0, on=1),
        ]

    def moved(self, seed: int) -> FakeHouse:
        house = FakeHouse(self.seed, self.style)
        house.objects[1].on = None
        return house

    def cameras(self, count: int, seed: int) -> list[Any]:
        rng = np.random.default_rng((self.seed, seed))
        cameras = []
        for _ in range(count):
            pose = np.eye(4)
            pose[:3, 3] = rng.uniform(-1, 1, 3)
            cameras.append(SimpleNamespace(pose=pose, fov_degrees=90.0, room=0, ring=int(rng.integers(3))))
        return cameras


class FakeRenderer:
    rendered = 0

    def __init__(self, house: FakeHouse, backend: str) -> None:
        self.house = house

    def frame(self, camera: Any, size: tuple[int, int], shift: str | None) -> Any:
        FakeRenderer.rendered += 1
        height, width = size
        rng = np.random.default_rng(abs(int(camera.pose[0, 3] * 1e6)))
        normal = rng.normal(size=(height, width, 3)).astype(np.float32)
        normal /= np.linalg.norm(normal, axis=2, keepdims=True)
        depth = rng.uniform(0.5, 9, (height, width)).astype(np.float32)
        depth[0], normal[0] = 0, 0
        semantic = rng.integers(0, len(CLASSES), (height, width)).astype(np.uint8)
        semantic[0] = 255
        return SimpleNamespace(
            rgb=rng.integers(0, 256, (height, width, 3)).astype(np.uint8) // (2 if shift else 1),
            depth=depth,
            normal=normal,
            canny=rng.random((height, width)) > 0.5,
            occlusion=rng.random((height, width)) > 0.5,
            semantic=semantic,
            instance=rng.integers(0, 400, (height, width)).astype(np.uint16),
            boxes=(
                SimpleNamespace(instance=1, label=2, x0=1, y0=2, x1=7, y1=8, visibility=0.87654321),
                SimpleNamespace(instance=300, label=3, x0=2, y0=1, x1=4, y1=3, visibility=1.0),
            ),
            pose=camera.pose,
            intrinsics=np.array([[width / 2, 0, width / 2], [0, width / 2, height / 2], [0, 0, 1.0]]),
            room=camera.room,
            ring=camera.ring,
            shift=shift,
        )


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeRenderer]:
    """Replace houses and renderers; returns the class of the renderers, which counts frames."""
    from testtime.scenes import disk

    disk._stage.cache_clear()
    FakeRenderer.rendered = 0
    for name, value in {
        "CLASSES": CLASSES,
        "STYLES": ("default", "other"),
        "SHIFTS": ("fog", "dark"),
        "generate_house": FakeHouse,
        "Renderer": FakeRenderer,
    }.items():
        monkeypatch.setattr(testtime.scenes, name, value, raising=False)
    yield FakeRenderer
    disk._stage.cache_clear()
