"""The table of models and methods: its script tells what works from what does not, and the page has every row."""

from __future__ import annotations

import importlib
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def matrix() -> ModuleType:
    return importlib.import_module("model_matrix")


@pytest.mark.parametrize(
    ("kind", "method", "result", "message"),
    [
        ("BatchNorm", "PAF+KIP", "works", ""),
        (
            "GroupNorm",
            "BN-adapt",
            "refused",
            "ValueError: BNAdapt changes the statistics of BatchNorm layers",
        ),
        ("BatchNorm without running statistics", "TENT", "works", ""),
        (
            "BatchNorm without running statistics",
            "RoTTA",
            "refused",
            "pass norm=testtime.norm.batch_statistics",
        ),
        ("weight_norm (former)", "CoTTA", "works", ""),
        ("DataParallel", "T3A", "works", ""),
        ("traced", "Source", "refused", "TypeError: this model is TorchScript"),
        ("features under no_grad", "PAF+KIP", "refused", "ValueError: no gradient of the model's output"),
    ],
)
def test_pairs(matrix: ModuleType, kind: str, method: str, result: str, message: str) -> None:
    got, said = matrix.attempt(matrix.KINDS[kind], method)
    assert got == result
    assert message in said
    assert bool(said) == bool(message)


class Stateless(nn.Module):
    """A model whose answers are of another form than the table expects."""

    def forward(self, x: torch.Tensor) -> Any:
        return x.mean(dim=(1, 2, 3))[:, None].expand(-1, 3)


def crash() -> nn.Module:
    os.kill(os.getpid(), signal.SIGKILL)
    return nn.Identity()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a system that can fork")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Stateless, r"answers \(16, 3\) where the model's logits are \(16, 5\)"),
        (crash, "the process dies"),
        (lambda: 1 / 0, "the model cannot be made: ZeroDivisionError"),
    ],
)
def test_failures(matrix: ModuleType, make: Callable[[], nn.Module], message: str) -> None:
    result, said = matrix.attempt_apart(matrix.Kind(make), "Source")
    assert result == "fails"
    assert re.match(message, said)


def test_the_page_has_every_message_once(matrix: ModuleType) -> None:
    found = {
        "a": {"M": ("works", ""), "N": ("refused", "E: do\nthis")},
        "b": {"M": ("fails", "x"), "N": ("refused", "E: do\nthis")},
    }
    lines = matrix.page(found, ["M", "N"]).splitlines()
    assert "| a | works | refused [1](#messages) |" in lines
    assert "| b | **fails** [2](#messages) | refused [1](#messages) |" in lines
    assert lines[-3:] == ["", "1. E: do this", "2. x"]
    assert any(line.startswith("1 pairs work, 2 are refused, 1 fail (torch ") for line in lines)


def test_the_page_in_the_documentation_is_of_this_script(matrix: ModuleType) -> None:
    rows = [
        line.split(" | ")
        for line in (ROOT / "docs/models.md").read_text().splitlines()
        if line.startswith("| ")
    ]
    assert [cell.strip("| ") for cell in rows[0]] == ["model", *matrix.METHODS]
    assert [row[0].strip("| ") for row in rows[1:]] == list(matrix.KINDS)
    assert len(matrix.KINDS) >= 20
