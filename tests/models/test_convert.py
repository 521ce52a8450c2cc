from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from testtime.errors import WeightsError
from testtime.models import load_weights, read_weights, resnet20
from testtime.models.convert import convert, main, tensors_of


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
