"""T3A against the published algorithm as a plain loop, its prototypes against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from small_world import CLASSES, batch, net, stream
from testtime.adapter import state_hash
from testtime.methods import T3A
from testtime.methods.t3a import Supports


class Published:
    """The supports as lists of (unit vector, entropy) by class, sorted anew for every batch."""

    def __init__(self, model: nn.Sequential, supports: int) -> None:
        self.model, self.supports = model, supports
        w, b = model[-1].weight.detach().numpy(), model[-1].bias.detach().numpy()
        z = w @ w.T + b
        assert (z.argmax(1) == np.arange(CLASSES)).all()
        self.lists = [[(w[c] / np.linalg.norm(w[c]), doubt(z[c]))] for c in range(CLASSES)]
        self.dropped = 0

    def step(self, x: Tensor, unit: bool) -> np.ndarray:
        with torch.no_grad():
            f = self.model[:-1](x)
            z = self.model[-1](f).numpy()
        f = f.numpy()
        for i in range(len(x)):
            self.lists[z[i].argmax()].append((f[i] / np.linalg.norm(f[i]), doubt(z[i])))
        for c in range(CLASSES):
            ranked = sorted(self.lists[c], key=lambda item: item[1])
            self.dropped += len(ranked[self.supports :])
            self.lists[c] = ranked[: self.supports]
        prototypes = np.array([np.mean([s for s, _ in kept], 0) for kept in self.lists])
        if unit:
            prototypes /= np.linalg.norm(prototypes, axis=1, keepdims=True)
        return f @ prototypes.T


def doubt(z: np.ndarray) -> float:
    p = np.exp(z - z.max())
    p /= p.sum()
    return float(-(p * np.log(p)).sum())


@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("supports", [1, 5, 100])
def test_equals_the_published_loop(supports: int, unit: bool) -> None:
    reference, ours = Published(net(), supports), T3A(net(), supports, unit)
    for x in stream([13, 1, 24, 16, 7, 2, 9, 30, 5, 11, 8, 4]):
        np.testing.assert_allclose(ours(x).logits.numpy(), reference.step(x, unit), rtol=0, atol=1e-10)
    assert (reference.dropped > 0) == (supports < 100)
    assert ours.memory()[1].flatten().tolist() == [len(kept) for kept in reference.lists]


def test_looking_answers_by_the_prototypes_as_they_are() -> None:
    x, other = stream([24, 24])
    ours = T3A(net(), 5)
    first = ours.predict(x)
    with torch.no_grad():
        model = net()
        f, w = model[:-1](x), model[-1].weight
    torch.testing.assert_close(first.logits, f @ (w / w.norm(dim=1, keepdim=True)).T)
    ours(other)
    assert not torch.equal(ours.predict(x).logits, first.logits)
    ours.reset()
    assert torch.equal(ours.predict(x).logits, first.logits)


def test_adjusts_to_a_changed_world() -> None:
    """Prototypes of the stream serve it better than the head's own."""
    ours, still, right, wrong = T3A(net(), 20, unit=True), T3A(net(), 20, unit=True), 0, 0
    for seed in range(12):
        x, y = batch(32, 500 + seed, drift=1.2)
        right += int((ours(x).argmax(1) == y).sum())
        wrong += int((still.predict(x).argmax(1) == y).sum())
    assert right > wrong


def test_supports_keep_copies_and_their_state_travels() -> None:
    head = net()[-1]
    memory, z = Supports(head, 3), torch.randn(10, 32, dtype=torch.float64)
    memory.update(z, head(z).detach())
    before = memory.features.clone()
    z.zero_()
    assert torch.equal(memory.features, before)
    np.testing.assert_allclose(memory.features.norm(dim=1), 1)
    a, b = T3A(net(), 3), T3A(net(), 3)
    x, y = stream([16, 16])
    a(x), b(y)
    b.load_state_dict(a.state_dict())
    assert state_hash(a) == state_hash(b)
    assert torch.equal(a(y).logits, b(y).logits)


def test_says_what_it_expects() -> None:
    with pytest.raises(ValueError, match="at least 1, got -1"):
        T3A(net(), -1)
    with pytest.raises(ValueError, match="one feature vector for each of the 2 images"):
        T3A(nn.Sequential(nn.Linear(8, 2), nn.Flatten()))(torch.rand(2, 3, 8, 8))


def test_a_state_of_dense_supports_loads() -> None:
    """Until 2026 the features of a state were (C, K, D), zero in free places."""
    ours, x = T3A(net(), 3), stream([16, 9, 5])
    for batch_ in x[:2]:
        ours(batch_)
    state = ours.state_dict()
    doubt = state["memory.entropy"]
    dense = doubt.new_zeros(*doubt.shape, state["memory.features"].shape[1])
    dense[doubt.isfinite()] = state["memory.features"]
    other = T3A(net(), 3)
    other.load_state_dict(state | {"memory.features": dense})
    assert state_hash(other) == state_hash(ours)
    assert torch.equal(other(x[2]).logits, ours(x[2]).logits)
    with pytest.raises(ValueError, match=r"supports and .* entropies of supports"):
        other.load_state_dict(state | {"memory.features": state["memory.features"][1:]})
    with pytest.raises(ValueError, match="same model and supports="):
        T3A(net(), 4).load_state_dict(state)


def test_memory_is_in_proportion_to_the_supports_that_are_held() -> None:
    ours = T3A(net(), 100)
    assert len(ours.memory.features) == CLASSES
    for x in stream([16, 9]):
        ours(x)
    assert len(ours.memory.features) == CLASSES + 25
    assert ours.memory.entropy.isfinite().sum() == CLASSES + 25


def test_an_update_replaces_the_supports_of_the_classes_in_the_batch_alone() -> None:
    memory = T3A(net(), 5).memory
    before, logits = memory.held, torch.zeros(2, CLASSES, dtype=torch.float64)
    logits[:, 1] = 9
    memory.update(torch.randn(2, before[0][0].shape[1]), logits)
    assert [c for c in range(CLASSES) if memory.held[c] is not before[c]] == [1]
    assert len(memory.held[1][0]) == 3
