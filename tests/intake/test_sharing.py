import pytest
import torch
from torch import nn

from testtime.intake.sharing import InitialState, Logits, Stateful, share, twin
from testtime.norm import EMAStatistics, ema_statistics, norm_affine


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 2)
    )


class Counter(Stateful):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("constant", torch.ones(2), persistent=False)
        self.register_buffer("later", None)


def test_share_is_a_frozen_tree_on_the_same_memory() -> None:
    model = network().train()
    tree = share(model)
    assert not any(m.training for m in tree.modules())
    assert not any(p.requires_grad for p in tree.parameters())
    assert all(m.training for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())
    for one, other in zip(tree.parameters(), model.parameters(), strict=True):
        assert one is not other
        assert one.data_ptr() == other.data_ptr()
    x = torch.rand(2, 3, 8, 8)
    assert tree(x).equal(model.eval()(x))


def test_share_copies_what_moves() -> None:
    model = nn.Sequential(Counter())
    tree = share(model)
    tree.network[0].count += 5
    assert model[0].count.item() == 0
    assert tree.network[0].constant.data_ptr() == model[0].constant.data_ptr()


def test_share_of_a_share_is_wrapped_once() -> None:
    tree = share(share(network()))
    assert isinstance(tree, Logits)
    assert not isinstance(tree.network, Logits)


def test_share_of_a_model_made_in_inference_mode_can_be_differentiated() -> None:
    with torch.inference_mode():
        model = network()
    tree = share(model)
    weight = tree.network[0].weight.requires_grad_(True)
    (gradient,) = torch.autograd.grad(tree(torch.rand(2, 3, 8, 8)).sum(), [weight])
    assert gradient.abs().sum() > 0


def test_share_refuses_what_is_no_module() -> None:
    with pytest.raises(TypeError, match=r"expected a torch.nn.Module as the model, got dict"):
        share({})  # type: ignore[arg-type]


def test_twin_shares_all_but_its_own_and_what_moves() -> None:
    model = ema_statistics(network())
    affine = norm_affine(model)
    tree = twin(model, own=affine)
    own = norm_affine(tree)
    assert [p.data_ptr() == q.data_ptr() for p, q in zip(affine, own, strict=True)] == [False, False]
    assert [p.equal(q) for p, q in zip(affine, own, strict=True)] == [True, True]
    assert tree.network[0].weight is model.network[0].weight
    one, other = (next(m for m in t.modules() if isinstance(m, EMAStatistics)) for t in (model, tree))
    assert one.mean.data_ptr() != other.mean.data_ptr()
    assert one.source_mean is other.source_mean


def test_moving_is_what_is_persistent_and_there() -> None:
    counter = Counter()
    assert list(counter.moving()) == ["count"]
    value = torch.tensor(3.0)
    counter.restore("count", value)
    value.zero_()
    assert counter.count.item() == 3


def test_the_initial_state_holds_copies() -> None:
    birth, weight = InitialState(["model.weight", "clock"]), torch.ones(2)
    assert birth.known() == {}
    birth.remember({"model.weight": weight, "clock": torch.tensor(3), "other": weight})
    weight.zero_()
    assert birth.known()["model.weight"].tolist() == [1, 1]
    assert int(birth.known()["clock"]) == 3
    other = InitialState(["model.weight", "clock"])
    for name, value in birth.moving().items():
        other.restore(name, value)
    assert {k: v.tolist() for k, v in other.known().items()} == {"model.weight": [1, 1], "clock": 3}
