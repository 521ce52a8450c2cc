"""Source models by one word: named ones, files of any number of classes, own functions, and models of other libraries."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from testtime.data import sha256_of
from testtime.errors import DataError, WeightsError
from testtime.files import write_tensors
from testtime.models import ResNet, Views, load_model, open_model, resnet20
from testtime.models.opened import find_weights

X = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_a_named_model_is_the_library_s() -> None:
    found = open_model("digits-cnn")
    assert (found.name, found.classes, found.side, found.digest) == ("digits-cnn", 10, 32, "packaged")
    assert found.views == Views(mirror=False, shift=1 / 16)
    assert torch.equal(found.model(X), load_model("digits-cnn")(X))


def test_weights_are_found_by_the_name_of_the_model(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"cifar10_resnet20\.safetensors: no weights of cifar10-resnet20 there"
    ):
        find_weights("cifar10-resnet20", tmp_path)
    path = write_tensors(tmp_path / "weights" / "cifar10_resnet20.safetensors", resnet20().state_dict())
    assert find_weights("cifar10-resnet20", tmp_path) == path
    assert find_weights("digits-cnn", tmp_path) is None
    small = tmp_path / "imagenet_mobilenetv1_x0.25.safetensors"  # as it is published
    small.write_bytes(b"")
    assert find_weights("imagenet-mobilenet-x0.25", tmp_path) == small
    assert open_model("cifar10-resnet20", tmp_path).digest == sha256_of(path)


def test_a_file_has_the_architecture_whose_tensors_it_holds_and_its_own_number_of_classes(
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    for net, side in ((resnet20(7), 32), (ResNet(18, 5), 224)):
        path = write_tensors(
            tmp_path / "mine.safetensors", {f"module.{k}": v for k, v in net.state_dict().items()}
        )
        found = open_model(str(path))
        assert (found.name, found.classes, found.side) == (
            "mine",
            net.fc.out_features if side == 224 else 7,
            side,
        )
        mean, std = found.model.mean, found.model.std
        torch.testing.assert_close(found.model(X), net.eval()((X - mean) / std), rtol=0, atol=0)
        assert not found.model.training
    np.savez(tmp_path / "as_arrays.npz", **{k: v.numpy() for k, v in resnet20(3).state_dict().items()})
    assert open_model(str(tmp_path / "as_arrays.npz")).classes == 3


def test_what_no_architecture_fits_says_what_to_do(tmp_path: Path) -> None:
    path = write_tensors(tmp_path / "other.safetensors", nn.Linear(3, 2).state_dict())
    with pytest.raises(
        WeightsError, match="of no architecture of this library .*name it as package.module:function"
    ):
        open_model(str(path))
    with pytest.raises(
        ValueError, match=r"no model 'digit-cnn' \(did you mean 'digits-cnn'\?\).*; expected a name of"
    ):
        open_model("digit-cnn")
    with pytest.raises(WeightsError, match=r"mine.pth: no such file"):
        open_model(str(tmp_path / "mine.pth"))


def test_an_own_function_makes_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_networks.py").write_text(
        "from torch import nn\n"
        "def small():\n"
        "    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))\n"
        "    net.image_size = 2\n"
        "    return net\n"
        "number = int\n"
        "def broken():\n"
        "    raise RuntimeError('no weights')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    found = open_model("my_networks:small")
    assert (found.name, found.classes, found.side, len(found.digest)) == ("small", 4, 2, 64)
    with pytest.raises(ValueError, match=r"my_networks:number\(\) returned int, expected a torch.nn.Module"):
        open_model("my_networks:number")
    message = r"my_networks:broken\(\) fails with RuntimeError: no weights \(.*my_networks.py, line 8\)"
    with pytest.raises(ValueError, match=message):
        open_model("my_networks:broken")
    with pytest.raises(
        ImportError, match="no_such:thing cannot be imported .*; expected a name of this library"
    ):
        open_model("no_such:thing")


def test_a_model_of_transformers_is_read_with_its_normalisation(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="pip install -e '.[interop]'")
    torch.manual_seed(0)
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=5)
    net = transformers.ResNetForImageClassification(config).eval()
    net.save_pretrained(tmp_path / "tiny")
    processor = transformers.ViTImageProcessor(
        size={"height": 32, "width": 32}, image_mean=[0.1] * 3, image_std=[0.5] * 3
    )
    processor.save_pretrained(tmp_path / "tiny")
    found = open_model(f"hf:{tmp_path / 'tiny'}")
    assert (found.name, found.classes, found.side) == ("tiny", 5, 32)
    torch.testing.assert_close(found.model(X), net((X - 0.1) / 0.5).logits, rtol=0, atol=1e-6)


@pytest.mark.skipif(importlib.util.find_spec("timm") is not None, reason="timm is installed")
def test_a_missing_library_is_named_with_the_command_that_installs_it() -> None:
    with pytest.raises(
        ImportError, match="timm:resnet18 needs the package timm: pip install timm torchvision"
    ):
        open_model("timm:resnet18")
