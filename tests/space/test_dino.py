"""Self-distillation: losses, centres, teacher and schedules recomputed in numpy; views that show what they should."""

import math
from dataclasses import fields

import numpy as np
import pytest
import torch
from toy_space import shards, streams

from testtime.parts.randomness import generator
from testtime.space.dino import DistillationOptions, ProjectionHead, SelfDistilled, coloured, window
from testtime.space.loader import Batches, Part
from testtime.space.masking import Masking
from testtime.space.model import Batch, Size
from testtime.space.pretrain import Recipe, pretrain

SMALL = Size(1, 1, 16, 2)


def model(seed=0, **settings):
    torch.manual_seed(seed)
    given = {"outputs": 12, "hidden": 8, "bottleneck": 6, "crops": 2, "local": (8, 8), **settings}
    options = {f.name: given.pop(f.name) for f in fields(DistillationOptions) if f.name in given}
    return SelfDistilled(SMALL, (16, 16), 4, **given, options=DistillationOptions(**options)).train()


def pictures(n=3, seed=0):
    return torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def batch(n=3, seed=0):
    none = torch.zeros(n, 1, dtype=torch.int64)
    return Batch(pictures(n, seed), none, none, none, none, none)


def disturbed(m):
    """Teacher and student apart, centres away from 0."""
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in m.teacher.parameters():
            p += 0.05 * torch.randn(p.shape, generator=rng)
        for c in (m.centre, m.patch_centre):
            c += 0.05 * torch.randn(c.shape, generator=rng)
    return m


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def number(t):
    return t.detach().double().numpy()


def test_the_losses_recomputed_in_numpy():
    m, b, n = disturbed(model()), batch(), 3
    m.step.fill_(5)
    m.sharpness.fill_(0.05)
    found = m(b)
    wide, narrow = m.views(b.pixels)
    hidden = m.hidden(6, wide.device)
    seen, told = (number(t) for t in m.teacher(wide))
    features, said = m.student(wide, hidden, m.mask_token)
    answers = [number(said[:n]), number(said[n:])]
    few = number(m.student(narrow)[1])
    answers += [few[:n], few[n:]]
    targets = softmax((told - number(m.centre)) / 0.05)
    values = []
    for g in range(2):
        for v in range(4):
            if g != v:
                p, q = targets[g * n : g * n + n], softmax(answers[v] / 0.1)
                values.append(-(p * np.log(q)).sum(1).mean())
    assert len(values) == 2 * (2 + 2) - 2
    assert found["views"].item() == pytest.approx(np.mean(values), rel=1e-5)

    teacher, student = (
        number(net.head(torch.as_tensor(x).float())) for net, x in ((m.teacher, seen), (m.student, features))
    )
    per_view = []
    for i in range(6):
        places = np.flatnonzero(hidden[i].numpy())
        if len(places):
            p = softmax((teacher[i, places] - number(m.patch_centre)) / 0.05)
            per_view.append(-(p * np.log(softmax(student[i, places] / 0.1))).sum(1).mean())
    assert len(per_view) == 3
    assert found["patches"].item() == pytest.approx(np.mean(per_view), rel=1e-5)


