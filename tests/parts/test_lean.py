"""Lean autograd: the values and gradients of plain autograd, and the bytes that are saved for the backward."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from testtime.laws import check_adapter
from testtime.methods import Tent
from testtime.models import ResNet, WideResNet
from testtime.norm import batch_statistics, norm_affine
from testtime.parts import lean
from testtime.parts.lean import pack, saving, unpack


@pytest.fixture(autouse=True)
def every_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of any size are saved lean, so that small networks show it."""
    monkeypatch.setattr(lean, "SMALLEST", 1)


class Residual(nn.Module):
    """A block that writes into its activations, uses one twice and pools."""

    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.stem, self.first = nn.Conv2d(3, 8, 3, padding=1, bias=False), norm(8)
        self.conv, self.second = nn.Conv2d(8, 8, 3, padding="same", groups=2), norm(8)
        self.down, self.third = nn.Conv2d(8, 8, (3, 1), stride=2, dilation=(2, 1)), norm(8)
        self.relu, self.head = nn.ReLU(inplace=True), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.relu(self.first(self.stem(x))), 3, 2, 1)
        y = self.second(self.conv(x))
        y += x  # in place
        y = self.relu(y) + x
        y = F.leaky_relu(self.third(self.down(y)), 0.1)
        y = y * F.relu6(y) + F.hardtanh(y, -0.5, 0.5)
        return self.head(torch.relu(y).mean(dim=(2, 3)))


class Attention(nn.Module):
    """A pre-norm block with attention of torch's function, or of torch's module."""

    def __init__(self, width: int, module: bool, post: bool = False) -> None:
        super().__init__()
        self.one, self.two = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True) if module else None
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.post = post

    def attend(self, x: Tensor) -> Tensor:
        if self.attention is not None:
            return self.attention(x, x, x, need_weights=False)[0]
        n, t, c = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, 2, c // 2).permute(2, 0, 3, 1, 4).unbind(0)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, c))

    def forward(self, x: Tensor) -> Tensor:
        if self.post:
            x = self.one(x + self.attend(x))
            return self.two(x + self.down(F.silu(self.up(x))))
        x = x + self.attend(self.one(x))
        return x + self.down(F.gelu(self.up(self.two(x))))


