"""Models as they come: wrappers are removed, what cannot be adapted is refused, copies need no leaves."""

from __future__ import annotations

import copy
import functools
import threading
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from testtime.adapter import state_hash
from testtime.intake.model import check_model, copy_model, standard_strides, unwrapped
from testtime.intake.sharing import duplicate, share
from testtime.methods import MEMO, PAFKIP, Source, Tent
from testtime.norm import norm_layers
from testtime.source.ecotta import train_meta

X = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def network(norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 4, 3), norm(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
    return net.eval()


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    distributed = pytest.importorskip("torch.distributed")
    if not distributed.is_available():
        pytest.skip("this torch was built without torch.distributed")
    store = tmp_path_factory.mktemp("group") / "store"
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def compiled(net: nn.Module) -> nn.Module:
    return torch.compile(net, backend="eager")


def compiled_forward(net: nn.Module) -> nn.Module:
    net.forward = torch.compile(net.forward, backend="eager")
    return net


def compiled_in_place(net: nn.Module) -> nn.Module:
    net.compile(backend="eager")
    return net


WRAPPINGS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "DataParallel": nn.DataParallel,
    "DistributedDataParallel": nn.parallel.DistributedDataParallel,
    "compile": compiled,
    "compile of DistributedDataParallel": lambda net: compiled(nn.parallel.DistributedDataParallel(net)),
    "inside": lambda net: nn.Sequential(nn.Identity(), nn.parallel.DistributedDataParallel(net)),
    "twice inside": lambda net: nn.Sequential(nn.DataParallel(nn.Sequential(compiled(net)))),
    "compile in place": compiled_in_place,
    "compile of the forward": compiled_forward,
    "AveragedModel": torch.optim.swa_utils.AveragedModel,
    "fx": torch.fx.symbolic_trace,
}


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("how", WRAPPINGS)
@pytest.mark.parametrize("make", [Tent, lambda model: PAFKIP(model, 5)], ids=["tent", "paf-kip"])
def test_a_wrapped_model_adapts_as_the_model_in_it(how: str, make: Callable[..., Any]) -> None:
    net = network()
    wrapped = WRAPPINGS[how](net)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    adapter, plain = make(wrapped), make(network())
    for _ in range(2):
        assert adapter(X).logits.equal(plain(X).logits)
    assert adapter(X).updated
    assert all(v.equal(before[k]) for k, v in net.state_dict().items())
    assert len(norm_layers(adapter.model)) == 1


@pytest.mark.usefixtures("one_process")
def test_the_outermost_wrapper_leaves_no_trace() -> None:
    tent, plain = Tent(compiled(nn.parallel.DistributedDataParallel(network()))), Tent(network())
    assert list(tent.state_dict()) == list(plain.state_dict())
    assert state_hash(tent) == state_hash(plain)


def test_unwrapping_leaves_the_callers_model_alone() -> None:
    inner = nn.DataParallel(network())
    model = nn.Sequential(inner)
    share(model)
    assert model[0] is inner
    assert unwrapped(model) is model
    assert unwrapped(inner) is inner.module


def scripted() -> nn.Module:
    return torch.jit.script(network())


def quantized() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(network(), {nn.Linear}, dtype=torch.qint8)


