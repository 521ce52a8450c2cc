"""Distances of adapted parameters, and those of the upper layers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from testtime.wrap.parameters import copied, distance, upper_half


def test_the_distance_is_that_of_all_parameters_as_one_vector() -> None:
    parameters = [nn.Parameter(torch.arange(6.0).reshape(2, 3)), nn.Parameter(torch.ones(4))]
    start = copied(parameters)
    with torch.no_grad():
        parameters[0].mul_(2)
        parameters[1].sub_(0.5)
    moved = np.concatenate([np.arange(6.0), np.full(4, 0.5)])
    assert distance(parameters, start) == pytest.approx(np.linalg.norm(moved))
    assert start[0].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert distance([], copied([])) == 0


def test_the_upper_half_comes_with_what_the_optimizer_holds_of_it() -> None:
    zero = torch.zeros(())
    names = ["model.one", "model.two", "model.three", "optimizer.one", "optimizer.three", "clock"]
    upper = upper_half(dict.fromkeys(names, zero))
    assert list(upper) == ["model.two", "model.three", "optimizer.three"]
