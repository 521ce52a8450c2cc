"""Augmentations without the changes that a model forbids, and the warning where it declares nothing."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import testtime
from testtime.adapter import state_hash
from testtime.corruptions import corrupt
from testtime.data import embedded
from testtime.errors import AdapterWarning
from testtime.methods import PAFKIP, CoTTA, RoTTA, Tent
from testtime.models import Views, load_model
from testtime.parts import augmix, chains, identity, katana, random_crop_flip, simclr
from testtime.parts.views import LIMIT, MirrorCheck, changes_of, contradicted, preserving


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int = 40, h: int = 16, w: int = 16) -> Tensor:
    return torch.rand(n, 3, h, w, generator=rng(9))


def declaring(**changes: float) -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    model.views = Views(**changes)  # type: ignore[assignment,arg-type]
    return model


@pytest.mark.parametrize("view", [random_crop_flip, katana, partial(katana, clean=True), simclr, augmix])
def test_without_the_flip_the_rest_of_a_view_is_the_same(view: Callable[..., Tensor]) -> None:
    flipped, straight = view(images(), rng()), view(images(), rng(), mirror=False)
    same = (flipped - straight).abs().amax(dim=(1, 2, 3)) < 1e-6
    assert 0.2 < same.float().mean() < 0.8
    if view not in (katana, augmix):  # after the flip these add noise, and changes of places
        torch.testing.assert_close(flipped[~same], straight[~same].flip(3), rtol=0, atol=1e-5)


def test_a_crop_without_the_flip_is_the_window_that_was_drawn() -> None:
    x, again = images(h=16, w=24), rng()
    top, left = (torch.randint(high, (40,), generator=again) for high in (5, 7))
    padded = nn.functional.pad(x, (3, 3, 2, 2))
    for i, view in enumerate(random_crop_flip(x, rng(), mirror=False)):
        assert view.equal(padded[i, :, top[i] : top[i] + 16, left[i] : left[i] + 24])


def test_katana_does_not_turn_and_does_not_colour() -> None:
    """Rows that are alike stay so, and as much green as blue stays so; with the change, neither."""
    x = (torch.tensor([1.0, 0.4, 0.4]).view(3, 1, 1) * torch.linspace(0.2, 0.8, 16)).expand(40, 3, 16, 16)
    view = partial(katana, clean=True)
    for kept in (True, False):
        rows = view(x, rng(), turn=kept).var(dim=2).amax()
        hues = (lambda y: (y[:, 1] - y[:, 2]).abs().amax())(view(x, rng(), colour=kept))
        assert (rows > 1e-4) == kept
        assert (hues > 0.05) == kept
    alone = view(x, rng(), turn=False, colour=False, mirror=False)
    assert (alone[..., -1] > alone[..., 0]).all()


def test_simclr_without_colour_keeps_the_hue_and_is_never_grey() -> None:
    x = torch.tensor([0.5, 0.2, 0.2]).view(1, 3, 1, 1).expand(200, 3, 4, 4)
    grey, coloured = simclr(x, rng(1)), simclr(x, rng(1), colour=False)
    assert (grey[:, 0] - grey[:, 1]).abs().amin() < 1e-6
    assert (coloured[:, 0] - coloured[:, 1]).amin() > 0.1
    torch.testing.assert_close(coloured[:, 1], coloured[:, 2], rtol=0, atol=1e-6)


def test_augmix_leaves_out_the_changes_and_replaces_none(monkeypatch: pytest.MonkeyPatch) -> None:
    met: list[str] = []

    def named(change: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(x: Tensor, level: Tensor, sign: Tensor) -> Tensor:
            met.extend([change.__name__] * len(x))
            return change(x, level, sign)

        return call

    changes = [named(change) for change in chains.CHANGES]
    by_name = dict(zip([c.__name__ for c in chains.CHANGES], changes, strict=True))
    monkeypatch.setattr(chains, "CHANGES", changes)
    monkeypatch.setattr(chains, "_rotate", by_name["_rotate"])
    monkeypatch.setattr(chains, "OF_COLOUR", tuple(by_name[c.__name__] for c in chains.OF_COLOUR))

    def counted(**flags: bool) -> dict[str, int]:
        met.clear()
        augmix(images(60), rng(), **flags)
        return {name: met.count(name) for name in by_name}

    every = counted()
    assert min(every.values()) > 10
    without = counted(turn=False, colour=False)
    gone = {"_rotate", "_autocontrast", "_equalize", "_solarize"}
    assert without == {name: 0 if name in gone else count for name, count in every.items()}


@pytest.mark.parametrize("view", [random_crop_flip, katana, partial(katana, clean=True), augmix])
def test_an_eighth_is_the_shift_of_each_view_and_others_are_refused(view: Callable[..., Tensor]) -> None:
    x = images(h=24, w=20)
    assert view(x, rng()).equal(view(x, rng(), shift=1 / 8))
    assert not view(x, rng()).equal(view(x, rng(), shift=1 / 16))
    for shift in (-0.1, 0.6, math.nan):
        with pytest.raises(ValueError, match="shift is a share of the side, between 0 and 1/2"):
            view(x, rng(), shift=shift)


@pytest.mark.parametrize(
    ("shift", "down", "across"), [(0, 0, 0), (1 / 16, 1, 2), (1 / 8, 2, 5), (0.3, 6, 12)]
)
def test_a_crop_is_shifted_as_far_as_it_may(shift: float, down: int, across: int) -> None:
    """A bright pixel in the middle of 20 x 40 pixels is found in every place within reach, and nowhere else."""
    x = torch.zeros(2000, 1, 20, 40)
    x[:, :, 10, 20] = 1
    _, _, rows, columns = random_crop_flip(x, rng(), mirror=False, shift=shift).nonzero().T
    assert sorted(set(rows.tolist())) == [*range(10 - down, 10 + down + 1)]
    assert sorted(set(columns.tolist())) == [*range(20 - across, 20 + across + 1)]


@pytest.mark.parametrize(("shift", "most"), [(0, 0), (1 / 16, 2), (1 / 8, 4)])
def test_katana_shifts_by_whole_pixels_as_far_as_it_may(shift: float, most: int) -> None:
    x = torch.zeros(400, 1, 33, 33)
    x[..., 16] = 1
    view = katana(x, rng(), clean=True, mirror=False, turn=False, shift=shift)
    places = view.mean(dim=(1, 2)).argmax(dim=1) - 16
    assert sorted(set(places.tolist())) == [*range(-most, most + 1)]


def test_augmix_shifts_within_the_crop_where_less_is_allowed_than_an_eighth() -> None:
    x = torch.zeros(300, 1, 60, 60)
    x[..., 30] = 1
    keeps = partial(augmix, mirror=False, turn=False, colour=False)

    def furthest(shift: float) -> int:
        lit = (keeps(x, rng(), shift=shift)[:, 0, 30] > 0.05).nonzero()[:, 1] - 30
        return int(lit.abs().max())

    assert furthest(0) == 0
    assert furthest(1 / 20) == 3
    assert furthest(1 / 8) > 7


def test_what_is_left_out_is_what_the_model_forbids() -> None:
    strict = declaring(mirror=False, turn=False, colour=False)
    expected = {
        random_crop_flip: {"mirror": False},
        katana: {"mirror": False, "turn": False, "colour": False},
        simclr: {"mirror": False, "colour": False},
        augmix: {"mirror": False, "turn": False, "colour": False},
    }
    for view, flags in expected.items():
        left = preserving(view, strict)
        assert (left.func, left.keywords) == (view, flags)  # type: ignore[attr-defined]
        assert changes_of(view) == tuple(flags)
        assert changes_of(left) == ()
        assert preserving(view, declaring()) is view
    assert preserving(random_crop_flip, declaring(turn=False, colour=False)) is random_crop_flip


def test_a_view_shifts_no_further_than_the_model_declares() -> None:
    narrow = declaring(shift=1 / 16)
    for view in (random_crop_flip, katana, augmix):
        assert preserving(view, narrow).keywords == {"shift": 1 / 16}  # type: ignore[attr-defined]
        assert preserving(partial(view, shift=0.2), narrow).keywords == {"shift": 0.2}  # type: ignore[attr-defined]
        assert preserving(view, declaring(shift=1 / 4)) is view
    assert preserving(simclr, narrow) is simclr
    both = preserving(random_crop_flip, declaring(mirror=False, shift=0))
    assert both.keywords == {"mirror": False, "shift": 0}  # type: ignore[attr-defined]
    x = images()
    assert both(x, rng()).equal(x)


def test_keywords_that_were_given_and_own_functions_stay() -> None:
    strict = declaring(mirror=False, turn=False)
    own = lambda x, rng: x.flip(-1)  # noqa: E731
    assert preserving(own, strict) is own
    assert preserving(identity, strict) is identity
    view = preserving(partial(katana, clean=True, mirror=True), strict)
    assert view.keywords == {"clean": True, "mirror": True, "turn": False}  # type: ignore[attr-defined]
    for other in (None, 3, [katana], {}, torch.zeros(2), own, nn.ReLU()):
        assert changes_of(other) == ()


def test_an_adapter_is_saved_with_its_views(tmp_path: Path) -> None:
    model, x = load_model("digits-cnn"), torch.rand(8, 3, 32, 32, generator=rng())
    strict = Views(mirror=False, turn=False, shift=1 / 32)
    for number, make in enumerate((partial(PAFKIP, classes=10), partial(CoTTA, views=2, preserves=strict))):
        adapter = make(model)
        assert adapter.augment.keywords["mirror"] is False
        adapter(x)
        testtime.save(adapter, tmp_path / str(number))
        loaded = testtime.load(tmp_path / str(number), model)
        assert (loaded.augment.func, loaded.augment.keywords) == (  # type: ignore[attr-defined]
            adapter.augment.func,
            adapter.augment.keywords,
        )
        assert loaded(x).logits.equal(adapter(x).logits)


class Sided(nn.Module):
    """Class 1 where an image is brighter on the right, or, if not ``sided``, where it is bright at all."""

    def __init__(self, sided: bool = True, scale: float = 200.0) -> None:
        super().__init__()
        self.sided, self.scale = sided, scale
        self.norm = nn.BatchNorm2d(3).eval()

    def forward(self, x: Tensor) -> Tensor:
        right, left = x[..., 4:].mean(dim=(1, 2, 3)), x[..., :4].mean(dim=(1, 2, 3))
        y = self.scale * (right - left if self.sided else right + left - 1) + 0 * self.norm(x).mean()
        return torch.stack([-y, y], dim=1)


class Holder(nn.Module):
    """What the check takes of an adapter."""

    def __init__(self, model: nn.Module, augment: object = random_crop_flip) -> None:
        super().__init__()
        self.model, self.augment = model, augment


def warnings_of(check: MirrorCheck, adapter: nn.Module, batches: list[Tensor]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for x in batches:
            check(adapter, x)
    assert all(w.category is AdapterWarning for w in caught)
    return [str(w.message) for w in caught]


def test_contradictions_are_counted_among_confident_predictions() -> None:
    x = torch.full((4, 3, 8, 8), 0.5)
    x[0, ..., 4:], x[1, ..., 4:] = 0.8, 0.2  # the other two are as likely to be of either class
    assert contradicted(Sided(), x) == (2, 2)
    assert contradicted(Sided(sided=False), x) == (2, 0)
    assert contradicted(nn.Identity(), x) is None


def test_the_warning_comes_once_as_soon_as_the_evidence_suffices() -> None:
    x = images(3, 8, 8)
    needed = math.ceil(math.log(999) / math.log(0.45 / 0.2))  # 9 contradictions
    check, adapter = MirrorCheck(), Holder(Sided())
    assert warnings_of(check, adapter, [x] * (needed // 3 - 1)) == []
    (message,) = warnings_of(check, adapter, [x] * 5)
    assert message.startswith("Holder learns from mirrored views, and of 9 images")
    assert "changes the predicted class of 9" in message
    assert "preserves=Views(mirror=False)" in message
    assert (check.open, check.warned) == (False, True)


def test_agreement_ends_the_check_without_a_warning() -> None:
    needed = math.ceil(math.log(999) / math.log(0.8 / 0.55))  # 19 agreements
    check, adapter = MirrorCheck(), Holder(Sided(sided=False))
    x = images(1, 8, 8)
    assert warnings_of(check, adapter, [x] * (needed - 1)) == []
    assert check.open
    assert warnings_of(check, adapter, [x]) == []
    assert (check.open, check.warned, check.images) == (False, False, needed)


def test_unsure_predictions_end_the_check_at_its_limit() -> None:
    check = MirrorCheck()
    batches = [images(100, 8, 8)] * 12
    assert warnings_of(check, Holder(Sided(scale=0.1)), batches) == []
    assert (check.open, check.seen, check.images) == (False, LIMIT, 0)


@pytest.mark.parametrize("augment", [identity, partial(katana, mirror=False), lambda x, rng: x.flip(-1)])
def test_only_mirroring_views_of_the_library_are_checked(augment: object) -> None:
    check = MirrorCheck()
    assert warnings_of(check, Holder(Sided(), augment), [images(40, 8, 8)]) == []
    assert (check.open, check.seen) == (False, 0)


def test_a_declaration_silences_the_check() -> None:
    for declared in (Views(), Views(mirror=False)):
        model, check = Sided(), MirrorCheck()
        model.views = declared  # type: ignore[assignment]
        assert warnings_of(check, Holder(model), [images(40, 8, 8)]) == []
        assert (check.open, check.seen) == (False, 0)


@pytest.mark.parametrize("corruption", ["frost", "contrast"])
def test_undeclared_digits_are_warned_of_and_nothing_of_the_adapter_changes(corruption: str) -> None:
    pytest.importorskip("sklearn", reason="pip install -e '.[demo]'")
    model = load_model("digits-cnn")
    model.views = None
    x = corrupt(embedded().test.batch(range(0, 896, 2)), corruption)
    for adapter in (RoTTA(model, classes=10), CoTTA(model, views=2)):
        before, ambient = state_hash(adapter), torch.get_rng_state()
        (message,) = warnings_of(MirrorCheck(), adapter, list(x.split(64)))
        assert message.startswith(f"{type(adapter).__name__} learns from mirrored views")
        assert state_hash(adapter) == before
        assert torch.get_rng_state().equal(ambient)
    assert warnings_of(MirrorCheck(), Tent(model), [x]) == []


def test_a_call_of_an_adapter_warns_once_and_not_where_the_model_declares() -> None:
    pytest.importorskip("sklearn", reason="pip install 'testtime[demo]'")
    x = embedded().test.batch(range(448))
    model = load_model("digits-cnn")

    def told(adapter: nn.Module) -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for batch in x.split(64):
                adapter(batch)
        return [str(w.message) for w in caught]

    assert told(PAFKIP(model, classes=10)) == []
    model.views = None
    assert told(PAFKIP(model, classes=10, preserves=Views())) == []
    (message,) = told(PAFKIP(model, classes=10))
    assert message.startswith("PAFKIP learns from mirrored views")
