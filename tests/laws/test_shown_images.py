"""What a method shows the network, where the model declares that mirroring, turning, colours or shifts change a class."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from test_adapters import CASES
from torch import Tensor, nn

from testtime.laws.check import Case
from testtime.laws.worlds import WORLDS
from testtime.methods import TTT
from testtime.models import Views, views_of
from testtime.parts import random_crop_flip

# What the views of each method, as CASES build it, may change; the others have no views of whole images.
CHANGES = {
    "ATLAS": ("mirror", "colour"),
    "AdaContrast": ("mirror", "colour"),
    "MEMO": ("mirror",),
    "PAFKIP": ("mirror",),
    "STAMP": ("mirror",),
    "TTTPlusPlus": ("mirror", "colour"),
    **dict.fromkeys(
        ("CMF", "CoTTA", "PETAL", "RMT", "ROID", "RoTTA", "SANTA", "VDP", "ViDA"),
        ("mirror", "turn", "colour"),
    ),
}
WINDOWED = (
    "ATLAS",
    "AdaContrast",
    "TTTPlusPlus",
)  # show windows of an image, which `shift` leaves as they are
DESTROYED = ("DeYO",)  # shows images whose patches are shuffled, so that their class is lost
TURNED = ("TTT",)  # shows images turned by quarters, which it learns to tell apart
SEEN = [case for case in CASES if case.name not in (*DESTROYED, *TURNED)]


def images(n: int, seed: int) -> Tensor:
    """(n, 3, 8, 8): brighter from left to right, all rows alike, red with as much green as blue."""
    scale = 0.8 + 0.2 * torch.rand(n, 1, 1, 1, generator=torch.Generator().manual_seed(seed))
    colour = torch.tensor([1.0, 0.4, 0.4]).view(3, 1, 1)
    return scale * colour * torch.linspace(0.2, 0.7, 8).expand(8, 8)


def columns(n: int, seed: int) -> Tensor:
    """(n, 3, 8, 8): dark, with a bright column in the middle."""
    x = 0.1 + 0.05 * torch.rand(n, 1, 1, 8, generator=torch.Generator().manual_seed(seed))
    x[..., 4] += 0.5
    return x.expand(n, 3, 8, 8).contiguous()


def furthest(seen: list[Tensor]) -> int:
    """By how many pixels the bright column is away from the middle, at most."""
    return int((torch.cat(seen).mean(dim=(1, 2)).argmax(dim=1) - 4).abs().max())


def watched(network: nn.Module) -> list[Tensor]:
    """A list that gets every batch of images that a module of the network, or of a copy of it, is shown."""
    seen: list[Tensor] = []

    def note(module: nn.Module, inputs: tuple[object, ...]) -> None:
        x = inputs[0] if inputs else None
        if isinstance(x, Tensor) and x.shape[1:] == (3, 8, 8):
            seen.append(x.detach().clone())

    for module in network.modules():
        module.register_forward_pre_hook(note)
    return seen


def changes(seen: list[Tensor]) -> tuple[str, ...]:
    """Which of the changes some of the images show."""
    x = torch.cat(seen)
    to_the_right = x[..., 4:].mean(dim=(1, 2, 3)) - x[..., :4].mean(dim=(1, 2, 3))
    down = (x[..., 4:7, :] - x[..., 1:4, :]).mean(dim=(1, 2, 3))
    apart = (x[:, 1] - x[:, 2]).mean(dim=(1, 2))
    found = {
        "mirror": bool((to_the_right < -0.01).any()),
        "turn": bool((down.abs() > 0.1 * to_the_right.abs()).any()),
        "colour": bool((apart.abs() > 0.03).any()),
    }
    return tuple(name for name, is_there in found.items() if is_there)


def run(
    case: Case, declared: Views, images: Callable[[int, int], Tensor] = images
) -> tuple[list[Tensor], list[Tensor]]:
    """What the network is shown by ``prepare``, and by calls and ``predict``."""
    world = WORLDS[case.worlds[0]]
    network = world.network()
    network.views = declared  # type: ignore[assignment]
    seen = watched(network)
    adapter = case.make(network)
    if adapter.source != "none":
        adapter.prepare(images(16, 10 + i) for i in range(4))
    prepared = [*seen, images(1, 0)]
    seen.clear()
    for i in range(3):
        adapter(images(16, i))
        adapter.predict(images(16, 3))
    return prepared, seen


@pytest.mark.parametrize("case", SEEN, ids=lambda case: case.name)
def test_a_method_shows_no_change_that_the_model_forbids(case: Case) -> None:
    prepared, called = run(case, Views(mirror=False, turn=False, colour=False))
    assert changes(called) == ()
    assert "mirror" not in changes(prepared)


@pytest.mark.parametrize("case", SEEN, ids=lambda case: case.name)
def test_a_method_shows_its_views_where_all_changes_are_allowed(case: Case) -> None:
    assert changes(run(case, Views())[1]) == CHANGES.get(case.name, ())


@pytest.mark.parametrize(
    "case", [case for case in SEEN if case.name not in WINDOWED], ids=lambda case: case.name
)
def test_a_method_shifts_no_image_further_than_the_model_allows(case: Case) -> None:
    kept = {"mirror": False, "turn": False, "colour": False}
    assert furthest(run(case, Views(**kept, shift=0), columns)[1]) == 0
    assert furthest(run(case, Views(**kept), columns)[1]) == (1 if case.name in CHANGES else 0)


def test_a_change_is_forbidden_alone() -> None:
    for name in ("mirror", "turn", "colour"):
        case = next(case for case in CASES if case.name == "CoTTA")
        left = {"mirror", "turn", "colour"} - {name}
        assert set(changes(run(case, Views(**{name: False}))[1])) == left


def test_the_crops_that_ttt_turns_are_not_mirrored() -> None:
    network = WORLDS["batchnorm"].network()
    network.views = Views(mirror=False)  # type: ignore[assignment]
    ttt = TTT(network, augment=random_crop_flip)
    assert (ttt.augment.func, ttt.augment.keywords) == (random_crop_flip, {"mirror": False})


def test_the_declaration_survives_what_methods_build_around_a_network() -> None:
    for case in CASES:
        network = WORLDS[case.worlds[0]].network()
        network.views = Views(turn=False)  # type: ignore[assignment]
        assert views_of(case.make(network)) == Views(turn=False), case.name
