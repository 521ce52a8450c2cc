"""The masked autoencoder: its loss recomputed in numpy, an encoder that is 4M's, masks that are counted."""

import numpy as np
import pytest
import torch
from torch import nn
from toy_space import shards, streams

from testtime.parts.randomness import generator
from testtime.space.loader import Batches, Part
from testtime.space.mae import MaskedAutoencoder, PictureEncoder
from testtime.space.masking import Masking, Stream
from testtime.space.model import Batch, Encoder, FourM, Size
from testtime.space.pretrain import Recipe, pretrain

SMALL = Size(2, 1, 16, 2)
STREAMS = (Stream("rgb", "pixels", 16), Stream("tok_depth", "grid", 16, 7))


def model(seed=0, **settings):
    torch.manual_seed(seed)
    settings = {"decoder_dim": 32, "decoder_depth": 2, **settings}
    return MaskedAutoencoder(SMALL, (16, 16), 4, **settings)


def pictures(n=3, seed=0):
    return torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def batch(n=3, seed=0):
    none = torch.zeros(n, 1, dtype=torch.int64)
    return Batch(pictures(n, seed), none, none, none, none, none)


def layer_norm(x, weight):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * weight


def block(x, p, at, heads):
    q, k, v = np.split(layer_norm(x, p[f"{at}.norm1.weight"]) @ p[f"{at}.attn.qkv.weight"].T, 3, 1)
    out, width = np.zeros_like(q), q.shape[1] // heads
    for h in range(heads):
        part = slice(h * width, (h + 1) * width)
        e = np.exp(q[:, part] @ k[:, part].T / np.sqrt(width))
        out[:, part] = e / e.sum(1, keepdims=True) @ v[:, part]
    x = x + out @ p[f"{at}.attn.proj.weight"].T
    y = layer_norm(x, p[f"{at}.norm2.weight"])
    gate = y @ p[f"{at}.mlp.fc1.weight"].T
    hidden = gate / (1 + np.exp(-gate)) * (y @ p[f"{at}.mlp.fc3.weight"].T)
    return x + hidden @ p[f"{at}.mlp.fc2.weight"].T


