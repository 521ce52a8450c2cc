"""Walks over trees of modules are remembered until a module or a parameter is registered."""

import copy

import pytest
from torch import nn

from testtime.intake.trees import modules_of, named_modules_of, names_of


@pytest.fixture
def walks(monkeypatch):
    """The roots that were walked."""
    found, walk = [], nn.Module.named_modules

    def counted(self, memo=None, *args, **kwargs):
        if memo is None:
            found.append(self)
        return walk(self, memo, *args, **kwargs)

    monkeypatch.setattr(nn.Module, "named_modules", counted)
    return found


def network():
    return nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU(), nn.Linear(2, 2)))


def test_a_tree_is_walked_once_for_a_kind(walks):
    net = network()
    first = named_modules_of(net, nn.Linear)
    assert [name for name, _ in first] == ["0", "1.1"]
    assert named_modules_of(net, nn.Linear) == first
    assert modules_of(net, nn.ReLU) == [net[1][0]]
    assert len(walks) == 2


@pytest.mark.parametrize("how", ["attribute", "add_module", "item", "parameter"])
def test_a_registration_anywhere_in_the_tree_is_seen(how):
    net, late = network(), nn.Linear(2, 2)
    assert len(modules_of(net, nn.Linear)) == 2
    if how == "attribute":
        net[1].late = late
    elif how == "add_module":
        net[1].add_module("late", late)
    elif how == "item":
        net[1][0] = late
    else:
        net[1][0].scale, late = nn.Parameter(late.weight), None
    assert modules_of(net, nn.Linear) == [m for m in net.modules() if isinstance(m, nn.Linear)]
    assert late is None or late in modules_of(net, nn.Linear)


def test_a_copy_has_modules_of_its_own():
    net = network()
    before = modules_of(net, nn.Linear)
    other = modules_of(copy.deepcopy(net), nn.Linear)
    assert len(other) == len(before)
    assert not set(other) & set(before)


def test_names_are_in_the_order_of_the_parameters():
    net = network()
    assert names_of(net, [net[1][1].bias, net[0].weight]) == ["1.1.bias", "0.weight"]
    with pytest.raises(KeyError):
        names_of(net, [nn.Linear(2, 2).weight])
