"""Transfer: rates by layer, the head recomputed, what is ignored, exact resume, the same batches for every model."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from testtime.data import IGNORE, DenseSet, Sample
from testtime.parts.randomness import epochs
from testtime.space.modalities import SENSORY
from testtime.space.model import Block
from testtime.space.segmenter import ConvNeXtHead, PatchEncoder, Segmenter
from testtime.space.transfer import (
    RECIPES,
    TransferRecipe,
    dropped,
    evaluate,
    few,
    fit,
    parameter_groups,
    rate,
    transfer,
)
from testtime.training import checkpoint


class Halves(DenseSet):
    """Bright right and dark left, with a border; a third class that only depth tells from the second, in odd images."""

    name, tasks, classes = "halves", ("semseg", "depth"), ("dark", "bright", "near")

    def __init__(self, count=12):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        rng = torch.Generator().manual_seed(index)
        bright = torch.zeros(16, 16)
        bright[:, 4 * int(torch.randint(1, 4, (), generator=rng)) :] = 1
        image = (0.2 + 0.6 * bright + 0.05 * torch.randn(3, 16, 16, generator=rng)).clamp(0, 1)
        depth = torch.linspace(3, 4, 16).repeat(16, 1)[None].clone()
        label = bright.long()
        if index % 2:
            depth[0, label == 1] = 1
            label[label == 1] = 2
        depth[0, 0, 0] = torch.nan
        return Sample(image, {"semseg": label, "depth": depth}, str(index))


RECIPE = TransferRecipe(epochs=8, batch=4, lr=3e-3, every=5, drop_path=0.3, scale=(1.0, 1.5))


def segmenter(seed=0, modalities=("rgb",), depth=2):
    torch.manual_seed(seed)
    encoder = PatchEncoder([SENSORY[m] for m in modalities], (16, 16), 4, dim=12, depth=depth, heads=3)
    return Segmenter(encoder, ConvNeXtHead(12, (4, 4), 3, width=8, sub=2, depth=1))


def same(a, b):
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def test_learning_rates_decay_from_the_head_to_the_embedding():
    model = segmenter(depth=3)
    groups = parameter_groups(model, TransferRecipe(layer_decay=0.5, weight_decay=0.1))
    found = {name: (g["scale"], g["weight_decay"]) for g in groups for name in g["names"]}
    assert set(found) == {name for name, _ in model.named_parameters()}
    for name, p in model.named_parameters():
        if name.startswith("encoder.patches"):
            scale = 0.5**4
        elif name.startswith("encoder.blocks"):
            scale = 0.5 ** (4 - (int(name.split(".")[2]) + 1))
        else:
            scale = 1.0
        assert found[name] == (scale, 0.1 if p.dim() > 1 else 0.0), name
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))
    frozen = parameter_groups(model, TransferRecipe(freeze_encoder=True))
    assert {n for g in frozen for n in g["names"]} == {f"head.{n}" for n, _ in model.head.named_parameters()}


def test_the_first_step_moves_every_layer_by_its_rate(tmp_path):
    """Adam's first step is the sign of the gradient times the rate, but for its epsilon and the decay of weights."""
    model = segmenter()
    before = {k: v.clone() for k, v in model.named_parameters()}
    recipe = TransferRecipe(
        epochs=1, batch=12, warmup=0, lr=1e-2, layer_decay=0.5, weight_decay=0.0, drop_path=0
    )
    transfer(model, Halves(), recipe, tmp_path)
    moved = {k: (v - before[k]).abs().max().item() for k, v in model.named_parameters()}
    assert moved["head.answer.weight"] == pytest.approx(1e-2, rel=1e-2)
    assert moved["encoder.norm.weight"] == pytest.approx(1e-2, rel=1e-2)
    assert moved["encoder.blocks.1.mlp.fc1.weight"] == pytest.approx(5e-3, rel=1e-2)
    assert moved["encoder.blocks.0.mlp.fc1.weight"] == pytest.approx(2.5e-3, rel=1e-2)
    assert moved["encoder.patches.weight"] == pytest.approx(1.25e-3, rel=1e-2)


