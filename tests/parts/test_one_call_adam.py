"""The Adam of the library takes the steps of torch's Adam, with its state, in fewer calls."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from testtime.intake.journal import LARGE
from testtime.parts import adam

SIZES = (3, 64, 100, LARGE, LARGE + 5)


def pair(dtype, sizes=SIZES, **options):
    rng = torch.Generator().manual_seed(0)
    ours = [nn.Parameter(torch.randn(n, dtype=dtype, generator=rng)) for n in sizes]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    return ours, adam(1e-2, **options)(ours), theirs, torch.optim.Adam(theirs, lr=1e-2, **options)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps_are_those_of_torch(dtype, weight_decay):
    ours, one, theirs, other = pair(dtype, weight_decay=weight_decay)
    rng = torch.Generator().manual_seed(1)
    for step in range(12):
        for i, (p, q) in enumerate(zip(ours, theirs, strict=True)):
            p.grad = torch.randn(p.shape, dtype=dtype, generator=rng)
            q.grad = p.grad.clone()
            if step % 3 == 1 and i in (1, 3):
                p.grad = q.grad = None  # which leaves its state and its count of steps
        one.step(), other.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)
        if len(p) >= LARGE:
            assert torch.equal(p, q)
        assert one.state[p].keys() == other.state[q].keys()
        for name, value in other.state[q].items():
            torch.testing.assert_close(one.state[p][name], value, rtol=1e-6, atol=1e-6)


def test_small_parameters_take_their_step_in_one_call():
    ours, one, _, _ = pair(torch.float32, (5,) * 40)
    for p in ours:
        p.grad = torch.ones_like(p)
    one.step()
    called = []

    class Counts(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            called.append(function.overloadpacket.__name__)
            return function(*args, **(kwargs or {}))

    with Counts():
        one.step()
    assert [name for name in called if "record" not in name] == ["_foreach_add_", "_fused_adam_"]


def test_a_write_counts_as_one():
    ours, one, _, _ = pair(torch.float32)
    for p in ours:
        p.grad = torch.ones_like(p)
    one.step()
    before = [p._version for p in ours]
    one.step()
    assert all(p._version > v for p, v in zip(ours, before, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_the_kernel_does_not_take_is_left_to_torch(dtype):
    ours, one, theirs, other = pair(dtype, (3, 64))
    for p, q in zip(ours, theirs, strict=True):
        p.grad = torch.ones_like(p)
        q.grad = torch.ones_like(q)
    for _ in range(3):
        one.step(), other.step()
    assert all(torch.equal(p, q) for p, q in zip(ours, theirs, strict=True))
