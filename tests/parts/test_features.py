import pytest
import torch
from torch import Tensor, nn

from testtime.methods import ETA
from testtime.norm import batch_statistics, norm_affine
from testtime.parts.features import headless, linear_head


class TwoHeads(nn.Module):
    """Its last linear layer is not the one that classifies."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.BatchNorm1d(6))
        self.fc = nn.Linear(6, 3)
        self.projector = nn.Linear(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(x))


def test_features_times_head_are_the_logits() -> None:
    net, x = TwoHeads().eval(), torch.rand(5, 3, 2, 2)
    name, layer = linear_head(net, "fc")
    assert (name, layer) == ("fc", net.fc)
    features = headless(net, head="fc")(x)
    assert features.shape == (5, 6)
    assert layer(features).equal(net(x))
    assert isinstance(net.fc, nn.Linear)  # the model itself keeps its head


def test_the_last_linear_layer_unless_named() -> None:
    assert linear_head(TwoHeads())[0] == "projector"
    assert linear_head(nn.Linear(3, 2))[0] == ""
    assert headless(nn.Linear(3, 2))(torch.ones(1, 3)).tolist() == [[1, 1, 1]]


def test_tensors_are_shared_but_for_those_it_owns() -> None:
    model = batch_statistics(TwoHeads())
    affine = norm_affine(model)
    tree = headless(model, own=affine, head="fc")
    ours, theirs = tree.get_submodule("network"), model.get_submodule("network")
    assert ours.body[1].weight is theirs.body[1].weight
    assert ours.body[2].layer.weight is not theirs.body[2].layer.weight
    with torch.no_grad():
        affine[0].fill_(7.0)
    assert ours.body[2].layer.weight.eq(1).all()


def test_a_wrong_head_is_an_error_that_helps() -> None:
    with pytest.raises(ValueError, match=r"no torch.nn.Linear layer, so"):
        headless(nn.Conv2d(3, 4, 1))
    with pytest.raises(
        ValueError, match=r"named 'head'; its linear layers are \['body.1', 'fc', 'projector'\]"
    ):
        headless(TwoHeads(), head="head")


def test_the_features_of_an_adapted_network_are_not_taken_for_logits() -> None:
    torch.manual_seed(0)
    net, x = (
        nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)),
        torch.rand(5, 3, 2, 2),
    )
    adapter = ETA(net, classes=3)
    adapter(x)
    assert headless(adapter.model)(x).shape == (5, 6)
    with pytest.raises(
        ValueError, match="the model returned logits of 3 classes, and ETA was built with classes=4"
    ):
        ETA(net, classes=4)(x)
