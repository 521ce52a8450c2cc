"""TTT-MAE: its steps recomputed, an image that begins at the source, what stays frozen."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from testtime import Episodic, Repeat, sgd
from testtime.methods.ttt_mae import TTTMAE
from testtime.multitask import Assisted, MultiTaskNet, Segmentation
from testtime.parts.randomness import generator
from testtime.space.mae import MaskedAutoencoder
from testtime.space.model import Size
from testtime.space.segmenter import ConvNeXtHead, Segmenter

SMALL = Size(1, 1, 16, 2)


def autoencoder(seed=0):
    torch.manual_seed(seed)
    return MaskedAutoencoder(SMALL, (16, 16), 4)


def source(seed=0):
    mae = autoencoder(seed)
    return Assisted(
        Segmenter(mae.encoder, ConvNeXtHead(16, (4, 4), 3, width=4, sub=2, depth=1)), mae
    ).double()


def images(n=2, seed=0):
    return torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def squared_error(mae, x, shown):
    """The loss over hidden patches in numpy, from the decoder's answer."""
    answer = mae.reconstruct(x, shown).detach().numpy()
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    x = (x.numpy() - mean[:, None, None]) / deviation[:, None, None]
    errors = []
    for i, places in enumerate(shown.tolist()):
        for p in set(range(16)) - set(places):
            row, column = 4 * (p // 4), 4 * (p % 4)
            patch = x[i, :, row : row + 4, column : column + 4].reshape(-1)
            # The library compares in float32, whatever the network is in.
            target = ((patch - patch.mean()) / np.sqrt(patch.var(ddof=1) + 1e-6)).astype(np.float32)
            errors.append(((answer[i, p].astype(np.float32) - target) ** 2).mean())
    return np.mean(errors)


def test_steps_go_down_the_papers_loss_with_momentum():
    model, x, rate = source(), images(), 0.1
    adapter = TTTMAE(model, sgd(rate), copies=3, seed=4)
    losses, update = [], adapter.update
    adapter.update = lambda loss: (losses.append(loss.item()), update(loss))
    mine, velocity = copy.deepcopy(model), {}
    for step in range(3):
        with torch.no_grad():
            expected = mine(x)
        torch.testing.assert_close(adapter(x).logits, expected, rtol=1e-6, atol=1e-7)  # before the update
        shown = mine.branch.masks(3, generator(4, step, "masks"))
        assert shown.shape == (3, 4)
        both, masks = torch.cat([x[:1]] * 3 + [x[1:]] * 3), torch.cat([shown, shown])
        assert losses[step] == pytest.approx(squared_error(mine.branch, both, masks), rel=1e-6)
        weights = dict(mine.branch.encoder.named_parameters())
        gradients = torch.autograd.grad(mine.branch.loss(both, masks), list(weights.values()))
        with torch.no_grad():
            for (name, p), g in zip(weights.items(), gradients, strict=True):
                velocity[name] = g if step == 0 else 0.9 * velocity[name] + g
                p -= rate * velocity[name]
    moved = dict(adapter._autoencoder.encoder.named_parameters())
    for name, p in mine.branch.encoder.named_parameters():
        torch.testing.assert_close(moved[name], p, rtol=1e-5, atol=1e-7)
        assert not torch.equal(moved[name], dict(model.branch.encoder.named_parameters())[name])


def test_decoder_and_head_stay():
    model = source()
    adapter = TTTMAE(model, sgd(0.1), copies=2)
    adapter(images())
    names = {name for name in adapter.state_dict() if name.startswith("model.")}
    assert len(names) == len(list(model.branch.encoder.parameters()))
    assert all("encoder" in name for name in names)
    inner = adapter._autoencoder
    for name, p in model.branch.named_parameters():
        assert torch.equal(p, inner.get_parameter(name)) == (not name.startswith("encoder.")), name


def test_the_paper_begins_every_image_at_the_source_and_answers_after_the_last_step():
    model, x = source(), images()
    adapter = Episodic(Repeat(TTTMAE(model, sgd(0.1), copies=3), 4))
    first, second = adapter(x[:1]).logits, adapter(x[1:]).logits
    alone = TTTMAE(model, sgd(0.1), copies=3)
    for _ in range(4):
        alone(x[1:])
    assert torch.equal(alone.predict(x[1:]).logits, second)
    assert torch.equal(adapter(x[:1]).logits, first)
    with torch.no_grad():
        assert not torch.allclose(first, model(x[:1]), atol=1e-4)


def test_the_defaults_are_the_papers():
    adapter = TTTMAE(source())
    assert adapter.copies == 128
    assert adapter.optimizer == sgd(5e-3, momentum=0.9)
    assert adapter.cost == TTTMAE.cost == (33, 32)
    assert Episodic(Repeat(adapter, 20)).cost == (661, 640)


def test_it_lowers_the_error_of_the_image_it_is_given():
    model, x = source(), images(1)
    adapter = TTTMAE(model, sgd(0.05), copies=32)
    shown = model.branch.masks(64, generator(9, 0, "held out"))
    before = adapter._autoencoder.loss(x.expand(64, -1, -1, -1), shown).item()
    for _ in range(20):
        adapter(x)
    assert adapter._autoencoder.loss(x.expand(64, -1, -1, -1), shown).item() < 0.97 * before


def test_a_multi_task_network_is_answered_by_task():
    mae = autoencoder()
    head = ConvNeXtHead(16, (4, 4), 3, width=4, sub=2, depth=1)
    net = MultiTaskNet(mae.encoder, {"semseg": head}, {"semseg": Segmentation(("a", "b", "c"))})
    y = TTTMAE(Assisted(net, mae), copies=2)(images().float())
    assert y["semseg"].shape == (2, 3, 16, 16)
    assert y.updated


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TTTMAE(nn.Linear(3, 2)), "expected Assisted\\(network, autoencoder\\), got Linear"),
        (lambda: TTTMAE(Assisted(nn.Linear(3, 2), autoencoder())), "is no part of this Linear"),
        (lambda: TTTMAE(source(), copies=0), "at least 1, got 0"),
    ],
)
def test_what_it_cannot_work_with_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
