"""Fingerprints: of the weights as they were given, whatever happens to be done with the model."""

import copy
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

from testtime.intake.fingerprint import fingerprint
from testtime.methods import Tent
from testtime.models.resnet import ResNet

CODE = """
import torch
from torch import nn
from testtime.intake.fingerprint import fingerprint
torch.manual_seed(0)
net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(72, 5))
"""


def network() -> nn.Module:
    found: dict[str, object] = {}
    exec(CODE, found)
    net = found["net"]
    assert isinstance(net, nn.Module)
    return net


def test_what_changes_no_weight_changes_nothing() -> None:
    net = network()
    before = fingerprint(net)
    assert (before.parameters, before.outputs) == (605, 5)
    assert fingerprint(net.eval()) == before
    assert fingerprint(net.to(memory_format=torch.channels_last)) == before
    assert fingerprint(copy.deepcopy(net)) == before
    assert fingerprint(net.requires_grad_(False)) == before
    net[1].num_batches_tracked += 1
    assert fingerprint(net) == before
    with torch.inference_mode():
        assert fingerprint(net) == before
    assert fingerprint(torch.compile(net)) == before
    printed = subprocess.run(
        [sys.executable, "-c", CODE + "print(fingerprint(net).weights)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert printed.stdout.strip() == before.weights


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_weight_counts(dtype: torch.dtype) -> None:
    net = network().to(dtype)
    before = fingerprint(net)
    for name, value in net.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        for place in (0, value.numel() // 2, -1):
            kept = value.view(-1)[place].clone()
            value.view(-1)[place] = (
                torch.nextafter(kept.double(), torch.tensor(9.0)).to(dtype) + kept * 2**-7 + 2**-20
            )
            now = fingerprint(net)
            assert now.weights != before.weights, (name, place)
            assert now.architecture == before.architecture
            value.view(-1)[place] = kept
    assert fingerprint(net) == before


def test_every_weight_of_a_large_tensor_counts_and_so_does_its_order() -> None:
    net = nn.Linear(300, 70)
    before = fingerprint(net)
    for place in (0, 1, 12_345, 20_999):
        kept = net.weight.data.view(-1)[place].clone()
        net.weight.data.view(-1)[place] += 1e-3
        assert fingerprint(net) != before
        net.weight.data.view(-1)[place] = kept
    assert fingerprint(net) == before
    net.weight.data = net.weight.data.flip(0)
    assert fingerprint(net).weights != before.weights


def test_names_and_shapes_are_the_architecture() -> None:
    prints = {
        fingerprint(net).architecture
        for net in (
            nn.Linear(3, 2),
            nn.Linear(2, 3),
            nn.Sequential(nn.Linear(3, 2)),
            nn.Linear(3, 2, bias=False),
        )
    }
    assert len(prints) == 4


def test_tensors_of_other_kinds() -> None:
    net = nn.Module()
    net.register_buffer("whole", torch.arange(5))
    net.register_buffer("flags", torch.tensor([True, False]))
    net.register_buffer("waves", torch.ones(3, dtype=torch.complex64))
    net.register_buffer("point", torch.tensor(1.0))
    net.register_buffer("none", torch.zeros(0))
    net.register_buffer("scratch", torch.rand(3), persistent=False)
    net.register_buffer("bytes", torch.ones(4).to(torch.float8_e4m3fn))
    net.register_parameter("lazy", nn.UninitializedParameter())
    before = fingerprint(net)
    net.scratch.zero_()
    assert fingerprint(net) == before
    net.flags[1] = True
    assert fingerprint(net) != before
    assert fingerprint(nn.Linear(3, 2, device="meta")).parameters == 8


def test_an_adapter_keeps_that_of_its_source_model() -> None:
    net = network()
    before = fingerprint(net)
    adapter = Tent(net)
    adapter(torch.rand(4, 3, 5, 5))
    adapter.half()
    net[0].weight.data.zero_()
    assert adapter.fingerprint == before
    assert copy.deepcopy(adapter).fingerprint == before


def test_it_is_cheap() -> None:
    net = ResNet(50)
    begin = time.process_time()
    fingerprint(net)
    assert time.process_time() - begin < 0.2
