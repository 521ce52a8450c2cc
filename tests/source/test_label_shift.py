"""The head that follows a label distribution: its equations in numpy, its training, and the wrapper that estimates."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from testtime import save
from testtime.data.imageset import ImageSet, from_arrays
from testtime.errors import WeightsError
from testtime.laws import WORLDS
from testtime.methods import RoTTA, Source, Tent
from testtime.saving import load
from testtime.source.label_shift import (
    ShiftedHead,
    ShiftRecipe,
    adjusted_loss,
    drawn_distribution,
    frequencies,
    load_label_shift,
    shifted_heads,
    train_label_shift,
    with_label_shift,
)
from testtime.wrap import LabelShift

PRIOR = np.array([0.7, 0.2, 0.1])
RECIPE = ShiftRecipe(iterations=300, batch=64, lr=5e-3, every=100)


def lively(of: str = "degree") -> ShiftedHead:
    rng = torch.Generator().manual_seed(0)
    linear = nn.Linear(4, 3).double().requires_grad_(False)
    for p in linear.parameters():
        p.copy_(torch.randn(p.shape, generator=rng))
    head = ShiftedHead(linear, torch.from_numpy(PRIOR), 6, of)  # type: ignore[arg-type]
    head.writing.data.copy_(torch.randn(head.writing.shape, generator=rng))
    return head


def log(p: np.ndarray) -> np.ndarray:
    return np.log(p) - np.log(p).mean()


@pytest.mark.parametrize("of", ["degree", "distribution"])
def test_the_head_in_numpy(of: str) -> None:
    head, pi = lively(of), np.array([0.2, 0.3, 0.5])
    code = log(pi) if of == "distribution" else np.array([log(pi) @ log(PRIOR) / (log(PRIOR) @ log(PRIOR))])
    assert of == "distribution" or -1 < code[0] < 0
    read, write = head.reading.numpy(), head.writing.numpy()
    out = write @ np.maximum(read[:, :-1] @ code + read[:, -1], 0)
    scale, shift, weight, bias = out[:4], out[4:8], out[8:20].reshape(3, 4), out[20:]
    z = torch.randn(5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    features = z.numpy() * (1 + scale) + shift
    expected = features @ (head.weight.numpy() + weight).T + head.bias.numpy() + bias
    np.testing.assert_allclose(head.under(z, torch.from_numpy(pi)).numpy(), expected, rtol=1e-10)
    head.distribution = torch.from_numpy(pi)
    np.testing.assert_allclose(head(z).numpy(), expected, rtol=1e-10)


def test_the_degree_of_imbalance() -> None:
    """1 for the source, 0 for equal classes, -1 for the source turned around, and no more than these."""
    head = lively()
    for e, expected in [(1.0, 1.0), (0.0, 0.0), (-1.0, -1.0), (0.3, 0.3), (2.0, 1.0), (-3.0, -1.0)]:
        pi = PRIOR**e / (PRIOR**e).sum()
        np.testing.assert_allclose(head.code(torch.from_numpy(pi)).numpy(), [expected], atol=1e-9)
    one_class = head.code(torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64))
    assert one_class.isfinite().all()


def test_the_loss_in_numpy_and_whom_it_makes_right() -> None:
    rng = np.random.default_rng(0)
    z, y, pi = rng.normal(size=(6, 3)), rng.integers(0, 3, 6), np.array([0.2, 0.3, 0.5])
    adjusted = z + 0.7 * (np.log(PRIOR) - np.log(pi))
    expected = np.mean([np.log(np.exp(a).sum()) - a[c] for a, c in zip(adjusted, y, strict=True)])
    got = adjusted_loss(*(torch.from_numpy(a) for a in (z, y, PRIOR, pi)), tau=0.7)
    np.testing.assert_allclose(got.item(), expected, rtol=1e-10)
    # With no features at all the best logits under pi are log pi, whatever the prior the labels were drawn from.
    free = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    label = torch.from_numpy(np.repeat(np.arange(3), (PRIOR * 1000).round().astype(int)))
    optimizer = torch.optim.LBFGS([free], max_iter=100, tolerance_grad=1e-10)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = adjusted_loss(free.expand(len(label), 3), label, torch.from_numpy(PRIOR), torch.from_numpy(pi))
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    np.testing.assert_allclose(free.detach().softmax(0).numpy(), pi, atol=1e-4)


def test_drawn_distributions_lie_between_the_source_and_its_opposite() -> None:
    head, codes = lively(), []
    for step in range(200):
        pi = drawn_distribution(head, torch.Generator().manual_seed(step))
        assert pi.sum().item() == pytest.approx(1)
        codes.append(head.code(pi).item())
    assert -1 <= min(codes) < -0.9
    assert 0.9 < max(codes) <= 1
    assert abs(np.mean(codes)) < 0.15
    draws = [drawn_distribution(lively("distribution"), torch.Generator().manual_seed(s)) for s in range(40)]
    assert len({int(d.argmax()) for d in draws}) == 3


def overlapping(counts: tuple[int, ...], seed: int) -> ImageSet:
    """Images of one grey each, three classes that overlap."""
    rng = np.random.default_rng(seed)
    label = np.repeat(np.arange(3), counts)
    grey = 90 + 35 * label + 28 * rng.normal(size=len(label))
    grey = np.broadcast_to(grey[:, None, None, None], (len(label), 3, 2, 2))
    return from_arrays(f"grey-{seed}", grey.clip(0, 255).astype(np.uint8), label, classes=("a", "b", "c"))


def source_model(data: ImageSet) -> nn.Module:
    """A classifier that knows how rare its classes are."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 3))
    x, y = data.batch(range(len(data))), data.targets(range(len(data)))
    optimizer = torch.optim.Adam(net.parameters(), 2e-2)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return net.eval()


