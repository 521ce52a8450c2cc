"""Checkpoints: everything comes back by name, whole or not at all, and only to whom it belongs."""

import json

import pytest
import torch
from safetensors import safe_open
from torch import nn

from testtime import files
from testtime.errors import DataError
from testtime.training import checkpoint

DESCRIBED = {"recipe": {"lr": 0.1, "betas": (0.9, 0.95)}, "seed": 0, "only": None}


class Net(nn.Module):
    def __init__(self, seed=0, width=4, reverse=False):
        super().__init__()
        torch.manual_seed(seed)
        made = {"first": nn.Linear(3, width), "norm": nn.BatchNorm1d(width), "last": nn.Linear(width, 2)}
        for name in list(made)[::-1] if reverse else made:
            setattr(self, name, made[name])
        self.frozen = nn.Parameter(torch.randn(2), requires_grad=False)
        self.register_buffer("scratch", torch.randn(3), persistent=False)

    def forward(self, x):
        return self.last(self.norm(self.first(x)).relu())


def optimizer_of(net, kind=torch.optim.AdamW):
    groups = [{"params": [p for p in net.parameters() if p.dim() > 1]}]
    groups.append({"params": [p for p in net.parameters() if p.dim() == 1], "weight_decay": 0.0})
    return kind(groups, lr=0.05)


def trained(net, optimizer, begin, end):
    for step in range(begin, end):
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()
    return net


