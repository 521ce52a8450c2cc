"""A frozen adapter is a plain module that answers as predict does, and follows the adapter no more."""

from __future__ import annotations

import copy
import importlib.util
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from testtime import methods
from testtime.adapter import Adapter
from testtime.export import export_onnx
from testtime.forecasting import OutputBias
from testtime.freezing import FrozenModel
from testtime.laws import CLASSES
from testtime.laws.batches import fed
from testtime.laws.worlds import WORLDS
from testtime.methods import (
    ADCSD,
    CMF,
    FOA,
    LAME,
    NOTE,
    PAFKIP,
    PETAL,
    RMT,
    ROID,
    S4T,
    STAMP,
    T3A,
    TDA,
    VDP,
    ZERO,
    AdaNPC,
    BNAdapt,
    CoTTA,
    RoTTA,
    Source,
    Tent,
    ViDA,
)
from testtime.methods.rmt import RMTOptions
from testtime.methods.roid import ROIDOptions
from testtime.methods.vida import ViDAOptions
from testtime.norm import (
    NormPolicy,
    alpha_statistics,
    ema_statistics,
    robust_statistics,
    running_statistics,
    source_statistics,
)
from testtime.parts.taps import Tap
from testtime.wrap import Episodic, Guarded, PriorCorrected, Repeat, TimeConstrained, Window


def unmetered(model: nn.Module) -> nn.Module:
    """A zero-shot classifier whose image encoder is not counted, which an exporter would take for one size of a batch."""
    plain = copy.deepcopy(model)
    plain.pair.images = plain.pair.images.network
    return plain


FROZEN: dict[str, tuple[str, Callable[[nn.Module], Adapter]]] = {
    "source statistics": ("batchnorm", partial(Tent, norm=source_statistics)),
    "batch statistics": ("batchnorm", Tent),
    "moving average": ("batchnorm", partial(Tent, norm=ema_statistics)),
    "running statistics": ("batchnorm", partial(Tent, norm=running_statistics)),
    "robust statistics": ("batchnorm", partial(Tent, norm=robust_statistics)),
    "blended statistics": ("batchnorm", partial(Tent, norm=alpha_statistics)),
    "instance-aware statistics": ("batchnorm", partial(NOTE, classes=CLASSES, capacity=16, frequency=16)),
    "a teacher": ("batchnorm", partial(RoTTA, classes=CLASSES, capacity=16, frequency=16)),
    "prototypes": ("batchnorm", partial(T3A, supports=2)),
    "three models": ("batchnorm", partial(PAFKIP, classes=CLASSES)),
    "GroupNorm": ("groupnorm", Tent),
    "transformer": ("vit", Tent),
    "tasks": ("dense", Tent),
    "token ids": ("tokens", Tent),
    "dictionary": ("dictionary", BNAdapt),
    "wrapped": ("batchnorm", lambda model: Episodic(Repeat(Tent(model), 2))),
    "a prior of the batch": ("batchnorm", lambda model: PriorCorrected(Tent(model))),
    "ROID": ("batchnorm", partial(ROID, classes=CLASSES)),
    "ROID, factors of logits": (
        "groupnorm",
        partial(ROID, classes=CLASSES, options=ROIDOptions(prior="logits")),
    ),
    "ROID without a prior": ("batchnorm", partial(ROID, classes=CLASSES, options=ROIDOptions(prior="none"))),
    "CMF": ("batchnorm", partial(CMF, classes=CLASSES)),
    "VDP": ("batchnorm", partial(VDP, size=(3, 8, 8))),
    "RMT": ("batchnorm", RMT),
    "RMT, summed": ("groupnorm", partial(RMT, options=RMTOptions(ensemble="sum"))),
    "FOA": ("vit", partial(FOA, population=4)),
    "FOA without a shift": ("vit", partial(FOA, population=4, shift=0.0)),
    "a vote": ("batchnorm", partial(AdaNPC, neighbours=5, threshold=0.5)),
    "a vote of tokens": ("tokens", partial(AdaNPC, neighbours=5, threshold=0.5)),
    "shared answers": ("batchnorm", LAME),
    "shared answers by distance": ("tokens", partial(LAME, affinity="radial")),
    "shared answers by cosine": ("dictionary", partial(LAME, affinity="linear", weight=0.1)),
    "caches of the stream": ("image-text", TDA),
    "prototypes of class names": ("image-text", lambda model: T3A(unmetered(model))),
    "a forecast": ("sequence", OutputBias),
    "a forecast in two parts": ("sequence", ADCSD),
    "CoTTA, never with views": ("batchnorm", partial(CoTTA, threshold=0.0, views=2)),
    "PETAL, never with views": ("batchnorm", partial(PETAL, threshold=0.0, views=2)),
    "CoTTA of pixels": ("pixels", partial(CoTTA, threshold=1.0, scales=(0.5, 1.0, 1.5))),
    "CoTTA of pixels, sure": ("pixels", partial(CoTTA, threshold=0.01)),
    "ViDA of pixels": ("pixels", partial(ViDA, high_rank=4, options=ViDAOptions(scales=(0.5, 1.0)))),
    "ViDA as released": (
        "pixels",
        partial(ViDA, high_rank=4, options=ViDAOptions(scales=(1.0,), allotment="released", scale=0.5)),
    ),
}
IN_ANOTHER_ORDER = ("prototypes", "prototypes of class names", "a vote", "a vote of tokens")
"""Predictions that a matrix product of another form computes: equal but for rounding."""


