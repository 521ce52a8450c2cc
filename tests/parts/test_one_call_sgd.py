"""SGD in few calls: the bits of torch's, and large tensors in new memory."""

import pytest
import torch

from testtime.intake.journal import LARGE
from testtime.parts.one_call_sgd import OneCallSGD


def parameters():
    rng = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(n, generator=rng)) for n in (3, 17, LARGE + 5)]


@pytest.mark.parametrize(
    "settings",
    [
        {"momentum": 0.0},
        {"momentum": 0.9},
        {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
        {"momentum": 0.9, "dampening": 0.5},
    ],
)
def test_steps_are_torchs_bit_by_bit(settings):
    ours, theirs = parameters(), parameters()
    contenders = [
        (ours, OneCallSGD(ours, lr=0.1, **settings)),
        (theirs, torch.optim.SGD(theirs, lr=0.1, **settings)),
    ]
    for i in range(4):
        for group, optimizer in contenders:
            for j, p in enumerate(group):
                p.grad = None if i == 2 and j == 1 else torch.full_like(p, 0.1 * (i + 1)) * p.detach()
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    for a, b in zip(ours, theirs, strict=True):
        momentum = [
            optimizer.state[p].get("momentum_buffer")
            for p, (_, optimizer) in zip((a, b), contenders, strict=True)
        ]
        assert momentum[0] is momentum[1] is None or torch.equal(*momentum)


def test_a_large_parameter_and_its_momentum_get_new_memory_and_count_as_written():
    large = parameters()[2]
    optimizer = OneCallSGD([large], lr=0.1, momentum=0.9)
    for _ in range(2):
        large.grad = torch.ones_like(large)
        before = large.data_ptr(), large._version, optimizer.state[large].get("momentum_buffer")
        optimizer.step()
    assert large.data_ptr() != before[0]
    assert large._version > before[1]
    assert optimizer.state[large]["momentum_buffer"] is not before[2]
