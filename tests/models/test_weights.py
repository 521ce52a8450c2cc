from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from testtime.errors import WeightsError
from testtime.models import WideResNet, load_weights, normalised, read_weights, resnet20
from testtime.models.weights import strip_prefixes


def saved(state: dict[str, Tensor], path: Path) -> Path:
    if path.suffix == ".npz":
        np.savez(path, **{key: value.numpy() for key, value in state.items()})
    else:
        save_file({key: value.contiguous() for key, value in state.items()}, path)
    return path


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_weights_come_back_and_the_model_is_in_eval_mode(tmp_path: Path, suffix: str) -> None:
    source, target = resnet20(), resnet20()
    source.bn1.running_mean.fill_(3.0)
    path = saved(source.state_dict(), tmp_path / f"weights{suffix}")
    assert load_weights(target, path) is target
    assert same(source, target)
    assert not target.training


def test_counters_may_be_absent_and_scalars_may_be_arrays_of_one(tmp_path: Path) -> None:
    source = resnet20()
    state = {k: v for k, v in source.state_dict().items() if not k.endswith("num_batches_tracked")}
    assert load_weights(resnet20(), saved(state, tmp_path / "a.safetensors"))
    state["bn1.num_batches_tracked"] = torch.tensor([7])
    loaded = load_weights(resnet20(), saved(state, tmp_path / "b.safetensors"))
    assert loaded.state_dict()["bn1.num_batches_tracked"].item() == 7


def test_robustbench_keys_lose_their_prefix_and_give_their_normalisation(tmp_path: Path) -> None:
    source = WideResNet(10, 1)
    state = {f"module.{key}": value for key, value in source.state_dict().items()}
    state["mu"], state["sigma"] = torch.full((1, 3, 1, 1), 0.25), torch.full((1, 3, 1, 1), 0.125)
    path = saved(state, tmp_path / "wrn.safetensors")
    target = normalised(WideResNet(10, 1), (0.5,) * 3, (0.5,) * 3)
    load_weights(target, path)
    assert same(source, target.model)
    assert target.mean.flatten().tolist() == [0.25] * 3
    assert target.std.flatten().tolist() == [0.125] * 3
    with pytest.raises(WeightsError, match=r"holds a normalisation .*normalised\(model"):
        load_weights(WideResNet(10, 1), path)


def test_a_prefix_goes_only_where_every_key_has_it() -> None:
    assert list(strip_prefixes({"model.a": torch.ones(1), "b": torch.ones(1)})) == ["model.a", "b"]


def test_the_error_names_file_keys_and_shapes(tmp_path: Path) -> None:
    state = resnet20(classes=7).state_dict()
    state["extra.weight"] = torch.ones(1)
    del state["conv1.weight"]
    with pytest.raises(WeightsError) as caught:
        load_weights(resnet20(), saved(state, tmp_path / "other.safetensors"))
    message = str(caught.value)
    assert "other.safetensors: does not fit ResNetCIFAR" in message
    assert "1 missing: conv1.weight" in message
    assert "1 unexpected: extra.weight" in message
    assert "linear.weight (7, 64), expected (10, 64)" in message
    assert "number of classes" in message


def test_a_refused_file_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model = resnet20()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    path = saved({"conv1.weight": torch.zeros(16, 3, 3, 3)}, tmp_path / "part.safetensors")
    with pytest.raises(WeightsError, match="missing"):
        load_weights(model, path)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_a_pickled_checkpoint_is_refused_with_the_way_to_convert_it(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save(resnet20().state_dict(), path)
    with pytest.raises(
        WeightsError, match=r"python -m testtime.models.convert .*model.pth .*model.safetensors"
    ):
        read_weights(path)


@pytest.mark.parametrize("name", ["broken.safetensors", "broken.npz"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"not weights at all")
    with pytest.raises(WeightsError, match=f"{name}: damaged"):
        read_weights(tmp_path / name)


def test_an_npz_with_objects_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "objects.npz", a=np.array([{"a": 1}], dtype=object))
    with pytest.raises(WeightsError, match="damaged or not"):
        read_weights(tmp_path / "objects.npz")


def test_missing_and_unknown_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no such file"):
        read_weights(tmp_path / "absent.safetensors")
    (tmp_path / "weights.h5").write_bytes(b"")
    with pytest.raises(WeightsError, match=r"unknown kind '\.h5'"):
        read_weights(tmp_path / "weights.h5")