def test_a_training_goes_on_as_if_it_had_not_stopped(tmp_path):
    whole = Net()
    trained(whole, optimizer_of(whole), 0, 9)
    net = Net()
    optimizer = optimizer_of(net)
    trained(net, optimizer, 0, 5)
    checkpoint.save(tmp_path / "c.safetensors", net, optimizer, 5, DESCRIBED)
    trained(net, optimizer, 5, 7)  # what is saved does not follow
    other = Net(seed=3)
    fresh = optimizer_of(other)
    assert checkpoint.load(tmp_path / "c.safetensors", other, fresh) == 5
    trained(other, fresh, 5, 9)
    for (name, a), b in zip(whole.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert other.norm.num_batches_tracked == 9


def test_parameters_are_found_by_name_not_by_order(tmp_path):
    net = Net()
    optimizer = optimizer_of(net)
    trained(net, optimizer, 0, 3)
    checkpoint.save(tmp_path / "c", net, optimizer, 3, {})
    turned = Net(seed=1, reverse=True)
    fresh = optimizer_of(turned)
    checkpoint.load(tmp_path / "c", turned, fresh)
    for name, value in net.state_dict().items():
        assert torch.equal(turned.state_dict()[name], value), name
    for name, p in net.named_parameters():
        mine = fresh.state.get(turned.get_parameter(name), {})
        assert mine.keys() == optimizer.state.get(p, {}).keys()
        for key, value in optimizer.state.get(p, {}).items():
            assert torch.equal(mine[key], value), f"{name} {key}"
    assert turned.frozen not in fresh.state


def test_what_is_in_the_file(tmp_path):
    net = Net()
    optimizer = optimizer_of(net, torch.optim.SGD)
    trained(net, optimizer, 0, 1)
    path = tmp_path / "c.safetensors"
    checkpoint.save(
        path, net, optimizer_of(net), 0, DESCRIBED
    )  # an optimizer that has not begun has no state
    with safe_open(path, "pt") as file:
        assert set(file.keys()) == {f"model.{name}" for name in net.state_dict()}
        metadata = file.metadata()
    assert len(metadata.pop("sha256")) == 64
    assert metadata == {"step": "0", "described": json.dumps(DESCRIBED)}
    assert "scratch" not in net.state_dict()
    adam = optimizer_of(net)
    trained(net, adam, 0, 2)
    checkpoint.save(path, net, adam, 2, DESCRIBED)
    with safe_open(path, "pt") as file:
        kept = {name for name in file.keys() if name.startswith("optimizer.")}  # noqa: SIM118 - not a dict
        learning = [name for name, p in net.named_parameters() if p.requires_grad]
        assert kept == {
            f"optimizer.{name}.{key}" for name in learning for key in ("exp_avg", "exp_avg_sq", "step")
        }
        assert file.get_tensor("optimizer.first.weight.step") == 2


def test_weights_alone(tmp_path):
    net = Net()
    checkpoint.save(tmp_path / "c", net, None, 7, DESCRIBED)
    other = Net(seed=1)
    assert checkpoint.load(tmp_path / "c", other) == 7
    assert torch.equal(other.first.weight, net.first.weight)
    assert torch.equal(other.frozen, net.frozen)
    assert not torch.equal(other.scratch, net.scratch)
    assert other.first.weight.requires_grad
    assert not other.frozen.requires_grad


def test_another_model_is_refused_and_not_changed(tmp_path):
    checkpoint.save(tmp_path / "c", Net(), None, 1, {})
    wide = Net(seed=1, width=5)
    before = {name: value.clone() for name, value in wide.state_dict().items()}
    with pytest.raises(
        ValueError, match="of another model: .* tensors differ, first first.bias, first.weight"
    ):
        checkpoint.load(tmp_path / "c", wide)
    assert all(torch.equal(before[name], value) for name, value in wide.state_dict().items())
    more = Net(seed=1)
    more.extra = nn.Linear(1, 1, bias=False)
    with pytest.raises(
        ValueError, match=r"1 tensors differ, first extra\.weight; build the model with the same"
    ):
        checkpoint.load(tmp_path / "c", more)


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path, net = tmp_path / "c.safetensors", Net()
    checkpoint.save(path, net, None, 1, {})
    before = path.read_bytes()

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save(path, net, None, 2, {})
    assert path.read_bytes() == before
    checkpoint.save(path, net, None, 2, {})
    assert [p.name for p in tmp_path.iterdir()] == ["c.safetensors"]
    assert checkpoint.load(path, net) == 2


def test_it_belongs_to_what_was_described(tmp_path):
    checkpoint.save(tmp_path / "c", Net(), None, 1, DESCRIBED)
    assert checkpoint.belongs(tmp_path / "c", DESCRIBED)
    lists = {**DESCRIBED, "recipe": {"lr": 0.1, "betas": [0.9, 0.95]}}
    assert checkpoint.belongs(tmp_path / "c", lists)  # in JSON a tuple is a list
    assert not checkpoint.belongs(tmp_path / "c", {**DESCRIBED, "seed": 1})
    assert not checkpoint.belongs(tmp_path / "c", {k: v for k, v in DESCRIBED.items() if k != "only"})


def test_a_damaged_file_is_refused_and_changes_nothing(tmp_path):
    path, net = tmp_path / "c", Net()
    checkpoint.save(path, Net(seed=1), None, 1, DESCRIBED)
    content, before = path.read_bytes(), net.first.weight.clone()
    for damage in (b"", content[:9], content[:-1], content[:-1] + bytes([content[-1] ^ 1]), b"\xff" * 99):
        path.write_bytes(damage)
        with pytest.raises(DataError, match="c is damaged .*; delete it and run the same command again"):
            checkpoint.load(path, net)
        assert torch.equal(net.first.weight, before)
    path.write_bytes(content[:100])
    with pytest.raises(DataError, match="c is damaged"):
        checkpoint.described_in(path)


def test_the_digest_is_of_names_types_shapes_and_values():
    net, before = Net(), checkpoint.digest(Net())
    assert checkpoint.digest(net) == before
    assert (
        len(
            {
                before,
                checkpoint.digest(Net(1)),
                checkpoint.digest(Net(width=5)),
                checkpoint.digest(Net().double()),
            }
        )
        == 4
    )
    net.norm.running_mean[0] += 1
    assert checkpoint.digest(net) != before
    net = Net()
    net.scratch += 1  # not persistent
    assert checkpoint.digest(net) == before
