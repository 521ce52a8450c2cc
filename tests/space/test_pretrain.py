"""Pre-training: it reaches a known optimum, goes on exactly after a kill, and parts and processes change nothing."""

import json
import math
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from toy_space import shards

from testtime.space.loader import Batches, Part
from testtime.space.masking import Component, Masking
from testtime.space.model import FourM, Size
from testtime.space.pretrain import PAPER, Recipe, _groups, pretrain

RECIPE = Recipe(
    steps=24, batch=8, base_lr=0.1, warmup=4, inputs=20, targets=16, precision="float32", clip=1.0, every=10
)


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    return shards(tmp_path_factory.mktemp("space"), 10, crops=2)


def model(space, seed=0, kind=FourM, streams=None):
    torch.manual_seed(seed)
    return kind(space.streams if streams is None else streams, Size(1, 1, 16, 2), (16, 16), 4)


def batches(space, recipe=RECIPE, seed=0, components=None, **kwargs):
    masking = Masking(space.streams, components, recipe.inputs, recipe.targets)
    return Batches([Part(space)], masking, recipe.batch, seed, **kwargs)


def lines(folder):
    found = [json.loads(line) for line in (folder / "losses.jsonl").read_text().splitlines()]
    for line in found:
        assert line.pop("rate") > 0
        assert line.pop("lr") > 0
    return found


def alike(a, b):
    return all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


def killed(kind, at):
    """A kind of model that is interrupted in a step."""

    class Killed(kind):
        calls = 0

        def forward(self, batch):
            self.calls += 1
            if self.calls > at:
                raise KeyboardInterrupt
            return super().forward(batch)

    return Killed


def gradients(net):
    """Gradients of the last step by name, which a training frees."""
    found = {}
    for name, p in net.named_parameters():
        p.register_post_accumulate_grad_hook(lambda p, name=name: found.update({name: p.grad.clone()}))
    return found


@pytest.mark.slow
def test_the_loss_falls_to_what_can_be_known(tmp_path):
    """Depth is a function of the picture's patch; of 16 patches 12 are shown, and of the rest all 8 levels are as likely."""
    space = shards(tmp_path / "shards", 400, crops=1, boxed=False)
    streams = (space.streams[0], space.streams[2])
    torch.manual_seed(0)
    net = FourM(streams, Size(1, 1, 48, 2), (16, 16), 4)
    masking = Masking(streams, [Component({"rgb": 1.0}, {"tok_depth": 1.0})], 12, 16)
    recipe = Recipe(
        steps=330,
        batch=32,
        base_lr=3e-2,
        warmup=30,
        inputs=12,
        targets=16,
        precision="float32",
        weight_decay=0.0,
    )
    made = Batches([Part(space, 1.0, ("rgb", "tok_depth"))], masking, 32)
    pretrain(net, made, recipe, tmp_path / "run")
    told = lines(tmp_path / "run")
    losses = np.array([line["loss"] for line in told])
    assert losses[0] == pytest.approx(math.log(8), abs=0.05)
    assert 0.25 * math.log(8) - 0.03 < losses[-4:].mean() < 0.25 * math.log(8) + 0.05
    assert not net.training
    assert [line["step"] for line in told] == [*range(0, 330, 10), 329]
    assert set(told[0]) == {"step", "loss", "tok_depth"}


@pytest.mark.parametrize("workers", [0, 1])
def test_after_a_kill_the_same_call_goes_on_bit_for_bit(space, tmp_path, workers):
    whole = pretrain(model(space), batches(space), RECIPE, tmp_path / "whole")
    broken = tmp_path / "broken"
    with pytest.raises(KeyboardInterrupt):
        pretrain(model(space, kind=killed(FourM, 21)), batches(space), RECIPE, broken, workers=workers)
    assert [line["step"] for line in lines(broken)] == [0, 10, 20]
    with (broken / "losses.jsonl").open("a") as file:
        file.write('{"step": 2')  # it was killed while it wrote
    resumed = pretrain(model(space, 5), batches(space), RECIPE, broken, workers=workers)
    assert alike(whole, resumed)
    assert lines(broken) == lines(tmp_path / "whole")
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "broken"))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert {p.name for p in broken.iterdir()} == {"losses.jsonl", "model.safetensors"}


