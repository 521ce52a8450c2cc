"""Models that return logits for each pixel are known before they are run, and only where that is certain."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import testtime
from testtime.intake.dense import is_dense
from testtime.intake.outputs import Logits
from testtime.methods import MEMO, PAFKIP, BNAdapt, CoTTA, DeYO, Source, Tent
from testtime.models import normalised

X = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def body(*more: nn.Module) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), *more)


def head() -> nn.Conv2d:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Conv2d(6, 5, 1)


class PooledConvolution(nn.Conv2d):
    """A convolution that is a classifier."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).mean(dim=(2, 3))


class Pooled(nn.Sequential):
    """A sequence that is a classifier."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).mean(dim=(2, 3))


class Around(nn.Module):
    """A model around a dense one."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).mean(dim=(2, 3))


def hooked() -> nn.Module:
    model = body(head())
    model[-1].register_forward_hook(lambda module, args, y: y.mean(dim=(2, 3)))
    return model


DENSE: dict[str, Callable[[], nn.Module]] = {
    "convolution": lambda: body(head()),
    "transposed convolution": lambda: body(nn.ConvTranspose2d(6, 5, 2, stride=2)),
    "upsampling": lambda: body(head(), nn.Upsample(scale_factor=2, mode="bilinear"), nn.Dropout(0.1)),
    "pixel shuffle": lambda: body(nn.Conv2d(6, 20, 1), nn.PixelShuffle(2)),
    "nested": lambda: nn.Sequential(body(), nn.Sequential(head(), nn.Identity())),
    "parametrised": lambda: body(nn.utils.parametrizations.weight_norm(head())),
    "normalised": lambda: normalised(body(head()), [0.5] * 3, [0.5] * 3),
    "DataParallel": lambda: nn.DataParallel(body(head())),
    "pooled to one pixel": lambda: body(nn.AdaptiveAvgPool2d(1), head()),
}
CLASSIFIERS: dict[str, Callable[[], nn.Module]] = {
    "flattened": lambda: body(head(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    "linear": lambda: body(nn.Flatten(), nn.Linear(384, 5)),
    "convolution with its own forward": lambda: body(PooledConvolution(6, 5, 1)),
    "sequence with its own forward": lambda: Pooled(body(head())),
    "model around": lambda: Around(body(head())),
    "hook": hooked,
}


@pytest.mark.parametrize("name", DENSE)
def test_dense_models_are_refused_at_construction(name: str) -> None:
    with pytest.raises(ValueError, match=r"MEMO works on logits \(N, C\), .* returns logits for each pixel"):
        MEMO(DENSE[name]())
    for make in (lambda m: DeYO(m, 5), lambda m: PAFKIP(m, 5), lambda m: testtime.adapt(m, "memo")):
        with pytest.raises(ValueError, match=r"methods that take \(N, C, H, W\) are Source, BNAdapt, Tent"):
            make(DENSE[name]())


@pytest.mark.parametrize("name", DENSE)
def test_methods_for_pixels_take_them(name: str) -> None:
    for method in (Source, Tent, BNAdapt, CoTTA):
        assert method(DENSE[name]())(X).dim() == 4


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers_are_not_refused(name: str) -> None:
    assert MEMO(CLASSIFIERS[name](), views=2)(X).shape == (4, 5)


def test_a_function_of_the_output_may_make_a_classifier_of_it() -> None:
    model = body(head())
    adapter = MEMO(model, views=2, outputs=lambda y: y.mean(dim=(2, 3)))
    assert adapter(X).shape == (4, 5)
    with pytest.raises(ValueError, match=r"makes \(N, C\) of its output"):
        MEMO(model, outputs=0)


@pytest.mark.parametrize("kind", ["Segformer", "UperNet"])
def test_semantic_segmentation_of_transformers(kind: str) -> None:
    transformers = pytest.importorskip("transformers", reason="pip install -e '.[interop]'")
    if kind == "Segformer":
        config = transformers.SegformerConfig(
            num_encoder_blocks=1, depths=[1], sr_ratios=[1], hidden_sizes=[8], patch_sizes=[3], strides=[2],
            num_attention_heads=[1], mlp_ratios=[1], decoder_hidden_size=8, num_labels=5,
        )  # fmt: skip
    else:
        backbone = transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic", out_features=["stage2"]
        )
        config = transformers.UperNetConfig(
            backbone_config=backbone, hidden_size=8, pool_scales=[1], use_auxiliary_head=False, num_labels=5
        )
    model = getattr(transformers, f"{kind}ForSemanticSegmentation")(config).eval()
    assert Tent(model)(torch.rand(2, 3, 32, 32)).shape[:2] == (2, 5)
    with pytest.raises(ValueError, match=f"this {kind}ForSemanticSegmentation returns logits for each pixel"):
        MEMO(model)
    with pytest.raises(ValueError, match="for each pixel"):
        MEMO(model, outputs="logits")

    class Pooling(type(model)):  # type: ignore[misc]
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).logits.mean(dim=(2, 3))

    assert not is_dense(Pooling(config))


def of(library: str, kind: type[nn.Module]) -> type[nn.Module]:
    """A class as if it were defined in a library that is not installed here."""
    kind.__module__ = library
    return kind


def test_segmentation_of_torchvision() -> None:
    """As its ``_SimpleSegmentationModel``: a dictionary with "out", and "aux" where there is a second head."""

    class _SimpleSegmentationModel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.classifier = body(), head()

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            y = 9 * F.interpolate(self.classifier(self.backbone(x)), size=x.shape[-2:])
            return OrderedDict(out=y)

    base = of("torchvision.models.segmentation._utils", _SimpleSegmentationModel)
    fcn = of("torchvision.models.segmentation.fcn", type("FCN", (base,), {}))
    for outputs in (None, "out"):
        with pytest.raises(ValueError, match="this FCN returns logits for each pixel"):
            MEMO(fcn(), outputs=outputs)
        assert Tent(fcn(), outputs=outputs)(X).shape == (4, 5, 8, 8)
    own = type("Own", (base,), {"forward": lambda self, x: 9 * self.backbone(x).mean(dim=(2, 3))})
    assert MEMO(own(), views=2)(X).shape == (4, 6)


@pytest.mark.parametrize("classifies", [False, True])
def test_segmentation_models_pytorch(classifies: bool) -> None:
    """As its ``SegmentationModel``: masks, and labels beside them where there is a classification head."""

    class SegmentationModel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.segmentation_head = body(), head()
            pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))
            self.classification_head = pooled if classifies else None

        def forward(self, x: Tensor) -> Any:
            z = self.encoder(x)
            masks = self.segmentation_head(z)
            return masks if self.classification_head is None else (masks, self.classification_head(z))

    unet = of("segmentation_models_pytorch.base.model", SegmentationModel)()
    assert is_dense(unet) == (not classifies)
    if classifies:
        assert MEMO(unet, views=2, outputs=1)(X).shape == (4, 3)
    else:
        with pytest.raises(ValueError, match="for each pixel"):
            MEMO(unet)


def test_a_model_without_layers_is_nothing_certain() -> None:
    assert not is_dense(nn.Sequential())
    assert not is_dense(nn.Sequential(nn.Identity()))
    assert not is_dense(Logits(nn.Identity()))
