"""ActMAD: moments and loss recomputed in numpy, the step in plain torch, and what it asks for."""

import copy
from functools import partial

import dense_world
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from testtime import load, save, sgd, state_hash
from testtime.methods import ActMAD
from testtime.methods.actmad import SourceActivations
from testtime.multitask import Assisted, Synchronizer
from testtime.norm import batch_statistics, running_statistics


def activations(net: nn.Module, x: Tensor) -> list[Tensor]:
    """What the BatchNorm layers of a network give in evaluation mode."""
    seen: list[Tensor] = []
    hooks = [
        m.register_forward_hook(lambda m, i, o: seen.append(o))
        for m in net.modules()
        if isinstance(m, nn.BatchNorm2d)
    ]
    net(x)
    for hook in hooks:
        hook.remove()
    return seen


def by_hand(net: nn.Module, source: Tensor, x: Tensor) -> float:
    """The loss in numpy, of all source images at once."""
    total = 0.0
    for s, t in zip(activations(net, source), activations(net, x), strict=True):
        a, b = s.detach().numpy(), t.detach().numpy()
        total += 0.5 * np.abs(a.mean(0) - b.mean(0)).mean() + 0.5 * np.abs(a.var(0) - b.var(0)).mean()
    return total


def heard(adapter: ActMAD) -> list[float]:
    losses: list[float] = []
    update = adapter.update
    adapter.update = lambda loss: (losses.append(loss.item()), update(loss))[1]  # type: ignore[method-assign]
    return losses


@pytest.fixture
def source(stream: list[Tensor]) -> list[Tensor]:
    """Batches of unequal size."""
    return [stream[0][:16], stream[1][:9], stream[2][:1]]


def test_two_steps_in_plain_torch(net: nn.Module, stream: list[Tensor], source: list[Tensor]) -> None:
    """SGD on every parameter, the source's moments from all its images at once; the last layer has no part."""
    adapter = ActMAD(net, sgd(0.05, momentum=0.9, weight_decay=0.01, nesterov=True))
    adapter.prepare(iter(source))
    losses = heard(adapter)
    plain = copy.deepcopy(net)
    known = [(a.mean(0), a.var(0, unbiased=False)) for a in activations(plain, torch.cat(source).detach())]
    known = [(m.detach(), v.detach()) for m, v in known]
    optimizer = torch.optim.SGD(plain.parameters(), 0.05, 0.9, weight_decay=0.01, nesterov=True)
    for i, x in enumerate(stream[5:7]):
        if i == 0:
            assert by_hand(plain, torch.cat(source), x) > 0.01
        z = plain(x)
        loss = sum(
            0.5 * (a.mean(0) - m).abs().mean() + 0.5 * (a.var(0, unbiased=False) - v).abs().mean()
            for a, (m, v) in zip(activations(plain, x), known, strict=True)
        )
        if i == 0:
            assert loss.item() == pytest.approx(by_hand(net, torch.cat(source), x), abs=1e-12)
        torch.testing.assert_close(adapter(x).logits, z.detach(), rtol=0, atol=1e-10)
        assert losses[i] == pytest.approx(loss.item(), abs=1e-10)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(
        adapter.predict(stream[8]).logits, plain(stream[8]).detach(), atol=1e-9, rtol=0
    )
    torch.testing.assert_close(plain.fc.weight, net.fc.weight)
    assert not torch.equal(plain.conv1.weight, net.conv1.weight)


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("batch_average", [True, False])
def test_variances_and_averages_of_the_published_code(
    net: nn.Module, stream: list[Tensor], source: list[Tensor], unbiased: bool, batch_average: bool
) -> None:
    """Ten steps in plain torch on statistics of the source from numpy, for each of the four choices."""
    source = source[:2] if unbiased else source  # one image has no unbiased variance
    adapter = ActMAD(net, sgd(0.05), unbiased=unbiased, batch_average=batch_average)
    adapter.prepare(iter(source))
    plain, known = copy.deepcopy(net), []
    parts = source if batch_average else [torch.cat(source)]
    for layer in zip(*(activations(plain, x) for x in parts), strict=True):
        mean = np.mean([z.detach().numpy().mean(0) for z in layer], 0)
        var = np.mean([z.detach().numpy().var(0, ddof=int(unbiased)) for z in layer], 0)
        known.append((torch.from_numpy(mean), torch.from_numpy(var)))
    optimizer = torch.optim.SGD(plain.parameters(), 0.05, 0.9)
    for x in stream[5:15]:
        z = plain(x)
        loss = sum(
            0.5 * (a.mean(0) - m).abs().mean() + 0.5 * (a.var(0, unbiased=unbiased) - v).abs().mean()
            for a, (m, v) in zip(activations(plain, x), known, strict=True)
        )
        torch.testing.assert_close(adapter(x).logits, z.detach(), rtol=0, atol=1e-9)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    default = ActMAD(net, sgd(0.05))
    default.prepare(source)
    for x in stream[5:15]:
        other = default(x)
    same = not unbiased and not batch_average
    assert ((other.logits - z.detach()).abs().max() > 1e-5) == (not same)


def test_a_batch_of_one_source_image_has_no_unbiased_variance(net: nn.Module, source: list[Tensor]) -> None:
    with_one, without = (ActMAD(net, unbiased=True, batch_average=True) for _ in range(2))
    with_one.prepare(source)
    without.prepare(source[:2])
    assert state_hash(with_one) == state_hash(without)
    with pytest.raises(ValueError, match="got none of more than one image"):
        with_one.prepare(source[2:])