def with_a_forward_of_its_own() -> nn.Module:
    net = network()
    former = net.forward
    net.forward = lambda x: former(x) * 2
    return net


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "scripted": (scripted, "^this model is TorchScript .* pass the eager torch.nn.Module"),
    "traced": (lambda: torch.jit.trace(network(), X), "^this model is TorchScript"),
    "frozen script": (lambda: torch.jit.freeze(torch.jit.script(network())), "^this model is TorchScript"),
    "scripted part": (lambda: nn.Sequential(scripted(), nn.ReLU()), "^'0' of this model is TorchScript"),
    "exported": (lambda: torch.export.export(network(), (X,)), "^ExportedProgram comes from torch.export"),
    "exported module": (
        lambda: torch.export.export(network(), (X,)).module(),
        "torch.export, .* pass the eager",
    ),
    "exported part": (
        lambda: torch.export.unflatten(torch.export.export(nn.Sequential(network()), (X,))),
        "torch.export",
    ),
    "quantized": (quantized, "^'4' of this model is a quantized Linear.* pass the float model"),
    "replaced forward": (
        with_a_forward_of_its_own,
        r"^the forward of this model was replaced by a function.* types.MethodType",
    ),
    "lazy": (lambda: network(lambda _: nn.LazyBatchNorm2d()), "^1.weight of this model is not initialised"),
    "meta": (lambda: network().to("meta"), "^0.weight of this model is on the meta device"),
    "class": (
        lambda: nn.Linear,
        "^expected a torch.nn.Module, got the class Linear itself; pass an instance",
    ),
    "function": (lambda: torch.relu, "^expected a torch.nn.Module as the model, got builtin_function"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_adapted_is_refused_with_what_to_do(kind: str) -> None:
    make, message = REFUSED[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = make()
    for build in (Tent, Source, duplicate):
        with pytest.raises((TypeError, ValueError), match=message):
            build(model)


@pytest.mark.usefixtures("one_process")
def test_a_sharded_model_is_refused() -> None:
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = fsdp.FullyShardedDataParallel(network(), device_id=torch.device("cpu"))
    with pytest.raises(TypeError, match="^this model is sharded over processes"):
        Tent(wrapped)
    sharded = network()
    fsdp.fully_shard(sharded[4])
    with pytest.raises(TypeError, match="^'4' of this model is sharded over processes"):
        Tent(sharded)


def doubled(self: nn.Sequential, x: Tensor) -> Tensor:
    return nn.Sequential.forward(self, x) * 2


@pytest.mark.parametrize("how", [types.MethodType, functools.partial])
def test_a_forward_that_is_bound_to_its_model_is_copied_with_it(how: Callable[..., Any]) -> None:
    net = network()
    net.forward = how(doubled, net)
    assert Source(net)(X).logits.equal(2 * network()(X).detach())
    tent = Tent(net)
    first = tent(X)
    assert first.updated
    assert not tent.predict(X).logits.equal(first.logits)


def test_a_scripted_part_without_weights_is_no_obstacle() -> None:
    net = nn.Sequential(*network(), torch.jit.script(nn.ReLU()))
    assert Tent(net)(X).updated


def test_a_model_that_cannot_be_copied_says_why() -> None:
    net = network()
    net.lock = threading.Lock()
    with pytest.raises(TypeError, match=r"Sequential cannot be copied by copy.deepcopy \(.*lock.*\)"):
        Tent(net)


class Keeps(nn.Module):
    """A model that keeps its features in several places."""

    def __init__(self) -> None:
        super().__init__()
        self.network = network()
        self.features: Tensor | None = None
        self.history: dict[str, list[Tensor]] = {"all": []}

    def forward(self, x: Tensor) -> Tensor:
        self.features = self.network[:4](x)
        self.history["all"].append(self.features)
        return self.network[4](self.features)


@pytest.mark.parametrize("inference", [False, True])
def test_tensors_of_the_last_forward_are_copied_by_value(inference: bool) -> None:
    model = Keeps()
    with torch.inference_mode(inference):
        expected = model(X).clone()
    tree = share(model)
    kept = tree.network.features
    assert kept.equal(model.features)
    assert kept.grad_fn is None
    assert not kept.is_inference()
    assert kept.data_ptr() != model.features.data_ptr()
    tent, plain = Tent(model), Tent(network())
    torch.testing.assert_close(Source(model)(X).logits, expected, rtol=0, atol=0)
    assert tent(X).equal(plain(X))
    other = copy.deepcopy(tent)  # after a forward with a graph
    assert other(X).equal(plain(X))
    assert tent(X).equal(other.predict(X)) is False or state_hash(tent) == state_hash(other)
    assert state_hash(tent) == state_hash(other)


def test_a_model_trained_on_the_source_may_be_wrapped_and_keep_features() -> None:
    model = Keeps()
    model(X)
    examples = [(X, torch.arange(8) % 5)] * 2
    assert train_meta(nn.DataParallel(model), examples, title=None)(X).shape == (8, 5)


def test_a_duplicate_has_its_own_memory() -> None:
    net = network()
    other = duplicate(nn.DataParallel(net))
    assert type(other) is nn.Sequential
    assert not {p.data_ptr() for p in net.parameters()} & {p.data_ptr() for p in other.parameters()}
    assert other(X).equal(net(X))


class Scaled(nn.Parameter):
    """A parameter of a class of its own."""


def test_a_parameter_of_its_own_class_keeps_it() -> None:
    net = network()
    net[4].weight = Scaled(net[4].weight.detach())
    tree = share(net)
    assert type(tree.network[4].weight) is Scaled
    assert not tree.network[4].weight.requires_grad
    assert Source(net)(X).logits.equal(net(X).detach())


def test_adapting_does_not_disturb_a_backward_of_the_caller() -> None:
    net = network()
    loss = net(X).square().mean()
    Tent(net)(X)
    loss.backward()
    assert net[1].weight.grad is not None


@pytest.mark.parametrize("path", [Path("x"), "model", 3, None], ids=["path", "str", "int", "none"])
def test_other_values_are_named(path: object) -> None:
    with pytest.raises(
        TypeError, match=f"expected a torch.nn.Module as the model, got {type(path).__name__}"
    ):
        check_model(path)


@pytest.mark.parametrize(
    "shape", [(2, 3, 1, 1), (2, 1, 4, 4), (2, 1, 1, 1), (2, 3, 4, 4), (0, 3, 4, 4), (1, 3, 2, 2)]
)
def test_standard_strides(shape: tuple[int, ...]) -> None:
    plain = torch.rand(shape)
    assert standard_strides(plain) is plain
    _, c, h, w = shape
    turned = plain.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    for x in (
        turned,
        turned.as_strided(shape, (c * h * w, 1, w * c, c)),
        plain.to(memory_format=torch.channels_last),
    ):
        got = standard_strides(x)
        assert got.stride() == plain.stride()
        assert got.equal(plain)


def test_copies_of_copies_keep_one_hook_on_group_norm() -> None:
    tree = copy_model(share(share(network(lambda c: nn.GroupNorm(2, c)))))
    assert [len(m._forward_pre_hooks) for m in tree.modules() if isinstance(m, nn.GroupNorm)] == [1]


class Hooked(nn.Module):
    """Adds what a hook kept of the first convolution."""

    def __init__(self, bound: bool) -> None:
        super().__init__()
        self.net, self.kept = network(), {}
        closure = lambda module, x, y: self.kept.update(y=y)  # noqa: E731
        self.net[0].register_forward_hook(self.keep if bound else closure)

    def keep(self, module: nn.Module, x: Any, y: Tensor) -> None:
        self.kept["y"] = y

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.net(x)
        return y + self.kept["y"].mean()


def test_a_hook_in_the_closure_of_the_model_is_refused_and_a_method_is_copied() -> None:
    model = Hooked(bound=False)
    model(X + 1)  # what a copy would use for ever
    with pytest.raises(TypeError, match=r"the hook .* refers to this very model.*self\.hook"):
        Source(model)
    model = Hooked(bound=True)
    model(X + 1)
    assert Source(model)(X).logits.equal(model.eval()(X).detach())
    logged: list[Tensor] = []
    net = network()
    net[0].register_forward_hook(lambda module, x, y: logged.append(y))  # the caller's own list
    assert Tent(net)(X).updated
    assert logged


def test_a_forward_of_other_arguments_is_refused() -> None:
    class Keyword(nn.Module):
        def forward(self, *, pixels: Tensor) -> Tensor:
            return pixels

    with pytest.raises(TypeError, match=r"Keyword.forward .* forward\(self, x\)"):
        Source(Keyword())


def test_a_model_of_a_fixed_batch_size_is_named() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.net(x.view(len(X), *X.shape[1:]))
            return y

    with pytest.raises(ValueError, match=r"does not take a batch of shape \(1, 3, 8, 8\)"):
        MEMO(Fixed())(X)


def test_an_adapter_is_no_model() -> None:
    with pytest.raises(TypeError, match=r"Tent adapts a model, got an adapter \(Source\)"):
        Tent(Source(network()))
