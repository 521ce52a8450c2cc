"""AnoVL: its loss and a step against numpy, images independent of each other, and what it refuses."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from testtime import sgd
from testtime.vision_language.anovl import AnoVL, anomaly_loss, state_probabilities

WIDTH = 6
DRAW = torch.Generator().manual_seed(0)
NORMAL, ABNORMAL = torch.randn(3, WIDTH, generator=DRAW), torch.randn(2, WIDTH, generator=DRAW)
X = torch.rand(3, 3, 16, 16, generator=DRAW)


class Pair(nn.Module):
    def __init__(self, width=WIDTH):
        super().__init__()
        weight = torch.randn(3, width, generator=torch.Generator().manual_seed(1))
        self.weight = nn.Parameter(weight)

    def patches(self, x):
        return F.avg_pool2d(x, 4).flatten(2).transpose(1, 2) @ self.weight

    def forward(self, x):
        return x.mean((2, 3)) @ self.weight


def unit(z):
    return z / np.linalg.norm(z, axis=-1, keepdims=True)


def log_softmax(z):
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def numpy_loss(tokens, noise, matrix, bias, prompts, states, scale=10.0, weight=0.5, clean=0.0):
    def probabilities(z):
        adapted = 0.5 * z + 0.5 * np.tanh(z @ matrix.T + bias) @ prompts
        return log_softmax(scale * unit(adapted) @ states.T)

    q, r = probabilities(tokens), probabilities(tokens + noise)
    entropy = -(np.exp(q) * q).sum(-1)
    return (entropy - weight * r[:, 1] - clean * q[:, 0]).mean()


def numpy_states():
    prompts = unit(np.concatenate([NORMAL.numpy(), ABNORMAL.numpy()]).astype(float))
    return prompts, np.stack([unit(prompts[:3].mean(0)), unit(prompts[3:].mean(0))])


def test_the_loss_is_entropy_and_noised_tokens_abnormal():
    rng = np.random.default_rng(0)
    clean, noised = log_softmax(rng.normal(size=(2, 4, 2))), log_softmax(rng.normal(size=(2, 4, 2)))
    expected = [
        np.mean([-(np.exp(c) * c).sum() - 0.5 * n[1] - 0.25 * c[0] for c, n in zip(cs, ns, strict=True)])
        for cs, ns in zip(clean, noised, strict=True)
    ]
    found = anomaly_loss(torch.tensor(clean), torch.tensor(noised), 0.5, 0.25)
    np.testing.assert_allclose(found.numpy(), expected)


def test_probabilities_are_a_softmax_of_scaled_cosines():
    rng = np.random.default_rng(1)
    tokens, states = rng.normal(size=(4, 5)), unit(rng.normal(size=(2, 5)))
    found = state_probabilities(torch.tensor(tokens), torch.tensor(states), 7.0)
    np.testing.assert_allclose(found.numpy(), log_softmax(7 * unit(tokens) @ states.T))


@pytest.mark.parametrize("clean", [0.0, 0.5])
def test_a_step_follows_the_gradient_of_the_loss(clean, monkeypatch):
    """The adapter after one step of SGD is that of finite differences of the loss in numpy."""
    kept = []
    rate = 0.3

    def optimizer(parameters):
        kept[:] = [parameters, [p.detach().clone() for p in parameters]]
        return sgd(rate, momentum=0.0)(parameters)

    adapter = AnoVL(Pair(), NORMAL, ABNORMAL, optimizer, steps=1, scale=10.0, clean=clean, noise=0.3)
    drawn = []
    randn = torch.randn
    monkeypatch.setattr(torch, "randn", lambda *a, **k: drawn.append(randn(*a, **k)) or drawn[-1])
    y = adapter(X)
    monkeypatch.undo()
    prompts, states = numpy_states()
    tokens = unit(Pair().patches(X).detach().numpy().astype(float))
    noise = 0.3 * drawn[0].numpy().astype(float)
    for n in range(len(X)):
        matrix, bias = (v[n].numpy().astype(float) for v in kept[1])
        gradients = []
        for value in (matrix, bias):
            gradient = np.zeros_like(value)
            for index in np.ndindex(value.shape):
                ends = []
                for h in (1e-5, -1e-5):
                    value[index] += h
                    ends.append(numpy_loss(tokens[n], noise, matrix, bias, prompts, states, clean=clean))
                    value[index] -= h
                gradient[index] = (ends[0] - ends[1]) / 2e-5
            gradients.append(gradient)
        for value, gradient, after in zip((matrix, bias), gradients, kept[0], strict=True):
            np.testing.assert_allclose(after[n].detach().numpy(), value - rate * gradient, atol=2e-5)
        matrix, bias = (p[n].detach().numpy().astype(float) for p in kept[0])
        adapted = 0.5 * tokens[n] + 0.5 * np.tanh(tokens[n] @ matrix.T + bias) @ prompts
        p = np.exp(log_softmax(10 * unit(adapted) @ states.T))[:, 1].reshape(4, 4)
        padded = np.pad(p, 1, mode="edge")
        corner = padded[:3, :3].mean()
        assert float(y["map"][n, 0, 0]) == pytest.approx(corner, abs=1e-5)
    assert torch.equal(y["peak"], y["map"].flatten(1).amax(1))


def test_the_score_is_that_of_the_whole_image_and_no_step_changes_it():
    _, states = numpy_states()
    whole = unit(Pair()(X).detach().numpy().astype(float))
    expected = np.exp(log_softmax(100 * whole @ states.T))[:, 1]
    for steps in (0, 3):
        found = AnoVL(Pair(), NORMAL, ABNORMAL, steps=steps)(X)["score"]
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)


def test_no_steps_leave_the_tokens_as_they_are():
    _, states = numpy_states()
    tokens = unit(Pair().patches(X).detach().numpy().astype(float))
    p = np.exp(log_softmax(100 * tokens @ states.T))[..., 1].reshape(3, 4, 4)
    expected = [np.pad(one, 1, mode="edge")[-3:, -3:].mean() for one in p]
    adapter = AnoVL(Pair(), NORMAL, ABNORMAL, steps=0)
    np.testing.assert_allclose(adapter(X)["map"][:, -1, -1].numpy(), expected, atol=1e-4)
    assert torch.equal(adapter.predict(X)["map"], adapter(X)["map"])


def test_an_answer_depends_on_its_image_alone():
    def fresh():
        return AnoVL(Pair(), NORMAL, ABNORMAL, steps=4, scale=10.0)

    together = fresh()(X)["map"]
    for n in range(len(X)):
        torch.testing.assert_close(fresh()(X[n : n + 1])["map"], together[n : n + 1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(fresh()(X.flip(0))["map"], together.flip(0), atol=1e-5, rtol=1e-4)
    broken = X.clone()
    broken[1, 0, 0, 0] = torch.nan
    y = fresh()(broken)
    assert y.valid.tolist() == [True, False, True]
    torch.testing.assert_close(y["map"][[0, 2]], together[[0, 2]], atol=1e-5, rtol=1e-4)
    assert bool(torch.isnan(y["peak"][1]))


def test_nothing_is_carried_to_the_next_call():
    adapter = AnoVL(Pair(), NORMAL, ABNORMAL, steps=2, scale=10.0)
    first = adapter(X)["map"]
    assert sorted(adapter.state_dict()) == ["clock"]
    assert torch.equal(adapter(X)["map"], first)
    other = AnoVL(Pair(), NORMAL, ABNORMAL, steps=2, scale=10.0, seed=1)
    assert not torch.equal(other(X)["map"], first)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: AnoVL(nn.Linear(3, 2), NORMAL, ABNORMAL), "local tokens"),
        (lambda: AnoVL(Pair(), NORMAL[0], ABNORMAL), "pair.encode_texts"),
        (lambda: AnoVL(Pair(), NORMAL, ABNORMAL[:, :2]), "pair.encode_texts"),
        (lambda: AnoVL(Pair(), NORMAL[:0], ABNORMAL), r"finite embeddings of normal .* shape \(0, "),
        (lambda: AnoVL(Pair(), NORMAL, ABNORMAL * torch.nan), "finite embeddings of abnormal"),
        (lambda: AnoVL(Pair(), NORMAL, 0 * ABNORMAL), "embedding 0 of abnormal prompts is zero"),
        (lambda: AnoVL(Pair(), NORMAL, ABNORMAL, steps=-1), "steps"),
        (
            lambda: AnoVL(Pair(), NORMAL, NORMAL),
            r"same mean embedding, .*0.5; .*state_prompts\(name, ABNORMAL\)",
        ),
        (lambda: AnoVL(Pair(), ABNORMAL, 3 * ABNORMAL.flip(0)), "same mean embedding"),
        (lambda: AnoVL(Pair(4), NORMAL, ABNORMAL)(X), "as wide as the embeddings"),
    ],
)
def test_bad_input_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_prompts_in_place_of_their_embeddings_are_refused():
    with pytest.raises(TypeError, match="embeddings of normal prompts .* got list"):
        AnoVL(Pair(), ["a photo of steel"], ABNORMAL)
