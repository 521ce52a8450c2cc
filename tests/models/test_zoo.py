import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from testtime.data import embedded
from testtime.models import MODELS, Preprocessed, build_model, load_model, model_card, source_digits
from testtime.models.zoo import PACKAGED


@pytest.mark.parametrize("name", MODELS)
def test_every_card_builds_a_network_of_its_classes(name: str) -> None:
    card = model_card(name)
    with torch.device("meta"):
        network = card.build()
    heads = [module for module in network.modules() if isinstance(module, nn.Linear)]
    assert [head.out_features for head in heads] == [card.classes]
    assert 0 < card.accuracy < 100
    assert card.licence
    assert card.origin
    assert min(card.std) > 0


def test_robustbench_networks_take_their_own_normalisation() -> None:
    assert model_card("cifar10-wrn40-2-augmix").mean == (0.5, 0.5, 0.5)
    assert model_card("cifar10-wrn28-10").std == (1.0, 1.0, 1.0)


def test_unknown_names_are_refused_with_the_known() -> None:
    with pytest.raises(ValueError, match="did you mean 'cifar10-resnet20'.*; there are cifar10-resnet20, "):
        load_model("resnet-20")


def test_a_model_without_a_path_says_where_its_weights_are() -> None:
    with pytest.raises(ValueError, match=r"akamaster.*BSD-2-Clause.*testtime\.models\.convert"):
        load_model("cifar10-resnet20")


def test_weights_written_by_the_library_come_back(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    model = build_model("cifar10-resnet20").eval()
    save_file(model.state_dict(), tmp_path / "wrapped.safetensors")  # keys "model.conv1.weight", ...
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(load_model("cifar10-resnet20", tmp_path / "wrapped.safetensors")(x), model(x))


def test_the_digits_model_is_small_has_batchnorm_and_a_linear_head() -> None:
    model = source_digits()
    assert isinstance(model, Preprocessed)
    assert (PACKAGED / "digits_cnn.safetensors").stat().st_size < 300_000
    assert sum(isinstance(m, nn.BatchNorm2d) for m in model.modules()) == 3
    assert isinstance(list(model.modules())[-1], nn.Linear)
    assert not model.training


def test_the_digits_model_is_right_on_clean_images_suffers_and_recovers() -> None:
    test = embedded().test
    x, y = test.batch(range(len(test))), test.targets(range(len(test)))
    mean = x.mean((2, 3), keepdim=True)
    brighter, flatter = (x + 0.5).clamp(0, 1), (x - mean) * 0.4 + mean
    model = source_digits()

    def accuracy(images: torch.Tensor) -> float:
        with torch.no_grad():
            right = [
                (model(a).argmax(1) == b).sum() for a, b in zip(images.split(100), y.split(100), strict=True)
            ]
        return 100 * torch.stack(right).sum().item() / len(y)

    assert accuracy(x) == pytest.approx(98.33, abs=0.2)
    assert accuracy(brighter) < 20
    assert accuracy(flatter) < 30
    model.train()  # batch statistics
    assert accuracy(brighter) > 85
    assert accuracy(flatter) > 85


def test_loading_reads_no_pickle() -> None:
    code = """
import sys
seen = []
sys.addaudithook(lambda event, args: seen.append(args) if event == "pickle.find_class" else None)
from testtime.models import load_model
load_model("digits-cnn")
assert not seen, seen
assert "testtime.models.convert" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
