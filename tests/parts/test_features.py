import pytest
import torch
from torch import Tensor, nn

from testtime.methods import ETA
from testtime.norm import batch_statistics, norm_affine
from testtime.parts.features import head_tap, headless, linear_head, with_features


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


class Measured(nn.Module):
    """It reads the sizes of its head in each forward."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Flatten(), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = self.body(x)
        assert z.shape[1] == self.head.in_features
        assert self.head.out_features == 3
        return self.head(z)


def test_a_forward_that_reads_the_sizes_of_its_head_gives_features() -> None:
    x = torch.rand(5, 3, 2, 2)
    assert headless(Measured())(x).equal(x.flatten(1))


class Inside(nn.Module):
    """A network and its head, whose names another network in front of the head has too."""

    def __init__(self, inner: bool = True) -> None:
        super().__init__()
        self.body = nn.ModuleDict({"network": Inside(False)}) if inner else nn.Flatten()
        self.head = nn.Linear(12, 3 if inner else 12)

    def forward(self, x: Tensor) -> Tensor:
        z = self.body["network"](x) if isinstance(self.body, nn.ModuleDict) else self.body(x)
        return self.head(z)


def test_a_whole_name_is_that_of_one_layer() -> None:
    net, x = nn.ModuleDict({"network": Inside()}), torch.rand(5, 3, 2, 2)
    whole = net["network"]
    last = whole.head
    assert linear_head(net) == ("network.head", last)
    assert linear_head(net, "network.body.network.head")[1] is whole.body["network"].head
    assert head_tap(net).layer is last
    assert head_tap(net).layer is last
    logits, z = with_features(whole, whole.head, x)
    assert z.equal(whole.body["network"](x))
    assert whole.head.layer(z).equal(logits)


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
    with pytest.raises(
        ValueError, match=r"no torch.nn.Linear layer, so.*methods that take \(N, C, H, W\) are Source"
    ):
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