def test_one_image_matches_its_values_alone(
    net: nn.Module, stream: list[Tensor], source: list[Tensor]
) -> None:
    adapter = ActMAD(net)
    adapter.prepare(source)
    losses = heard(adapter)
    x = stream[5][:1]
    adapter(x)
    expected = 0.0
    for s, t in zip(activations(net, torch.cat(source)), activations(net, x), strict=True):
        expected += 0.5 * np.abs(s.detach().numpy().mean(0) - t.detach().numpy()[0]).mean()
    assert losses == [pytest.approx(expected, abs=1e-12)]


def test_the_moments_of_batches_are_those_of_all_images() -> None:
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=(n, 3, 2)) * n for n in (5, 1, 7)]
    known = SourceActivations(["a.b"])
    for part in parts:
        known.update([torch.from_numpy(part)])
    whole = np.concatenate(parts)
    np.testing.assert_allclose(known.get_buffer("a/b/mean").numpy(), whole.mean(0), rtol=1e-12)
    np.testing.assert_allclose(known.get_buffer("a/b/var").numpy(), whole.var(0), rtol=1e-12)
    assert int(known.images) == 13


@pytest.mark.parametrize("norm", [None, running_statistics])
def test_a_multi_task_network(norm: object) -> None:
    """The loss in numpy; under running statistics the step is normalised by its batch, the source by its own."""
    net, source, x = dense_world.network(), dense_world.batch(1, 6), dense_world.batch(2)
    adapter = ActMAD(net, **({"norm": norm} if norm else {}))
    adapter.prepare([source[:4], source[4:]])
    losses = heard(adapter)
    y = adapter(x)
    trained = copy.deepcopy(net).train() if norm else net
    expected = 0.0
    for s, t in zip(activations(net, source), activations(trained, x), strict=True):
        a, b = s.detach().numpy(), t.detach().numpy()
        expected += 0.5 * (np.abs(a.mean(0) - b.mean(0)) + np.abs(a.var(0) - b.var(0))).mean()
    assert losses == [pytest.approx(expected, abs=1e-10)]
    assert sorted(y) == sorted(net.tasks)


def test_a_branch_of_another_method_is_left_alone() -> None:
    net = dense_world.network()
    branch = Synchronizer(net.tasks, 6, 4, 8, 4, 8, 1, 1, 2).double()
    adapter = ActMAD(Assisted(net, branch))
    adapter.prepare([dense_world.batch(1)])
    assert adapter(dense_world.batch(2)).updated
    assert not [k for k in adapter.state_dict() if "branch" in k]
    assert set(adapter.activations.keys) == {"encoder/1", "encoder/4"}


def test_layers_can_be_left_out(net: nn.Module) -> None:
    assert ActMAD(net, skip=("bn2",)).activations.keys == ["network/bn1"]
    with pytest.raises(ValueError, match=r"none outside of skip=\('bn1', 'bn2'\)"):
        ActMAD(net, skip=("bn1", "bn2"))


def test_another_preparation_replaces_the_first(net: nn.Module, stream: list[Tensor]) -> None:
    once, twice = ActMAD(net), ActMAD(net)
    once.prepare(stream[:2])
    twice.prepare(stream[4:6])
    twice.prepare(stream[:2])
    assert state_hash(once) == state_hash(twice)


def test_it_must_see_its_source_and_images_of_one_size(net: nn.Module, stream: list[Tensor]) -> None:
    adapter = ActMAD(net, norm=batch_statistics)
    with pytest.raises(RuntimeError, match="call adapter.prepare"):
        adapter(stream[0])
    with pytest.raises(ValueError, match="got none"):
        adapter.prepare([])
    adapter.prepare(stream[:1])
    with pytest.raises(ValueError, match="images of the size of those that prepare"):
        adapter(stream[0][..., :6])


def test_what_it_knows_of_the_source_is_saved(net: nn.Module, stream: list[Tensor], tmp_path: object) -> None:
    adapter = ActMAD(net, norm=partial(running_statistics, momentum=0.2))
    adapter.prepare(stream[:2])
    adapter(stream[3])
    save(adapter, tmp_path)  # type: ignore[arg-type]
    again = load(tmp_path, net)  # type: ignore[arg-type]
    assert torch.equal(again(stream[4]).logits, adapter(stream[4]).logits)
    again.reset()
    adapter.reset()
    assert state_hash(again) == state_hash(adapter)


def test_a_transformer_of_torch() -> None:
    """Its norms are asked for more than their output, and its fast path would go around them."""
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True, norm_first=True)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 4, 4), nn.Flatten(2), nn.Linear(4, 8), block, nn.Flatten(), nn.Linear(64, 3)
    ).eval()
    x = torch.rand(6, 3, 8, 8)
    adapter = ActMAD(net)
    adapter.prepare([x])
    assert adapter.activations.keys == ["network/3/norm1", "network/3/norm2"]
    assert adapter.activations([torch.zeros(2, 8, 8)] * 2).item() > 0
    assert adapter(x.flip(0) * 0.5).updated
    torch.testing.assert_close(ActMAD(net).predict(x).logits, net(x).detach())
