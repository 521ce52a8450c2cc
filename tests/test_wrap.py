from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from testtime.adapter import Adapter, state_hash
from testtime.laws import CLASSES, WORLDS
from testtime.methods import EATA, PAFKIP, Source, Tent
from testtime.methods.paf_kip import PAFKIPOptions
from testtime.parts import sgd
from testtime.parts.prior import reweighted, smoothed_prior
from testtime.wrap import (
    Episodic,
    PriorCorrected,
    Repeat,
    ResetEvery,
    TimeConstrained,
    Window,
    Wrapper,
)

WORLD = WORLDS["batchnorm"]


def tent() -> Tent:
    return Tent(WORLD.network(), sgd(0.1, momentum=0.9))


def test_episodic_resets_before_every_batch() -> None:
    stream = WORLD.stream(3)
    adapter = Episodic(tent())
    for x in stream:
        assert adapter(x).equal(tent()(x))
    only_last = tent()
    only_last(stream[-1])
    assert state_hash(adapter.adapter) == state_hash(only_last)


@pytest.mark.parametrize("every", [1, 2, 5])
def test_reset_every_is_a_fresh_adapter_on_each_stretch(every: int) -> None:
    stream, adapter = WORLD.stream(6), ResetEvery(tent(), every)
    expected: list[Tensor] = []
    for first in range(0, 6, every):
        fresh = tent()
        expected += [fresh(x) for x in stream[first : first + every]]
    for x, y in zip(stream, expected, strict=True):
        assert adapter(x).equal(y)


def test_reset_every_continues_its_count_after_a_restore() -> None:
    stream, adapter, other = WORLD.stream(6), ResetEvery(tent(), 4), ResetEvery(tent(), 4)
    for x in stream[:3]:
        adapter(x)
    other.load_state_dict(adapter.state_dict())
    for x in stream[3:]:
        assert other(x).equal(adapter(x))


def test_repeat_learns_a_batch_several_times_and_predicts_after() -> None:
    x, other = WORLD.stream(2)
    repeated, alone = Repeat(tent(), 3), tent()
    y = repeated(x)
    for _ in range(3):
        alone(x)
    assert y.updated
    assert y.equal(alone.predict(x))
    assert state_hash(repeated.adapter) == state_hash(alone)
    episodic = Episodic(Repeat(tent(), 3))
    episodic(other)
    assert episodic(x).equal(y)


def test_window_predicts_all_its_images_and_learns_after_enough_new_ones() -> None:
    images = torch.cat(WORLD.stream(1, 10))
    adapter, bare = Window(tent(), size=4), tent()
    for i in range(10):
        company = images[max(0, i - 3) : i + 1]
        learns = (i + 1) % 4 == 0
        expected = bare(company) if learns else bare.predict(company)
        y = adapter(images[i : i + 1])
        assert y.equal(expected[-1:])
        assert y.updated is learns
        assert adapter.window.equal(company)
        assert adapter.arrived.item() == (i + 1) % 4


def test_window_with_a_period_of_its_own() -> None:
    images = torch.cat(WORLD.stream(1, 9))
    adapter = Window(tent(), size=6, every=3)
    updated = [adapter(x[None]).updated for x in images]
    assert updated == [False, False, True] * 3


def test_window_larger_batches_stay_whole() -> None:
    x = WORLD.stream(1, 10)[0]
    adapter, bare = Window(tent(), size=4), tent()
    assert adapter(x).equal(bare(x))
    assert adapter.window.equal(x[-4:])
    assert adapter(x[:2]).equal(bare.predict(torch.cat([x[-2:], x[:2]]))[-2:])


def test_window_predict_uses_all_its_images_too() -> None:
    x = WORLD.stream(1, 5)[0]
    adapter = Window(tent(), size=4)
    adapter(x[:3])
    assert adapter.predict(x[3:4]).equal(adapter.adapter.predict(x[:4])[-1:])
    assert adapter.window.equal(x[:3])


def test_window_owns_its_images_and_reset_empties_it() -> None:
    x = WORLD.stream(1, 4)[0]
    adapter = Window(tent(), size=4)
    birth = state_hash(adapter)
    given = x.clone()
    adapter(given)
    given.zero_()
    assert adapter.window.equal(x)
    adapter.reset()
    assert adapter.window.numel() == 0
    assert state_hash(adapter) == birth


def test_a_window_of_an_earlier_version_is_loaded() -> None:
    x = WORLD.stream(1, 5)[0]
    adapter, other = Window(tent(), size=4), Window(tent(), size=4)
    adapter(x[:3])
    state = {name: value for name, value in adapter.state_dict().items() if name != "layout"}
    other.load_state_dict(state)
    assert other.predict(x[3:]).equal(adapter.predict(x[3:]))


def test_window_refuses_an_image_that_does_not_fit() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    adapter = Window(Tent(net), size=4)
    adapter(torch.rand(2, 3, 8, 8))
    before = state_hash(adapter)
    with pytest.raises(ValueError, match=r"the window holds images of shape \(3, 8, 8\), got \(3, 6, 6\)"):
        adapter(torch.rand(1, 3, 6, 6))
    assert state_hash(adapter) == before
    adapter.reset()
    assert adapter(torch.rand(1, 3, 6, 6)).valid.all()