class Transformer(nn.Module):
    def __init__(self, module: bool = False, post: bool = False, width: int = 16) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 4, stride=4)
        self.start = nn.LayerNorm(width)
        self.blocks = nn.Sequential(*(Attention(width, module, post) for _ in range(3)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.start(self.patch(x).flatten(2).transpose(1, 2))
        return self.head(self.norm(self.blocks(tokens))[:, 0])


class OneDimensional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(3, 6, 3, stride=2), nn.Conv3d(1, 2, 3, padding=1)
        self.norm, self.other, self.head = nn.BatchNorm1d(6), nn.BatchNorm3d(2), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm(self.a(x.flatten(2))))
        return self.head(F.relu(self.other(self.b(y[:, None, :, :, None]))).mean(dim=(3, 4)).flatten(1))


def adapted(network: nn.Module, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, list[nn.Parameter]]:
    """A network of which the affine parameters of the norms ask for gradients, and these."""
    torch.manual_seed(0)
    for p in network.parameters():
        with torch.no_grad():
            p.copy_(torch.randn_like(p) / max(1, p[0].numel()) ** 0.5 if p.dim() > 1 else torch.randn_like(p))
    network = batch_statistics(network.eval().to(dtype))
    affine = norm_affine(network)
    for p in network.parameters():
        p.requires_grad_(any(p is q for q in affine))
    return network, affine


def step(network: nn.Module, affine: list[nn.Parameter], x: Tensor, how: str) -> tuple[list[Tensor], int]:
    """The output and the gradients of a step, and the bytes that it saves beside weights and input."""
    own = {t.untyped_storage().data_ptr() for t in (*network.parameters(), *network.buffers(), x)}
    kept: dict[int, int] = {}

    def count(t: Tensor) -> Tensor:
        if t.untyped_storage().data_ptr() not in own:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with saving(how):
        with saved_tensors_hooks(count, lambda t: t):
            y = network(x)
            loss = -(y.softmax(1) * y.log_softmax(1)).sum(1).mean()
        found = torch.autograd.grad(loss, affine)
    return [y.detach(), *found], sum(kept.values())


CASES: dict[str, Callable[[], nn.Module]] = {
    "batch norm": lambda: Residual(nn.BatchNorm2d),
    "group norm": lambda: Residual(lambda c: nn.GroupNorm(2, c)),
    "instance norm": lambda: Residual(lambda c: nn.InstanceNorm2d(c, affine=True)),
    "one and three dimensions": OneDimensional,
    "attention": Transformer,
    "attention of the module": lambda: Transformer(module=True),
    "norm behind": lambda: Transformer(post=True),
}


TRANSFORMERS = ("attention", "attention of the module", "norm behind")
DTYPES = {kind: getattr(torch, kind) for kind in ("float32", "float64", "bfloat16", "float16")}


@pytest.mark.parametrize("how", ["lean", "recompute"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", [*DTYPES, "autocast", "channels last"])
def test_values_and_gradients_equal_plain_autograd_bit_by_bit(case: str, how: str, kind: str):
    if kind == "channels last" and case == "one and three dimensions":
        pytest.skip("four dimensions have a channels_last layout")
    dtype = DTYPES.get(kind, torch.float32)
    network, affine = adapted(CASES[case](), dtype)
    x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1)).to(dtype)
    if kind == "channels last":
        network, x = network.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"):
        plain, most = step(network, affine, x, "plain")
        other, kept = step(network, affine, x, how)
    assert len(plain) > 3
    assert all(float(g.abs().sum()) > 0 for g in plain)
    for a, b in zip(plain, other, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=1e-6 if kind == "channels last" else 0, atol=0)
    assert kept == most if how == "lean" and case in TRANSFORMERS else kept < most


@pytest.mark.parametrize("kind", DTYPES)
def test_the_gradient_of_a_relu_is_that_of_plain_autograd_without_numpy_too(
    kind: str, monkeypatch: pytest.MonkeyPatch
):
    x = torch.tensor([[-1.0, 0.0, 2.0, torch.nan], [torch.inf, -torch.inf, -0.0, 1e-3]], dtype=DTYPES[kind])
    g = torch.tensor([[torch.inf, torch.nan, -0.0, 3.0], [-torch.inf, 1.0, -1.0, torch.nan]]).to(x)
    x.requires_grad_(True)
    (plain,) = torch.autograd.grad(F.relu(x), x, g)
    for host in ("cpu", "none"):
        monkeypatch.setattr(lean, "HOST", host)
        with saving("lean"):
            y = F.relu(x)
        (found,) = torch.autograd.grad(y, x, g)
        words = lean.WORDS[x.element_size()]
        assert torch.equal(found.view(words), plain.view(words)), host


def test_a_batch_that_is_too_small_is_not_looked_at_again(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lean, "SMALLEST", 4 * 8 * 16 * 16)
    adapter = Tent(Residual(nn.BatchNorm2d).eval(), autograd="lean")
    asked: list[object] = []
    take = lean._Lean.__torch_function__

    def count(self: lean._Lean, func: object, *args: object) -> object:
        asked.append(func)
        return take(self, func, *args)

    monkeypatch.setattr(lean._Lean, "__torch_function__", count)
    counts = []
    for n in (1, 1, 4, 1, 4):
        asked.clear()
        adapter(torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(n)))
        counts.append(len(asked))
    assert counts[0] > 0
    assert counts[1] == counts[3] == 0
    assert counts[2] == counts[4] > 0
    assert torch.Tensor.grad.__get__ not in asked  # of the optimizer


def test_what_asks_for_no_gradient_and_what_is_adapted_is_plain():
    x, conv = torch.randn(2, 3, 8, 8), nn.Conv2d(3, 4, 3)
    with saving("lean"):
        y = F.relu(conv(x))  # the weight is adapted: it needs the input
        gradients = torch.autograd.grad(y.sum(), list(conv.parameters()))
        with torch.no_grad():
            assert not F.relu(conv(x)).requires_grad
    plain = torch.autograd.grad(F.relu(conv(x)).sum(), list(conv.parameters()))
    assert all(map(torch.equal, gradients, plain))


def test_a_view_that_is_written_into_is_plain():
    def run(x: Tensor) -> Tensor:
        y = x * 2
        y[:, 1].relu_()
        return y

    x = torch.randn(3, 4, requires_grad=True)
    plain = torch.autograd.grad(run(x).sum(), x)
    with saving("lean"):
        assert torch.equal(torch.autograd.grad(run(x).sum(), x)[0], plain[0])