def grid(dim, side=4):
    def waves(at):
        angle = at[:, None] / 10000 ** (np.arange(dim // 4) / (dim // 4))
        return np.concatenate([np.sin(angle), np.cos(angle)], 1)

    at = np.arange(side * side)
    return np.concatenate([waves(at // side), waves(at % side)], 1)


def patches(picture):
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    x = (picture - mean[:, None, None]) / deviation[:, None, None]
    return np.stack(
        [x[:, r : r + 4, c : c + 4].reshape(-1) for r in range(0, 16, 4) for c in range(0, 16, 4)]
    )


@pytest.mark.parametrize("norm_pixels", [True, False])
def test_the_whole_forward_recomputed_in_numpy(norm_pixels):
    m, b = model(norm_pixels=norm_pixels), batch()
    m.advance(4, 10)
    shown = m.masks(3, generator(0, 5, "mask")).numpy()
    p = {k: v.detach().double().numpy() for k, v in m.state_dict().items()}
    errors = []
    for i in range(3):
        cut = patches(b.pixels[i].double().numpy())
        x = cut @ p["encoder.pixels.weight"].T + grid(16) + p["encoder.modality"]
        x = x[shown[i]]  # the encoder never sees the others
        for number in range(2):
            x = block(x, p, f"encoder.blocks.{number}", 2)
        x = layer_norm(x, p["encoder.norm.weight"])
        y = np.tile(p["mask_token"], (16, 1))
        y[shown[i]] = x @ p["project.weight"].T + p["project.bias"]
        y = y + grid(32)
        for number in range(2):
            y = block(y, p, f"decoder.{number}", 1)
        y = layer_norm(y, p["decoder_norm.weight"]) @ p["answer.weight"].T + p["answer.bias"]
        target = cut
        if norm_pixels:
            target = (cut - cut.mean(1, keepdims=True)) / np.sqrt(cut.var(1, ddof=1, keepdims=True) + 1e-6)
        hidden = np.setdiff1d(np.arange(16), shown[i])
        assert len(hidden) == 12
        errors += [((y[place] - target[place]) ** 2).mean() for place in hidden]
    assert m(b)["rgb"].item() == pytest.approx(np.mean(errors), rel=1e-5)


def test_the_encoder_has_the_names_sizes_and_answers_of_4ms():
    torch.manual_seed(0)
    whole = FourM(STREAMS, SMALL, (16, 16), 4)
    theirs, mine = Encoder(whole), model().encoder
    mine.load_state_dict(theirs.state_dict())
    x = pictures()
    torch.testing.assert_close(mine(x), theirs(x))
    for name in ("dim", "grid", "size", "patch"):
        assert getattr(mine, name) == getattr(theirs, name)
    assert len(mine.blocks) == len(theirs.blocks)
    shown = torch.tensor([[0, 7, 3, 12]] * 3)
    zeros = torch.zeros_like(shown)
    torch.testing.assert_close(mine(x, shown), whole.encode(Batch(x, shown, zeros, zeros, zeros, zeros)))


def test_first_weights_are_4ms():
    torch.manual_seed(0)
    m = PictureEncoder("tiny", (64, 64), 8)
    bound = np.sqrt(6 / (96 + 96))
    assert m.blocks[0].attn.qkv.weight.abs().max().item() == pytest.approx(bound, rel=0.01)
    assert m.pixels.weight.abs().max().item() == pytest.approx(np.sqrt(6 / (192 + 96)), rel=0.01)


def test_hidden_pixels_reach_the_loss_as_targets_only():
    m, x = model(), pictures()
    shown = torch.tensor([[0, 1, 2, 3]] * 3)  # the first row of patches
    answer = m.reconstruct(x, shown)
    other = x.clone()
    other[:, :, 4:] = torch.rand(3, 3, 12, 16)
    assert torch.equal(m.reconstruct(other, shown), answer)
    other[:, :, 0, 0] += 0.1
    assert not torch.allclose(m.reconstruct(other, shown), answer)
    gone = x.clone()
    gone[:, :, :4] = 0.5  # what was shown has no loss: only the answer to it may change the loss
    m.reconstruct = lambda images, shown: answer
    assert m.loss(gone, shown).item() == pytest.approx(m.loss(x, shown).item())


def test_masks_follow_seed_and_step_alone():
    m = model(seed=0)
    torch.manual_seed(1)
    before, first = torch.get_rng_state(), m(batch())["rgb"].item()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert m(batch())["rgb"].item() == first
    m.advance(0, 10)
    second = m(batch())["rgb"].item()
    assert second != first
    other = model(seed=5)
    other.load_state_dict(m.state_dict())
    assert other(batch())["rgb"].item() == second
    m.seed = 1
    assert m(batch())["rgb"].item() != second


def test_every_place_is_shown_as_often_as_another():
    m = model()
    shown = m.masks(4000, generator(0, 0, "mask"))
    assert shown.shape == (4000, 4)
    assert all(len(set(row)) == 4 for row in shown[:50].tolist())
    count = shown.flatten().bincount(minlength=16) / 4000
    assert (count - 0.25).abs().max() < 0.03


def test_the_decoder_is_at_most_the_papers():
    m = MaskedAutoencoder("B", (32, 32), 16, ratio=0.5)
    assert (m.project.out_features, len(m.decoder), m.decoder[0].attn.heads) == (512, 8, 16)
    t = MaskedAutoencoder("tiny", (32, 32), 8)
    assert (t.project.out_features, len(t.decoder), t.decoder[0].attn.heads) == (96, 2, 3)
    assert t.visible == 4


def test_another_size_of_picture_has_its_places_interpolated():
    encoder = PictureEncoder(SMALL, (16, 16), 4)
    assert encoder(torch.rand(2, 3, 8, 12)).shape == (2, 6, 16)
    assert torch.equal(encoder.places((4, 4)), encoder.position)
    half = encoder.places((2, 4)).view(2, 4, 16)
    rows, columns = torch.from_numpy(grid(16)).float()[:, :8], encoder.position.view(4, 4, 16)
    torch.testing.assert_close(half[0, :, 8:], columns[0, :, 8:])  # columns are where they were
    between = rows.view(4, 4, 8)[:2, 0].mean(0)  # a row of the half grid lies between two
    assert (half[0, 0, :8] - between).abs().max() < 0.2
    with pytest.raises(ValueError, match="patches of 4 do not divide pictures of 10 x 12"):
        encoder(torch.rand(1, 3, 10, 12))


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


def test_a_broken_run_goes_on_with_the_masks_it_would_have_had(tmp_path):
    recipe = Recipe(
        steps=6, batch=4, base_lr=0.1, inputs=4, targets=4, precision="float32", every=3, accumulate=2
    )
    data = batches(tmp_path / "shards")
    whole = pretrain(model(), data, recipe, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        pretrain(broken(model(), 4), data, recipe, tmp_path / "broken")
    resumed = pretrain(model(seed=3), data, recipe, tmp_path / "broken")
    assert int(resumed.step) == 6
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_it_learns():
    m, b, losses = model(), batch(), []
    optimizer = torch.optim.AdamW(m.parameters(), 5e-3)
    for step in range(60):
        loss = m(b)["rgb"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        m.advance(step, 60)
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.9 * losses[0]


def test_joint_training_has_the_same_loss():
    m, x = model(), pictures()
    found = m.source_loss(nn.Identity(), x, (), {}, generator(0, 0, "joint"))
    assert found["pixels"].item() == m.loss(x, m.masks(3, generator(0, 0, "joint"))).item()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": "XXL"}, "no size 'XXL'; there are tiny, mini, T, S, B"),
        ({"image": (16, 18)}, "does not divide"),
        ({"ratio": 0.99}, "leaves 0 of 16"),
        ({"ratio": 0.0}, "leaves 16 of 16"),
        ({"ratio": -0.5}, "above 0 and below 1, got -0.5"),
        ({"ratio": float("nan")}, "above 0 and below 1, got nan"),
        ({"patch": 0}, "does not divide"),
        ({"image": (0, 16)}, "does not divide"),
        ({"decoder_dim": 0}, "multiples of 4"),
        ({"decoder_depth": 0}, "depth of at least 1"),
        ({"decoder_dim": 100}, "take a multiple of 32"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        MaskedAutoencoder(**{"size": SMALL, "image": (16, 16), "patch": 4, **settings})
