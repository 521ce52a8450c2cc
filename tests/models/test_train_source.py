import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import load_file


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return importlib.import_module("train_source")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for name in ("data_batch_1.bin", "test_batch.bin"):
        rows = rng.integers(0, 256, (8, 3073), dtype=np.uint8)
        rows[:, 0] %= 10
        (folder / name).write_bytes(rows.tobytes())
    return tmp_path


def train(script: ModuleType, data: Path, out: Path, *more: str) -> None:
    arguments = [
        "augmix",
        "--model",
        "cifar10-resnet20",
        "--data",
        str(data),
        "--out",
        str(out),
        "--epochs",
        "2",
        "--batch",
        "4",
        "--device",
        "cpu",
    ]
    script.main([*arguments, *more])


def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(
    script: ModuleType, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(script, data, tmp_path / "whole.safetensors")
    train(script, data, tmp_path / "parts.safetensors", "--max-steps", "3")  # stops in the second epoch
    train(script, data, tmp_path / "parts.safetensors")
    assert capsys.readouterr().out.count("epoch 2/2") == 2  # of "whole" and of the call that continued
    whole, parts = (load_file(tmp_path / f"{name}.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    with pytest.raises(SystemExit, match="belongs to another training: lr is 0.1 there and 0.2 here"):
        train(script, data, tmp_path / "parts.safetensors", "--lr", "0.2")


def test_the_learning_rate_falls_along_a_cosine(script: ModuleType) -> None:
    settings = script.Settings("cifar10-wrn40-2-augmix", "", 100, 128, 0.1, 5e-4, 12.0, 0, False, 50_000)
    rates = [script.learning_rate(settings, step, 1000) for step in (0, 500, 1000)]
    assert rates == pytest.approx([0.1, 0.0500005, 1e-6])


def test_crops_shift_within_the_padding_and_mirror(script: ModuleType) -> None:
    image = torch.arange(16, dtype=torch.uint8).view(1, 1, 4, 4) + 1
    shifted = script.cropped(image.expand(64, -1, -1, -1), 1, torch.Generator().manual_seed(0), flip=True)
    padded = torch.nn.functional.pad(image, (1,) * 4)[0, 0]
    possible = {
        tuple(view.flatten().tolist())
        for row in range(3)
        for column in range(3)
        for view in (
            padded[row : row + 4, column : column + 4],
            padded[row : row + 4, column : column + 4].flip(1),
        )
    }
    seen = {tuple(view.flatten().tolist()) for view in shifted}
    assert seen <= possible
    assert len(seen) > 10


def test_a_purpose_and_a_step_have_a_generator_of_their_own(script: ModuleType) -> None:
    draws = [torch.rand(1, generator=script.derived(0, *c)).item() for c in ((1, 2), (1, 2), (2, 1), (1, 3))]
    assert draws[0] == draws[1]
    assert len(set(draws)) == 3


@pytest.mark.slow
def test_the_packaged_digits_are_made_by_the_script(script: ModuleType, tmp_path: Path) -> None:
    script.train_digits(tmp_path / "digits.safetensors")
    made, packaged = load_file(tmp_path / "digits.safetensors"), load_file(script.DIGITS_OUT)
    assert all(torch.allclose(made[key], packaged[key], atol=1e-2) for key in packaged)
