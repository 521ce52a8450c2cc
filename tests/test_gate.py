"""What is let through to a network, in calls and in ``prepare``."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from testtime.adapter import state_hash
from testtime.errors import AdapterWarning
from testtime.gate import admit, typical_range
from testtime.methods import EATA, PAFKIP, RMT, ROID, STAMP, ActMAD, BNAdapt, CoTTA, DeYO, RoTTA, Source, Tent
from testtime.methods.rmt import RMTOptions
from testtime.models import load_model
from testtime.wrap import Episodic


def network(channels: int = 3, classes: int = 4) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(8, classes),
        ).eval()  # fmt: skip


def images(n: int = 8, seed: int = 0, side: int = 6) -> Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(seed))


REFUSED = {
    "list": ([1.0], TypeError, "got list$"),
    "images and labels": ([images(), torch.arange(8)], TypeError, r"got list of 2 tensors; .*alone: x\[0\]"),
    "uint8": ((images() * 255).byte(), TypeError, "uint8: x / 255"),
    "float8": (images().to(torch.float8_e4m3fn), TypeError, "floating-point images"),
    "complex": (images().to(torch.complex64), TypeError, "floating-point images"),
    "sparse": (images().to_sparse(), TypeError, "dense"),
    "nested": (torch.nested.nested_tensor([images()[0]]), TypeError, "dense"),
    "no batch dimension": (torch.rand(5), ValueError, r"x\[None\]"),
    "one image": (images()[0], ValueError, r"x\[None\]"),
    "float64": (images().double(), ValueError, r"x.to\(torch.float32\)"),
    "float16": (images().half(), ValueError, r"x.to\(torch.float32\)"),
    "one channel": (images()[:, :1], ValueError, "3 channels"),
    "four channels": (images()[:, [0, 1, 2, 0]], ValueError, "3 channels"),
    "channels last by shape": (images().permute(0, 2, 3, 1), ValueError, "3 channels"),
    "five dimensions": (images()[None], ValueError, r"Expected a batch \(N, 3, H, W\)"),
    "no pixels": (images()[:, :, :0, :0], ValueError, "samples with values"),
    "meta": (images().to("meta"), ValueError, "meta"),
    "empty of one channel": (images()[:0, :1], ValueError, "3 channels"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("call", ["forward", "predict"])
def test_what_is_no_batch_of_images_is_refused_with_what_to_do(name: str, call: str) -> None:
    x, kind, message = REFUSED[name]
    adapter = Tent(network())
    adapter(images())
    before = state_hash(adapter)
    with pytest.raises(kind, match=message):
        getattr(adapter, call)(x)
    assert state_hash(adapter) == before
    assert adapter(images()).valid.all()


def test_an_error_of_the_method_itself_is_not_the_models() -> None:
    class Breaks(Source):  # type: ignore[misc]
        def step(self, x: Tensor) -> Tensor:
            raise RuntimeError("a bug of the method")

    with pytest.raises(RuntimeError, match="a bug of the method"):
        Breaks(network())(images())


@pytest.mark.parametrize("value", [1e4, -300.0, 1e20, 3e38])
@pytest.mark.parametrize("make", [Tent, BNAdapt, lambda m: RoTTA(m, 4, capacity=8, frequency=8), Source])
def test_one_pixel_far_out_of_range_costs_its_image_alone(make: Any, value: float) -> None:
    one, other = make(network()), make(network())
    for i in range(3):
        x = images(seed=i)
        bad = torch.cat([x, x[:1]])
        bad[-1, 1, 2, 2] = value
        y, z = one(bad), other(x)
        assert y.valid.tolist() == [True] * 8 + [False]
        assert y[:-1].equal(z.logits)
        assert y[-1].isnan().all()
    assert state_hash(one) == state_hash(other)


def test_a_range_is_learned_from_the_first_images_or_declared() -> None:
    first = images()
    first[0] *= 255  # one of eight
    adapter = Tent(network())
    assert adapter(first).valid.tolist() == [False] + [True] * 7
    assert adapter.input_range == (0.0, 1.0)
    normalised = Tent(network())
    with pytest.warns(AdapterWarning, match=r"normalise inside the model .* input_range=\(lowest, highest\)"):
        normalised(8 * images() - 4)
    assert normalised.input_range is not None
    low, high = normalised.input_range
    assert -13 < low < -11
    assert 11 < high < 13
    declared = Tent(network(), input_range=(0, 255))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert declared(255 * images()).valid.all()
    x = images()
    x[0, 0, 0, 0] = 1e4
    assert declared(x).valid.tolist() == [False] + [True] * 7
    assert Tent(load_model("digits-cnn")).input_range == (0.0, 1.0)
    assert Episodic(Tent(load_model("digits-cnn"))).input_range == (0.0, 1.0)


def test_prediction_learns_no_range() -> None:
    adapter = Tent(network())
    adapter.predict(images())
    assert adapter.input_range is None


def test_images_of_0_to_255_are_refused_where_the_range_is_known() -> None:
    adapter = Tent(load_model("digits-cnn"))
    with pytest.raises(
        ValueError, match=r"values from .* expected \[0, 1\]; convert them \(0 to 255: x / 255\)"
    ):
        adapter(255 * torch.rand(8, 3, 32, 32))
    assert adapter(torch.rand(8, 3, 32, 32)).valid.all()
    with pytest.warns(AdapterWarning, match="answered no image"):
        y = adapter(255 * torch.rand(8, 3, 32, 32))
    assert not y.valid.any()


def test_tables_have_no_range() -> None:
    net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)).eval()
    adapter = Tent(net)
    adapter(torch.rand(8, 3))
    assert adapter(1e6 * torch.rand(8, 3)).valid.all()
    assert typical_range(torch.rand(8, 3)) is None
    assert admit(torch.tensor([[1e6, 0.0], [torch.inf, 0.0]]), None).tolist() == [True, False]


def test_batches_without_any_answer_are_reported_once() -> None:
    adapter = Tent(network())
    with pytest.warns(AdapterWarning, match="every image holds NaN or infinity"):
        adapter(torch.full_like(images(), torch.nan))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapter(torch.full_like(images(), torch.nan))


def test_a_method_that_never_updates_warns_once() -> None:
    adapter = EATA(network(), 4, fisher_alpha=0, margin=1e-6)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for i in range(120):
            adapter(images(4, i))
    assert len(caught) == 1
    assert "EATA has updated nothing in 50 batches (its filters selected no sample)" in str(caught[0].message)


# prepare ------------------------------------------------------------------------------------------------------------------

UNFIT = {
    "labelled loader": (
        lambda: DataLoader(TensorDataset(images(), torch.zeros(8)), 4), TypeError, "x for x, _ in loader|tensor of integers",
    ),
    "uint8": (lambda: [(images() * 255).byte()], TypeError, "uint8: x / 255"),
    "one batch": (lambda: images(), TypeError, "iterable of source batches"),
    "a path": (lambda: "images/", TypeError, "iterable of source batches"),
    "nothing": (lambda: [], ValueError, "got none"),
    "an empty generator": (lambda: iter(()), ValueError, "got none"),
    "NaN alone": (lambda: [torch.full_like(images(), torch.nan)], ValueError, "finite source images"),
    "images": (lambda: list(images()), ValueError, r"x\[None\]|add the batch"),
    "one channel": (lambda: [images()[:, :1]], ValueError, "3 channels"),
    "0 to 255 after 0 to 1": (lambda: [255 * images()], ValueError, "finite source images"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNFIT)
@pytest.mark.parametrize(
    "make", [lambda m: EATA(m, 4), ActMAD, lambda m: RMT(m, options=RMTOptions(replay=16))]
)
def test_prepare_refuses_what_a_call_refuses_and_keeps_the_state(name: str, make: Any) -> None:
    batches, kind, message = UNFIT[name]
    adapter = make(network())
    adapter.prepare([images(seed=5)])
    before = state_hash(adapter)
    with pytest.raises(kind, match=message):
        adapter.prepare(batches())
    assert state_hash(adapter) == before
    assert adapter(images()).valid.all()


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (lambda x, y: (x, y, y), r"or pairs \(images, labels\) of tensors, got tuple of 3"),
        (lambda x, y: {"image": x, "label": y}, r"takes pairs \(inputs, labels\) of tensors"),
        (lambda x, y: (x, y.numpy()), "one label for each of 8 images, .* got ndarray"),
        (lambda x, y: (x, y[:, None]), r"one label for each of 8 images, .* got shape \(8, 1\)"),
    ],
)
def test_prepare_with_labels_says_what_it_takes(batch: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        RMT(network(), replay=16).prepare([batch(images(), torch.zeros(8, dtype=torch.int64))])


def test_prepare_leaves_out_bad_images() -> None:
    def dirty() -> Iterator[Tensor]:
        x = images(10, 5)
        x[3, 0, 0, 0], x[7, 2, 1, 1] = torch.nan, 1e5
        yield x
        yield torch.full_like(x, torch.inf)

    one, other = ActMAD(network()), ActMAD(network())
    one.prepare(dirty())
    other.prepare([images(10, 5)[[0, 1, 2, 4, 5, 6, 8, 9]]])
    assert state_hash(one) == state_hash(other)


# state --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spoil", ["shape", "nan", "kind", "type"])
def test_a_refused_state_changes_nothing(spoil: str) -> None:
    used, fresh = PAFKIP(network(), 4), PAFKIP(network(), 4)
    used(images())
    state: dict[str, Any] = used.state_dict()
    name = sorted(k for k in state if k.startswith("optimizer"))[-1]
    state[name] = {
        "shape": torch.zeros(3, 3, 3),
        "nan": torch.full_like(state[name], torch.nan),
        "kind": torch.zeros_like(state[name], dtype=torch.int64),
        "type": 3,
    }[spoil]
    before = state_hash(fresh)
    with pytest.raises(ValueError, match=name):
        fresh.load_state_dict(state)
    assert state_hash(fresh) == before


def test_a_state_is_converted_to_the_adapters_type() -> None:
    used = RoTTA(network(), 4, capacity=8, frequency=8)
    for i in range(3):
        used(images(seed=i))
    double = RoTTA(network().double(), 4, capacity=8, frequency=8)
    double.load_state_dict(used.state_dict())
    kinds = {v.dtype for v in double.state_dict().values() if v.is_floating_point()}
    assert kinds == {
        v.dtype for v in RoTTA(network().double(), 4).state_dict().values() if v.is_floating_point()
    }
    torch.testing.assert_close(double.predict(images().double()).float(), used.predict(images()).logits)


def test_predictions_beside_a_thread_that_learns_change_nothing() -> None:
    stream = [images(8, i) for i in range(12)]

    def make() -> RoTTA:
        return RoTTA(network(), 4, capacity=8, frequency=8)

    alone, watched, errors, stop = make(), make(), [], threading.Event()
    for x in stream:
        alone(x)

    def predict() -> None:
        while not stop.is_set():
            try:
                watched.predict(stream[0])
            except Exception as error:  # noqa: BLE001 - shown by the assertion
                errors.append(error)

    thread = threading.Thread(target=predict)
    thread.start()
    for x in stream:
        watched(x)
    stop.set()
    thread.join()
    assert not errors
    assert state_hash(watched) == state_hash(alone)


def test_an_adapter_is_not_wrapped_for_data_parallel_training(tmp_path: Any) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        with pytest.raises(TypeError, match="one adapter in one process"):
            nn.parallel.DistributedDataParallel(Tent(network()))
    finally:
        torch.distributed.destroy_process_group()


# methods that need images ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make", [CoTTA, lambda m: PAFKIP(m, 4), lambda m: DeYO(m, 4), lambda m: STAMP(m, 4), lambda m: ROID(m, 4)]
)
def test_methods_that_change_images_say_so_on_tables_and_single_images(make: Any) -> None:
    table = nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.Linear(8, 4)).eval()
    with pytest.raises(
        ValueError, match=r"takes batches \(N, C, H, W\), got shape \(6, 5\).*such as Tent or EATA"
    ):
        make(table)(torch.rand(6, 5))
    with pytest.raises(ValueError, match=r"x\[None\]"):
        make(network())(images()[0])


def test_own_views_of_tables_are_taken() -> None:
    table = nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.Linear(8, 4)).eval()
    adapter = PAFKIP(table, 4, augment=lambda x, rng: x + 0.1 * torch.randn(x.shape, generator=rng))
    assert adapter(torch.rand(6, 5)).valid.all()


def test_an_input_with_a_graph_is_taken_as_its_values() -> None:
    x = images().requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y = Tent(network())(x)
    assert torch.equal(y, Tent(network())(images()))
    assert x.grad is None
