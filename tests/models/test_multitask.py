"""The multi-task network: the paper's numbers of parameters, the fused latent, public weights, names."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from testtime.models.resnet import ResNet
from testtime.multitask import (
    Assisted,
    Depth,
    Edges,
    MultiTaskNet,
    Normals,
    PyramidEncoder,
    Segmentation,
    Synchronizer,
    multitask_resnet,
)

FOUR = {t.name: t for t in (Segmentation(tuple("abcdefg")), Depth(), Normals(), Edges())}


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_the_parameters_are_the_papers():
    net = multitask_resnet(FOUR)
    branch = Synchronizer(FOUR, 3840)
    assert count(net.encoder) == 23_508_032
    assert count(net.heads) == 3841 * 12
    assert count(net) == 23_554_124
    assert count(branch.project) == 983_296
    assert count(branch.read) == 780
    assert count(branch.embed) + branch.embed_bias.numel() == 4_194_368
    assert count(branch) - 983_296 - 780 == 4_698_432
    total = count(Assisted(net, branch))
    assert total == 29_236_632
    assert round(100 * (total / count(net) - 1), 2) == 24.13


def test_the_latent_holds_the_four_stages_on_the_grid_of_the_first():
    torch.manual_seed(0)
    encoder = PyramidEncoder(18, 4).eval()
    x = torch.rand(2, 3, 64, 48)
    z = encoder(x)
    assert z.shape == (2, 60, 16, 12) == (2, encoder.channels, 16, 12)
    stages = encoder.backbone.stages((x - encoder.mean) / encoder.std)
    assert torch.equal(z[:, :4], stages[0])
    expected = F.interpolate(stages[3], (16, 12), mode="bilinear", align_corners=False)
    assert torch.equal(z[:, 28:], expected)


def test_public_weights_are_taken_and_wrong_ones_refused(tmp_path):
    torch.manual_seed(1)
    public = ResNet(18, 10, 8)
    save_file({f"module.{k}": v for k, v in public.state_dict().items()}, tmp_path / "resnet18.safetensors")
    encoder = PyramidEncoder(18, 8)
    encoder.load_imagenet(tmp_path / "resnet18.safetensors")
    for name, value in encoder.backbone.state_dict().items():
        assert torch.equal(value, public.state_dict()[name]), name
    with pytest.raises(ValueError, match="do not fit"):
        PyramidEncoder(18, 4).load_imagenet(tmp_path / "resnet18.safetensors")


def test_outputs_have_the_size_of_the_image_and_any_encoder_serves():
    tasks = {"depth": Depth(), "edge": Edges()}
    net = MultiTaskNet(nn.Conv2d(3, 6, 3, 4, 1), {k: nn.Conv2d(6, 1, 1) for k in tasks}, tasks)
    y = net(torch.rand(2, 3, 30, 22))
    assert {k: tuple(v.shape) for k, v in y.items()} == {"depth": (2, 1, 30, 22), "edge": (2, 1, 30, 22)}
    with pytest.raises(ValueError, match="keyed by the same names"):
        MultiTaskNet(nn.Identity(), {"depth": nn.Identity()}, tasks)
