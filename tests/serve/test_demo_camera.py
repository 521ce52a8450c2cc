"""The simulated camera: what it shows, and that it stops."""

import io
from itertools import islice

import numpy as np
import pytest
import torch

from testtime.serve.demo import SCENES, Camera, frames

pytest.importorskip("sklearn", reason="pip install -e '.[demo]'")
Image = pytest.importorskip("PIL.Image", reason="pip install -e '.[images]'")


def test_a_day_has_every_scene_in_its_order():
    day = list(islice(frames(batch=8, each=2), 2 * len(SCENES)))
    assert [f.scene for f in day[::2]] == list(SCENES)
    assert all(f.images.shape == (8, 3, 32, 32) and 0 <= f.images.min() <= f.images.max() <= 1 for f in day)
    stuck = next(f for f in day if f.scene.stuck)
    assert torch.equal(stuck.images, stuck.images[:1].expand_as(stuck.images))
    unknown = torch.cat([f.labels for f in day if f.scene.unknown])
    assert 0 < (unknown < 0).float().mean() < 0.7
    assert all((f.labels >= 0).all() for f in day if not f.scene.unknown)


def test_the_day_is_a_function_of_its_seed():
    one, same, other = (next(iter(frames(seed=s))).images for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_the_camera_sends_png_files_until_it_is_closed():
    sent = []
    day = list(islice(frames(batch=4), 3))
    with Camera(sent.append, rate=1e6, source=iter(day)) as camera:
        camera._thread.join(10)
    assert camera.sent == 12
    decoded = np.asarray(Image.open(io.BytesIO(sent[1][2])))
    assert np.array_equal(decoded, day[1].images[2].mul(255).round().byte().permute(1, 2, 0).numpy())
    assert not camera._thread.is_alive()


def test_a_camera_without_a_server_says_so_and_stops():
    def send(files):
        raise ConnectionError("no server")

    failures = []
    with Camera(send, failed=failures.append) as camera:
        camera._thread.join(10)
    assert [str(error) for error in failures] == ["no server"]
    with pytest.raises(ValueError, match="images per second above 0"):
        Camera(send, rate=0)