@pytest.fixture(scope="module")
def tailed() -> tuple[ImageSet, nn.Module]:
    data = overlapping((700, 200, 100), 0)
    return data, source_model(data)


def shifted(tailed: tuple[ImageSet, nn.Module], **arguments: int) -> nn.Module:
    data, net = tailed
    return with_label_shift(net, frequencies(data.targets(range(len(data))), 3), hidden=16, **arguments)


def test_a_trained_head_serves_the_distribution_it_is_given(
    tailed: tuple[ImageSet, nn.Module], tmp_path: Path
) -> None:
    data, net = tailed
    before = {k: v.clone() for k, v in net.state_dict().items()}
    model = train_label_shift(shifted(tailed), data, RECIPE, tmp_path)
    log = [json.loads(line) for line in (tmp_path / "losses.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [0, 100, 200, 299]
    assert all(v.equal(before[k]) for k, v in net.state_dict().items())
    (head,) = shifted_heads(model)
    assert head.distribution.equal(head.prior)
    assert not any(p.requires_grad for p in model.parameters())

    def look(counts: tuple[int, ...], degree: float) -> tuple[float, float, float]:
        """Accuracy, and how far the trained and the source's predictions are from those that Bayes' rule asks for."""
        test = overlapping(counts, 1)
        x, y = test.batch(range(len(test))), test.targets(range(len(test)))
        pi = (head.prior.log() * degree).softmax(0)
        head.distribution = pi
        with torch.no_grad():
            z, source = model(x), net(x)
        asked = (source - head.prior.log() + pi.log()).softmax(1)
        gaps = [(p.softmax(1) - asked).abs().mean().item() for p in (z, source)]
        return float((z.argmax(1) == y).double().mean()), *gaps  # type: ignore[return-value]

    for counts, degree in [((100, 200, 700), -1), ((700, 200, 100), 1)]:
        assert look(counts, degree)[0] > look(counts, -degree)[0] + 0.1
        for other in (-1, 0):
            _, trained, untrained = look(counts, other)
            assert trained < untrained / 2


def test_training_continues_where_it_was_left(
    tailed: tuple[ImageSet, nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, _ = tailed
    whole, broken = shifted(tailed), shifted(tailed)
    train_label_shift(whole, data, RECIPE, tmp_path / "whole")

    class Cut(Exception):
        pass

    calls = iter(range(201))

    def cut(*_: object) -> None:
        if next(calls, None) is None:
            raise Cut

    handle = broken.register_forward_pre_hook(cut)
    with pytest.raises(Cut):
        train_label_shift(broken, data, RECIPE, tmp_path / "cut")
    handle.remove()
    assert {p.name for p in (tmp_path / "cut").iterdir()} == {"checkpoint.safetensors", "losses.jsonl"}
    assert not any(p.requires_grad for p in broken.parameters())
    with pytest.raises(
        ValueError, match="belongs to another training: recipe.iterations is 300 there and 7 here"
    ):
        train_label_shift(shifted(tailed), data, ShiftRecipe(iterations=7), tmp_path / "cut")
    again = train_label_shift(shifted(tailed), data, RECIPE, tmp_path / "cut")
    assert {p.name for p in (tmp_path / "cut").iterdir()} == {"label_shift.safetensors", "losses.jsonl"}
    (a,), (b,) = shifted_heads(whole), shifted_heads(again)
    assert a.writing.equal(b.writing)
    assert a.reading.equal(b.reading)
    loaded = load_label_shift(shifted(tailed), tmp_path / "whole")
    assert shifted_heads(loaded)[0].writing.equal(a.writing)
    monkeypatch.setattr(ImageSet, "batch", None)  # what is trained is not trained again
    done = train_label_shift(shifted(tailed), data, RECIPE, tmp_path / "whole")
    assert shifted_heads(done)[0].writing.equal(a.writing)
    with pytest.raises(WeightsError, match="of another model"):
        load_label_shift(
            with_label_shift(tailed[1], torch.tensor([0.5, 0.3, 0.2]), hidden=3), tmp_path / "whole"
        )
    with pytest.raises(FileNotFoundError, match="in which train_label_shift has ended"):
        load_label_shift(shifted(tailed), tmp_path)


def lively_network() -> nn.Module:
    model = with_label_shift(WORLDS["batchnorm"].network(), torch.tensor([0.4, 0.3, 0.1, 0.1, 0.1]), 8)
    (head,) = shifted_heads(model)
    head.writing.data.copy_(0.2 * torch.randn(head.writing.shape, generator=torch.Generator().manual_seed(3)))
    return model


def test_the_wrapper_estimates_from_the_answers_and_tells_every_head() -> None:
    adapter = LabelShift(RoTTA(lively_network(), 5, capacity=16, frequency=16), decay=0.7)
    pi = np.array([0.4, 0.3, 0.1, 0.1, 0.1])
    assert len(shifted_heads(adapter)) == 2  # the student's and the teacher's
    for x in WORLDS["batchnorm"].stream(3):
        x[5] = torch.nan
        looked, y = adapter.predict(x), adapter(x)
        assert looked.logits.nan_to_num().equal(y.logits.nan_to_num())
        z = np.delete(y.logits.numpy().astype(np.float64), 5, 0)
        pi = 0.7 * pi + 0.3 * (np.exp(z) / np.exp(z).sum(1, keepdims=True)).mean(0)
        for head in shifted_heads(adapter):
            np.testing.assert_allclose(head.distribution.numpy(), pi, rtol=1e-5)
    adapter.reset()
    np.testing.assert_allclose(adapter.distribution.numpy(), [0.4, 0.3, 0.1, 0.1, 0.1], rtol=1e-6)


def test_a_stream_of_one_class_moves_the_answers() -> None:
    x = WORLDS["batchnorm"].stream(1)[0]
    moving, still = LabelShift(Source(lively_network()), 0.5), Source(lively_network())
    assert moving(x).equal(still(x))
    assert not moving(x).equal(still(x))
    frozen = LabelShift(Source(lively_network()), decay=1.0)
    frozen(x)
    assert frozen(x).equal(still(x))


def test_it_is_saved_with_what_it_wraps(tmp_path: Path) -> None:
    x, other = WORLDS["batchnorm"].stream(2)
    adapter = LabelShift(Tent(lively_network()), 0.8)
    adapter(x)
    save(adapter, tmp_path)
    again = load(tmp_path, lively_network())
    assert again(other).equal(adapter(other))


def test_says_what_it_expects(tailed: tuple[ImageSet, nn.Module], tmp_path: Path) -> None:
    data, net = tailed
    with pytest.raises(ValueError, match=r"each of the head's 3 classes .* got \(2,\)"):
        with_label_shift(net, torch.tensor([0.5, 0.5]))
    with pytest.raises(ValueError, match="equally frequent"):
        with_label_shift(net, torch.full((3,), 1 / 3))
    assert len(shifted_heads(with_label_shift(net, torch.full((3,), 1 / 3), of="distribution"))) == 1
    with pytest.raises(ValueError, match="'degree' or 'distribution', got 'both'"):
        with_label_shift(net, torch.tensor([0.5, 0.3, 0.2]), of="both")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no head that follows"):
        LabelShift(Source(net))
    with pytest.raises(ValueError, match="decay is the weight of the past"):
        LabelShift(Source(shifted(tailed)), 1.5)
    with pytest.raises(ValueError, match="one head that depends on a label distribution, got 0"):
        train_label_shift(net, data, RECIPE, tmp_path)
    with pytest.raises(ValueError, match="at least 1"):
        ShiftRecipe(iterations=0)