class Breaks(Adapter):
    """Learns from a batch, and raises in every step."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def step(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        raise RuntimeError("index 3 is out of bounds")


class BreaksAfter(Wrapper):
    """Lets the adapter inside learn, and raises."""

    def step(self, x: Tensor) -> Tensor:
        self.adapter(x)
        raise RuntimeError("no second look")


@pytest.mark.parametrize("wrap", [Episodic, lambda a: Repeat(a, 2), lambda a: Episodic(ResetEvery(a, 3))])
def test_an_error_of_the_method_inside_is_its_own_and_no_fault_of_the_model(wrap: Any) -> None:
    (x,) = WORLD.stream(1)
    adapter = wrap(Breaks(WORLD.network()))
    before = state_hash(adapter)
    with pytest.raises(RuntimeError, match="index 3 is out of bounds") as caught:
        adapter(x)
    assert caught.value.__notes__ == [f"raised in Breaks, on a batch of shape {tuple(x.shape)}"]
    assert state_hash(adapter) == before


def test_a_wrapper_that_raises_leaves_the_adapter_inside_as_it_was() -> None:
    (x,) = WORLD.stream(1)
    adapter = BreaksAfter(tent())
    before = state_hash(adapter)
    with pytest.raises(RuntimeError, match="no second look") as caught:
        adapter(x)
    assert caught.value.__notes__ == [f"raised in BreaksAfter, on a batch of shape {tuple(x.shape)}"]
    assert state_hash(adapter) == before


def test_a_batch_that_the_model_inside_does_not_take_is_still_the_models_error() -> None:
    with pytest.raises(ValueError, match="the model does not take a batch of shape") as caught:
        Episodic(tent())(torch.rand(4, 5, 8, 8))
    assert caught.value.__notes__ == ["raised in Tent, on a batch of shape (4, 5, 8, 8)"]


def test_facts_are_those_of_the_adapter_inside() -> None:
    paf = PAFKIP(WORLD.network(), classes=CLASSES, options=PAFKIPOptions(output="after"), seed=7)
    for wrapped in (Episodic(paf), ResetEvery(Episodic(paf), 3), Window(paf, 2)):
        assert wrapped.output == "after"
        assert wrapped.stochastic
        assert wrapped.cost == (4, 1)
        assert wrapped.source == "none"
        assert wrapped.seed == 7
    eata = EATA(WORLD.network(), classes=CLASSES)
    assert Episodic(eata).source == eata.source == "data"


def test_prepare_is_passed_on_to_the_adapter_inside_and_reset_keeps_it() -> None:
    stream, source = WORLD.stream(3), WORLD.source()
    wrapped, bare = ResetEvery(EATA(WORLD.network(), CLASSES), 2), EATA(WORLD.network(), CLASSES)
    wrapped.prepare(source)
    bare.prepare(source)
    assert [wrapped(x).equal(bare(x)) for x in stream[:2]] == [True, True]
    bare.reset()
    assert wrapped(stream[2]).equal(bare(stream[2]))


def test_a_state_loaded_first_does_not_become_the_initial_state_of_the_adapter_inside() -> None:
    used, fresh = Episodic(tent()), Episodic(tent())
    x = WORLD.stream(1)[0]
    used(x)
    fresh.load_state_dict(used.state_dict())
    fresh.reset()
    assert state_hash(fresh.adapter) == state_hash(tent())


def test_details_of_the_answer_are_passed_on() -> None:
    x = WORLD.stream(1, 6)[0]
    paf = PAFKIP(WORLD.network(), classes=CLASSES)
    adapter = Window(paf, size=4)
    adapter(x[:4])
    y = adapter(x[4:])
    assert y.shape == (2, CLASSES)
    assert y.score.shape == (2,)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ResetEvery(tent(), 0), "at least 1, got 0"),
        (lambda: Repeat(tent(), 0), "at least 1, got 0"),
        (lambda: Window(tent(), 0), "at least 1, got size=0"),
        (lambda: Window(tent(), 3, every=0), "every=0"),
    ],
)
def test_bad_numbers_are_refused(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]


def test_only_adapters_are_wrapped() -> None:
    with pytest.raises(TypeError, match="Episodic wraps an adapter, got Linear"):
        Episodic(nn.Linear(2, 2))  # type: ignore[arg-type]


def test_a_wrapper_of_ones_own() -> None:
    class Twice(Wrapper):
        def step(self, x: Tensor) -> Tensor:
            self.adapter(x)
            return self.adapter(x)

    x, bare = WORLD.stream(1)[0], tent()
    bare(x)
    assert Twice(tent())(x).equal(bare(x))
    assert isinstance(Twice(tent()), Adapter)


def by_hand(z: np.ndarray, of: str) -> np.ndarray:
    """The correction of ROID in numpy, over the rows that are there."""
    z = z.astype(np.float64)
    there = ~np.isnan(z).any(1)
    p = np.exp(z[there]) / np.exp(z[there]).sum(1, keepdims=True)
    prior = p.mean(0)
    smooth = max(1 / len(p), 1 / p.shape[1]) / prior.max()
    prior = (prior + smooth) / (1 + smooth * p.shape[1])
    np.testing.assert_allclose(prior.sum(), 1)
    return z * prior if of == "logits" else z + np.log(prior)


@pytest.mark.parametrize("of", ["probabilities", "logits"])
def test_the_prior_reweights_answers_and_nothing_else(of: str) -> None:
    corrected, alone = (PriorCorrected(tent(), of), tent())  # type: ignore[arg-type]
    for x in [*WORLD.stream(3), WORLD.stream(1, size=3)[0], WORLD.stream(1, size=1)[0]]:
        x[3::5, 0, 0, 0] = torch.nan
        looked, expected = corrected.predict(x), alone.predict(x)
        np.testing.assert_allclose(looked.numpy(), by_hand(expected.numpy(), of), rtol=1e-5, atol=1e-6)
        y, z = corrected(x), alone(x)
        np.testing.assert_allclose(y.numpy(), by_hand(z.numpy(), of), rtol=1e-5, atol=1e-6)
        assert y.updated == z.updated
        assert y.valid.equal(z.valid)
        assert y.score.nan_to_num().equal(z.score.nan_to_num())
    assert state_hash(corrected.adapter) == state_hash(alone)


def test_the_prior_is_that_of_the_good_rows() -> None:
    z = torch.randn(6, 4)
    good = torch.tensor([True, False, True, True, False, True])
    bad = z.clone()
    bad[~good] = torch.nan
    expected = z[good] + smoothed_prior(z[good].softmax(1)).log()
    torch.testing.assert_close(reweighted(bad, good)[good], expected)
    assert reweighted(bad, good)[~good].isnan().all()
    assert reweighted(z, good & False).equal(z)  # there is none


def test_the_prior_of_a_small_batch_is_flat() -> None:
    p = torch.tensor([[0.7, 0.2, 0.1]])
    one, many = smoothed_prior(p), smoothed_prior(p.expand(1000, 3))
    assert one.tolist() == pytest.approx([(c + 1 / 0.7) / (1 + 3 / 0.7) for c in (0.7, 0.2, 0.1)])
    assert many.tolist() == pytest.approx([(c + 1 / 2.1) / (1 + 3 / 2.1) for c in (0.7, 0.2, 0.1)])
    uniform = torch.full((4, 3), 1 / 3)
    torch.testing.assert_close(smoothed_prior(uniform), torch.full((3,), 1 / 3))


def test_the_prior_is_of_logits() -> None:
    with pytest.raises(ValueError, match="of is one of 'probabilities', 'logits', got 'odds'"):
        PriorCorrected(tent(), "odds")  # type: ignore[arg-type]
    dense = WORLDS["dense"]
    with pytest.raises(TypeError, match=r"logits \(N, C\)"):
        PriorCorrected(Tent(dense.network()))(dense.stream(1)[0])


@pytest.mark.parametrize(
    ("speed", "cost", "delay"),
    [(1.0, None, 2), (0.5, None, 1), (0.3, None, 0), (1.0, 1.0, 0), (1.0, 3.5, 3), (0.28, 25.0, 6)],
)
def test_a_slow_adapter_misses_the_batches_that_come_meanwhile(
    speed: float, cost: float | None, delay: int
) -> None:
    network, stream = WORLD.network(), WORLD.stream(7)
    adapter = TimeConstrained(Tent(network, sgd(0.1)), Source(network), speed, cost)
    assert adapter.delay == delay
    learner, source = Tent(network, sgd(0.1)), Source(network)
    for t, x in enumerate(stream):
        y = adapter(x)
        learns = t % (delay + 1) == 0
        assert y.updated == learns
        torch.testing.assert_close(y.logits, (learner(x) if learns else source(x)).logits)
    assert state_hash(adapter.adapter) == state_hash(learner)


def test_without_another_model_the_adapter_answers_as_it_is() -> None:
    network, stream = WORLD.network(), WORLD.stream(3)
    adapter, learner = TimeConstrained(Tent(network, sgd(0.1))), Tent(network, sgd(0.1))
    learner(stream[0])
    adapter(stream[0])
    torch.testing.assert_close(adapter(stream[1]).logits, learner.predict(stream[1]).logits)
    fresh = TimeConstrained(Tent(network, sgd(0.1)))
    fresh.load_state_dict(adapter.state_dict())  # one of two is missed already
    assert [fresh(x).updated for x in (stream[2], stream[2])] == [False, True]


def test_time_is_declared_with_sense() -> None:
    network = WORLD.network()
    with pytest.raises(TypeError, match=r"such as Source\(model\), got"):
        TimeConstrained(Tent(network), network)  # type: ignore[arg-type]
    for speed, cost in ((0.0, None), (1.0, -1.0), (float("inf"), None), (1.0, float("inf"))):
        with pytest.raises(ValueError, match="speed and cost are positive and finite"):
            TimeConstrained(Tent(network), speed=speed, cost=cost)
