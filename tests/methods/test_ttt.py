"""TTT: the turns by numpy, the step in plain torch, the branch taught and trained, on classes and on many tasks."""

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
from testtime.methods import TTT
from testtime.multitask import Assisted
from testtime.multitask.training import Joint
from testtime.norm import running_statistics
from testtime.parts import generator, random_crop_flip
from testtime.source.ttt import RotationBranch, turned


def branch(channels: int, layer: str) -> RotationBranch:
    with ambient(3):
        return RotationBranch(channels, layer).double()


def four_ways(x: Tensor) -> tuple[list[Tensor], list[int]]:
    """Every image by itself, turned by numpy."""
    images = [np.rot90(image, k, (1, 2)).copy() for k in range(4) for image in x.numpy()]
    return [torch.from_numpy(image) for image in images], [k for k in range(4) for _ in x]


def cross_entropy(logits: np.ndarray, labels: list[int]) -> float:
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    return float(-np.log(p[range(len(labels)), labels]).mean())


def heard(adapter: TTT) -> list[float]:
    losses: list[float] = []
    update = adapter.update
    adapter.update = lambda loss: (losses.append(loss.item()), update(loss))[1]  # type: ignore[method-assign]
    return losses


@pytest.mark.parametrize("shape", [(5, 3, 4, 4), (5, 3, 4, 6)])
def test_images_are_turned_as_numpy_turns_them(shape: tuple[int, ...]) -> None:
    x, turns = torch.rand(shape), torch.tensor([3, 0, 2, 3, 1])
    groups = turned(x, turns)
    assert len(groups) == (1 if shape[2] == shape[3] else 2)
    got = [(int(k), image) for images, labels in groups for image, k in zip(images, labels, strict=True)]
    order = [k for kinds in ([(0, 1, 2, 3)] if len(groups) == 1 else [(0, 2), (1, 3)]) for k in kinds]
    expected = [(k, np.rot90(x[i].numpy(), k, (1, 2))) for k in order for i in range(5) if turns[i] == k]
    assert [k for k, _ in got] == [k for k, _ in expected]
    for (_, a), (_, b) in zip(got, expected, strict=True):
        np.testing.assert_array_equal(a.numpy(), b)
    with pytest.raises(ValueError, match="only images"):
        turned(torch.rand(3, 5), turns[:3])


def test_two_steps_of_a_trained_branch_in_plain_torch(net: nn.Module, stream: list[Tensor]) -> None:
    """Shared stage and branch move, what comes after the stage does not; BatchNorm in evaluation mode."""
    taught = branch(8, "bn1")
    ttt = TTT(Assisted(net, taught), sgd(0.1, momentum=0.0))
    assert ttt.source == "none"
    losses = heard(ttt)
    plain, guess = copy.deepcopy(net).eval(), copy.deepcopy(taught.guess)
    shared = [*plain.conv1.parameters(), *plain.bn1.parameters(), *guess.parameters()]
    optimizer = torch.optim.SGD(shared, 0.1)
    for i, x in enumerate(stream[3:5]):
        torch.testing.assert_close(ttt(x).logits, plain(x).detach(), rtol=0, atol=1e-10)
        images, labels = four_ways(x)
        logits = guess(plain.bn1(plain.conv1(torch.stack(images))).mean((2, 3)))
        assert losses[i] == pytest.approx(cross_entropy(logits.detach().numpy(), labels), abs=1e-10)
        optimizer.zero_grad()
        nn.functional.cross_entropy(logits, torch.tensor(labels)).backward()
        optimizer.step()
    torch.testing.assert_close(ttt.predict(stream[9]).logits, plain(stream[9]).detach(), rtol=0, atol=1e-9)
    torch.testing.assert_close(ttt.branch.guess.weight, guess.weight, rtol=0, atol=1e-10)
    assert not torch.equal(guess.weight, taught.guess.weight)
    before = state_hash(TTT(Assisted(net, taught), sgd(0.1, momentum=0.0)))
    ttt.reset()
    assert state_hash(ttt) == before


def test_a_network_that_comes_alone_is_prepared(net: nn.Module, stream: list[Tensor], tmp_path: Path) -> None:
    """The branch learns the turns from the features before the head; at test time it stands still."""
    ttt = TTT(net, sgd(0.02, momentum=0.0), passes=40)
    assert ttt.source == "data"
    with pytest.raises(RuntimeError, match=r"TTT has no trained RotationBranch: call adapter\.prepare"):
        ttt(stream[0])
    ttt.prepare(iter(stream[:3]))
    images, labels = four_ways(torch.cat(stream[:3]))
    held: list[Tensor] = []
    hook = net.fc.register_forward_pre_hook(lambda m, z: held.append(z[0].detach()))
    net(torch.stack(images))
    hook.remove()
    logits = held[0].numpy() @ ttt.branch.guess.weight.numpy().T + ttt.branch.guess.bias.numpy()
    assert cross_entropy(logits, labels) < np.log(4) - 0.05
    weight, fc = ttt.branch.guess.weight.clone(), net.fc.weight.clone()
    losses = heard(ttt)
    for _ in range(8):
        ttt(stream[6])
    assert losses[-1] < losses[0]
    assert torch.equal(ttt.branch.guess.weight, weight)
    assert torch.equal(ttt.model.get_submodule("network.fc").layer.weight, fc)
    save(ttt, tmp_path)
    again = load(tmp_path, net)
    assert torch.equal(again(stream[7]).logits, ttt(stream[7]).logits)
    again.reset()
    ttt.reset()
    assert state_hash(again) == state_hash(ttt)
    assert again(stream[0]).updated  # a reset keeps what prepare taught


