"""Encoders of other libraries: their features, how they learn, and how they are named."""

import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from testtime.data import DenseSet, Sample
from testtime.space.foreign import HuggingFaceEncoder, TimmEncoder, named_encoder
from testtime.space.segmenter import ConvNeXtHead, Segmenter
from testtime.space.transfer import TransferRecipe, parameter_groups, transfer

RECIPE = TransferRecipe(epochs=8, batch=4, lr=3e-3, every=5, drop_path=0.3, scale=(1.0, 1.5))


class Halves(DenseSet):
    """Bright right and dark left."""

    name, tasks, classes = "halves", ("semseg",), ("dark", "bright", "near")

    def __len__(self):
        return 8

    def __getitem__(self, index):
        bright = torch.zeros(16, 16)
        bright[:, 4 * (1 + index % 3) :] = 1
        return Sample((0.2 + 0.6 * bright).expand(3, -1, -1), {"semseg": bright.long()}, str(index))


@pytest.mark.parametrize("kind", ["ViT", "Dinov2WithRegisters"])
def test_a_transformer_of_hugging_face_as_it_comes(kind, tmp_path):
    transformers = pytest.importorskip("transformers", reason="pip install -e '.[interop]'")
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        hidden_size=12, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=4
    )
    model = getattr(transformers, f"{kind}Model")(config)
    encoder = HuggingFaceEncoder(model, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)).eval()
    assert (encoder.dim, encoder.grid, encoder.size, len(encoder.blocks)) == (12, (4, 4), (16, 16), 2)
    x = torch.rand(2, 3, 16, 16)
    y = (x - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    with torch.no_grad():
        hidden = model.eval()(pixel_values=y).last_hidden_state
        assert hidden.shape[1] == {"ViT": 17, "Dinov2WithRegisters": 21}[kind]
        torch.testing.assert_close(encoder(x), hidden[:, -16:])
    segmenter = Segmenter(encoder, ConvNeXtHead(12, (4, 4), 3, 8, 2, 1))
    groups = parameter_groups(segmenter, RECIPE)
    scales = {name: g["scale"] for g in groups for name in g["names"]}
    assert set(scales) == {name for name, _ in segmenter.named_parameters()}
    assert {round(s, 6) for n, s in scales.items() if "embeddings" in n} == {round(0.75**3, 6)}
    assert {round(s, 6) for n, s in scales.items() if ".0.attention" in n} == {round(0.75**2, 6)}
    assert {s for n, s in scales.items() if n.startswith(("encoder.model.layernorm", "head"))} == {1.0}
    transfer(segmenter, Halves(), TransferRecipe(epochs=2, batch=4, drop_path=0.5), tmp_path)
    with pytest.raises(ValueError, match="expected a vision transformer"):
        HuggingFaceEncoder(transformers.ResNetModel(transformers.ResNetConfig()), (0, 0, 0), (1, 1, 1))


class Timm(nn.Module):
    """What timm's VisionTransformer promises, and no more."""

    def __init__(self):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, 12, 4, 4)
        self.patch_embed.img_size, self.patch_embed.grid_size = (16, 16), (4, 4)
        self.blocks = nn.Sequential(nn.Linear(12, 12), nn.Linear(12, 12))
        self.norm, self.embed_dim, self.num_prefix_tokens = nn.LayerNorm(12), 12, 2
        self.pretrained_cfg = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}

    def forward_features(self, x):
        tokens = self.patch_embed(x).flatten(2).transpose(1, 2)
        return self.norm(self.blocks(torch.cat([torch.full_like(tokens[:, :2], 9.0), tokens], 1)))


def test_a_transformer_of_timm(tmp_path):
    torch.manual_seed(0)
    model = Timm()
    encoder = TimmEncoder(model)
    assert (encoder.dim, encoder.grid, encoder.size, len(encoder.blocks)) == (12, (4, 4), (16, 16), 2)
    x = torch.rand(2, 3, 16, 16)
    y = (x - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    tokens = model.patch_embed(y).flatten(2).transpose(1, 2)
    torch.testing.assert_close(encoder(x), model.norm(model.blocks(tokens)))
    segmenter = Segmenter(encoder, ConvNeXtHead(12, (4, 4), 3, 8, 2, 1))
    scales = {name: g["scale"] for g in parameter_groups(segmenter, RECIPE) for name in g["names"]}
    assert set(scales) == {name for name, _ in segmenter.named_parameters()}
    assert round(scales["encoder.model.patch_embed.weight"], 6) == round(0.75**3, 6)
    assert round(scales["encoder.model.blocks.1.weight"], 6) == 0.75
    assert scales["encoder.model.norm.weight"] == 1.0
    transfer(segmenter, Halves(), TransferRecipe(epochs=2, batch=4, drop_path=0.5), tmp_path)
    with pytest.raises(ValueError, match="expected a vision transformer of timm, got Linear"):
        TimmEncoder(nn.Linear(2, 2))


def test_by_name(tmp_path, monkeypatch):
    asked = []
    timm = ModuleType("timm")
    timm.create_model = lambda name, **facts: asked.append((name, facts)) or Timm()
    monkeypatch.setitem(sys.modules, "timm", timm)
    assert isinstance(named_encoder("timm:vit_small_patch16_224.dino"), TimmEncoder)
    assert asked == [("vit_small_patch16_224.dino", {"pretrained": True, "num_classes": 0})]
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match="pip install timm"):
        named_encoder("timm:vit_small_patch16_224")
    for wrong in ("dinov2", "torch:x", "timm:"):
        with pytest.raises(ValueError, match="huggingface:NAME or timm:NAME"):
            named_encoder(wrong)


def test_a_folder_of_hugging_face_is_a_name(tmp_path):
    transformers = pytest.importorskip("transformers", reason="pip install -e '.[interop]'")
    config = transformers.ViTConfig(
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        image_size=16,
        patch_size=4,
    )
    model = transformers.ViTModel(config)
    model.save_pretrained(tmp_path)
    processor = transformers.ViTImageProcessor(image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 0.6, 0.7])
    processor.save_pretrained(tmp_path)
    encoder = named_encoder(f"huggingface:{tmp_path}")
    torch.testing.assert_close(encoder.mean.flatten(), torch.tensor([0.1, 0.2, 0.3]))
    torch.testing.assert_close(encoder.model.layernorm.weight, model.layernorm.weight)
