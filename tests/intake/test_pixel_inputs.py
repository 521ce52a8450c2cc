"""What an engineer with a segmentation net may get wrong, and what is said: no message leaves the way out open."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from testtime.methods import EATA, OSTTA, STAMP, T3A, CoTTA, DeYO, EcoTTA, RoTTA, Tent
from testtime.source.ecotta import train_meta

CLASSES = 5


class Net(nn.Module):
    """A segmenter of which a test spoils the output."""

    def __init__(self, classes: int = CLASSES, stride: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, stride, 1), nn.BatchNorm2d(6), nn.ReLU())
        self.head = nn.Conv2d(6, classes, 1)
        with torch.no_grad():
            self.head.weight.mul_(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class Spoiled(Net):
    def __init__(self, spoil: object, classes: int = CLASSES) -> None:
        super().__init__(classes)
        self.spoil = spoil

    def forward(self, x: Tensor) -> Tensor:
        return self.spoil(super().forward(x))  # type: ignore[operator]


def images(n: int = 4, height: int = 12, width: int = 20) -> Tensor:
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(n))


METHODS = {
    "tent": Tent,
    "cotta": lambda m: CoTTA(m, scales=(0.5, 1.0)),
    "ostta": OSTTA,
    "eata": lambda m: EATA(m, CLASSES, margin=0.9, fisher_alpha=0),
}
every_method = pytest.mark.parametrize("make", METHODS.values(), ids=METHODS)


@every_method
@pytest.mark.parametrize("size", [(1, 12, 20), (2, 9, 7), (3, 1, 5)], ids=str)
def test_one_image_and_any_size_are_taken(make, size) -> None:
    y = make(Net())(images(*size))
    assert y.shape == (size[0], CLASSES, *size[1:])
    assert y.valid.all()
    assert y.updated
    assert y.score.shape == (size[0], *size[1:])


@every_method
def test_logits_of_a_fraction_of_the_image_stay_so(make) -> None:
    y = make(Net(stride=4))(images(2, 16, 24))
    assert y.shape == (2, CLASSES, 4, 6)
    assert y.updated


@every_method
def test_an_image_with_nan_is_left_out_and_its_neighbours_are_as_without_it(make) -> None:
    clean, dirty = images(), images()
    dirty = torch.cat([dirty[:1], dirty])
    dirty[0, 1, 3, 3] = torch.nan
    y, z = make(Net())(dirty), make(Net())(clean)
    assert y.valid.tolist() == [False, True, True, True, True]
    assert torch.equal(y.logits[1:], z.logits)
    assert y.logits[0].isnan().all()


@every_method
def test_a_pixel_of_nan_in_the_logits_makes_its_image_invalid_and_the_step_undone(make) -> None:
    def spoil(z: Tensor) -> Tensor:
        hole = torch.zeros_like(z)
        hole[1, :, 2, 2] = torch.nan
        return z + hole

    y = make(Spoiled(spoil))(images())
    assert y.valid.tolist() == [True, False, True, True]
    assert not y.updated
    assert y.failed


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda z: z.flatten(2), r"shape \(4, 5, 240\) for 4 samples.*\(N, C\) or \(N, C, H, W\); outputs="),
        (lambda z: z.argmax(1), "returned torch.int64"),
        (lambda z: z[:, :1], "a softmax needs two classes at least"),
        (lambda z: z.softmax(1), "returned probabilities"),
        (lambda z: z.movedim(1, -1), "was built with classes=5; pass classes=12"),
        (lambda z: (z, z[:, :, ::2]), r"not clear which part the logits are.*outputs=0"),
    ],
    ids=["pixels in a row", "labels", "one class", "probabilities", "channels last", "auxiliary head"],
)
def test_outputs_that_are_no_logits_of_pixels_are_refused(spoil, says) -> None:
    adapter = EATA(Spoiled(spoil), CLASSES, fisher_alpha=0)
    with pytest.raises((TypeError, ValueError), match=says):
        adapter(images())


def test_outputs_chooses_the_head() -> None:
    y = CoTTA(Spoiled(lambda z: {"out": z, "aux": -z}), outputs="out", scales=(1.0,))(images())
    assert y.shape == (4, CLASSES, 12, 20)


def test_labels_are_neither_needed_nor_taken() -> None:
    adapter, labels = Tent(Net()), torch.zeros(4, 12, 20, dtype=torch.long)
    with pytest.raises(TypeError, match=r"expected a batch of images as a torch.Tensor .* got tuple"):
        adapter((images(), labels))
    with pytest.raises(TypeError, match="give the images alone"):
        EcoTTA(Net()).prepare([(images(), labels)])
    with pytest.raises(TypeError, match="uint8: x / 255"):
        adapter((images() * 255).byte())
    with pytest.raises(ValueError, match=r"expected \[0, 1\]|pass input_range"):
        CoTTA(Net(), input_range=(0, 1))(255 * images())


def test_one_image_without_a_batch_dimension_is_refused() -> None:
    with pytest.raises(ValueError, match="x\\[None\\]"):
        CoTTA(Net())(images()[0])


@pytest.mark.parametrize("cls", [DeYO, STAMP, RoTTA, T3A], ids=lambda c: c.__name__)
def test_methods_for_classifiers_refuse_by_name_and_say_what_to_use(cls) -> None:
    net = Net()
    net.unused = nn.Linear(2, CLASSES)  # a linear layer, so that the first batch shows what it is
    says = rf"{cls.__name__} works on logits \(N, C\); methods that take \(N, C, H, W\) are .*CoTTA, OSTTA"
    with pytest.raises(ValueError, match=says):
        (cls(net) if cls is T3A else cls(net, CLASSES))(images(16))


def test_the_split_of_unient_is_refused_for_pixels() -> None:
    class WithVector(Net):
        def __init__(self) -> None:
            super().__init__()
            self.vector = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            whole = self.vector(self.body(x).mean((2, 3)))[..., None, None]
            return self.head(whole + self.body(x))

    with pytest.raises(ValueError, match="pass criterion='ent'"):
        OSTTA(WithVector(), criterion="ent_ind")(images())


def test_a_net_of_one_size_is_told_to_pass_scales() -> None:
    class Fixed(Net):
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[-2:] != (12, 20):
                raise ValueError("input of 12 x 20 expected")
            return super().forward(x)

    with pytest.raises(ValueError, match=r"does not take images of 6 x 10 pixels.*scales=\(1.0,\)"):
        CoTTA(Fixed())(images())
    assert CoTTA(Fixed(), scales=(1.0,))(images()).updated


@pytest.mark.parametrize("scales", [(), (0.0, 1.0)])
def test_scales_are_checked_at_construction(scales) -> None:
    with pytest.raises(ValueError, match="scales are sizes of views"):
        CoTTA(Net(), scales=scales)


def test_labels_of_the_warm_up_may_be_ignored_but_not_unknown() -> None:
    labels = torch.randint(0, CLASSES, (4, 12, 20), generator=torch.Generator().manual_seed(0))
    labels[:, :3] = 255
    adapter = EcoTTA(train_meta(Net(), [(images(), labels)], passes=1, title=None), margin=0.9)
    assert adapter(images()).updated
    labels[0, 5, 5] = CLASSES
    with pytest.raises(ValueError, match="label 5 is none of the 5 classes and not ignored"):
        train_meta(Net(), [(images(), labels)], passes=1, title=None)
