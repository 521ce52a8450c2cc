from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from testtime.parts import adam, sgd
from testtime.parts.optimizers import initialised, scaled


def run(factory: object, gradients: list[float]) -> list[float]:
    p = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    optimizer = initialised(factory([p]), [p])  # type: ignore[operator]
    path = []
    for g in gradients:
        p.grad = torch.tensor([g], dtype=torch.float64)
        optimizer.step()
        path.append(p.item())
    return path


GRADIENTS = [1.0, -2.0, 0.5]


def test_adam_by_hand() -> None:
    theta, m, v, path = 1.0, 0.0, 0.0, []
    for t, g in enumerate(GRADIENTS, 1):
        m, v = 0.8 * m + 0.2 * g, 0.99 * v + 0.01 * g * g
        theta -= 0.1 * (m / (1 - 0.8**t)) / (np.sqrt(v / (1 - 0.99**t)) + 1e-8)
        path.append(theta)
    np.testing.assert_allclose(run(adam(0.1, 0.8, 0.99), GRADIENTS), path, rtol=1e-12)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_by_hand(nesterov: bool) -> None:
    theta, v, path = 1.0, 0.0, []
    for g in GRADIENTS:
        g = g + 0.01 * theta
        v = 0.9 * v + g
        theta -= 0.1 * (g + 0.9 * v if nesterov else v)
        path.append(theta)
    np.testing.assert_allclose(run(sgd(0.1, 0.9, 0.01, nesterov), GRADIENTS), path, rtol=1e-12)


@pytest.mark.parametrize(
    "factory",
    [
        adam(0.1),
        adam(0.1, weight_decay=0.1),
        sgd(0.1),
        sgd(0.1, momentum=0.0),
        partial(torch.optim.AdamW, lr=0.1),
        partial(torch.optim.RMSprop, lr=0.1, momentum=0.5),
        partial(torch.optim.Adam, lr=torch.tensor(0.1, dtype=torch.float64), amsgrad=True),
    ],
    ids=str,
)
def test_initialised_changes_neither_the_parameters_nor_the_path(factory: object) -> None:
    p = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    optimizer = factory([p])  # type: ignore[operator]
    path = []
    for g in GRADIENTS:
        p.grad = torch.tensor([g], dtype=torch.float64)
        optimizer.step()
        path.append(p.item())
    np.testing.assert_allclose(run(factory, GRADIENTS), path, rtol=1e-12)


def test_initialised_state_is_there_and_zero() -> None:
    p = nn.Parameter(torch.ones(3))
    optimizer = initialised(adam(0.1)([p]), [p])
    assert p.equal(torch.ones(3))
    assert p.grad is None
    state = optimizer.state[p]
    assert sorted(state) == ["exp_avg", "exp_avg_sq", "step"]
    assert not any(v.any() for v in state.values())
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_an_optimizer_whose_state_cannot_be_saved_is_refused() -> None:
    class Counts(torch.optim.SGD):
        def step(self, closure: object = None) -> None:  # type: ignore[override]
            for p in self.param_groups[0]["params"]:
                self.state[p]["calls"] = 1

    p = nn.Parameter(torch.ones(1))
    with pytest.raises(TypeError, match="Counts keeps 'calls' as int"):
        initialised(Counts([p], lr=0.1), [p])


def test_factories_are_values() -> None:
    assert adam(1e-3) == adam(1e-3)
    assert hash(sgd(0.1)) == hash(sgd(0.1))
    with pytest.raises(AttributeError):
        adam(1e-3).lr = 2.0  # type: ignore[misc]


@pytest.mark.parametrize(
    "factory",
    [
        partial(torch.optim.Rprop, lr=0.1),
        partial(torch.optim.NAdam, lr=0.1),
        partial(torch.optim.ASGD, lr=0.1, lambd=0.5, t0=0),
        partial(torch.optim.Adagrad, lr=0.1, initial_accumulator_value=1.0),
    ],
    ids=lambda factory: factory.func.__name__,
)
def test_state_that_does_not_begin_at_zero_is_kept(factory: partial[torch.optim.Optimizer]) -> None:
    test_initialised_changes_neither_the_parameters_nor_the_path(factory)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (torch.optim.LBFGS, "LBFGS takes no step with dense gradients alone"),
        (torch.optim.SparseAdam, "SparseAdam takes no step with dense gradients alone"),
        (lambda parameters: parameters, r"optimizer= made a list, expected a torch.optim.Optimizer"),
    ],
)
def test_what_takes_no_plain_step_is_refused(make: Any, message: str) -> None:
    p = nn.Parameter(torch.ones(1))
    with pytest.raises(TypeError, match=message):
        initialised(make([p]), [p])


def test_scaled_rates_are_those_of_one_step() -> None:
    """Each group has its own rate, and gets it back bit for bit, also after an error."""
    p, q = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([{"params": [p], "lr": 0.1}, {"params": [q], "lr": 0.3}], lr=1.0)
    p.grad, q.grad = torch.ones(1), torch.ones(1)
    with scaled(optimizer, 1 / 3):
        optimizer.step()
    with pytest.raises(KeyError), scaled(optimizer, 1 / 3):
        raise KeyError
    np.testing.assert_allclose([p.item(), q.item()], [1 - 0.1 / 3, 1 - 0.3 / 3], rtol=1e-6)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.3]
