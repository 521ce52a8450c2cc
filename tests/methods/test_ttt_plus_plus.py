"""TTT++: both losses recomputed in numpy, the steps in plain torch, the queue, the branch taught and trained."""

import copy
from pathlib import Path

import dense_world
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from testtime import load, save, sgd, state_hash
from testtime.laws import check_adapter
from testtime.laws.worlds import ambient
from testtime.methods import TTTPlusPlus
from testtime.methods.ttt_plus_plus import FeatureQueue, SourceMoments, TTTPlusPlusOptions
from testtime.multitask import Assisted
from testtime.multitask.training import Joint
from testtime.norm import source_statistics
from testtime.parts.randomness import generator
from testtime.source.ttt_plus_plus import ContrastiveBranch, contrastive


def noisy(x: Tensor, rng: torch.Generator) -> Tensor:
    return x + 0.1 * torch.randn(x.shape, generator=rng, dtype=torch.float64)


def branch(channels: int, layer: str) -> ContrastiveBranch:
    with ambient(3):
        return ContrastiveBranch(channels, 5, augment=noisy, layer=layer).double()


def info_nce(h: np.ndarray, temperature: float = 0.5) -> float:
    """Pair by pair."""
    u = h / np.linalg.norm(h, axis=1, keepdims=True)
    n, total = len(h) // 2, 0.0
    for i in range(2 * n):
        others = [np.exp(u[i] @ u[j] / temperature) for j in range(2 * n) if j != i]
        total -= np.log(np.exp(u[i] @ u[(i + n) % (2 * n)] / temperature) / sum(others))
    return total / (2 * n)


def distance(batches: list[np.ndarray], z: np.ndarray) -> float:
    """A of features z, against a source of these batches."""
    means, covs = [b.mean(0) for b in batches], [np.cov(b.T) for b in batches]
    v_mean = np.mean([((m - means[0]) ** 2).sum() for m in means[1:]])
    v_cov = np.mean([((c - covs[0]) ** 2).sum() for c in covs[1:]])
    whole = np.concatenate(batches)
    first = ((z.mean(0) - whole.mean(0)) ** 2).sum() / v_mean / 2
    return float(first + ((np.cov(z.T) - np.cov(whole.T)) ** 2).sum() / v_cov)


def project(b: ContrastiveBranch, z: np.ndarray) -> np.ndarray:
    w1, b1, w2, b2 = (p.detach().numpy() for p in b.parameters())
    return np.maximum(z @ w1.T + b1, 0) @ w2.T + b2


def heard(adapter: TTTPlusPlus) -> list[float]:
    losses: list[float] = []
    update = adapter.update
    adapter.update = lambda loss: (losses.append(loss.item()), update(loss))[1]  # type: ignore[method-assign]
    return losses


