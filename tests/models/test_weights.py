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


def test_prefixes_of_wrappers_go_in_any_order_but_not_the_models_own() -> None:
    one = torch.ones(1)
    for name in ("module._orig_mod.a.b", "_orig_mod.module.model.a.b", "net.a._orig_mod.b", "a.b"):
        assert list(strip_prefixes({name: one}, {"a.b"})) == ["a.b"]
    assert list(strip_prefixes({"module.model.a": one, "c": one}, {"model.a", "b"})) == ["model.a", "c"]


def test_what_training_keeps_beside_the_weights_is_left_out(tmp_path: Path) -> None:
    source = resnet20()
    state = {f"module.{k}": v for k, v in source.state_dict().items()}
    state |= {f"ema.{k}": v + 1 for k, v in source.state_dict().items()}
    state |= {"epoch": torch.tensor(3), "optimizer.state.0.step": torch.tensor(9.0)}
    assert same(source, load_weights(resnet20(), saved(state, tmp_path / "w.safetensors")))


def test_two_tensors_of_one_name_are_refused(tmp_path: Path) -> None:
    state = resnet20().state_dict()
    state["module.conv1.weight"] = state["conv1.weight"] + 1
    with pytest.raises(WeightsError, match=r"w\.safetensors: two tensors of the file are 'conv1\.weight'"):
        load_weights(resnet20(), saved(state, tmp_path / "w.safetensors"))


def test_weights_of_half_precision_become_the_models_type(tmp_path: Path) -> None:
    source = resnet20().half()
    loaded = load_weights(resnet20(), saved(source.state_dict(), tmp_path / "w.safetensors"))
    assert loaded.state_dict()["conv1.weight"].dtype == torch.float32
    assert torch.equal(loaded.state_dict()["conv1.weight"], source.conv1.weight.float())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    state = resnet20().state_dict()
    state["layer1.0.conv1.weight"][0, 0, 0, 0] = value
    model = resnet20()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(WeightsError, match=r"NaN or infinity in 1 tensors: layer1\.0\.conv1\.weight"):
        load_weights(model, saved(state, tmp_path / "w.safetensors"))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_quantised_weights_are_refused(tmp_path: Path) -> None:
    state = resnet20().state_dict()
    state["conv1.weight"] = state["conv1.weight"].to(torch.int8)
    with pytest.raises(WeightsError, match=r"expected floats, found torch\.int8 in conv1\.weight"):
        load_weights(resnet20(), saved(state, tmp_path / "w.safetensors"))


def test_a_classifier_of_other_classes_is_named(tmp_path: Path) -> None:
    path = saved(resnet20(classes=7).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(
        WeightsError, match=r"classifier linear has 7 classes, the model's 10: build it for 7"
    ):
        load_weights(resnet20(), path)


def test_a_normalisation_by_zero_is_refused(tmp_path: Path) -> None:
    state = WideResNet(10, 1).state_dict() | {"mu": torch.zeros(3), "sigma": torch.zeros(3)}
    target = normalised(WideResNet(10, 1), (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(WeightsError, match="deviations above 0"):
        load_weights(target, saved(state, tmp_path / "w.safetensors"))


def test_an_archive_that_expands_a_thousand_times_is_refused(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "w.npz", a=np.zeros(2**24))  # 128 MiB in 130 KB
    with pytest.raises(WeightsError, match=r"w\.npz: .* declares 134217856 bytes, where at most 67108864"):
        read_weights(tmp_path / "w.npz")


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
    with pytest.raises(WeightsError, match=f"{name}: (damaged|expected an archive of arrays)"):
        read_weights(tmp_path / name)


def test_a_folder_is_named_as_one(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="a folder; give the path of a .safetensors or .npz file"):
        read_weights(tmp_path)


def test_an_npz_with_objects_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "objects.npz", a=np.array([{"a": 1}], dtype=object))
    with pytest.raises(WeightsError, match="expected numbers, found object"):
        read_weights(tmp_path / "objects.npz")


def test_missing_and_unknown_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no such file"):
        read_weights(tmp_path / "absent.safetensors")
    (tmp_path / "weights.h5").write_bytes(b"")
    with pytest.raises(WeightsError, match=r"unknown kind '\.h5'"):
        read_weights(tmp_path / "weights.h5")
