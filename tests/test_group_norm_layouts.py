"""No layout of an image kills the process: torch's backward of GroupNorm on the CPU does for channels-last input."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterable
from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from testtime.adapter import Adapter
from testtime.methods import ETA, MEMO, PAFKIP, ROID, SAR, SHOTIM, STAMP, T3A, CoTTA, RoTTA, SoTTA, Tent
from testtime.methods.paf_kip import PAFKIPOptions
from testtime.parts import identity, random_crop_flip

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="a crash can only be survived in a fork")


class Activated(nn.GroupNorm):
    """A GroupNorm that also activates, as timm's GroupNormAct does."""

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps).relu()


class Own(nn.Module):
    """A normalisation that is no torch.nn.GroupNorm, and calls what that one calls."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x, 1, self.weight, None)


class Turned(nn.Module):
    """A layer that gives a tensor of other strides than it got."""

    def forward(self, x: Tensor) -> Tensor:
        return LAYOUTS["turned"](x)


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "GroupNorm": lambda c: nn.GroupNorm(1, c),
    "GroupNormAct": lambda c: Activated(c, c),
    "LayerNorm": lambda c: nn.LayerNorm([c, 1, 1]),
    "BatchNorm": nn.BatchNorm2d,
}
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "turned": lambda x: x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
    "crop": lambda x: F.pad(x, (1, 1, 1, 1))[:, :, 1:-1, 1:-1],
}
METHODS: dict[str, Callable[[nn.Module], Adapter]] = {
    "Tent": Tent,
    "ETA": lambda m: ETA(m, 4, margin=2.0),
    "SAR": lambda m: SAR(m, 4, margin=2.0, skip=()),
    "PAF+KIP": lambda m: PAFKIP(m, 4),
    "PAF+KIP of the image": lambda m: PAFKIP(m, 4, augment=identity, options=PAFKIPOptions(batched=True)),
    "ROID": lambda m: ROID(m, 4),
    "SoTTA": lambda m: SoTTA(m, 4, capacity=8, frequency=8, threshold=0.0),
    "STAMP": lambda m: STAMP(m, 4, views=2, alpha=2.0, augment=random_crop_flip),
    "MEMO": lambda m: MEMO(m, views=2, augment=random_crop_flip),
    "CoTTA": lambda m: CoTTA(m, views=2, augment=random_crop_flip),
    "T3A": T3A,
}


def network(norm: str, channels: int, at_the_image: bool) -> nn.Module:
    """A network whose first norm gets the image itself, or a convolution of it."""
    torch.manual_seed(0)
    side = nn.AdaptiveAvgPool2d(1) if norm == "LayerNorm" else nn.Identity()
    first = nn.Identity() if at_the_image else nn.Conv2d(channels, 4, 1)
    width = channels if at_the_image else 4
    tail = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4))
    return nn.Sequential(first, side, NORMS[norm](width), nn.ReLU(), tail).eval()


def survives(work: Callable[[], None]) -> str:
    """Run the work in a fork: "" if it ends well, what it raised, or the signal that killed it."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            os.close(read)
            work()
            code = 0
        except BaseException as error:  # noqa: BLE001 - it is reported to the parent
            os.write(write, f"{type(error).__name__}: {error}"[:4000].encode())
        finally:
            os._exit(code)
    os.close(write)
    with os.fdopen(read) as pipe:
        said = pipe.read()
    status = os.waitpid(child, 0)[1]
    return f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else said


def try_layouts(make: Callable[[nn.Module], Adapter], norms: Iterable[str], sides: Iterable[int]) -> None:
    """Adapt to images of every layout, with channels-last weights too: the answers are those to plain images."""
    rng = torch.Generator().manual_seed(0)
    for norm, channels, at_the_image, last in product(norms, (1, 3), (True, False), (False, True)):
        model = network(norm, channels, at_the_image)
        adapter = make(model.to(memory_format=torch.channels_last) if last else model)
        for side in sides:
            x = torch.rand(4, channels, side, side, generator=rng)
            adapter.reset()
            expected = adapter(x)
            for layout, turn in LAYOUTS.items():
                one = f"{norm}, {channels} channels, {side} pixels, {at_the_image}, {last}, {layout}"
                print(
                    one, file=sys.stderr, flush=True
                )  # of those printed, the last one is the one that kills
                adapter.reset()
                y = adapter(turn(x))
                assert adapter.predict(turn(x)).valid.all(), one
                torch.testing.assert_close(y.logits, expected.logits, rtol=1e-3, atol=1e-4, msg=one)


@pytest.mark.parametrize("method", ["Tent", "PAF+KIP"])
def test_every_layout_is_survived_under_every_norm(method: str) -> None:
    assert survives(lambda: try_layouts(METHODS[method], NORMS, (1, 8, 28))) == ""


@pytest.mark.parametrize("method", METHODS)
def test_every_layout_is_survived_by_every_kind_of_method(method: str) -> None:
    assert survives(lambda: try_layouts(METHODS[method], ["GroupNorm"], (2,))) == ""


def test_a_norm_of_ones_own_is_survived_and_strides_made_inside() -> None:
    def work() -> None:
        for norm in (Own(3), nn.GroupNorm(1, 3)):
            model = nn.Sequential(Turned(), norm, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))
            for side in (1, 8):
                assert SHOTIM(model)(torch.rand(4, 3, side, side)).updated

    assert survives(work) == ""


def test_volumes_are_survived() -> None:
    def work() -> None:
        model = nn.Sequential(nn.GroupNorm(1, 3), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(3, 4))
        for side in (1, 4):
            x = torch.rand(4, side, side, side, 3).permute(0, 4, 1, 2, 3)
            assert Tent(model)(x).updated

    assert survives(work) == ""


def test_the_batch_norm_memory_methods_are_survived() -> None:
    def work() -> None:
        for side in (1, 8):
            adapter = RoTTA(network("BatchNorm", 3, True), classes=4, capacity=8, frequency=8)
            for layout in LAYOUTS.values():
                adapter(layout(torch.rand(8, 3, side, side)))

    assert survives(work) == ""


def test_a_crash_is_distinguished_from_an_error() -> None:
    def crash() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def fail() -> None:
        raise ValueError("no")

    assert survives(crash) == "signal 9"
    assert survives(fail) == "ValueError: no"
    assert survives(lambda: None) == ""
