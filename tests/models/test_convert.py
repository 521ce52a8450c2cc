import argparse
import enum
from collections import OrderedDict, defaultdict, deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from testtime.errors import WeightsError
from testtime.models import load_weights, read_weights, resnet20
from testtime.models.convert import averages_of, convert, main, tensors_of


def test_a_nested_data_parallel_checkpoint_becomes_loadable(tmp_path: Path) -> None:
    source = resnet20()
    state = OrderedDict((f"module.{key}", value) for key, value in source.state_dict().items())
    torch.save({"epoch": 3, "state_dict": state, "best": 0.9}, tmp_path / "in.th")
    convert(tmp_path / "in.th", tmp_path / "out.safetensors")
    loaded = load_weights(resnet20(), tmp_path / "out.safetensors")
    assert torch.equal(loaded.state_dict()["linear.weight"], source.linear.weight)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("executed",))


def test_a_checkpoint_that_would_run_code_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"state_dict": Evil()}, tmp_path / "evil.pth")
    assert main([str(tmp_path / "evil.pth"), str(tmp_path / "out.safetensors")]) == 1
    captured = capsys.readouterr()
    assert "executed" not in captured.out
    assert "evil.pth" in captured.err
    assert not (tmp_path / "out.safetensors").exists()


def test_the_failure_of_the_child_is_reported(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"absent\.pth: not converted: .*No such file"):
        convert(tmp_path / "absent.pth", tmp_path / "out.safetensors")


def test_a_checkpoint_without_tensors_is_refused() -> None:
    with pytest.raises(WeightsError, match="no state dict"):
        tensors_of({"epoch": 3})


def test_tensors_that_share_memory_or_are_not_contiguous_are_written(tmp_path: Path) -> None:
    weight = torch.arange(6.0).view(2, 3)
    torch.save({"a": weight, "b": weight.t()}, tmp_path / "in.pt")
    assert main([str(tmp_path / "in.pt"), str(tmp_path / "out.safetensors")]) == 0
    written = read_weights(tmp_path / "out.safetensors")
    assert torch.equal(written["b"], weight.t())


class Settings:
    rate = 0.1


class Mode(enum.Enum):
    FAST = 1


@pytest.mark.parametrize("legacy", [False, True])
def test_what_lies_beside_the_weights_is_left_out(tmp_path: Path, legacy: bool) -> None:
    weights = {"fc.bias": torch.arange(3.0)}
    checkpoint = {
        "state_dict": weights,
        "best": np.float64(93.1),
        "counts": np.arange(6).reshape(2, 3),
        "flag": np.bool_(True),
        "args": argparse.Namespace(lr=0.1, settings=Settings()),
        "settings": Settings(),
        "mode": Mode.FAST,
        "where": Path("runs"),
        "history": defaultdict(list, loss=[1.0]),
        "last": deque([1, 2], maxlen=3),
        "made_by": Settings,
        "order": OrderedDict(a=1),
    }
    torch.save(checkpoint, tmp_path / "in.pth", _use_new_zipfile_serialization=not legacy)
    before = set(map(str, torch.serialization.get_safe_globals()))
    assert main([str(tmp_path / "in.pth"), str(tmp_path / "out.safetensors")]) == 0
    assert read_weights(tmp_path / "out.safetensors")["fc.bias"].tolist() == [0, 1, 2]
    assert set(map(str, torch.serialization.get_safe_globals())) == before


@pytest.mark.parametrize("nested", [True, False])
def test_a_moving_average_is_taken_only_when_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], nested: bool
) -> None:
    plain, average = {"a": torch.zeros(2)}, {"a": torch.ones(2)}
    flat = {"module.a": plain["a"], "ema.a": average["a"], "epoch": 3}
    torch.save({"model": plain, "ema": average} if nested else flat, tmp_path / "in.pth")
    asked = [str(tmp_path / "in.pth"), str(tmp_path / "out.safetensors")]
    assert main(asked) == 0
    assert "moving average (EMA) of the weights; take it with --key ema" in capsys.readouterr().out
    (value,) = read_weights(tmp_path / "out.safetensors").values()
    assert value.tolist() == [0, 0]
    assert main([*asked, "--key", "ema"]) == 0
    assert "moving average" not in capsys.readouterr().out
    assert read_weights(tmp_path / "out.safetensors")["a"].tolist() == [1, 1]
    if nested:  # the key reaches the child too
        convert(tmp_path / "in.pth", tmp_path / "other.safetensors", key="ema")
        assert read_weights(tmp_path / "other.safetensors")["a"].tolist() == [1, 1]


def test_only_a_moving_average_is_taken_without_a_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"state_dict_ema": {"a": torch.ones(2)}, "epoch": 1}, tmp_path / "in.pth")
    assert main([str(tmp_path / "in.pth"), str(tmp_path / "out.safetensors")]) == 0
    assert "take it with" not in capsys.readouterr().out


def test_keys_lead_to_weights_or_are_named() -> None:
    tree = {"epoch": 3, "student": {"net": {"a": torch.ones(1)}}, "b.x": torch.zeros(1)}
    assert list(tensors_of(tree, "student")) == ["a"]
    assert list(tensors_of(tree, "student.net")) == ["a"]
    assert list(tensors_of(tree, "b")) == ["x"]
    assert averages_of(tree) == []
    with pytest.raises(WeightsError, match=r"under the key 'teacher' .* a dict of epoch, student, b\.x"):
        tensors_of(tree, "teacher")


def test_a_whole_model_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(resnet20(), tmp_path / "in.pth")
    assert main([str(tmp_path / "in.pth"), str(tmp_path / "out.safetensors")]) == 1
    assert (
        "an object of the class testtime.models.resnet_cifar.ResNetCIFAR: save its state_dict()"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    "damage", [b"", b"garbage", b"PK\x03\x04", b"\x80\x02.", b"\x80\x02cos\nsystem\n(S'x'\ntR."]
)
def test_damaged_files_are_named_and_no_code_is_advised(
    tmp_path: Path, damage: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in.pth").write_bytes(damage)
    assert main([str(tmp_path / "in.pth"), str(tmp_path / "out.safetensors")]) == 1
    told = capsys.readouterr().err
    assert "in.pth: it is damaged" in told
    assert "weights_only" not in told


def test_a_tensor_larger_than_its_storage_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"a": torch.zeros(1).expand(10**12)}, tmp_path / "in.pth")
    assert main([str(tmp_path / "in.pth"), str(tmp_path / "out.safetensors")]) == 1
    assert "a (1000000000000,) is larger than what the file holds of it" in capsys.readouterr().err
