"""Networks with branches, from names and numbers."""

import pytest
import torch

from testtime.models.assisted import Assisted
from testtime.models.multitask import MultiTaskNet
from testtime.multitask.branches import BRANCHES, build
from testtime.tasks import Depth, Edges

TASKS = {"depth": Depth(), "edge": Edges()}
SIZE = {"depth": 18, "width": 4}
SMALL = {"features": 4, "size": 16, "patch": 4, "width": 8, "depth": 1, "decoder_depth": 1, "heads": 2}


def network(branch: str | None, **arguments: object) -> torch.nn.Module:
    return build(TASKS, {**SIZE, "branch": branch, "arguments": arguments}, seed=3)


@pytest.mark.parametrize("name", BRANCHES)
def test_every_branch_has_the_same_network(name: str) -> None:
    plain, assisted = network(None), network(name, **(SMALL if name == "synchronizer" else {}))
    assert isinstance(plain, MultiTaskNet)
    assert isinstance(assisted, Assisted)
    assert assisted.branch.layers == ("encoder",)
    ours, theirs = assisted.network.state_dict(), plain.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_the_seed_draws_the_weights_and_the_global_generator_is_untouched() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    one, other = network("rotation"), build(TASKS, {**SIZE, "branch": "rotation", "arguments": {}}, seed=4)
    assert torch.equal(torch.rand(1), expected)
    assert not torch.equal(next(one.parameters()), next(other.parameters()))


def test_a_synchronizer_of_one_task() -> None:
    assert list(network("synchronizer", only="edge", **SMALL).branch.tasks) == ["edge"]


def test_an_unknown_branch_is_named() -> None:
    with pytest.raises(ValueError, match="no branch 'rotatoin' .did you mean 'rotation'"):
        network("rotatoin")
