"""Training: exact resume, the order of the data, augmentation that keeps labels true, learned weights, partial labels."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from testtime.data import IGNORE, DenseSet, Sample
from testtime.multitask import (
    Assisted,
    Depth,
    MultiTaskNet,
    Normals,
    Recipe,
    Segmentation,
    Synchronizer,
    load_trained,
    train,
)
from testtime.multitask.training import AutomaticWeights, Joint, augmented, batches

TASKS = {t.name: t for t in (Segmentation(("dark", "bright")), Depth(), Normals())}


class Patches(DenseSet):
    """Bright and dark halves; depth is brightness; every third sample has no depth."""

    name, tasks, classes = "patches", ("semseg", "depth", "normals"), ("dark", "bright")

    def __len__(self):
        return 10

    def __getitem__(self, index):
        rng = torch.Generator().manual_seed(index)
        bright = torch.zeros(8, 8)
        bright[:, torch.randint(2, 6, (), generator=rng) :] = 1
        image = (0.2 + 0.6 * bright + 0.05 * torch.randn(3, 8, 8, generator=rng)).clamp(0, 1)
        normals = torch.tensor([0.6, 0.0, 0.8]).view(3, 1, 1).expand(3, 8, 8)
        labels = {"semseg": bright.long(), "depth": 1 + bright[None], "normals": normals.clone()}
        if index % 3 == 0:
            del labels["depth"]
        return Sample(image, labels, str(index))


def network(seed=0, branch=True):
    torch.manual_seed(seed)
    encoder = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    net = MultiTaskNet(encoder, {k: nn.Conv2d(8, t.channels, 1) for k, t in TASKS.items()}, TASKS)
    small = {
        "features": 4,
        "size": 8,
        "patch": 2,
        "width": 8,
        "depth": 1,
        "decoder_depth": 1,
        "heads": 2,
        "ratio": 0.5,
    }
    return Assisted(net, Synchronizer(TASKS, 8, **small)) if branch else net


RECIPE = Recipe(iterations=40, batch=4, lr=1e-2, every=10, scale=(0.8, 1.5), photometric=0.1)


def test_it_learns_and_writes_what_it_did(tmp_path):
    model = train(network(), Patches(), Recipe(iterations=120, batch=4, lr=1e-2), tmp_path)
    assert not model.training
    x, labels = Patches().batch(range(10))
    y = model(x)
    assert (y["semseg"].argmax(1) == labels["semseg"]).float().mean() > 0.9
    lines = [json.loads(line) for line in (tmp_path / "losses.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 100, 119]
    assert set(lines[0]) == {"step", "loss", "semseg", "depth", "normals", "lr", "rate"}
    assert lines[-1]["loss"] < 0.7 * lines[0]["loss"]
    fresh = load_trained(network(seed=9), tmp_path)
    assert torch.equal(fresh(x)["depth"], y["depth"])
    again = train(
        network(seed=8), Patches(), Recipe(iterations=120, batch=4, lr=1e-2), tmp_path
    )  # already done
    assert torch.equal(again(x)["depth"], y["depth"])


def test_after_a_kill_it_continues_as_if_it_had_not_stopped(tmp_path):
    whole = train(network(), Patches(), RECIPE, tmp_path / "whole")

    class Killed(Patches):
        def __getitem__(self, index):
            self.reads = getattr(self, "reads", 0) + 1
            if self.reads > 4 * 25:
                raise KeyboardInterrupt
            return super().__getitem__(index)

    with pytest.raises(KeyboardInterrupt):
        train(network(), Killed(), RECIPE, tmp_path / "broken")
    assert (tmp_path / "broken" / "checkpoint.safetensors").exists()
    resumed = train(network(seed=5), Patches(), RECIPE, tmp_path / "broken")
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert not (tmp_path / "broken" / "checkpoint.safetensors").exists()


def test_a_checkpoint_of_another_recipe_or_model_is_refused(tmp_path):
    class Killed(Patches):
        def __getitem__(self, index):
            self.reads = getattr(self, "reads", 0) + 1
            if self.reads > 4 * 12:
                raise KeyboardInterrupt
            return super().__getitem__(index)

    with pytest.raises(KeyboardInterrupt):
        train(network(), Killed(), RECIPE, tmp_path)
    with pytest.raises(ValueError, match="another training: seed is 0 there and 1 here"):
        train(network(), Patches(), RECIPE, tmp_path, seed=1)
    with pytest.raises(ValueError, match="another model"):
        train(network(branch=False), Patches(), RECIPE, tmp_path)


def test_the_order_is_a_function_of_seed_and_step_and_visits_all():
    recipe = Recipe(batch=4, flip=False)
    seen = torch.cat([batches(Patches(), TASKS, recipe, 0, step)[0] for step in range(5)])
    names = [next(i for i in range(10) if torch.equal(Patches()[i].image, image)) for image in seen]
    assert sorted(names[:10]) == sorted(names[10:]) == list(range(10))
    assert names[:10] != names[10:]
    whole = batches(Patches(), TASKS, recipe, 3, 2)[0]
    shares = [batches(Patches(), TASKS, recipe, 3, 2, rank, 2)[0] for rank in (0, 1)]
    assert torch.equal(whole[0::2], shares[0])
    assert torch.equal(whole[1::2], shares[1])


def test_a_flip_turns_the_normals_and_an_enlargement_brings_things_near():
    sample = Patches()[1]
    flipped = next(
        s
        for i in range(20)
        if not torch.equal((s := augmented(sample, Recipe(), rng(i))).image, sample.image)
    )
    assert torch.equal(flipped.image, sample.image.flip(-1))
    assert torch.equal(flipped.labels["semseg"], sample.labels["semseg"].flip(-1))
    assert flipped.labels["normals"][:, 0, 0].tolist() == pytest.approx([-0.6, 0.0, 0.8])
    near = augmented(sample, Recipe(flip=False, scale=(2.0, 2.0)), rng())
    assert near.image.shape == sample.image.shape
    assert set(near.labels["depth"].flatten().tolist()) <= {0.5, 1.0}
    far = augmented(sample, Recipe(flip=False, scale=(0.5, 0.5)), rng())
    assert (far.labels["semseg"] == IGNORE).sum() == 48  # 4x4 of 8x8 are left
    assert far.labels["depth"].isnan().sum() == 48


def test_photometric_changes_colours_and_no_label():
    sample = Patches()[1]
    other = augmented(sample, Recipe(flip=False, photometric=0.4), rng())
    assert not torch.equal(other.image, sample.image)
    assert all(torch.equal(other.labels[k], sample.labels[k]) for k in sample.labels)


def test_learned_weights_are_those_of_the_formula():
    weights = AutomaticWeights(["a", "b"])
    with torch.no_grad():
        weights.s["b"].fill_(2.0)
    losses = {"a": torch.tensor(3.0), "b": torch.tensor(5.0)}
    expected = 3 / 2 + torch.log(torch.tensor(2.0)) + 5 / 8 + torch.log(torch.tensor(5.0))
    assert weights(losses).item() == pytest.approx(expected.item())
    joint = Joint(network(), "automatic")
    x, labels = Patches().batch([1, 2])
    loss, parts = joint(x, labels, rng())
    expected = sum(0.5 * v + torch.log(torch.tensor(2.0)) for v in parts.values())
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    loss.backward()
    assert all(s.grad is not None for s in joint.weights.s.values())


def test_the_joint_loss_is_network_plus_branch_and_leaves_the_model_as_it_was():
    model = network()
    names = list(model.state_dict())
    x, labels = Patches().batch([0, 1])
    loss, _ = Joint(model)(x, labels, rng(4))
    assert list(model.state_dict()) == names
    outputs, z = model.network(x), model.network.encoder(x)
    branch = model.branch.source_loss(model.network, x, [z], labels, rng(4))
    expected = sum(t.weight * (t.loss(outputs[k], labels[k]) + branch[k]) for k, t in TASKS.items())
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_errors_come_before_work_is_lost(tmp_path):
    with pytest.raises(ValueError, match="declares no tasks"):
        train(nn.Linear(2, 2), Patches(), RECIPE, tmp_path)
    with pytest.raises(ValueError, match="no samples"):
        train(network(), Patches().subset([]), RECIPE, tmp_path)
    with pytest.raises(ArithmeticError, match="lower the learning rate"):
        train(network(), Patches(), Recipe(iterations=50, batch=4, lr=1e30), tmp_path)
    with pytest.raises(ValueError, match="range of enlargements"):
        Recipe(scale=(0, 1))
    with pytest.raises(FileNotFoundError, match="train has ended"):
        load_trained(network(), tmp_path / "nowhere")


@pytest.mark.slow
def test_two_processes_share_every_batch_and_agree(tmp_path):
    pytest.importorskip("lightning_fabric", reason="pip install -e '.[train]'")
    script = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from lightning_fabric import Fabric
from test_training import Patches, network
from testtime.multitask import Recipe, train
fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
fabric.launch()
model = train(network(), Patches(), Recipe(iterations=12, batch=4, lr=1e-2, every=5), {str(tmp_path)!r}, fabric=fabric)
total = sum(p.double().sum().item() for p in model.parameters())
Path({str(tmp_path)!r}, f"sum-{{fabric.global_rank}}").write_text(repr(total))
"""
    (tmp_path / "run.py").write_text(script)
    done = subprocess.run([sys.executable, tmp_path / "run.py"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "sum-0").read_text() == (tmp_path / "sum-1").read_text()
    assert (tmp_path / "model.safetensors").exists()


def test_bfloat16_trains_too(tmp_path):
    model = train(network(), Patches(), Recipe(iterations=5, batch=4, precision="bfloat16"), tmp_path)
    assert next(model.parameters()).dtype == torch.float32


def rng(seed=0):
    return torch.Generator().manual_seed(seed)