def test_a_run_killed_before_the_first_checkpoint_restarts(space, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        pretrain(model(space, kind=killed(FourM, 1)), batches(space), RECIPE, tmp_path / "a")
    again = pretrain(model(space), batches(space), RECIPE, tmp_path / "a")
    assert alike(again, pretrain(model(space), batches(space), RECIPE, tmp_path / "b"))
    assert [line["step"] for line in lines(tmp_path / "a")] == [0, 10, 20, 23]


def test_a_run_that_has_ended_gives_its_answer(space, tmp_path):
    done = pretrain(model(space), batches(space), RECIPE, tmp_path)
    written = (tmp_path / "model.safetensors").stat().st_mtime_ns
    again = pretrain(model(space, 3, killed(FourM, 0)), batches(space), RECIPE, tmp_path)
    assert alike(done, again)
    assert not again.training
    assert (tmp_path / "model.safetensors").stat().st_mtime_ns == written


@pytest.mark.parametrize("ended", [True, False])
def test_the_folder_of_another_run_is_refused(space, tmp_path, ended):
    if ended:
        pretrain(model(space), batches(space), RECIPE, tmp_path)
    else:
        with pytest.raises(KeyboardInterrupt):
            pretrain(model(space, kind=killed(FourM, 21)), batches(space), RECIPE, tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    components = [Component({"rgb": 1.0}, {"tok_depth": 1.0})]
    others = [
        (batches(space, seed=1), RECIPE),
        (batches(space, repeat=1), RECIPE),
        (batches(space, components=components), RECIPE),
        (batches(space), replace(RECIPE, base_lr=0.2)),
        (batches(space, replace(RECIPE, inputs=12)), replace(RECIPE, inputs=12)),
        (Batches([Part(space), Part(space, 0.5)], batches(space).masking, 8), RECIPE),
    ]
    for made, recipe in others:
        with pytest.raises(ValueError, match="belongs to another training: .* choose another folder"):
            pretrain(model(space), made, recipe, tmp_path)
    wider = FourM(space.streams, Size(1, 1, 32, 2), (16, 16), 4)
    with pytest.raises(ValueError, match="is of another model"):
        pretrain(wider, batches(space), RECIPE, tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_parts_of_a_batch_weigh_as_many_tokens_as_they_have(space, tmp_path):
    """Accumulating changes rounding only: gradients are those of the means over the whole batch."""
    found, told = [], []
    for accumulate in (1, 2, 4):
        recipe = replace(RECIPE, steps=1, accumulate=accumulate, clip=0.0)
        net = model(space)
        found.append(gradients(net))
        pretrain(net, batches(space, recipe), recipe, tmp_path / str(accumulate))
        told += lines(tmp_path / str(accumulate))
    for other in found[1:]:
        for name, grad in found[0].items():
            assert torch.allclose(other[name], grad, atol=1e-6, rtol=1e-4), name
    for line in told[1:]:
        assert line == pytest.approx(told[0], rel=1e-5)
    # The batch is one where means of means would differ.
    b, net = batches(space)[0], model(space)
    means = [net(b.part(i, 2)) for i in (0, 1)]
    naive = sum(torch.stack(list(m.values())).mean() for m in means) / 2
    exact = torch.stack(list(net(b).values())).mean()
    assert abs(naive - exact).item() > 1e-4
    counts = [net.counts(b.part(i, 2)) for i in (0, 1)]
    of = (b.asked >= 16) & (b.asked < 32)
    assert counts[0]["tok_rgb"] + counts[1]["tok_rgb"] == of.sum()
    assert counts[1]["tok_rgb"] == of[1::2].sum()


def test_an_objective_without_counts_weighs_parts_alike(space, tmp_path):
    class Brightness(nn.Module):
        """How bright a picture is, by one number; its loss is a mean over samples."""

        def __init__(self):
            super().__init__()
            self.guess, self.calls = nn.Parameter(torch.zeros(())), []

        def forward(self, batch):
            return {"bright": (batch.pixels.mean((1, 2, 3)) - self.guess).square().mean()}

        def advance(self, step, steps):
            self.calls.append((step, steps))

    recipe = replace(RECIPE, steps=60, base_lr=1.0, accumulate=2, weight_decay=0.0)
    made = batches(space, recipe)
    net = pretrain(Brightness(), made, recipe, tmp_path)
    assert net.guess.item() == pytest.approx(made[59].pixels.mean().item(), abs=0.1)
    assert net.calls == [(step, 60) for step in range(60)]
    exact = made[0].pixels.mean((1, 2, 3)).square().mean().item()
    assert lines(tmp_path)[0]["loss"] == pytest.approx(exact, rel=1e-5)


def test_learning_rates_recomputed():
    recipe = Recipe(steps=50, batch=1024, base_lr=3e-4, warmup=10)
    height = 3e-4 * 1024 / 256
    for step in range(50):
        rising = height * (step + 1) / 10
        falling = height * np.cos(np.pi / 2 * (step - 10) / 40) ** 2  # half an angle's cosine, squared
        assert recipe.rate(step) == pytest.approx(rising if step < 10 else falling, rel=1e-9)
    assert recipe.rate(9) == recipe.rate(10) == height
    assert Recipe(steps=2, batch=256).rate(0) == 1e-4
    # Table 9: an absolute rate of 1.6e-3, 100 and 500 billion tokens, 10 billion of warm-up.
    for name, billions in (("S", 100), ("B", 500), ("S from 4M-21", 100), ("B from 4M-21", 100)):
        paper = PAPER[name]
        tokens = paper.batch * (paper.inputs + paper.targets)
        assert paper.steps * tokens == pytest.approx(billions * 1e9, rel=1e-4)
        assert paper.warmup * tokens == pytest.approx(10e9, rel=1e-3)
        assert max(paper.rate(s) for s in (paper.warmup - 1, paper.warmup)) == pytest.approx(
            8e-4 if "21" in name else 1.6e-3
        )


def test_a_step_recomputed_with_its_rate_and_its_decay(space, tmp_path):
    """AdamW's first step is the rate against the gradient's sign; matrices of linear layers shrink by rate x decay before."""
    recipe = replace(RECIPE, steps=1, warmup=3, weight_decay=0.2, clip=0.0)
    net = model(space)
    before, found = {name: p.detach().clone() for name, p in net.named_parameters()}, gradients(net)
    pretrain(net, batches(space, recipe), recipe, tmp_path)
    rate = 0.1 * 8 / 256 / 3
    decayed = set()
    for name, p in net.named_parameters():
        own = before[name] - rate * found[name] / (found[name].abs() + 1e-8)
        heavy = own - rate * 0.2 * before[name]
        expected = heavy if torch.allclose(p, heavy, atol=1e-7) and p.dim() == 2 else own
        assert torch.allclose(p, expected, atol=1e-7), name
        if expected is heavy:
            decayed.add(name)
    assert decayed == {
        f"{name}.weight" for name, module in net.named_modules() if isinstance(module, nn.Linear)
    }


def test_groups_of_weight_decay(space):
    net = model(space)
    names = {id(p): name for name, p in net.named_parameters()}
    heavy, light = _groups(net, 0.3)
    assert (heavy["weight_decay"], light["weight_decay"]) == (0.3, 0.0)
    heavy, light = ({names[id(p)] for p in group["params"]} for group in (heavy, light))
    assert heavy | light == set(names.values())
    assert not heavy & light
    assert {
        "pixels.weight",
        "context.weight",
        "blocks.0.attn.qkv.weight",
        "decoder.0.mlp.fc2.weight",
    } <= heavy
    assert {
        "context.bias",
        "mask_token",
        "modality.rgb",
        "tokens.tok_rgb.weight",
        "answers.boxes.weight",
    } <= light
    assert {"norm.weight", "decoder.0.context_norm.weight"} <= light
    net.requires_grad_(False).mask_token.requires_grad_(True)
    assert [len(group["params"]) for group in _groups(net, 0.3)] == [0, 1]


def test_bfloat16_trains_weights_of_float32(space, tmp_path):
    half = replace(RECIPE, steps=11, precision="bfloat16")
    net = pretrain(model(space), batches(space, half), half, tmp_path / "half")
    assert {p.dtype for p in net.parameters()} == {torch.float32}
    whole = replace(half, precision="float32")
    pretrain(model(space), batches(space, whole), whole, tmp_path / "whole")
    found, expected = (lines(tmp_path / name)[0] for name in ("half", "whole"))
    assert found == pytest.approx(expected, rel=0.02)
    assert found != expected


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_checkpoint(space, tmp_path):
    class Breaks(FourM):
        calls = 0

        def forward(self, batch):
            self.calls += 1
            losses = super().forward(batch)
            return {k: v * math.nan if self.calls == 18 else v for k, v in losses.items()}

    with pytest.raises(
        ArithmeticError, match="step 17: the loss is nan; .*lower the learning rate .*after 10 steps"
    ):
        pretrain(model(space, kind=Breaks), batches(space), RECIPE, tmp_path / "a")
    kept = load_file(tmp_path / "a" / "checkpoint.safetensors")
    assert all(torch.isfinite(v).all() for v in kept.values())
    resumed = pretrain(model(space, 1), batches(space), RECIPE, tmp_path / "a")
    assert alike(resumed, pretrain(model(space), batches(space), RECIPE, tmp_path / "b"))
    wild = replace(RECIPE, base_lr=1e30)
    with pytest.raises(ArithmeticError, match="lower the learning rate"):
        pretrain(model(space), batches(space), wild, tmp_path / "c")
    assert not (tmp_path / "c" / "model.safetensors").exists()


def test_weights_that_are_no_numbers_are_not_written_over_good_ones(space, tmp_path):
    class Infinite(FourM):
        """Its gradient is infinite in the last step before a checkpoint, and its loss is not."""

        calls = 0

        def forward(self, batch):
            self.calls += 1
            if self.calls in self.bad:
                self.mask_token.register_hook(lambda grad: grad * math.inf)
            return super().forward(batch)

    for bad, kept in ((20, True), (24, True), (10, False)):
        net = model(space, kind=Infinite)
        net.bad, folder = {bad}, tmp_path / str(bad)
        with pytest.raises(ArithmeticError, match=f"step {bad - 1}: a gradient is not finite"):
            pretrain(net, batches(space), replace(RECIPE, clip=0.0), folder)
        assert (folder / "checkpoint.safetensors").exists() == kept
        assert not (folder / "model.safetensors").exists()
        if kept:
            found = load_file(folder / "checkpoint.safetensors")
            assert all(torch.isfinite(v).all() for v in found.values())


def test_what_does_not_fit_is_refused_before_anything_is_written(space, tmp_path):
    net, made = model(space), batches(space)
    with pytest.raises(ValueError, match="batches are of 8 samples, the recipe of 16"):
        pretrain(net, made, replace(RECIPE, batch=16), tmp_path)
    with pytest.raises(ValueError, match="has 20 input and 16 target tokens, the recipe 20 and 12"):
        pretrain(net, made, replace(RECIPE, targets=12), tmp_path)
    turned = model(space, streams=space.streams[::-1])
    with pytest.raises(
        ValueError, match="the model is made for boxes, tok_depth, tok_rgb, rgb, in this order"
    ):
        pretrain(turned, made, RECIPE, tmp_path)
    with pytest.raises(ValueError, match="not divided by accumulate=3"):
        replace(RECIPE, accumulate=3)
    with pytest.raises(ValueError, match="at least 1"):
        Recipe(steps=0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(space, tmp_path):
    pytest.importorskip("lightning_fabric", reason="pip install -e '.[train]'")
    recipe = replace(RECIPE, steps=12, accumulate=2, every=5, base_lr=1e-2)
    pretrain(model(space), batches(space, recipe), recipe, tmp_path / "one")
    script = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import torch
from lightning_fabric import Fabric
from test_pretrain import Recipe, batches, model, pretrain
from testtime.space.shards import Shards
torch.set_num_threads(1)
fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
fabric.launch()
space, recipe = Shards({str(space.folder)!r}), Recipe(**{asdict(recipe)!r})
net = pretrain(model(space), batches(space, recipe), recipe, {str(tmp_path / "two")!r}, fabric=fabric)
sys.stdout.write(f"sum {{fabric.global_rank}} {{sum(p.double().sum().item() for p in net.parameters())!r}}\\n")
sys.stdout.flush()
"""
    (tmp_path / "run.py").write_text(script)
    done = subprocess.run([sys.executable, tmp_path / "run.py"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    sums = dict(line.split()[1:] for line in done.stdout.splitlines() if line.startswith("sum"))
    assert set(sums) == {"0", "1"}
    assert sums["0"] == sums["1"]
    one, two = lines(tmp_path / "one"), lines(tmp_path / "two")
    assert [line["step"] for line in two] == [0, 10, 11]
    for a, b in zip(one, two, strict=True):
        assert b == pytest.approx(a, rel=1e-4)
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert all(torch.allclose(a[name], b[name], atol=1e-3) for name in a)

    class Three:
        global_rank, world_size = 0, 3

    with pytest.raises(ValueError, match="8 samples in 2 parts cannot be shared by 3 processes"):
        pretrain(model(space), batches(space, recipe), recipe, tmp_path / "three", fabric=Three())