class Opaque(nn.Module):
    """A network whose class does not tell that it returns logits for each pixel."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)


def adapted(name: str) -> tuple[Adapter, Any]:
    """An adapter after two batches, and the next one."""
    world, make = WORLDS[FROZEN[name][0]], FROZEN[name][1]
    network = world.network()
    adapter, (*past, x) = make(getattr(network, "network", network)), world.stream(3)
    if adapter.source != "none":
        adapter.prepare(world.source())
    for batch in past:
        adapter(fed(batch))
    return adapter, fed(x)


def tensors(y: Any) -> list[Tensor]:
    return [torch.as_tensor(t).as_subclass(Tensor) for t in (y.values() if isinstance(y, dict) else [y])]


@pytest.mark.parametrize("name", FROZEN)
def test_it_answers_as_predict_and_stays(name: str) -> None:
    adapter, x = adapted(name)
    expected = tensors(adapter.predict(x))
    frozen = adapter.freeze()
    for seed in (5, 6):
        adapter(fed(WORLDS[FROZEN[name][0]].stream(1, seed=seed)[0]))
    y = frozen(x)
    tolerance = 1e-5 if name in IN_ANOTHER_ORDER else 0
    for one, other in zip(tensors(y), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance)
        assert not one.requires_grad
        assert type(one) is Tensor
    changed = tensors(adapter.predict(x))
    assert (
        not all(a.equal(b) for a, b in zip(changed, expected, strict=True))
        or name == "wrapped"
        or not adapter._adapted
    )

    assert not frozen.train().training
    twin = pickle.loads(pickle.dumps(frozen))
    with torch.no_grad():
        for t in (*twin.parameters(), *twin.buffers()):
            t.zero_()
    twin.load_state_dict(frozen.state_dict())  # holds all that an answer depends on
    for one, other in zip(tensors(twin(x)), tensors(y), strict=True):
        assert one.equal(other)


@pytest.mark.parametrize("name", [name for name in FROZEN if name.startswith(("shared answers", "CoTTA of"))])
def test_a_graph_without_branches_answers_alike(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter, x = adapted(name)
    expected = adapter.predict(x).logits
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    torch.testing.assert_close(adapter.freeze()(x), expected, rtol=0, atol=0)


def test_a_segmenter_is_known_from_its_first_answer() -> None:
    net = WORLDS["pixels"].network().network
    adapter = CoTTA(Opaque(net), scales=(1.0,))
    x = WORLDS["pixels"].stream(1)[0]
    with pytest.raises(TypeError, match="CoTTA cannot be frozen"):
        adapter.freeze()
    assert adapter.predict(x).logits.equal(adapter.freeze()(x))


def test_what_an_adapter_put_into_the_network_is_gone() -> None:
    for name in ("source statistics", "running statistics", "robust statistics", "a teacher", "prototypes"):
        frozen = adapted(name)[0].freeze()
        assert not any(isinstance(m, NormPolicy | Tap | Adapter) for m in frozen.modules())
        assert sum(isinstance(m, nn.BatchNorm2d) for m in frozen.modules()) == 2
    adapter, x = adapted("moving average")
    frozen = adapter.freeze()
    before = {k: v.clone() for k, v in frozen.state_dict().items()}
    frozen(x)
    assert all(v.equal(before[k]) for k, v in frozen.state_dict().items())


def test_running_statistics_become_those_of_a_plain_layer() -> None:
    adapter, _ = adapted("running statistics")
    policies = [m for m in adapter.modules() if isinstance(m, NormPolicy)]
    plain = [m for m in adapter.freeze().modules() if isinstance(m, nn.BatchNorm2d)]
    for policy, layer in zip(policies, plain, strict=True):
        assert layer.running_mean is not None
        assert layer.running_mean.equal(policy.get_buffer("mean"))
        assert layer.running_mean.data_ptr() != policy.get_buffer("mean").data_ptr()
        assert layer.weight.equal(policy.layer.weight)


def test_the_model_of_the_caller_is_left_alone() -> None:
    network = WORLDS["batchnorm"].network().network
    before = {k: v.clone() for k, v in network.state_dict().items()}
    frozen = Source(network).freeze()
    assert isinstance(frozen, FrozenModel)
    with torch.no_grad():
        for t in (*frozen.parameters(), *frozen.buffers()):
            t.zero_()
    assert all(v.equal(before[k]) for k, v in network.state_dict().items())
    assert all(p.requires_grad for p in network.parameters())


def test_it_is_saved_as_safetensors(tmp_path: Path) -> None:
    adapter, x = adapted("batch statistics")
    frozen = adapter.freeze()
    safetensors.torch.save_file(frozen.state_dict(), tmp_path / "frozen.safetensors")
    other = Tent(WORLDS["batchnorm"].network().network).freeze()
    other.load_state_dict(safetensors.torch.load_file(tmp_path / "frozen.safetensors"))
    assert other(x).equal(frozen(x))


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (CoTTA, "CoTTA cannot be frozen: .*views that are drawn at random"),
        (PETAL, "PETAL cannot be frozen: .*views that are drawn at random"),
        (partial(STAMP, classes=CLASSES), "STAMP cannot be frozen: .*views that are drawn at random"),
        (partial(ViDA, high_rank=4), "ViDA cannot be frozen: .*variance over views that are drawn at random"),
        (lambda m: Window(Tent(m), 4), "Window cannot be frozen: .*last ones"),
        (lambda m: Guarded(Tent(m)), "Guarded cannot be frozen: .*three models"),
        (lambda m: TimeConstrained(Tent(m)), "TimeConstrained cannot be frozen"),
        (lambda m: Episodic(CoTTA(m)), "CoTTA cannot be frozen"),
        (lambda m: PriorCorrected(CoTTA(m)), "CoTTA cannot be frozen"),
    ],
)
def test_answers_of_more_than_one_module_are_refused_by_name(make: Any, why: str) -> None:
    with pytest.raises(TypeError, match=f"{why}.*call predict"):
        make(WORLDS["batchnorm"].network().network).freeze()


def test_votes_of_drawn_views_are_refused() -> None:
    adapter = ZERO(WORLDS["image-text"].network(), views=2)
    with pytest.raises(
        TypeError, match=r"ZERO cannot be frozen: .*views that it draws from its seed.*call predict"
    ):
        adapter.freeze()


def test_every_method_is_frozen_or_says_why_not() -> None:
    for name in methods.__all__:
        cls = getattr(methods, name)
        own = cls._predict_batch is not Adapter._predict_batch
        answers = cls._answering is not Adapter._answering
        assert own <= (answers or bool(cls.answers_with)), name
        assert bool(cls.answers_with) == (name in ("CoTTA", "PETAL", "STAMP", "ViDA", "ZERO")), name
    assert not S4T.answers_with


# Export -------------------------------------------------------------------------------------------------------------------

NEEDED = ("onnx", "onnxscript", "onnxruntime")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
onnx = pytest.mark.skipif(bool(MISSING), reason=f"pip install 'testtime[export]': {', '.join(MISSING)}")


def same_in_onnxruntime(name: str, file: Path) -> None:
    import onnxruntime

    adapter, x = adapted(name)
    export_onnx(adapter.freeze(), x, file)
    session = onnxruntime.InferenceSession(str(file))
    parts = x if isinstance(x, dict) else {"x": x}
    assert [i.name for i in session.get_inputs()] == list(parts)
    for n in (16, 5, 2):
        few = {k: v[:n] for k, v in parts.items()}
        expected = adapter.predict(few if isinstance(x, dict) else few["x"])
        found = session.run(None, {k: v.numpy() for k, v in few.items()})
        for one, other in zip(found, tensors(expected), strict=True):
            torch.testing.assert_close(torch.from_numpy(one), other, rtol=1e-4, atol=1e-5)


@onnx
def test_a_dictionary_is_exported_to_onnx(tmp_path: Path) -> None:
    same_in_onnxruntime("dictionary", tmp_path / "model.onnx")


@onnx
def test_a_forecast_is_exported_to_onnx(tmp_path: Path) -> None:
    same_in_onnxruntime("a forecast in two parts", tmp_path / "model.onnx")


@pytest.mark.slow
@onnx
def test_prompts_of_a_vit_of_transformers_are_exported_to_onnx(tmp_path: Path) -> None:
    """Under the exporter, and only there, transformers gives each block a mask of the tokens of the image."""
    import onnxruntime

    transformers = pytest.importorskip("transformers", reason="pip install -e '.[interop]'")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32, image_size=8,
        patch_size=4, num_labels=5,
    )  # fmt: skip
    foa = FOA(transformers.ViTForImageClassification(config).eval(), population=4)
    foa.prepare(WORLDS["vit"].source())
    for batch in WORLDS["vit"].stream(2):
        foa(batch)
    x = WORLDS["vit"].stream(1, seed=5)[0]
    export_onnx(foa.freeze(), x[:2], tmp_path / "vit.onnx")
    (found,) = onnxruntime.InferenceSession(str(tmp_path / "vit.onnx")).run(None, {"x": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), foa.predict(x).logits, rtol=0, atol=1e-5)


@pytest.mark.slow
@onnx
@pytest.mark.parametrize("name", FROZEN)
def test_every_frozen_model_is_exported_to_onnx(name: str, tmp_path: Path) -> None:
    same_in_onnxruntime(name, tmp_path / "model.onnx")


@onnx
def test_what_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    adapter, x = adapted("batch statistics")
    with pytest.raises(TypeError, match=r"pass adapter.freeze\(\)"):
        export_onnx(adapter, x, tmp_path / "model.onnx")
    with pytest.raises(ValueError, match="two samples at least"):
        export_onnx(adapter.freeze(), x[:1], tmp_path / "model.onnx")
    with pytest.raises(TypeError, match="got str"):
        export_onnx(adapter.freeze(), "x", tmp_path / "model.onnx")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_prototypes_answer_exactly_as_their_adapter() -> None:
    adapter, x = adapted("prototypes")
    assert torch.equal(adapter.freeze()(x), adapter.predict(x).logits)


@onnx
def test_a_file_that_cannot_be_written_is_refused_before_the_export(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("notes")
    for file, kind in ((tmp_path, IsADirectoryError), (tmp_path / "taken" / "model.onnx", FileExistsError)):
        with pytest.raises(kind, match=r"is a (folder|file); expected"):
            export_onnx(nn.Linear(3, 2), torch.rand(2, 3), file)
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]


@onnx
def test_the_folder_of_an_export_is_made(tmp_path: Path) -> None:
    export_onnx(nn.Linear(3, 2), torch.rand(2, 3), tmp_path / "models" / "head.onnx")
    assert (tmp_path / "models" / "head.onnx").is_file()
