"""corrupt: the contract that all 19 corruptions share."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_image

from testtime.corruptions import CONSTANTS, CORRUPTIONS, EXTRA, corrupt
from testtime.corruptions.filters import to_8_bits

ALL = CORRUPTIONS + EXTRA
FROST = Path(__file__).parents[2].parent / "shared" / "data" / "frost"
RANDOM = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "glass_blur",
    "motion_blur",
    "snow",
    "frost",
    "fog",
    "elastic_transform",
    "speckle_noise",
    "spatter",
)


def photographs(size: int, count: int = 6) -> torch.Tensor:
    """(count, 3, size, size): crops of two photographs, for size 32 averaged over 4 x 4 pixels."""
    shrink = 4 if size < 100 else 1
    side = size * shrink
    crops = []
    for i in range(count):
        photo = load_sample_image(("china.jpg", "flower.jpg")[i % 2])
        top, left = 29 * i % (427 - side), 83 * i % (640 - side)
        crop = photo[top : top + side, left : left + side].reshape(size, shrink, size, shrink, 3).mean((1, 3))
        crops.append(crop.round())
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 255


def test_names_are_in_the_published_order() -> None:
    first = (
        "gaussian_noise shot_noise impulse_noise defocus_blur glass_blur motion_blur zoom_blur snow frost fog"
    )
    then = "brightness contrast elastic_transform pixelate jpeg_compression"
    extra = "speckle_noise gaussian_blur spatter saturate"
    assert (*first.split(), *then.split()) == CORRUPTIONS
    assert tuple(extra.split()) == EXTRA
    for table in CONSTANTS.values():
        assert set(table) == set(ALL)
        assert {len(row) for row in table.values()} == {5}


@pytest.mark.parametrize("name", ALL)
def test_an_image_does_not_depend_on_its_batch(name: str) -> None:
    x = photographs(32)
    seeds = torch.tensor([5, -3, 2**40, 7, 5, 0])
    together = corrupt(x, name, 4, seeds=seeds)
    order = [3, 0, 5, 1]
    shuffled = corrupt(x[order], name, 4, seeds=seeds[order])
    alone = torch.cat([corrupt(x[i : i + 1], name, 4, seeds=[int(seeds[i])]) for i in order])
    # sums may run in another order in another batch: then a value on the edge of a level moves by one level
    for other in (shuffled, alone):
        off = (together[order] - other).abs() * 255
        assert off.max() <= 1.001
        assert (off > 0.5).float().mean() < 0.002
    assert torch.equal(together, corrupt(x, name, 4, seeds=seeds))


@pytest.mark.parametrize("name", RANDOM)
def test_seeds_decide(name: str) -> None:
    x = photographs(32, 2)[:1].expand(2, -1, -1, -1)
    y = corrupt(x, name, 5, seeds=[1, 2])
    assert not torch.equal(y[0], y[1])
    same = corrupt(x, name, 5, seeds=[3, 3])
    assert torch.equal(same[0], same[1])
    assert torch.equal(corrupt(x, name, 5), corrupt(x, name, 5, seeds=[0, 1]))


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    for name in ALL:
        corrupt(photographs(32, 1), name)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("constants", ["cifar", "imagenet"])
@pytest.mark.parametrize("name", ALL)
def test_the_result_is_8_bit_and_leaves_x_as_it_was(name: str, constants: str) -> None:
    x = photographs(32 if constants == "cifar" else 224, 2)
    kept = x.clone()
    y = corrupt(x, name, 5, constants=constants)  # type: ignore[arg-type]
    assert torch.equal(x, kept)
    assert y.shape == x.shape
    assert y.dtype == x.dtype
    assert 0 <= y.min() < y.max() <= 1
    levels = y.double() * 255
    assert (levels - levels.round()).abs().max() < 1e-4
    assert not torch.equal(y, x)


@pytest.mark.parametrize("name", ALL)
def test_unquantised_truncates_to_the_quantised(name: str) -> None:
    x = photographs(32, 3)
    fine = corrupt(x, name, 3, quantise=False)
    assert torch.equal(to_8_bits(fine), corrupt(x, name, 3))
    if name in ("gaussian_noise", "fog", "contrast", "zoom_blur"):
        assert not torch.equal(fine, to_8_bits(fine))


@pytest.mark.parametrize("name", ALL)
def test_uint8_images_give_the_same_levels(name: str) -> None:
    x = torch.cat([photographs(224, 1)[:, :, :96, :72]] * 2)
    kept = (x * 255).round().to(torch.uint8)
    y = corrupt(kept, name, 4)
    assert y.dtype == torch.uint8
    assert torch.equal(y, (corrupt(x, name, 4) * 255).round().to(torch.uint8))
    assert torch.equal(kept, (x * 255).round().to(torch.uint8))


def test_parts_of_a_batch_are_done_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    x = photographs(32, 5)
    for name in ("shot_noise", "brightness", "pixelate"):
        whole = corrupt(x, name)
        monkeypatch.setattr("testtime.corruptions.PART", 2 * 3 * 32 * 32 + 1)
        assert torch.equal(corrupt(x, name), whole)
        monkeypatch.undo()


def changes(x: torch.Tensor, name: str, constants: str) -> list[float]:
    """Mean absolute change at severities 1 to 5."""
    kind = {"constants": constants}
    return [(corrupt(x, name, s, **kind) - x).abs().mean().item() for s in range(1, 6)]  # type: ignore[arg-type]


# The published constants do not all grow: water comes before mud (spatter), a weaker saturation before a
# stronger one (saturate), and the elastic transform changes kind with its severity.
@pytest.mark.parametrize("constants", ["cifar", "imagenet"])
@pytest.mark.parametrize(
    "name", [n for n in ALL if n not in ("spatter", "saturate", "elastic_transform", "snow")]
)
def test_the_change_grows_with_severity(name: str, constants: str) -> None:
    x = photographs(32, 6) if constants == "cifar" else photographs(224, 2)
    change = changes(x, name, constants)
    if name in ("glass_blur", "frost") or (name, constants) == ("defocus_blur", "cifar"):
        assert change[4] > 1.3 * change[0]  # neighbours may cross, as their constants do
    else:
        assert change == sorted(change)
        assert change[4] > 1.2 * change[0]


@pytest.mark.parametrize("constants", ["cifar", "imagenet"])
@pytest.mark.parametrize("name", ["spatter", "saturate", "elastic_transform", "snow"])
def test_every_severity_changes_the_image(name: str, constants: str) -> None:
    x = photographs(32, 6) if constants == "cifar" else photographs(224, 2)
    change = changes(x, name, constants)
    assert min(change) > 0.003
    assert change[4] > 0.02


@pytest.mark.parametrize("name", ALL)
def test_images_that_are_not_square(name: str) -> None:
    x = torch.cat([photographs(224, 1)[:, :, :96, :160]] * 2)
    y = corrupt(x, name, 5)
    assert y.shape == (2, 3, 96, 160)
    assert torch.isfinite(y).all()


def test_auto_takes_the_constants_by_the_smaller_side() -> None:
    small, large = photographs(224, 1)[..., :64, :64], photographs(224, 1)[..., :65, :65]
    assert torch.equal(corrupt(small, "contrast"), corrupt(small, "contrast", constants="cifar"))
    assert torch.equal(corrupt(large, "contrast"), corrupt(large, "contrast", constants="imagenet"))
    assert not torch.equal(corrupt(large, "contrast"), corrupt(large, "contrast", constants="cifar"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_type_is_kept(dtype: torch.dtype) -> None:
    y = corrupt(photographs(32, 2).to(dtype), "brightness", 5)
    assert y.dtype == dtype
    assert (y.float() - corrupt(photographs(32, 2), "brightness", 5)).abs().max() < 0.02


def test_an_empty_batch_stays_empty() -> None:
    assert corrupt(torch.zeros(0, 3, 32, 32), "fog").shape == (0, 3, 32, 32)


def test_errors_say_what_was_expected() -> None:
    x = photographs(32, 2)
    with pytest.raises(
        ValueError,
        match=r"unknown corruption 'fogg' \(did you mean 'fog'\?\); there are gaussian_noise, .*saturate",
    ):
        corrupt(x, "fogg")
    for severity in (0, 6, 2.5):
        with pytest.raises(ValueError, match="severity of 1, 2, 3, 4 or 5"):
            corrupt(x, "fog", severity)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="constants 'cifar', 'imagenet' or 'auto', got 'tiny'"):
        corrupt(x, "fog", constants="tiny")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"uint8 or a floating-point tensor in \[0, 1\], got torch.int64"):
        corrupt((x * 255).long(), "fog")
    with pytest.raises(TypeError, match="got ndarray"):
        corrupt(x.numpy(), "fog")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"shape \(N, 3, H, W\), got \(3, 32, 32\)"):
        corrupt(x[0], "fog")
    with pytest.raises(ValueError, match=r"values from 0 to 255"):
        corrupt(torch.tensor([0.0, 255.0]).view(2, 1, 1, 1).expand(2, 3, 32, 32), "fog")
    with pytest.raises(ValueError, match="nan"):
        corrupt(x * torch.nan, "fog")
    with pytest.raises(ValueError, match=r"one seed for each of 2 images, got \(3,\)"):
        corrupt(x, "fog", seeds=[1, 2, 3])
    with pytest.raises(TypeError, match=r"integer seeds, got torch.float32"):
        corrupt(x, "fog", seeds=[1.0, 2.0])  # type: ignore[list-item]
    with pytest.raises(FileNotFoundError, match=r"frost1.png or frost1.jpg"):
        corrupt(x, "frost", frost=Path(__file__).parent)


@pytest.mark.shared
@pytest.mark.skipif(not FROST.is_dir(), reason="the original frost textures are not beside the checkout")
@pytest.mark.parametrize("size", [32, 224])
def test_frost_with_the_original_textures(size: int) -> None:
    from PIL import Image

    x = torch.zeros(6, 3, size, size)
    y = corrupt(x, "frost", 2, frost=FROST, quantise=False) / (0.3 if size == 32 else 0.6)
    levels = y * 255
    assert (levels - levels.round()).abs().max() < 1e-3
    means = []
    for number in range(1, 6):
        picture = np.asarray(Image.open(FROST / f"frost{number}.jpg").convert("RGB")) / 255
        means.append(picture.mean((0, 1)))
    for crop in y:  # the colour of a crop is near that of one of the five textures
        colour = crop.mean((1, 2)).numpy()
        assert min(np.abs(colour - mean).max() for mean in means) < 0.2
    assert len({round(float(v), 3) for v in y.mean((1, 2, 3))}) == 6


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ALL)
def test_the_gpu_gives_the_same_images(name: str) -> None:
    x = photographs(32)
    off = (corrupt(x, name) - corrupt(x.cuda(), name).cpu()).abs() * 255
    assert (off > 0.5).float().mean() < 0.01


def test_images_too_small_for_a_corruption_are_refused_or_done() -> None:
    assert corrupt(torch.rand(1, 3, 1, 30), "pixelate", 5).shape == (1, 3, 1, 30)
    with pytest.raises(ValueError, match="expected images of more than 10 x 10 pixels"):
        corrupt(torch.rand(1, 3, 8, 9), "defocus_blur", 5, constants="imagenet")


def test_the_constants_of_a_wide_image_are_those_of_its_height_and_the_argument_decides() -> None:
    wide = photographs(224, 1)[..., :32, :]
    for image in (wide, wide.mT.contiguous()):
        assert torch.equal(corrupt(image, "contrast"), corrupt(image, "contrast", constants="cifar"))
        assert not torch.equal(corrupt(image, "contrast"), corrupt(image, "contrast", constants="imagenet"))