def test_the_rate_warms_up_and_follows_a_cosine():
    rates = [rate(step, 20, 4.0) for step in range(20)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0
    assert rates[12] == pytest.approx(0.5)
    assert rates[19] == pytest.approx(0.5 * (1 + math.cos(math.pi * 15 / 16)))
    assert rate(0, 5, 0.0) == 1.0
    assert rate(1, 5, 1.5) == 1.0
    assert RECIPES["paper_small"].lr == 1e-4
    assert RECIPES["paper_base"].lr == 2e-4
    assert RECIPES["paper_base"].steps(20_000) == 64 * 625


def test_it_learns_and_leaves_the_global_generator_alone(tmp_path):
    model = segmenter()
    before = evaluate(model, Halves(6))["mIoU"]
    state = torch.get_rng_state()
    recipe = TransferRecipe(epochs=40, batch=4, lr=1e-2, drop_path=0.1, scale=(1.0, 1.5))
    transfer(model, Halves(), recipe, tmp_path, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training
    report = evaluate(model, Halves(6))
    # What only depth could tell is not learned from the picture; dark is.
    assert report["IoU"]["dark"] > 90
    assert report["mIoU"] > before
    lines = [json.loads(line) for line in (tmp_path / "losses.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [*range(0, 120, 10), 119]
    assert lines[-1]["loss"] < 0.6 * lines[0]["loss"]
    assert [p.name for p in tmp_path.glob("*.safetensors")] == ["model.safetensors"]


def test_all_modalities_are_fed_at_transfer_and_at_test(tmp_path):
    model = segmenter(modalities=("rgb", "depth"))
    recipe = TransferRecipe(epochs=80, batch=4, lr=1e-2, drop_path=0.1, scale=(1.0, 1.5))
    transfer(model, Halves(), recipe, tmp_path, seed=1)
    report = evaluate(model, Halves(6))
    assert report["IoU"]["near"] > 60, report  # told by depth alone
    with pytest.raises(ValueError, match="depth is missing"):
        model(torch.rand(1, 3, 16, 16))
    with pytest.raises(ValueError, match="no normals"):
        transfer(segmenter(modalities=("rgb", "normals")), Halves(), recipe, tmp_path / "n")


class Killed(Halves):
    """The power fails at the so-manieth image."""

    def __init__(self, reads):
        super().__init__()
        self.left = reads

    def __getitem__(self, index):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().__getitem__(index)


@pytest.mark.parametrize("frozen", [False, True])
def test_after_a_kill_it_goes_on_as_if_it_had_not_stopped(tmp_path, frozen):
    recipe = TransferRecipe(**{**vars(RECIPE), "freeze_encoder": frozen})
    whole = transfer(segmenter(), Halves(), recipe, tmp_path / "whole", seed=3)
    with pytest.raises(KeyboardInterrupt):
        transfer(segmenter(), Killed(4 * 13), recipe, tmp_path / "broken", seed=3)
    assert (tmp_path / "broken" / "checkpoint.safetensors").exists()
    resumed = transfer(segmenter(), Halves(), recipe, tmp_path / "broken", seed=3)
    assert same(whole, resumed)
    logs = [(tmp_path / name / "losses.jsonl").read_text().splitlines() for name in ("whole", "broken")]
    one, other = ([{**json.loads(line), "rate": 0} for line in log] for log in logs)
    assert one == other
    again = transfer(segmenter(), Killed(1), recipe, tmp_path / "broken", seed=3)  # done: reads nothing
    assert same(whole, again)
    assert all(p.requires_grad for p in resumed.parameters())
    assert same(resumed.encoder, segmenter().encoder) == frozen


def test_the_folder_of_another_run_is_refused(tmp_path):
    transfer(segmenter(), Halves(), RECIPE, tmp_path)
    for change in (
        {"seed": 1},
        {"recipe": TransferRecipe(**{**vars(RECIPE), "lr": 1e-4})},
        {"model": segmenter(5)},
    ):
        call = {"model": segmenter(), "data": Halves(), "recipe": RECIPE, "folder": tmp_path, **change}
        with pytest.raises(ValueError, match="belongs to another training: "):
            transfer(**call)


def test_weights_of_version_0_1_are_the_answer(tmp_path):
    """They called the digest of the initial weights "born"."""
    done, path = transfer(segmenter(), Halves(), RECIPE, tmp_path), tmp_path / "model.safetensors"
    described = checkpoint.described_in(path)
    described["born"] = described.pop("initial_weights")
    checkpoint.save(path, done, None, 24, described)
    assert same(transfer(segmenter(), Killed(1), RECIPE, tmp_path), done)
    with pytest.raises(ValueError, match="belongs to another training: initial_weights is"):
        transfer(segmenter(4), Killed(1), RECIPE, tmp_path)


def test_every_model_sees_the_same_batches(tmp_path):
    class Recording(Halves):
        def __init__(self):
            super().__init__()
            self.reads = []

        def __getitem__(self, index):
            self.reads.append(index)
            return super().__getitem__(index)

    seen, images = [], []
    for number, depth in enumerate((1, 2)):
        data, model = Recording(), segmenter(number, depth=depth)
        kept = []
        model.encoder.register_forward_pre_hook(lambda _m, x, kept=kept: kept.append(x[0].clone()))
        transfer(model, data, RECIPE, tmp_path / str(number), seed=4)
        seen.append(data.reads), images.append(torch.cat(kept))
    assert seen[0] == seen[1]
    assert torch.equal(images[0], images[1])
    assert sorted(seen[0][:12]) == list(range(12))
    assert seen[0][:12] != seen[0][12:24]
    assert epochs(12, 4, 4, 1) == seen[0][4:8]
    assert epochs(12, 4, 5, 1) != seen[0][4:8]


def test_drop_path_leaves_branches_out_and_keeps_the_mean():
    torch.manual_seed(0)
    blocks = nn.ModuleList([Block(12, 3), Block(12, 3)])
    x = torch.randn(4000, 1, 12)
    with torch.no_grad():
        first, plain = blocks[0](x), blocks[1](x)
        with dropped(blocks, 0.5):
            assert torch.equal(blocks[0](x), first)  # the first has none
            y = blocks[1](x)
    same_rows = (y == x).all(-1).float().mean()
    assert same_rows.item() == pytest.approx(0.25, abs=0.03)  # both branches gone
    attention = blocks[1].attn(blocks[1].norm1(x), None)
    only_attention = (y - (x + 2 * attention)).abs().amax((1, 2)) < 1e-5
    assert only_attention.float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert torch.equal(blocks[1](x), plain)  # and outside nothing is dropped

    class Foreign(nn.Module):
        def forward(self, x):
            return (x + 1,)

    zeros = torch.zeros(4000, 1, 2)
    foreign = nn.ModuleList([Foreign(), Foreign()])
    with dropped(foreign, 0.2):
        values, counts = foreign[1](zeros)[0][:, 0, 0].unique(return_counts=True)
    assert values.tolist() == [0.0, 1.25]
    assert counts[0].item() / 4000 == pytest.approx(0.2, abs=0.03)


def test_few_images_show_many_classes():
    class Rare(Halves):
        classes = tuple("abcdef")

        def __getitem__(self, index):
            label = torch.full((16, 16), index % 2)
            label[0, 0] = {3: 5, 7: 4, 9: 3, 10: 2}.get(index, IGNORE)
            return Sample(torch.zeros(3, 16, 16), {"semseg": label}, str(index))

    for seed in range(5):
        chosen = few(Rare(), 5, seed)
        shown = torch.stack([s.labels["semseg"] for s in chosen]).unique().tolist()
        assert shown == [0, 1, 2, 3, 4, 5, IGNORE]
        assert len({s.name for s in chosen}) == 5
    names = {tuple(s.name for s in few(Rare(), 3, seed)) for seed in range(6)}
    assert len(names) > 1
    assert len(few(Rare(), 12)) == 12
    with pytest.raises(ValueError, match="at least 13 images"):
        few(Rare(), 13)


def test_evaluation_is_over_all_pixels_of_all_images():
    model = segmenter()
    report = evaluate(model, Halves(5), batch=2)
    x, labels = Halves(5).batch(range(5))
    answer, truth = model.eval()(x).argmax(1).numpy(), labels["semseg"].numpy()
    iou = [
        100 * ((answer == c) & (truth == c)).sum() / ((answer == c) | (truth == c)).sum() for c in range(3)
    ]
    assert list(report["IoU"].values()) == pytest.approx(iou)
    assert report["mIoU"] == pytest.approx(np.mean(iou))
    data = Halves(5)
    data.classes = ("dark", "bright")
    with pytest.raises(ValueError, match="the head has 3 classes, halves has 2"):
        evaluate(model, data)


def test_errors_come_before_work_is_lost(tmp_path):
    with pytest.raises(ValueError, match="no samples"):
        transfer(segmenter(), Halves(0), RECIPE, tmp_path)
    with pytest.raises(ArithmeticError, match="lower the learning rate"):
        transfer(segmenter(), Halves(), TransferRecipe(epochs=4, batch=4, lr=1e30, warmup=0), tmp_path)
    with pytest.raises(ValueError, match="does not divide"):
        PatchEncoder(size=(16, 16), patch=5)
    with pytest.raises(ValueError, match="drop_path in"):
        TransferRecipe(drop_path=1.0)
    with pytest.raises(ValueError, match="no samples"):
        fit(segmenter(), lambda step: torch.zeros(()), RECIPE, 0, tmp_path, {})


def test_half_precision_begins_at_the_same_loss(tmp_path):
    losses = {}
    for precision in ("float32", "bfloat16"):
        recipe = TransferRecipe(epochs=1, batch=6, warmup=0, precision=precision)
        model = transfer(segmenter(), Halves(), recipe, tmp_path / precision)
        assert all(p.dtype == torch.float32 for p in model.parameters())
        lines = (tmp_path / precision / "losses.jsonl").read_text().splitlines()
        losses[precision] = json.loads(lines[0])["loss"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=2e-2)
    assert losses["bfloat16"] != losses["float32"]