def test_what_is_drawn_before_the_turns(net: nn.Module, stream: list[Tensor]) -> None:
    ttt = TTT(Assisted(net, branch(8, "bn1")), augment=random_crop_flip)
    assert ttt.stochastic
    assert not TTT(net).stochastic
    losses = heard(ttt)
    ttt(stream[0])
    images, labels = [], []
    drawn = random_crop_flip(torch.cat([stream[0]] * 4), generator(0, 0, "turns"))
    for i, image in enumerate(drawn):
        images.append(torch.from_numpy(np.rot90(image.numpy(), i // len(stream[0]), (1, 2)).copy()))
        labels.append(i // len(stream[0]))
    z = net.eval().bn1(net.conv1(torch.stack(images))).mean((2, 3))
    logits = branch(8, "bn1").guess(z).detach().numpy()
    assert losses == [pytest.approx(cross_entropy(logits, labels), abs=1e-10)]


@pytest.mark.parametrize("lying", [False, True])
def test_a_multi_task_network(lying: bool) -> None:
    """Each shape of image is normalised by its own statistics; the running ones move by the batch itself."""
    net, x = dense_world.network(), dense_world.batch(1)
    x = x[..., :6].contiguous() if lying else x
    ttt = TTT(Assisted(net, branch(6, "encoder")), sgd(0.1), norm=running_statistics)
    losses = heard(ttt)
    y = ttt(x)
    images, labels = four_ways(x)
    kinds = [(0, 2), (1, 3)] if lying else [(0, 1, 2, 3)]
    logits, order = [], []
    for kind in kinds:
        rows = [i for i, k in enumerate(labels) if k in kind]
        z = dense_world.by_batch(net.encoder, torch.stack([images[i] for i in rows])).mean((2, 3))
        logits.append(branch(6, "encoder").guess(z).detach().numpy())
        order += [labels[i] for i in rows]
    assert losses == [pytest.approx(cross_entropy(np.concatenate(logits), order), abs=1e-10)]
    z = dense_world.by_batch(net.encoder, x)
    depth = nn.functional.interpolate(net.heads["depth"](z), x.shape[-2:], mode="bilinear")
    torch.testing.assert_close(y["depth"], depth.detach(), rtol=0, atol=1e-10)
    got = next(v for k, v in ttt.state_dict().items() if k.endswith("encoder.layer.1.mean"))
    torch.testing.assert_close(got, 0.1 * net.encoder[0](x).mean((0, 2, 3)).detach(), rtol=0, atol=1e-12)
    assert not [k for k in ttt.state_dict() if "heads" in k]


def test_joint_training_reaches_the_encoder() -> None:
    """One random turn for each image; the loss by hand; Joint adds it to the tasks' losses."""
    net, x = dense_world.network(), dense_world.batch(1, 6)
    joint = Joint(Assisted(net, branch(6, "encoder")).train())
    total, parts = joint(x, dense_world.labels(6), torch.Generator().manual_seed(4))
    turns = torch.randint(4, (6,), generator=torch.Generator().manual_seed(4)).tolist()
    assert len(set(turns)) > 2
    pictures = [np.rot90(image, k, (1, 2)).copy() for image, k in zip(x.numpy(), turns, strict=True)]
    z = dense_world.by_batch(net.encoder, torch.from_numpy(np.stack(pictures))).mean((2, 3))
    logits = branch(6, "encoder").guess(z).detach().numpy()
    assert parts["rotation"].item() == pytest.approx(cross_entropy(logits, turns), abs=1e-10)
    rest = sum(net.tasks[k].weight * parts[k] for k in net.tasks)
    assert total.item() == pytest.approx((rest + parts["rotation"]).item(), abs=1e-10)
    slope = torch.autograd.grad(total - rest, net.encoder[0].weight, allow_unused=True)[0]
    assert slope.abs().sum() > 0


def test_the_laws_with_a_branch_that_was_trained() -> None:
    def make(model: nn.Module) -> TTT:
        with ambient():
            rotation = RotationBranch(16)
        return TTT(Assisted(model, rotation.to(next(model.parameters()).dtype)), sgd(1e-2))

    laws = ["declared", "reset_is_birth", "save_is_enough", "frozen_is_frozen", "source_untouched"]
    check_adapter(make, worlds=["dense"], laws=[*laws, "any_precision", "order_equivariant"])