def test_the_head_recomputed_in_numpy():
    torch.manual_seed(0)
    head = ProjectionHead(5, 7, 3, 4)
    x = torch.randn(2, 5)
    p = {k: number(v) for k, v in head.state_dict().items()}
    erf = np.vectorize(math.erf)
    y = number(x)
    for i in (0, 2, 4):
        y = y @ p[f"layers.{i}.weight"].T + p[f"layers.{i}.bias"]
        y = y if i == 4 else 0.5 * y * (1 + erf(y / np.sqrt(2)))
    y /= np.maximum(np.linalg.norm(y, axis=1, keepdims=True), 1e-6)
    d = p["directions"] / np.linalg.norm(p["directions"], axis=1, keepdims=True)
    np.testing.assert_allclose(number(head(x)), y @ d.T, rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        before = head(x)
        head.directions *= 3  # only directions count
    torch.testing.assert_close(head(x), before)


def test_teacher_centres_and_schedules_follow():
    m, b = disturbed(model()), batch()
    wide, _ = m.views(b.pixels)
    with torch.no_grad():
        seen, told = m.teacher(wide)
        patches = m.teacher.head(seen[m.hidden(6, wide.device)])
    centre, patch_centre = number(m.centre), number(m.patch_centre)
    theirs = {k: number(p) for k, p in m.teacher.named_parameters()}
    m(b)
    m(batch(seed=1))  # a second part of the same batch
    with torch.no_grad():
        seen, also = m.teacher(m.views(pictures(3, 1))[0])
        patches = torch.cat([patches, m.teacher.head(seen[m.hidden(6, wide.device)])])
    m.advance(2, 10)
    expected = 0.9 * centre + 0.1 * number(torch.cat([told, also])).mean(0)
    np.testing.assert_allclose(number(m.centre), expected, rtol=1e-4, atol=1e-7)
    expected = 0.9 * patch_centre + 0.1 * number(patches).mean(0)
    np.testing.assert_allclose(number(m.patch_centre), expected, rtol=1e-4, atol=1e-7)
    weight = 1 - (1 - 0.996) * (np.cos(np.pi * 2 / 10) + 1) / 2
    mine = {k: number(p) for k, p in m.student.named_parameters()}
    for name, p in m.teacher.named_parameters():
        np.testing.assert_allclose(number(p), weight * theirs[name] + (1 - weight) * mine[name], atol=1e-7)
    assert int(m.step) == 3
    assert m.sharpness.item() == pytest.approx(0.07)  # 3 of 10 steps: the warmup is over
    m.advance(0, 10)
    assert m.sharpness.item() == pytest.approx(0.04 + 0.03 / 3)
    assert [m.decay(k, 10) for k in (0, 10)] == [0.996, 1.0]


def test_evaluation_does_not_move_the_centre():
    m = model().eval()
    m(batch())
    m.advance(0, 10)
    assert m.centre.abs().max() == 0


def test_the_teacher_follows_only_the_student():
    m = disturbed(model())
    losses = m(batch())
    torch.stack(list(losses.values())).mean().backward()
    learning = {name for name, p in m.named_parameters() if p.requires_grad}
    assert learning == {f"student.{name}" for name, _ in m.student.named_parameters()} | {"mask_token"}
    assert all(p.grad is None for p in m.teacher.parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for _, p in m.student.named_parameters())
    assert m.mask_token.grad.abs().sum() > 0


def test_the_encoder_is_a_copy_of_the_teachers_that_may_learn():
    m = disturbed(model())
    encoder, x = m.encoder, pictures()
    assert torch.equal(encoder(x), m.teacher(x)[0])
    assert not torch.equal(encoder(x), m.student(x)[0])
    assert all(p.requires_grad for p in encoder.parameters())
    with torch.no_grad():
        encoder.modality += 1
    assert not torch.equal(encoder(x), m.teacher(x)[0])
    assert (encoder.dim, encoder.grid, encoder.size, len(encoder.blocks)) == (16, (4, 4), (16, 16), 1)


def test_windows_show_the_share_they_should():
    rows, columns = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    ramp = torch.stack([rows, columns]).expand(200, -1, -1, -1)
    seen = window(ramp, (8, 8), (0.3, 0.5), generator(0, 0, "window"))
    inner = seen[:, :, 1:-1, 1:-1]  # at the edge a pixel may be repeated
    down = inner[:, 0].diff(dim=1).flatten(1)
    across = inner[:, 1].diff(dim=2).flatten(1)
    assert (down.std(1) < 1e-4).all()  # straight
    assert (across.std(1) < 1e-4).all()
    height, width = 8 * down.mean(1), 8 * across.mean(1)
    area, ratio = (height * width.abs() / 32**2), width.abs() / height
    assert area.min() > 0.299
    assert area.max() < 0.501
    assert area.max() - area.min() > 0.18
    assert ratio.min() > 0.749
    assert ratio.max() < 1.334
    assert 0.35 < (width < 0).float().mean() < 0.65  # mirrored
    assert (height > 0).all()
    whole = window(ramp, (32, 32), (1.0, 1.0), generator(0, 0, "window"))
    assert whole[:, 0, 0, 0].max() < 5  # no window is larger than the picture, or leaves it


def test_a_window_of_a_picture_that_is_not_square():
    rows, columns = torch.meshgrid(torch.arange(16.0), torch.arange(32.0), indexing="ij")
    ramp = torch.stack([rows, columns]).expand(100, -1, -1, -1)
    inner = window(ramp, (8, 8), (0.1, 0.3), generator(0, 0, "window"))[:, :, 1:-1, 1:-1]
    height, width = 8 * inner[:, 0].diff(dim=1).mean((1, 2)), 8 * inner[:, 1].diff(dim=2).mean((1, 2)).abs()
    assert (width / height).min() > 0.749
    assert (width / height).max() < 1.334
    assert (height * width / 512).max() < 0.301


def test_colours_leave_some_and_make_some_grey():
    x = pictures(1).expand(400, -1, -1, -1)
    y = coloured(x, generator(0, 0, "colours"))
    assert y.min() >= 0
    assert y.max() <= 1
    grey = (y.std(1) < 1e-6).flatten(1).all(1).float().mean()
    same = (y == x).flatten(1).all(1).float().mean()
    assert 0.14 < grey < 0.26
    assert 0.1 < same < 0.22  # 0.2 * 0.8


def test_views_are_narrow_and_wide_and_of_this_step():
    m, x = model(), pictures()
    wide, narrow = m.views(x)
    assert wide.shape == (6, 3, 16, 16)
    assert narrow.shape == (6, 3, 8, 8)
    before = torch.get_rng_state()
    assert torch.equal(m.views(x)[0], wide)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.allclose(wide[:3], wide[3:])
    m.step += 1
    assert not torch.allclose(m.views(x)[0], wide)
    other = model(seed=4, crops=0)
    assert other.views(x)[1].shape == (0, 3, 16, 16)
    assert torch.equal(other.views(x)[0], wide)  # of seed and step alone
    assert torch.isfinite(other(batch())["views"])


def test_half_of_the_views_hide_a_tenth_to_a_half():
    hidden = SelfDistilled(SMALL, (64, 64), 4, outputs=4, hidden=4, bottleneck=4, crops=0).hidden(
        40, torch.device("cpu")
    )
    share = hidden.float().mean(1)
    assert (share > 0).sum() == 20
    some = share[share > 0].sort().values
    assert some[0] >= 0.098
    assert some[-1] <= 0.5
    assert ((some - torch.linspace(0.11, 0.49, 20)).abs() < 0.025).all()


def test_without_patches_there_is_one_loss():
    m = model(patches=False)
    assert list(m(batch())) == ["views"]
    assert m.mask_token is None


def test_narrow_views_are_96_of_224_pixels():
    assert model(local=None).local == (8, 8)
    m = SelfDistilled(SMALL, (224, 224), 16, outputs=4, hidden=4, bottleneck=4)
    assert (m.local, m.crops) == ((96, 96), 8)


def batches(folder):
    """Real ones, of a toy space."""
    masking = Masking(streams(boxed=False), inputs=4, targets=4)
    return Batches([Part(shards(folder, boxed=False))], masking, 4)


def broken(m, at):
    """A model that is killed after a step."""
    advance = m.advance

    def stop(step, steps):
        if step == at:
            raise KeyboardInterrupt
        advance(step, steps)

    m.advance = stop
    return m


def test_a_broken_run_goes_on_as_if_it_had_not_stopped(tmp_path):
    recipe = Recipe(
        steps=6,
        batch=4,
        base_lr=0.1,
        inputs=4,
        targets=4,
        precision="float32",
        every=3,
        accumulate=2,
        clip=1.0,
    )
    data = batches(tmp_path / "shards")
    whole = pretrain(model(), data, recipe, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        pretrain(broken(model(), 4), data, recipe, tmp_path / "broken")
    resumed = pretrain(model(seed=3), data, recipe, tmp_path / "broken")
    assert int(resumed.step) == 6
    assert resumed.centre.abs().sum() > 0
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"local": (8, 10)}, "does not divide narrow views of 8 x 10"),
        ({"wide": (0.4, 1.2)}, "in \\(0, 1\\]"),
        ({"temperature": 0.0}, "temperatures are above 0"),
        ({"crops": -1}, "crops is at least 0"),
        ({"momentum": 1.1}, "momentum, centring and warmup"),
        ({"momentum": float("nan")}, "momentum, centring and warmup"),
        ({"warmup": -0.1}, "momentum, centring and warmup"),
        ({"temperature": float("nan")}, "temperatures are above 0"),
        ({"sharpening": (0.04, float("inf"))}, "temperatures are above 0"),
        ({"narrow": (float("nan"), 0.4)}, "in \\(0, 1\\]"),
        ({"hidden": 0}, "hidden and bottleneck at least 1"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        model(**settings)
