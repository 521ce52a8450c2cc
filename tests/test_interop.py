"""Models of other libraries as they come; each test is skipped where its library is not installed.

    pip install -e '.[interop]'     # transformers
timm needs torchvision; where that cannot be imported on a CPU-only torch, two missing operator schemas are all it lacks.
"""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import nn

from testtime.adapter import state_hash
from testtime.methods import PAFKIP, Source, Tent
from testtime.norm import batch_statistics, norm_layers

X = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class ActivatedBatchNorm(nn.BatchNorm2d):
    """A BatchNorm that also activates, as timm's BatchNormAct2d does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).relu()


def test_a_subclass_of_batch_norm_keeps_what_it_adds() -> None:
    torch.manual_seed(0)
    layer = ActivatedBatchNorm(3)
    with torch.no_grad():
        layer.running_mean.uniform_(), layer.running_var.uniform_(0.5, 2), layer.bias.uniform_(-1, 1)
    net = nn.Sequential(layer, nn.Flatten(), nn.Linear(3 * 32 * 32, 2)).eval()
    torch.testing.assert_close(Source(net)(X).logits, net(X).detach(), rtol=0, atol=1e-5)
    expected = net.train()(X).detach()
    torch.testing.assert_close(Source(net, norm=batch_statistics)(X).logits, expected, rtol=0, atol=1e-5)


def huggingface(kind: str) -> nn.Module:
    transformers = pytest.importorskip("transformers", reason="pip install -e '.[interop]'")
    torch.manual_seed(0)
    if kind == "resnet":
        config = transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=5
        )
        return transformers.ResNetForImageClassification(config).eval()
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=8,
    )
    config.num_labels = 5
    return transformers.ViTForImageClassification(config).eval()


def timm_model(name: str) -> nn.Module:
    if importlib.util.find_spec("timm") is None:
        pytest.skip(
            "timm is not installed: it needs torchvision, which does not import with every torch for CPUs"
        )
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in (
        "nms(Tensor dets, Tensor scores, float t) -> Tensor",
        "qnms(Tensor d, Tensor s, float t) -> Tensor",
    ):
        if not hasattr(torch.ops.torchvision, schema.split("(")[0]):
            library.define(schema)
    timm = pytest.importorskip("timm", exc_type=(ImportError, RuntimeError))
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=5).eval()


@pytest.mark.parametrize("make", [Tent, lambda model: PAFKIP(model, 5, margin=2.0)], ids=["tent", "paf-kip"])
@pytest.mark.parametrize(
    ("build", "name"),
    [
        (huggingface, "resnet"),
        (huggingface, "vit"),
        (timm_model, "resnet10t"),
        (timm_model, "efficientnet_b0"),
    ],
)
def test_adapts_as_it_comes(build, name, make) -> None:  # type: ignore[no-untyped-def]
    model = build(name)
    adapter = make(model)
    born = state_hash(adapter)
    y = adapter(X)
    assert y.shape == (4, 5)
    assert y.updated
    assert state_hash(adapter) != born
    adapter.reset()
    assert state_hash(adapter) == born
    output = model(X)
    logits = output if isinstance(output, torch.Tensor) else output.logits
    torch.testing.assert_close(Source(model)(X).logits, logits.detach(), rtol=1e-4, atol=1e-4)
    assert len(norm_layers(adapter.model)) == len(norm_layers(model)) > 0


def test_a_text_classifier_takes_what_its_tokenizer_returns() -> None:
    transformers = pytest.importorskip("transformers", reason="pip install -e '.[interop]'")
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32, "num_labels": 3}
    config = transformers.DistilBertConfig(
        **sizes, output_hidden_states=True
    )  # logits beside a tuple of hidden states
    model = transformers.DistilBertForSequenceClassification(config).eval()
    ids = torch.randint(1, 50, (4, 9))
    encoded = transformers.BatchEncoding({"input_ids": ids, "attention_mask": (ids > 5).long()})
    adapter = Tent(model)
    with torch.no_grad():
        torch.testing.assert_close(adapter.predict(encoded).logits, model(**encoded).logits)
    assert adapter(encoded).updated
    assert adapter.freeze()(encoded).equal(adapter.predict(encoded).logits)
    with pytest.raises(ValueError, match=r"an output of shape \(4, 9, 16\) for 4 samples; .* outputs="):
        Tent(model.distilbert)(encoded)
    hidden = Tent(model, outputs=lambda y: y.hidden_states[-1][:, 0])
    assert hidden(encoded).shape == (4, 16)
