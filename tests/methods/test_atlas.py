"""aTLAS against a plain loop of its equations; its task vectors, its memory and its loss on their own."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from small_world import CLASSES, batch, by_batch, jitter, mirrored, net, stream
from testtime.adapter import state_hash
from testtime.corruptions import corrupt
from testtime.methods.atlas import ATLAS, ATLASOptions, TrustedMemory, fixmatch
from testtime.parts import adam, generator, identity, sgd
from testtime.source.atlas import TaskVectors, train_task_vectors, with_task_vectors

NAMES = ["0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "4.weight", "4.bias"]  # all but the head


def examples(seed: int = 900, drift: float = 0.5) -> list[tuple[Tensor, Tensor]]:
    return [batch(20, seed + i, drift) for i in range(3)]


def tasks() -> dict[str, list[tuple[Tensor, Tensor]]]:
    return {"near": examples(900, 0.5), "far": examples(950, 1.0)}


def tuned(seed: int) -> nn.Module:
    """The network after random steps of its weights."""
    rng, model = torch.Generator().manual_seed(seed), net()
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1 * torch.randn(p.shape, generator=rng, dtype=p.dtype)
    return model


class Loop:
    """Its equations: weights by name, a memory of lists, momentum by hand."""

    def __init__(self, seed: int, each: int, threshold: float, weight: float, rate: float) -> None:
        self.origin = dict(net().named_parameters())
        self.vectors = [{n: p - self.origin[n] for n, p in tuned(i).named_parameters()} for i in (1, 2, 3)]
        self.scale, self.velocity = np.zeros((3, len(NAMES))), np.zeros((3, len(NAMES)))
        self.places: list[list[tuple[float, Tensor] | None]] = [[None] * each for _ in range(CLASSES)]
        self.seed, self.threshold, self.weight, self.rate, self.sure = seed, threshold, weight, rate, []

    def answer(self, x: Tensor, scale: Tensor) -> Tensor:
        w = dict(self.origin)
        for b, name in enumerate(NAMES):
            w[name] = self.origin[name] + sum(scale[t, b] * self.vectors[t][name] for t in range(3))
        x = F.conv2d(x, w["0.weight"], w["0.bias"], padding=1)
        x = F.batch_norm(x, None, None, w["1.weight"], w["1.bias"], True).relu()
        x = F.conv2d(x, w["3.weight"], None, stride=2, padding=1)
        x = F.batch_norm(x, None, None, w["4.weight"], w["4.bias"], True).relu()
        return F.adaptive_avg_pool2d(x, 2).flatten(1) @ w["8.weight"].T + w["8.bias"]

    def remember(self, x: Tensor) -> None:
        p = self.answer(x, torch.zeros(3, len(NAMES))).softmax(1).detach().numpy()
        for c in range(CLASSES):
            mine = self.places[c]
            pool = [(place[0] if place else -1.0, i, None) for i, place in enumerate(mine)]
            pool += [(p[i, c], None, x[i]) for i in np.flatnonzero(p.argmax(1) == c)]
            best = sorted(pool, key=lambda entry: -entry[0])[: len(mine)]
            free = [i for i in range(len(mine)) if all(i != place for _, place, _ in best)]
            for confidence, _, image in (entry for entry in best if entry[2] is not None):
                mine[free.pop(0)] = (confidence, image)

    def step(self, x: Tensor, clock: int) -> Tensor:
        scale = torch.from_numpy(self.scale.copy()).requires_grad_()
        y = self.answer(x, scale).detach()
        self.remember(x)
        held = [(entry[1], c) for c in range(CLASSES) for entry in self.places[c] if entry]
        drawn = torch.randint(len(held), (len(x),), generator=generator(self.seed, clock, "trusted"))
        images, labels = torch.stack([held[i][0] for i in drawn]), [held[i][1] for i in drawn]
        known = self.answer(jitter(images, generator(self.seed, clock, "known")), scale).softmax(1)
        weak = self.answer(jitter(x, generator(self.seed, clock, "weak")), scale).softmax(1).detach()
        strong = self.answer(mirrored(x, generator(0, 0, "")), scale).softmax(1)
        sure = [i for i in range(len(x)) if weak[i].max() >= self.threshold]
        self.sure.append((len(sure), len(x)))
        loss = -sum(known[i, c].log() for i, c in enumerate(labels)) / len(x)
        loss = loss - self.weight * sum(strong[i, weak[i].argmax()].log() for i in sure) / len(x)
        loss.backward()
        self.velocity = 0.9 * self.velocity + scale.grad.numpy()
        self.scale = self.scale - self.rate * self.velocity
        return y


def test_equals_the_loop() -> None:
    reference = Loop(3, each=3, threshold=0.8, weight=0.7, rate=0.05)
    network = with_task_vectors(net(), {f"task {i}": tuned(i) for i in (1, 2, 3)})
    assert network.tasks == ("task 1", "task 2", "task 3")
    ours = ATLAS(
        network,
        CLASSES,
        sgd(0.05),
        trusted=3,
        threshold=0.8,
        weight=0.7,
        weak=jitter,
        strong=mirrored,
        seed=3,
    )
    assert ours.source == "none"
    for clock, x in enumerate(stream([16, 5, 16, 16, 3, 16, 16, 16])):
        expected, looked = reference.step(x, clock), ours.predict(x)
        y = ours(x)
        assert torch.equal(y, looked)
        np.testing.assert_allclose(y.numpy(), expected.numpy(), rtol=0, atol=1e-10)
        assert int(y.selected["minimised"].sum()) == reference.sure[-1][0]
    np.testing.assert_allclose(ours.vectors.coefficients.detach().numpy(), reference.scale, atol=1e-10)
    assert np.abs(reference.scale).max() > 0.05
    assert any(0 < some < all_ for some, all_ in reference.sure)


def test_the_coefficients_scale_each_block_of_each_vector() -> None:
    network = with_task_vectors(net(), {"a": tuned(1), "b": tuned(2).state_dict()})
    scale = np.random.default_rng(0).normal(size=(2, 7))
    x = batch(6, 5)[0]
    torch.testing.assert_close(network(x), net()(x))
    with torch.no_grad():
        network.coefficients.copy_(torch.from_numpy(scale))
    by_hand, a, b = net(), dict(tuned(1).named_parameters()), dict(tuned(2).named_parameters())
    with torch.no_grad():
        for k, name in enumerate(NAMES):
            p = by_hand.get_parameter(name)
            p += scale[0, k] * (a[name] - p) + scale[1, k] * (b[name] - p)
    torch.testing.assert_close(network(x), by_hand(x))


def test_a_coefficient_of_one_is_the_fine_tuned_network() -> None:
    network, x = with_task_vectors(net(), {"a": tuned(1)}, skip=()), batch(6, 5)[0]
    assert network.coefficients.shape == (1, 9)
    with torch.no_grad():
        network.coefficients.fill_(1)
    torch.testing.assert_close(network(x), tuned(1)(x))
    ours = ATLAS(network, CLASSES)
    torch.testing.assert_close(ours.predict(x).logits, by_batch(tuned(1))(x).detach())


def test_a_task_vector_is_what_training_changes() -> None:
    network, source = train_task_vectors(net(), tasks(), 2, 1e-2, decay=0.1, title=None), net()
    for task, vector in zip(network.tasks, network.vectors, strict=True):
        plain = by_batch(net())
        own = [plain.get_parameter(name) for name in NAMES]
        optimizer = torch.optim.AdamW(own, 1e-2, weight_decay=0.1)
        for x, y in tasks()[task] * 2:
            optimizer.zero_grad()
            F.cross_entropy(plain(x), y).backward()
            optimizer.step()
        expected = [(p.detach() - source.get_parameter(n)).flatten() for p, n in zip(own, NAMES, strict=True)]
        torch.testing.assert_close(vector, torch.cat(expected))
    for name, p in source.named_parameters():
        assert torch.equal(p, network.network.get_parameter(name)), name


def test_training_goes_on_where_it_was_left(tmp_path: Path) -> None:
    class Power(Exception):
        pass

    class Cut(list):
        def __iter__(self) -> object:
            self.shown = getattr(self, "shown", 0) + 1
            if self.shown == 2:
                raise Power
            return super().__iter__()

    whole = train_task_vectors(net(), tasks(), 2, 1e-2, title=None)
    cut = {"near": examples(900, 0.5), "far": Cut(examples(950, 1.0))}
    with pytest.raises(Power):
        train_task_vectors(net(), cut, 2, 1e-2, folder=tmp_path, title=None)
    assert sorted(p.name for p in tmp_path.glob("*.safetensors")) == ["far.safetensors", "near.safetensors"]
    again = train_task_vectors(net(), tasks(), 2, 1e-2, folder=tmp_path, title=None)
    assert torch.equal(again.vectors, whole.vectors)
    with pytest.raises(ValueError, match="belongs to another training"):
        train_task_vectors(net(), tasks(), 2, 1e-3, folder=tmp_path, title=None)


def test_prepare_makes_vectors_of_corrupted_images_and_own_answers() -> None:
    ours = ATLAS(
        net(),
        CLASSES,
        options=ATLASOptions(tasks=("contrast", "gaussian_noise"), severity=2, passes=2, rate=1e-2),
    )
    assert ours.source == "data"
    images = [x for x, _ in examples(drift=0)]
    ours.prepare(images)
    taught = {
        task: [
            (corrupt(x, task, 2, seeds=range(20 * i, 20 * i + 20)), by_batch(net())(x).argmax(1))
            for i, x in enumerate(images)
        ]
        for task in ("contrast", "gaussian_noise")
    }
    expected = train_task_vectors(net(), taught, 2, 1e-2, decay=0, title=None)
    torch.testing.assert_close(ours.vectors.vectors, expected.vectors)
    x, before = stream([12])[0], state_hash(ours)
    np.testing.assert_allclose(ours.predict(x).numpy(), by_batch(net())(x).detach().numpy(), atol=1e-12)
    ours(x)
    ours.reset()
    assert state_hash(ours) == before
    torch.testing.assert_close(ours.vectors.vectors, expected.vectors)


def test_vectors_that_come_along_are_not_in_the_state() -> None:
    brought = ATLAS(with_task_vectors(net(), {"a": tuned(1)}), CLASSES)
    assert "model.network.vectors" not in brought.state_dict()
    brought.prepare([x for x, _ in examples()])  # has nothing to learn
    assert len(brought.vectors.vectors) == 1
    assert "model.network.vectors" in ATLAS(net(), CLASSES).state_dict()


def test_loss_is_numpys() -> None:
    rng = np.random.default_rng(1)
    trusted, weak, strong = (2 * rng.normal(size=(n, 4)) for n in (5, 7, 7))
    label = rng.integers(4, size=5)

    def p(z: np.ndarray) -> np.ndarray:
        return np.exp(z) / np.exp(z).sum(1, keepdims=True)

    sure = p(weak).max(1) >= 0.7
    expected = -np.log(p(trusted)[np.arange(5), label]).mean()
    expected -= 0.3 * (sure * np.log(p(strong)[np.arange(7), weak.argmax(1)])).sum() / 7
    given = [torch.from_numpy(v) for v in (trusted, label, weak, strong)]
    loss, mask = fixmatch(*given, threshold=0.7, weight=0.3)
    assert 0 < sure.sum() < 7
    np.testing.assert_array_equal(mask.numpy(), sure)
    np.testing.assert_allclose(loss.item(), expected)


def test_the_memory_holds_the_surest_of_each_class_once() -> None:
    rng, memory = np.random.default_rng(2), TrustedMemory(3, 4)
    logits, images = 3 * rng.normal(size=(60, 3)), rng.random((60, 1, 2, 2))
    p = (np.exp(logits) / np.exp(logits).sum(1, keepdims=True)).max(1)
    taken, met = [], np.arange(0)
    for i in [0, 20, 40, 20]:  # the second batch comes twice
        rows = slice(i, i + 20)
        taken.append(memory.update(torch.from_numpy(images[rows]), torch.from_numpy(logits[rows])))
        met = np.arange(max(i + 20, len(met)))
        for c in range(3):
            mine = met[logits[met].argmax(1) == c]
            best = mine[np.argsort(-p[mine])][:4]
            places = np.flatnonzero(memory.label.numpy() == c)
            held = {tuple(image.flatten()) for image in memory.images[places].numpy()}
            assert held == {tuple(images[j].flatten()) for j in best}
            np.testing.assert_allclose(np.sort(memory.confidence[places]), np.sort(p[best]), rtol=1e-6)
    assert [bool(mask.any()) for mask in taken] == [True, True, True, False]
    drawn, label = memory.draw(200, generator(0, 0, ""))
    assert len(np.unique(drawn.flatten(1).numpy(), axis=0)) == 12
    np.testing.assert_array_equal(np.bincount(label), [(label == c).sum() for c in range(3)])
    with pytest.raises(ValueError, match="answers with 2 classes, expected 3"):
        memory.update(torch.rand(1, 1, 2, 2), torch.zeros(1, 2))


def test_a_second_prediction_from_the_end_of_the_stream() -> None:
    """The offline form: the stream again and again, then predict. It lowers the loss it is trained on."""
    data = stream([24] * 4, skew=False)
    labels = [batch(24, 100 + i)[1] for i in range(4)]
    network = train_task_vectors(net(), tasks(), 3, 1e-2, decay=0, title=None)
    ours = ATLAS(network, CLASSES, adam(0.05), weak=identity, strong=identity)

    def wrong() -> float:
        return sum(
            F.cross_entropy(ours.predict(x).logits, y).item() for x, y in zip(data, labels, strict=True)
        )

    before = wrong()
    for x in data * 5:
        ours(x)
    assert wrong() < before


def test_says_what_it_expects() -> None:
    with pytest.raises(ValueError, match="trusted counts the images of each class and is at least 1, got 0"):
        ATLAS(net(), CLASSES, trusted=0)
    with pytest.raises(RuntimeError, match="or give it the network of train_task_vectors"):
        ATLAS(net(), CLASSES)(stream([4])[0])
    with pytest.raises(ValueError, match=r"leaves this model no parameters.*pass skip=\(\)"):
        ATLAS(nn.Sequential(nn.Flatten(), nn.Linear(3, 2)), 2)
    with pytest.raises(ValueError, match="at least one fine-tuned network"):
        with_task_vectors(net(), {})
    with pytest.raises(ValueError, match="at least one task"):
        train_task_vectors(net(), {})
    other = copy.deepcopy(net())
    other[3] = nn.Conv2d(6, 7, 3)
    with pytest.raises(ValueError, match="task 'fog'.*1 are missing or of another shape, first 3.weight"):
        with_task_vectors(net(), {"fog": other})
    with pytest.raises(TypeError, match="give the images alone"):
        ATLAS(net(), CLASSES).prepare(examples())
    assert isinstance(ATLAS(net(), CLASSES).vectors, TaskVectors)
