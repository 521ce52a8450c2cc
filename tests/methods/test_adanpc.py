"""AdaNPC against the published algorithm as a plain loop over features."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from small_world import CLASSES, batch, net, stream
from testtime import energy
from testtime.adapter import state_hash
from testtime.methods import AdaNPC
from testtime.methods.adanpc import FeatureMemory


def labelled() -> list[tuple[Tensor, Tensor]]:
    """Source batches with labels, a few of them other than what the model predicts."""
    batches = [batch(20, 900 + i) for i in range(3)]
    return [(x, torch.where(torch.arange(20) % 7 == 0, (y + 1) % CLASSES, y)) for x, y in batches]


def source() -> list[Tensor]:
    return [x for x, _ in labelled()]


class Published:
    """One feature at a time against a list that holds the source and the last images of the stream."""

    def __init__(self, k: int, t: float, beta: float, capacity: int | None, code: bool = False) -> None:
        self.code = code  # true labels, and a softmax of the vote
        self.model, self.k, self.t, self.beta, self.capacity = net(), k, t, beta, capacity
        self.source: list[tuple[np.ndarray, int]] = []
        self.stream: list[tuple[np.ndarray, int]] = []
        for x, y in labelled():
            f, z = self.look(x)
            label = y.numpy() if code else z.argmax(1)
            self.source += [(f[i] / np.linalg.norm(f[i]), int(label[i])) for i in range(len(x))]
        self.refused = self.left = 0

    def look(self, x: Tensor) -> tuple[np.ndarray, np.ndarray]:
        with torch.no_grad():
            f = self.model[:-1](x)
            return f.numpy(), self.model[-1](f).numpy()

    def step(self, x: Tensor) -> np.ndarray:
        f, _ = self.look(x)
        p, new = np.zeros((len(x), CLASSES)), []
        for i in range(len(x)):
            unit = f[i] / np.linalg.norm(f[i])
            nearest = sorted(((unit @ row, c) for row, c in self.source + self.stream), reverse=True)[
                : self.k
            ]
            total = sum(np.exp(s / self.t) for s, _ in nearest)
            for s, c in nearest:
                p[i, c] += np.exp(s / self.t) / total
            sure = p[i].max()
            if self.code:
                scores = np.minimum(p[i] + 1e-5, 1)
                sure = (np.exp(scores) / np.exp(scores).sum()).max()
            if sure >= self.beta:
                new.append((unit, int(p[i].argmax())))
            else:
                self.refused += 1
        self.stream = self.stream + new
        if self.capacity is not None:
            self.left += max(0, len(self.stream) - self.capacity)
            self.stream = self.stream[-self.capacity :]
        return np.log(np.minimum(p + 1e-5, 1))


@pytest.mark.parametrize(
    ("k", "t", "beta", "capacity"), [(5, 0.1, 0.9, 16), (20, 0.01, 0.6, 40), (1, 0.5, 0.5, 8)]
)
def test_equals_the_published_loop(k: int, t: float, beta: float, capacity: int) -> None:
    reference, ours = Published(k, t, beta, capacity), AdaNPC(net(), k, t, beta, capacity)
    ours.prepare(source())
    for x in stream([13, 1, 24, 16, 40, 8, 5, 16, 3, 11]):
        expected, looked = reference.step(x), ours.predict(x)
        y = ours(x)
        assert torch.equal(y.logits, looked.logits)
        np.testing.assert_allclose(y.logits.numpy(), expected, rtol=0, atol=1e-10)
        torch.testing.assert_close(y.score, energy(torch.from_numpy(reference.look(x)[1])))
    assert reference.left > 0
    assert (reference.refused > 0) == (k > 1)
    rows, labels = ours.of_stream()
    assert len(rows) == len(reference.stream) == capacity
    assert sorted(labels.tolist()) == sorted(c for _, c in reference.stream)


@pytest.mark.parametrize(("beta", "some"), [(0.4, True), (0.9, False)])
def test_equals_the_published_code(beta: float, some: bool) -> None:
    """True labels, a softmax of the vote, and a memory without bound."""
    reference = Published(10, 0.05, beta, None, code=True)
    ours = AdaNPC(net(), 10, 0.05, beta, capacity=None, softmax=True)
    ours.prepare(labelled())
    assert ours.of_source()[1].tolist() == [c for _, c in reference.source]
    for x in stream([13, 1, 24, 16, 40, 8, 5, 16, 3, 11]):
        np.testing.assert_allclose(ours(x).logits.numpy(), reference.step(x), rtol=0, atol=1e-10)
    assert bool(reference.stream) == some
    assert reference.refused > 0
    assert ours.of_stream()[1].tolist() == [c for _, c in reference.stream]
    assert int(ours.of_stream.met) == len(reference.stream)
    before = state_hash(ours)
    again = AdaNPC(net(), 10, 0.05, beta, capacity=None, softmax=True)
    again.load_state_dict(ours.state_dict())
    assert state_hash(again) == before
    ours.reset()
    assert len(ours.of_stream()[1]) == 0


def test_a_threshold_on_p_itself_lets_images_in() -> None:
    """The published softmax of p would stay below 0.9 however sure the vote."""
    ours = AdaNPC(net(), 5)
    ours.prepare(source())
    y = ours(source()[0])
    assert y.selected["remembered"].sum() > 10
    assert int(ours.of_stream.met) == int(y.selected["remembered"].sum())
    assert y.logits.exp().softmax(1).max() < 0.5


def test_the_memory_of_the_source_stays_and_that_of_the_stream_goes() -> None:
    ours, x = AdaNPC(net(), 5, capacity=8), stream([24])[0]
    ours.prepare(source())
    first = ours(x).logits
    ours.reset()
    assert len(ours.of_source()[0]) == 60
    assert len(ours.of_stream()[0]) == 0
    assert torch.equal(ours(x).logits, first)
    other = AdaNPC(net(), 5, capacity=8)
    other.load_state_dict(ours.state_dict())
    assert state_hash(other) == state_hash(ours)


def test_the_last_to_enter_find_room() -> None:
    memory = FeatureMemory(torch.zeros(1, 1), 3)
    memory.update(torch.tensor([[1.0], [2.0]]), torch.tensor([1, 2]))
    memory.update(torch.arange(3.0, 8.0)[:, None], torch.arange(3, 8))
    assert sorted(memory()[1].tolist()) == [5, 6, 7]
    memory.update(torch.tensor([[8.0]]), torch.tensor([8]))
    assert sorted(memory()[0].flatten().tolist()) == [6, 7, 8]
    nothing = FeatureMemory(torch.zeros(1, 1), 0)
    nothing.update(torch.ones(2, 1), torch.ones(2, dtype=torch.int64))
    assert len(nothing()[0]) == 0


def test_says_what_it_expects() -> None:
    with pytest.raises(ValueError, match="at least 1 and temperature above 0, got 0 and 0.1"):
        AdaNPC(net(), 0)
    with pytest.raises(RuntimeError, match=r"call adapter\.prepare\(batches\)"):
        AdaNPC(net())(stream([4])[0])
    with pytest.raises(TypeError, match="labels .* as a tensor of integers, got torch.float32"):
        AdaNPC(net()).prepare([(source()[0], torch.zeros(20))])
    with pytest.raises(TypeError, match="every source batch or with none"):
        AdaNPC(net()).prepare([labelled()[0], source()[1]])
