"""Every method on models that hold no running statistics, keep tensors of their last forward, or change after wrapping."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable

import pytest
import torch
from test_adapters import CASES
from torch import Tensor, nn

from testtime.adapter import Adapter, state_hash
from testtime.intake.frozen import Frozen
from testtime.laws import WORLDS
from testtime.laws.check import Case
from testtime.laws.worlds import ambient
from testtime.methods import Source, Tent
from testtime.norm import batch_statistics

EACH = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
CLASSIFIERS = pytest.mark.parametrize(
    "case", [c for c in CASES if "batchnorm" in c.worlds], ids=lambda case: case.name
)


def used(adapter: Adapter, case: Case) -> Adapter:
    """The adapter after everything that a user does with one."""
    world = WORLDS[case.worlds[0]]
    if adapter.source != "none":
        adapter.prepare(world.source(2, 16))
    saved = adapter.state_dict()
    (x,) = world.stream(1)
    adapter(x)
    adapter.predict(x)
    adapter.load_state_dict(saved)
    adapter.reset()
    adapter.to("cpu")
    adapter(x)
    return adapter


@EACH
def test_an_adapter_at_work_leaves_what_it_shares(case: Case) -> None:
    network = WORLDS[case.worlds[0]].network()
    versions = [t._version for t in (*network.parameters(), *network.buffers())]
    adapter = case.make(network)
    frozen = Frozen()
    frozen.check(adapter)
    used(adapter, case)
    frozen.check(adapter)
    Frozen().check(adapter)
    assert [t._version for t in (*network.parameters(), *network.buffers())] == versions


@EACH
def test_a_source_model_that_was_written_to_is_noticed(case: Case) -> None:
    network = WORLDS[case.worlds[0]].network()
    adapter = case.make(network)
    used(adapter, case)
    own = {t.data_ptr() for t in (*network.parameters(), *network.buffers())}
    sharing = any(t.data_ptr() in own for t in (*adapter.parameters(), *adapter.buffers()))
    other = copy.deepcopy(adapter)
    network.load_state_dict(network.state_dict())
    Frozen().check(other)
    if sharing:
        with pytest.raises(ValueError, match="has changed since"):
            adapter(WORLDS[case.worlds[0]].stream(1)[0])
    else:
        adapter(WORLDS[case.worlds[0]].stream(1)[0])


class Bare(nn.Module):
    """The BatchNorm network of the laws with layers that hold no running statistics."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.track_running_stats = False
                layer.running_mean = layer.running_var = layer.num_batches_tracked = None

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)


@CLASSIFIERS
def test_without_running_statistics_it_works_or_its_advice_does(case: Case) -> None:
    network, advice = Bare(WORLDS["batchnorm"].network()), ""
    try:
        adapter = case.make(network)
    except ValueError as error:
        advice = str(error)
        adapter = functools.partial(case.make, norm=batch_statistics)(network)
    assert not advice or "pass norm=testtime.norm.batch_statistics" in advice
    assert used(adapter, case)(WORLDS["batchnorm"].stream(1)[0]).valid.all()


class Keeps(nn.Module):
    """A network whose last convolution is reparametrised, and that keeps tensors of its last forward."""

    def __init__(self, network: nn.Module, how: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        self.network = network
        self.kept: dict[str, list[Tensor]] = {}
        with warnings.catch_warnings(), ambient():
            warnings.simplefilter("ignore", FutureWarning)
            how([m for m in network.modules() if isinstance(m, nn.Conv2d)][-1])
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        y = self.network(x)
        self.kept = {"last": [y]}
        return y


@CLASSIFIERS
def test_former_weight_norm_adapts_as_the_present_one(case: Case) -> None:
    world = WORLDS["batchnorm"]
    answers = []
    for how in (nn.utils.weight_norm, nn.utils.parametrizations.weight_norm):
        network = Keeps(world.network(), how)
        network(world.stream(1)[0])
        before = {k: v.clone() for k, v in network.state_dict().items()}
        with ambient():
            adapter = copy.deepcopy(used(case.make(network), case))
        answers.append(adapter.predict(world.stream(1)[0]).logits)
        assert all(v.equal(before[k]) for k, v in network.state_dict().items())
    torch.testing.assert_close(*answers, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "how", [nn.utils.weight_norm, nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm]
)
def test_reparametrised_layers_answer_as_the_model(how: Callable[[nn.Module], nn.Module]) -> None:
    network, (x,) = Keeps(WORLDS["batchnorm"].network(), how), WORLDS["batchnorm"].stream(1)
    assert Source(network)(x).logits.equal(network(x).detach())
    tent = Tent(network)
    born = state_hash(tent)
    assert tent(x).updated
    assert state_hash(tent) != born
    tent.reset()
    assert state_hash(tent) == born
