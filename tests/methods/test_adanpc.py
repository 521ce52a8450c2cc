"""AdaNPC against the published algorithm as a plain loop over features."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_world import CLASSES, batch, net, stream
from torch import Tensor

from testtime import energy
from testtime.adapter import state_hash
from testtime.methods import AdaNPC
from testtime.methods.adanpc import FeatureMemory


def source() -> list[Tensor]:
    return [batch(20, 900 + i)[0] for i in range(3)]


class Published:
    """One feature at a time against a list that holds the source and the last images of the stream."""

    def __init__(self, k: int, t: float, beta: float, capacity: int) -> None:
        self.model, self.k, self.t, self.beta, self.capacity = net(), k, t, beta, capacity
        self.source: list[tuple[np.ndarray, int]] = []
        self.stream: list[tuple[np.ndarray, int]] = []
        for x in source():
            f, z = self.look(x)
            self.source += [(f[i] / np.linalg.norm(f[i]), int(z[i].argmax())) for i in range(len(x))]
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
            if p[i].max() >= self.beta:
                new.append((unit, int(p[i].argmax())))
            else:
                self.refused += 1
        self.left += max(0, len(self.stream + new) - self.capacity)
        self.stream = (self.stream + new)[-self.capacity :]
        return np.log(np.minimum(p + 1e-5, 1))


@pytest.mark.parametrize(
    ("k", "t", "beta", "capacity"), [(5, 0.1, 0.9, 16), (20, 0.01, 0.6, 40), (1, 0.5, 0.5, 8)]
)
def test_equals_the_published_loop(k: int, t: float, beta: float, capacity: int) -> None:
    reference, ours = Published(k, t, beta, capacity), AdaNPC(net(), k, t, beta, capacity)
    ours.prepare(source())
    for x in stream([13, 1, 24, 16, 40]):
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
    with pytest.raises(TypeError, match="give the images alone"):
        AdaNPC(net()).prepare([(source()[0], torch.zeros(20))])