def test_views_are_contrasted_pair_by_pair() -> None:
    h = torch.randn(10, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for temperature in (0.5, 0.07):
        expected = info_nce(h.numpy(), temperature)
        assert contrastive(h, temperature).item() == pytest.approx(expected, rel=1e-12)
    assert contrastive(h[:2]).item() == 0


def test_distance_to_the_moments_of_the_source() -> None:
    rng = np.random.default_rng(0)
    batches, z = [rng.normal(i, 1 + i, (n, 4)) for i, n in enumerate((6, 9, 5))], rng.normal(size=(7, 4))
    moments = SourceMoments()
    moments.update([torch.from_numpy(b) for b in batches])
    assert moments(torch.from_numpy(z)).item() == pytest.approx(distance(batches, z), rel=1e-12)
    one = torch.from_numpy(z[:1])  # has no covariance
    whole = np.concatenate(batches).mean(0)
    expected = ((z[0] - whole) ** 2).sum() / moments.variation[0].item() / 2
    assert moments(one).item() == pytest.approx(expected, rel=1e-12)
    same = torch.from_numpy(z)
    for wrong, match in (([same], "two batches"), ([same, one], "two images"), ([same, same], "all alike")):
        with pytest.raises(ValueError, match=match):
            SourceMoments().update(wrong)


def test_the_queue_holds_the_last_features() -> None:
    queue = FeatureQueue(5, torch.zeros(3, 1))
    nothing = torch.zeros(0, 1)
    assert queue(nothing).tolist() == []
    met: list[float] = []
    for sizes in (2, 1, 4, 9, 3):
        z = torch.arange(len(met), len(met) + sizes, dtype=torch.float32)[:, None]
        queue.update(z)
        met += z.flatten().tolist()
        assert sorted(queue(nothing).flatten().tolist()) == met[-5:]
    assert queue(torch.full((1, 1), 99.0))[0].item() == 99
    empty = FeatureQueue(0, torch.zeros(3, 1))
    empty.update(torch.ones(2, 1))
    assert len(empty(nothing)) == 0


def test_three_steps_of_a_trained_branch_in_plain_torch(net: nn.Module, stream: list[Tensor]) -> None:
    """The shared stage alone moves; every forward by its batch; the source's moments in evaluation mode."""
    taught, source = branch(8, "bn1"), [stream[0], stream[1][:10], stream[2]]
    adapter = TTTPlusPlus(
        Assisted(net, taught), sgd(1e-3), scale_con=0.7, scale_ext=0.3, scale_ssh=0.4, queue=30, augment=noisy
    )
    assert adapter.source == "statistics"
    adapter.prepare(iter(source))
    losses = heard(adapter)

    plain = copy.deepcopy(net)

    def features(x: Tensor) -> Tensor:
        z = plain.bn1(plain.conv1(x))
        return z.mean((2, 3))

    with torch.no_grad():
        known = [features(x).numpy() for x in source]
    plain.bn1.momentum = 0.0
    plain.train()
    optimizer = torch.optim.SGD([*plain.conv1.parameters(), *plain.bn1.parameters()], 1e-3, 0.9)
    queue = torch.empty(0, 8, dtype=torch.float64)
    for i, x in enumerate(stream[4:7]):
        z = features(x)
        rng = generator(0, i, "views")
        u = features(torch.cat([noisy(x, rng), noisy(x, rng)]))
        everything = torch.cat([z, queue])
        spaces = everything.detach().numpy(), project(taught, everything.detach().numpy())
        expected = (
            0.7 * info_nce(project(taught, u.detach().numpy()))
            + 0.3 * distance(known, spaces[0])
            + 0.4 * distance([project(taught, k) for k in known], spaces[1])
        )
        adapter(x)
        assert losses[i] == pytest.approx(expected, rel=1e-8)
        # The same in torch, for its gradient. What the queue holds of h is the projection by a branch that stands still.
        loss = 0.7 * contrastive(taught(u))
        moments = adapter.features, adapter.projections
        for f, m, scale in zip((everything, taught(everything)), moments, (0.3, 0.4), strict=True):
            loss = loss + scale * ((f.mean(0) - m.mean) ** 2).sum() / m.variation[0] / 2
            loss = loss + scale * ((torch.cov(f.T) - m.cov) ** 2).sum() / m.variation[1]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        queue = torch.cat([queue, z.detach()])[-30:]
    own = adapter.model.get_submodule("network.network.bn1")
    while not isinstance(own, nn.BatchNorm2d):
        own = own.layer
    torch.testing.assert_close(own.weight, plain.bn1.weight, rtol=0, atol=1e-9)
    assert not torch.equal(own.weight, net.bn1.weight)
    for a, b in zip(adapter.branch.parameters(), taught.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_network_that_comes_alone_is_prepared(net: nn.Module, stream: list[Tensor], tmp_path: Path) -> None:
    """The branch learns to tell images apart by the features before the head; a file holds all it was taught."""
    options = TTTPlusPlusOptions(projection=6, passes=30, rate=1e-2)
    adapter = TTTPlusPlus(net, sgd(1e-3), queue=40, options=options, norm=source_statistics)
    assert adapter.source == "data"
    with pytest.raises(
        RuntimeError, match=r"TTT\+\+ has no trained ContrastiveBranch: call adapter\.prepare"
    ):
        adapter(stream[0])
    with torch.no_grad():
        pair = adapter._views(stream[0], "source 0")
        untaught = adapter._apart(pair).item()
        adapter.prepare(stream[:3])
        assert adapter._apart(pair).item() < untaught - 0.1
    before = {k: v.clone() for k, v in adapter.branch.state_dict().items()}
    adapter(stream[6])
    assert all(torch.equal(v, before[k]) for k, v in adapter.branch.state_dict().items())
    assert not [k for k in adapter.state_dict() if "fc" in k]
    save(adapter, tmp_path)
    again = load(tmp_path, net)
    assert torch.equal(again(stream[7]).logits, adapter(stream[7]).logits)
    again.reset()
    adapter.reset()
    assert state_hash(again) == state_hash(adapter)
    assert again(stream[0]).updated
    assert int(again.feature_queue.met) == len(stream[0])


def test_a_multi_task_network() -> None:
    net, x = dense_world.network(), dense_world.batch(1)
    source = [dense_world.batch(i, 6) for i in (5, 6, 7)]
    taught = branch(6, "encoder")
    adapter = TTTPlusPlus(Assisted(net, taught), sgd(0.1), augment=noisy)
    adapter.prepare(source)
    losses = heard(adapter)
    y = adapter(x)
    with torch.no_grad():
        known = [net.encoder(s).mean((2, 3)).numpy() for s in source]
        z = dense_world.by_batch(net.encoder, x)
        rng = generator(0, 0, "views")
        u = dense_world.by_batch(net.encoder, torch.cat([noisy(x, rng), noisy(x, rng)])).mean((2, 3)).numpy()
        depth = nn.functional.interpolate(net.heads["depth"](z), x.shape[-2:], mode="bilinear")
    flat = z.mean((2, 3)).numpy()
    projected = [project(taught, k) for k in known]
    aligned = 0.05 * distance(known, flat) + 0.2 * distance(projected, project(taught, flat))
    assert losses == [pytest.approx(info_nce(project(taught, u)) + aligned, rel=1e-8)]
    torch.testing.assert_close(y["depth"], depth, rtol=0, atol=1e-10)
    assert not [k for k in adapter.state_dict() if "heads" in k]


def test_joint_training_reaches_the_encoder() -> None:
    net, x = dense_world.network(), dense_world.batch(1)
    taught = branch(6, "encoder")
    joint = Joint(Assisted(net, taught).train())
    total, parts = joint(x, dense_world.labels(), torch.Generator().manual_seed(4))
    rng = torch.Generator().manual_seed(4)
    u = dense_world.by_batch(net.encoder, torch.cat([noisy(x, rng), noisy(x, rng)])).mean((2, 3))
    assert parts["contrastive"].item() == pytest.approx(
        info_nce(project(taught, u.detach().numpy())), abs=1e-10
    )
    rest = sum(net.tasks[k].weight * parts[k] for k in net.tasks)
    assert total.item() == pytest.approx((rest + parts["contrastive"]).item(), abs=1e-10)
    names, leaves = zip(*joint.named_parameters(), strict=True)
    slopes = torch.autograd.grad(total, leaves, allow_unused=True)
    moved = {n for n, g in zip(names, slopes, strict=True) if g is not None and g.abs().sum() > 0}
    assert {"model.branch.inner.weight", "model.branch.outer.weight"} <= moved


def test_it_must_see_its_source(net: nn.Module, stream: list[Tensor]) -> None:
    adapter = TTTPlusPlus(Assisted(net, branch(8, "bn1")))
    with pytest.raises(RuntimeError, match=r"TTT\+\+ has not seen its source"):
        adapter(stream[0])
    with pytest.raises(ValueError, match="needs two batches"):
        adapter.prepare([stream[0]])
    with pytest.raises(TypeError, match="as tensors"):
        adapter.prepare([(stream[0], 1)])  # type: ignore[list-item]


def test_the_laws_with_a_branch_that_was_trained() -> None:
    def make(model: nn.Module) -> TTTPlusPlus:
        with ambient():
            taught = ContrastiveBranch(16, 8)
        return TTTPlusPlus(Assisted(model, taught.to(next(model.parameters()).dtype)))

    laws = ["declared", "reset_is_birth", "save_is_enough", "frozen_is_frozen", "any_precision"]
    check_adapter(make, worlds=["dense"], laws=laws)
