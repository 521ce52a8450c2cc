"""The training loop: a plain loop recomputed, one error, one log, refusals, and exact resume of every trainer after a kill."""

import json
import math
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from trainers import TRAINERS

from testtime.errors import NonFiniteError, TesttimeError, WeightsError
from testtime.training import checkpoint
from testtime.training.loop import Files, Plan, Training, folder_files

FILE = Path(__file__).with_name("trainers.py")


def network(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.4), nn.Linear(8, 1))


def data(step, count=6):
    rng = torch.Generator().manual_seed(step)
    return torch.randn(count, 4, generator=rng), torch.randn(count, 1, generator=rng)


def training(net, plan, files=None, described=None, **arguments):
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    return Training(net, optimizer, plan, "net", files, described, show=False, **arguments)


def error_of(net):
    return lambda step: {"error": (net(data(step)[0]) - data(step)[1]).square().mean()}


def same(a, b):
    return a.state_dict().keys() == b.state_dict().keys() and all(
        torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items()
    )


def lines(path, without=("rate",)):
    found = [json.loads(line) for line in Path(path).read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in without} for line in found]


class Cut(Exception):
    pass


class Interrupted:
    """Raises before the so-manieth step of an optimizer, whichever it is."""

    def __init__(self, at=0):
        self.at, self.taken = at, 0

    def __call__(self, *_):
        self.taken += 1
        if self.taken == self.at:
            raise Cut

    def __enter__(self):
        self.handle = register_optimizer_step_pre_hook(self)
        return self

    def __exit__(self, *_):
        self.handle.remove()


# --- one step


