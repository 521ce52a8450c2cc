import numpy as np
import pytest
import torch
from torch import Tensor, nn

from testtime.parts import sharpness_aware_gradients

A = torch.tensor([[3.0, 1.0], [1.0, 2.0]], dtype=torch.float64)


def parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in ([1.0], [-2.0])]


def quadratic(theta: list[nn.Parameter]) -> Tensor:
    x = torch.cat(list(theta))
    return 0.5 * x @ A @ x


@pytest.mark.parametrize("rho", [0.0, 0.05, 2.0])
def test_gradient_at_the_worst_point_by_hand(rho: float) -> None:
    theta = parameters()
    got = np.concatenate([g.numpy() for g in sharpness_aware_gradients(lambda: quadratic(theta), theta, rho)])
    a, x = A.numpy(), np.array([1.0, -2.0])
    g = a @ x
    np.testing.assert_allclose(got, a @ (x + rho * g / np.linalg.norm(g)), rtol=1e-9)


def test_parameters_are_back_bit_for_bit_also_after_an_error() -> None:
    theta = parameters()
    sharpness_aware_gradients(lambda: quadratic(theta), theta, 0.3)
    assert [p.item() for p in theta] == [1.0, -2.0]
    calls = 0

    def fails_at_the_worst_point() -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise RuntimeError("no")
        return quadratic(theta)

    with pytest.raises(RuntimeError, match="no"):
        sharpness_aware_gradients(fails_at_the_worst_point, theta, 0.3)
    assert [p.item() for p in theta] == [1.0, -2.0]


def test_a_flat_loss_has_a_zero_gradient() -> None:
    theta = parameters()
    for g in sharpness_aware_gradients(lambda: 0 * quadratic(theta), theta, 0.3):
        assert g.item() == 0
