"""Devices, and which precision a processor gets."""

import pytest
import torch

from testtime import processor
from testtime.processor import fast_bfloat16, machine_load, need_device, processor_name, resolve_precision


def test_devices() -> None:
    assert need_device("cpu") == "cpu"
    for name in ("gpu", "cpux", "", "cuda:99", "meta"):
        with pytest.raises(ValueError, match=rf"no device '{name}' here; there is cpu"):
            need_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu() -> None:
    with pytest.raises(ValueError, match=r"no device 'cuda' here; there is cpu"):
        need_device("cuda")


@pytest.mark.parametrize(
    ("features", "fast"),
    [
        ({"avx2", "avx512f", "avx512_vnni"}, False),
        ({"avx512_bf16"}, True),
        ({"amx_bf16"}, True),
        ({"asimd", "bf16"}, True),
        (set(), False),
    ],
)
def test_auto_decides_by_the_processor(
    monkeypatch: pytest.MonkeyPatch, features: set[str], fast: bool
) -> None:
    monkeypatch.setattr(processor, "_features", lambda: features)
    assert fast_bfloat16() is fast
    assert resolve_precision("auto") == ("bfloat16" if fast else "float32")
    said: list[str] = []
    assert resolve_precision("bfloat16", warn=said.append) == "bfloat16"
    assert len(said) == (not fast)
    assert all("7 to 14 times as long" in line for line in said)


def test_auto_keeps_the_precision_that_a_run_began_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "_features", lambda: {"avx512_bf16"})
    assert resolve_precision("auto", started="float32") == "float32"
    assert resolve_precision("bfloat16", started="float32") == "bfloat16"
    with pytest.raises(ValueError, match="auto, float32, bfloat16, got 'half'"):
        resolve_precision("half")  # type: ignore[arg-type]


def test_features_are_those_of_the_kernel_where_torch_has_no_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    lines = ["model name\t: A Processor", "flags\t\t: fpu avx2 avx512_bf16"]
    monkeypatch.setattr(processor, "_cpuinfo", lambda: lines)
    assert processor._features() == {"fpu", "avx2", "avx512_bf16"}
    assert processor_name() == "A Processor"
    monkeypatch.setattr(processor, "_cpuinfo", list)
    assert processor._features() == set()
    assert processor_name()


def test_the_load_is_a_number_or_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(processor.os, "getloadavg", raising=False)
    assert machine_load() is None