def test_it_is_a_plain_loop():
    net, plain = network(), network()
    net[2].p = plain[2].p = 0.0
    groups = [{"params": plain[0].parameters()}, {"params": plain[3].parameters(), "lr": 0.02}]
    own = [{"params": net[0].parameters()}, {"params": net[3].parameters(), "lr": 0.02}]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    plan = Plan(5, lambda step: 1 / (step + 1), clip=0.5)
    done = list(
        Training(net, torch.optim.SGD(own, lr=0.1, momentum=0.9), plan, "net", show=False).iterate(
            error_of(net)
        )
    )
    for step in range(5):
        x, y = data(step)
        for group, rate in zip(optimizer.param_groups, (0.1, 0.02), strict=True):
            group["lr"] = rate / (step + 1)
        plain.zero_grad()
        (plain(x) - y).square().mean().backward()
        moved = [*plain[0].parameters(), *plain[3].parameters()]
        norm = torch.cat([p.grad.flatten() for p in moved]).norm()
        for p in moved:
            p.grad *= min(1.0, 0.5 / (norm.item() + 1e-6))
        optimizer.step()
    assert done == [0, 1, 2, 3, 4]
    for (name, a), b in zip(net.state_dict().items(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, msg=name)
    assert all(p.grad is None for p in net.parameters())


def test_the_objective_is_the_loss_of_that_name_or_the_sum(tmp_path):
    nets = []
    for losses in (
        lambda a, b: {"a": a, "b": 3 * b},
        lambda a, b: {"loss": a + 3 * b, "a": a, "c": b.detach()},
    ):
        net = network().eval()

        def loss(step, net=net, losses=losses):
            return losses(net(data(step)[0]).square().mean(), net(data(step + 50)[0]).abs().mean())

        log = tmp_path / f"{len(nets)}.jsonl"
        training(net, Plan(3, log_every=1), Files(tmp_path / f"{len(nets)}", log=log)).run(loss)
        nets.append(net)
    for p, q in zip(*(net.parameters() for net in nets), strict=True):
        torch.testing.assert_close(p, q)
    first, second = (lines(tmp_path / f"{i}.jsonl") for i in (0, 1))
    assert first[0].keys() == {"step", "loss", "a", "b", "lr"}
    assert second[0].keys() == {"step", "loss", "a", "c", "lr"}
    for one, two in zip(first, second, strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-4)
        assert one["loss"] == pytest.approx(one["a"] + one["b"], rel=1e-6)
        assert one["b"] == pytest.approx(3 * two["c"], rel=1e-4)


def test_parts_of_a_batch_give_the_gradient_of_the_whole(tmp_path):
    whole, parted = network().eval(), network().eval()

    def parts(step):
        x, y = data(step)
        for i in range(3):
            yield {"error": (parted(x[i::3]) - y[i::3]).square().mean()}

    logs = [tmp_path / "whole.jsonl", tmp_path / "parted.jsonl"]
    training(whole, Plan(4, log_every=1), Files(tmp_path / "a", log=logs[0])).run(error_of(whole))
    training(parted, Plan(4, accumulate=3, log_every=1), Files(tmp_path / "b", log=logs[1])).run(parts)
    for p, q in zip(whole.parameters(), parted.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)
    for one, two in zip(*map(lines, logs), strict=True):
        assert two == pytest.approx(one, rel=1e-4)
    with pytest.raises(ValueError, match=r"loss\(0\) gave 3 parts, expected accumulate=2"):
        training(parted, Plan(4, accumulate=2)).run(parts)


def test_bfloat16_is_an_autocast_of_the_forward_pass():
    net, seen = nn.Linear(4, 1), []

    def loss(step):
        y = net(data(step)[0])
        y.register_hook(lambda _: seen.append(torch.is_autocast_enabled("cpu")))
        seen.append(y.dtype)
        return {"error": (y.float() - data(step)[1]).square().mean()}

    training(net, Plan(1, precision="bfloat16")).run(loss)
    assert seen == [torch.bfloat16, False]
    assert net.weight.dtype == torch.float32


def test_the_global_generator_is_a_function_of_seed_and_step_and_is_left_alone():
    drawn = []

    def loss(step):
        drawn.append(torch.rand(1).item())
        return {"error": net(data(step)[0]).square().mean()}

    for seed in (0, 0, 1):
        net = network()
        torch.manual_seed(len(drawn))
        state = torch.get_rng_state()
        training(net, Plan(3), seed=seed).run(loss)
        assert torch.equal(torch.get_rng_state(), state)
    assert drawn[:3] == drawn[3:6]
    assert len(set(drawn)) == 6


def test_control_is_handed_back_and_what_it_changes_is_saved(tmp_path):
    files, net = folder_files(tmp_path), network()
    for step in training(net, Plan(4, save_every=2), files).iterate(error_of(net)):
        assert torch.is_grad_enabled()
        with torch.no_grad():
            net[3].bias.fill_(step)
        if step == 2:
            break
    again = network(1)
    rest = training(again, Plan(4, save_every=2), files)
    assert (rest.done, again[3].bias.item()) == (2, 1.0)
    with torch.no_grad():
        assert [step for step in rest.iterate(error_of(again)) if not torch.is_grad_enabled()] == [2, 3]
    assert list(rest.iterate(error_of(again))) == []


# --- errors


@pytest.mark.parametrize("bad", [4, 5, 9])
@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_what_is_not_finite_is_one_error_and_the_last_checkpoint_stays(tmp_path, bad, kind):
    net, files = network(), folder_files(tmp_path)

    def loss(step):
        y = net(data(step)[0])
        if step == bad and kind == "gradient":
            y.register_hook(lambda g: g * math.inf)
        value = (y - data(step)[1]).square().mean()
        return {"error": value * math.nan if step == bad and kind == "loss" else value}

    before = {}
    with pytest.raises(NonFiniteError) as raised:  # noqa: PT012
        for _ in training(net, Plan(10, save_every=5), files).iterate(loss):
            before = {k: v.clone() for k, v in net.named_parameters()}
    message = str(raised.value)
    said = "the loss is nan" if kind == "loss" else "a gradient is not finite"
    assert message.startswith(
        f"net, step {bad}: {said}; check that inputs and labels are finite, or lower the learning"
    )
    assert "(it is 0.1)" in message
    assert isinstance(raised.value, TesttimeError | ArithmeticError)
    assert message.endswith("checkpoint.safetensors keeps the state after 5 steps") == (bad >= 5)
    assert files.checkpoint.exists() == (bad >= 5)
    assert not files.weights.exists()
    assert all(torch.equal(v, before[k]) for k, v in net.named_parameters())
    assert all(p.grad is None for p in net.parameters())
    if bad >= 5:
        resumed, whole = network(1), network()
        training(resumed, Plan(10, save_every=5), files).run(error_of(resumed))
        training(whole, Plan(10)).run(error_of(whole))
        assert same(resumed, whole)


def test_weights_that_are_not_finite_are_not_written_over_good_ones(tmp_path):
    net, files = nn.Linear(4, 1), folder_files(tmp_path)
    steps = training(net, Plan(8, save_every=2), files).iterate(error_of(net))
    assert [next(steps) for _ in range(4)] == [0, 1, 2, 3]
    net.weight.data[0, 1] = math.inf
    with pytest.raises(NonFiniteError, match="step 3: a weight is not finite; .*state after 2 steps"):
        next(steps)
    assert checkpoint.load(files.checkpoint, nn.Linear(4, 1)) == 2


def test_names_of_the_log_and_plans_are_checked():
    net = network()
    with pytest.raises(ValueError, match="the log has its own 'rate'; give that loss another name"):
        training(net, Plan(1)).run(lambda step: {"rate": net(data(step)[0]).mean()})
    for wrong in ({"steps": -1}, {"accumulate": 0}, {"save_every": 0}, {"log_every": 0}):
        with pytest.raises(ValueError, match="steps of at least 0"):
            Plan(**{"steps": 1, **wrong})
    for wrong in ({"clip": math.nan}, {"clip": -1.0}, {"save_seconds": 0.0}):
        with pytest.raises(ValueError, match="clip to be 0 or more"):
            Plan(1, **wrong)
    with pytest.raises(ValueError, match="precision is float32 or bfloat16, got 'half'"):
        Plan(1, precision="half")


@pytest.mark.parametrize("ended", [True, False])
def test_another_trainings_files_are_refused_and_the_entries_named(tmp_path, ended):
    described = {"recipe": {"lr": 0.1, "betas": (0.9, 0.95)}, "seed": 0, "parts": [{"share": 1.0}]}
    files, net = folder_files(tmp_path), network()
    for step in training(net, Plan(6, save_every=2), files, described).iterate(error_of(net)):
        if step == 4 and not ended:
            break
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    path = files.weights if ended else files.checkpoint
    assert path.exists()
    other = {"recipe": {"lr": 0.2, "betas": [0.9, 0.95]}, "parts": [{"share": 0.5}], "kind": "x" * 60}
    with pytest.raises(WeightsError) as raised:
        training(network(), Plan(6), files, other)
    assert str(raised.value) == (
        f"{path} belongs to another training: recipe.lr is 0.1 there and 0.2 here; parts[0].share is 1.0 there and 0.5 here; "
        f'kind is absent there and "{"x" * 36}... here; seed is 0 there and absent here. Give the arguments of that training '
        "to continue it, choose another folder, or delete it"
    )
    with pytest.raises(WeightsError, match="is of another model"):
        training(nn.Linear(4, 1), Plan(6), files, described)
    if not ended:
        with pytest.raises(WeightsError, match="of a training of 4 steps, more than the 3 asked for"):
            training(network(), Plan(3), files, described)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_fabric_that_scales_losses_is_refused():
    class Scaling:
        global_rank, world_size = 0, 1

        class strategy:
            class precision:
                scaler = object()

    with pytest.raises(ValueError, match="'bf16-mixed' or '32-true'"):
        training(network(), Plan(1), fabric=Scaling())


def test_one_process_of_fabric_trains_the_same_weights(tmp_path):
    fabric = pytest.importorskip("lightning_fabric", reason="pip install -e '.[train]'")
    launched = fabric.Fabric(accelerator="cpu", devices=1)
    launched.launch()
    plain, net = network(), network()
    training(plain, Plan(6)).run(error_of(plain))
    files = folder_files(tmp_path)
    made = training(net, Plan(6, save_every=2), files, fabric=launched)
    with pytest.raises(Cut), Interrupted(5):
        made.run(error_of(made.module))
    net = network(3)
    made = training(net, Plan(6, save_every=2), files, fabric=launched)
    made.run(error_of(made.module))
    assert same(net, plain)


@pytest.mark.slow
def test_processes_share_the_log_and_fail_together(tmp_path):
    """The loss of one process is not finite in step 4: all of them end, with the same error and the last checkpoint."""
    pytest.importorskip("lightning_fabric", reason="pip install -e '.[train]'")
    script = f"""
import sys
sys.path.insert(0, {str(FILE.parent)!r})
from pathlib import Path
import torch
from lightning_fabric import Fabric
from test_loop import Plan, data, folder_files, network, training
from testtime.errors import NonFiniteError
fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
fabric.launch()
net = network().eval()
made = training(net, Plan(8, save_every=3, log_every=1), folder_files({str(tmp_path / "run")!r}), fabric=fabric)
def loss(step):
    x, y = (v[made.rank::2] for v in data(step))
    return {{"error": (made.module(x) - y).square().mean() * (torch.nan if step == 4 and made.rank else 1)}}
try:
    made.run(loss)
except NonFiniteError as error:
    Path({str(tmp_path)!r}, f"error-{{made.rank}}").write_text(str(error))
"""
    (tmp_path / "run.py").write_text(script)
    done = subprocess.run([sys.executable, tmp_path / "run.py"], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    first, second = ((tmp_path / f"error-{rank}").read_text() for rank in (0, 1))
    assert first.startswith("net, step 4: the loss of another process is not finite; ")
    assert second.startswith("net, step 4: the loss is nan; ")
    assert first.endswith("keeps the state after 3 steps")
    assert second.endswith("keeps the state after 3 steps")
    alone = network().eval()
    files = folder_files(tmp_path / "alone")
    for step in training(alone, Plan(8, save_every=3, log_every=1), files).iterate(error_of(alone)):
        if step == 3:
            break
    assert [line["step"] for line in lines(tmp_path / "run" / "losses.jsonl")] == [0, 1, 2, 3]
    for one, two in zip(lines(files.log), lines(tmp_path / "run" / "losses.jsonl"), strict=True):
        assert two == pytest.approx(one, rel=1e-4)


# --- files


def test_the_log_holds_every_so_manieth_step_and_forgets_what_will_be_done_again(tmp_path):
    plan = Plan(12, lambda step: 1 / (1 + step), log_every=3, save_every=5)
    whole, net = network(), network()
    training(whole, plan, folder_files(tmp_path / "whole")).run(error_of(whole))
    files = folder_files(tmp_path / "cut")
    with pytest.raises(Cut), Interrupted(11):
        training(net, plan, files).run(error_of(net))
    assert [line["step"] for line in lines(files.log)] == [0, 3, 6, 9]
    with files.log.open("a") as file:
        file.write('{"step": 1')  # killed while it wrote
    again = network(2)
    training(again, plan, files).run(error_of(again))
    assert lines(files.log) == lines(tmp_path / "whole" / "losses.jsonl")
    found = lines(files.log, without=())
    assert [line["step"] for line in found] == [0, 3, 6, 9, 11]
    assert [line["lr"] for line in found] == [pytest.approx(0.1 / (1 + line["step"])) for line in found]
    assert all(line["rate"] > 0 and line["loss"] == line["error"] for line in found)
    assert {p.name for p in files.log.parent.iterdir()} == {"losses.jsonl", "model.safetensors"}


def test_a_checkpoint_is_due_after_so_many_seconds_too(tmp_path, monkeypatch):
    clock = iter(
        range(0, 10**6, 7)
    )  # seconds between two looks at the clock, of which there is one after each step
    monkeypatch.setattr("testtime.training.loop.time.monotonic", lambda: next(clock))
    saved = []
    monkeypatch.setattr(
        checkpoint, "save", lambda path, model, optimizer, step, described: saved.append((path.name, step))
    )
    net = network()
    made = training(net, Plan(9, save_every=100, save_seconds=20, log_every=100), folder_files(tmp_path))
    made.run(error_of(net))
    assert saved == [*(("checkpoint.safetensors", step) for step in (2, 5, 8)), ("model.safetensors", 9)]


def test_a_finished_training_is_loaded_and_nothing_is_trained(tmp_path):
    net, again = network(), network(1)
    training(net, Plan(4), folder_files(tmp_path)).run(error_of(net))
    made = training(again, Plan(4), folder_files(tmp_path))
    assert made.done == 4
    made.run(lambda step: pytest.fail("nothing is left to do"))
    assert same(net, again)


def test_where_there_is_no_file_of_weights_the_checkpoint_stays_and_may_be_continued(tmp_path):
    files, whole = Files(tmp_path / "state.safetensors"), network()
    training(whole, Plan(6)).run(error_of(whole))
    for steps in (2, 6):
        net = network(steps)
        training(net if steps == 6 else (first := network()), Plan(steps), files).run(
            error_of(net if steps == 6 else first)
        )
    assert same(net, whole)
    assert [p.name for p in tmp_path.iterdir()] == ["state.safetensors"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_moves_by_float32_copies_that_are_saved(tmp_path, dtype):
    nets = []
    for cut in (0, 5):
        net = nn.Linear(4, 1).to(dtype)
        with torch.no_grad():
            net.weight.fill_(1.0), net.bias.fill_(1.0)
        plan, files = Plan(8, lambda _: 1e-2, save_every=3), folder_files(tmp_path / str(cut))

        def loss(step, net=net):
            return {"error": (net(data(step)[0].to(dtype)).float() - data(step)[1]).square().mean()}

        with pytest.raises(Cut) if cut else Interrupted(), Interrupted(cut):
            training(net, plan, files).run(loss)
        nets.append(net if not cut else nn.Linear(4, 1).to(dtype))
        if cut:
            training(nets[1], plan, files).run(lambda step, loss=loss: loss(step, nets[1]))
    assert same(*nets)
    assert nets[0].weight.dtype == dtype
    assert not torch.equal(nets[0].weight, torch.ones_like(nets[0].weight))


# --- every trainer


@pytest.mark.parametrize("name", TRAINERS)
def test_a_trainer_that_was_interrupted_at_random_steps_ends_with_the_same_weights(name, tmp_path):
    torch.manual_seed(1)
    with Interrupted() as counted:
        whole = TRAINERS[name](tmp_path / "whole")
    steps, draw = counted.taken, random.Random(name)
    assert steps >= 6
    first = draw.randint(steps // 2 + 1, steps)
    cuts = [first, draw.randint(1, steps - first + 1)]
    torch.manual_seed(2)  # what is left to the global generator must not matter
    for cut in cuts:
        with pytest.raises(Cut), Interrupted(cut):
            TRAINERS[name](tmp_path / "cut")
        torch.manual_seed(cut)
    with Interrupted() as counted:
        again = TRAINERS[name](tmp_path / "cut")
    assert counted.taken < steps, "it began anew"
    for key, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), (
            f"{key} after interruptions before steps {cuts} of {steps}"
        )
    with Interrupted() as counted:
        finished = TRAINERS[name](tmp_path / "cut")
    assert counted.taken == 0, "a finished training was trained again"
    assert same(whole, finished)


def killed(name, folder, step):
    done = subprocess.run(
        [sys.executable, FILE, name, folder, str(step)], capture_output=True, timeout=200, check=False
    )
    return done.returncode == -signal.SIGKILL


@pytest.mark.parametrize("name", ["multitask", pytest.param("pretrain_4m", marks=pytest.mark.slow)])
def test_a_trainer_that_was_killed_ends_with_the_same_weights(name, tmp_path):
    whole = TRAINERS[name](tmp_path / "whole")
    assert killed(name, tmp_path / "cut", 11)
    assert next((tmp_path / "cut").rglob("checkpoint.safetensors"), None) is not None
    assert same(TRAINERS[name](tmp_path / "cut"), whole)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINERS)
def test_every_trainer_that_was_killed_ends_with_the_same_weights(name, tmp_path):
    with Interrupted() as counted:
        whole = TRAINERS[name](tmp_path / "whole")
    for cut in random.Random(f"{name} killed").sample(range(1, counted.taken // 2), 2):
        assert killed(name, tmp_path / "cut", cut)
    assert same(TRAINERS[name](tmp_path / "cut"), whole)