def test_what_is_written_into_after_it_was_noted_is_not_computed_again():
    norm, up = nn.LayerNorm(8), nn.Linear(8, 32).requires_grad_(False)

    def run() -> Tensor:
        u = up(norm(torch.ones(2, 8) * torch.arange(8)))
        u.mul_(2)
        return F.gelu(u).square().sum()

    plain = torch.autograd.grad(run(), list(norm.parameters()))
    with saving("recompute"):
        assert all(map(torch.equal, torch.autograd.grad(run(), list(norm.parameters())), plain))


def test_the_transforms_of_torch_func_are_plain():
    w = torch.randn(4, 3, 3, 3)
    with saving("recompute"):
        g = torch.func.grad(lambda x: F.relu(F.conv2d(x, w)).sum())(torch.randn(2, 3, 8, 8))
    assert g.shape == (2, 3, 8, 8)


def test_a_checkpointed_model_repeats_its_forward_the_same_way():
    network, affine = adapted(Residual(nn.BatchNorm2d))
    plain = step(network, affine, torch.ones(4, 3, 16, 16).cumsum(3), "plain")[0]
    again = functools.partial(torch.utils.checkpoint.checkpoint, network, use_reentrant=False)
    with saving("lean"):
        y = again(torch.ones(4, 3, 16, 16).cumsum(3))
        loss = -(y.softmax(1) * y.log_softmax(1)).sum(1).mean()
        found = torch.autograd.grad(loss, affine)
    assert all(map(torch.equal, found, plain[1:]))


@pytest.mark.parametrize("host", ["cpu", "none"])
@pytest.mark.parametrize("n", [1, 7, 8, 13, 64])
def test_bits_come_back_as_they_were(n: int, host: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lean, "HOST", host)
    flags = (torch.arange(3 * n).reshape(n, 3) * 7 % 5 < 2).to(torch.uint8)
    packed = pack(flags)
    assert len(packed) == -(-3 * n // 8)
    assert torch.equal(unpack(packed, flags.shape, flags.stride()) > 0, flags > 0)


@pytest.mark.parametrize(
    ("make", "shape", "how", "most"),
    [
        (lambda: WideResNet(40, 2), (2, 3, 32, 32), "lean", 0.52),
        (lambda: ResNet(50), (2, 3, 64, 64), "lean", 0.55),
    ],
)
def test_bytes_saved_of_those_of_plain_autograd(make, shape, how, most):
    network, affine = adapted(make())
    x = torch.rand(shape)
    plain, lean_ = step(network, affine, x, "plain"), step(network, affine, x, how)
    assert lean_[1] <= most * plain[1]
    assert all(map(torch.equal, plain[0], lean_[0]))


def test_bytes_saved_by_a_vit_b_are_the_inputs_of_its_norms():
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(num_hidden_layers=2)  # the width, heads and tokens of ViT-B/16
    vit = transformers.ViTForImageClassification(config)

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vit = vit

        def forward(self, x: Tensor) -> Tensor:
            return self.vit(x).logits

    network, affine = adapted(Logits())
    x = torch.rand(1, 3, 224, 224)
    plain, other = step(network, affine, x, "plain"), step(network, affine, x, "recompute")
    assert other[1] <= 0.25 * plain[1]
    assert other[1] <= 1.01 * (2 * 2 + 1) * 197 * 768 * 4
    assert all(map(torch.equal, plain[0], other[0]))


@pytest.mark.parametrize("how", ["plain", "lean", "recompute"])
def test_an_adapter_takes_it_as_an_argument(how: str):
    def run(autograd: str | None) -> list[Tensor]:
        torch.manual_seed(3)
        network = Residual(nn.BatchNorm2d).eval()
        tent = Tent(network, autograd=autograd)
        assert tent.autograd == autograd
        return [tent(torch.full((6, 3, 16, 16), 0.4).cumsum(2).sin().abs() * i / 3) for i in (1, 2, 3)]

    assert all(map(torch.equal, run(None), run(how)))


def test_another_word_is_refused():
    with pytest.raises(ValueError, match="autograd is one of 'plain', 'lean', 'recompute', got 'small'"):
        Tent(Residual(nn.BatchNorm2d), autograd="small")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["lean", "recompute"])
def test_the_laws_hold_for_tensors_of_every_size(how: str):
    check_adapter(functools.partial(Tent, autograd=how), worlds=("batchnorm", "groupnorm", "vit"))
