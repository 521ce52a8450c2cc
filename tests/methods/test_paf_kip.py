import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from testtime.methods import PAFKIP
from testtime.methods.paf_kip import PAFKIPOptions, knowledge_integrated, primary_auxiliary_loss
from testtime.norm import norm_affine
from testtime.parts import identity, sgd


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def test_loss_is_equation_9() -> None:
    tau, alpha = 0.9, 2.0
    adapting = np.array([0.1, 0.5, 1.2, 1.3, 0.89, 1.5])
    auxiliary = np.array([0.2, 1.4, 0.3, 1.1, 0.95, 0.9])
    terms = []
    for h, e in zip(adapting, auxiliary, strict=True):
        if h < tau:  # eq. 6
            terms.append(1 / np.exp(e - tau) * h)  # eq. 8
        elif e < tau:  # eq. 7
            terms.append(0.0)
        else:
            terms.append(-alpha * h)
    loss, selected = primary_auxiliary_loss(torch.tensor(adapting), torch.tensor(auxiliary), tau, alpha)
    assert loss.item() == pytest.approx(np.mean(terms), abs=1e-12)
    assert selected["minimised"].tolist() == [True, True, False, False, True, False]
    assert selected["maximised"].tolist() == [False, False, False, True, False, True]


@pytest.mark.parametrize(
    ("minimise", "maximise", "expected"),
    [
        ("none", "none", (0.1 + 0.5 - 1.2 - 1.3) / 4),
        ("hard", "none", (0.1 - 1.2 - 1.3) / 4),
        ("none", "hard", (0.1 + 0.5 - 1.3) / 4),
        ("none", "soft", (0.1 + 0.5 - 0 * 1.2 - (1 - math.exp(0.9 - 1.1)) * 1.3) / 4),
    ],
)
def test_either_side_can_be_none_soft_or_hard(minimise: str, maximise: str, expected: float) -> None:
    adapting, auxiliary = (
        torch.tensor([0.1, 0.5, 1.2, 1.3]).double(),
        torch.tensor([0.2, 1.4, 0.3, 1.1]).double(),
    )
    loss, _ = primary_auxiliary_loss(adapting, auxiliary, 0.9, 1.0, minimise, maximise)
    assert loss.item() == pytest.approx(expected, abs=1e-7)


def test_prediction_is_equations_10_and_11() -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(size=(3, 7, 4)) * 3
    m = np.stack([softmax(zi).max(1) for zi in z])
    c = 1 / 3 + 0.1 * (m - m.mean(0))
    expected = (c[:, :, None] * z).sum(0)
    got = knowledge_integrated([torch.from_numpy(zi) for zi in z], 0.1).numpy()
    np.testing.assert_allclose(got, expected, atol=1e-12)
    np.testing.assert_allclose(c.sum(0), 1.0)


def three_copies(
    net: nn.Module, stream: list[Tensor], classes: int = 5, after: bool = False
) -> list[tuple[Tensor, Tensor]]:
    """Algorithm 1 with three separate models, torch's own BatchNorm and Adam, no augmentation."""
    source = copy.deepcopy(net).eval()
    adapting = copy.deepcopy(net).train().requires_grad_(False)
    parameters = []
    for m in adapting.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.track_running_stats, m.running_mean, m.running_var = False, None, None
            parameters += [m.weight.requires_grad_(True), m.bias.requires_grad_(True)]
    ema = copy.deepcopy(adapting)
    optimizer = torch.optim.Adam(parameters, lr=1e-2)
    tau, answers = 0.4 * math.log(classes), []

    def entropy(z: Tensor) -> Tensor:
        return -(z.softmax(1) * z.log_softmax(1)).sum(1)

    for x in stream:
        with torch.no_grad():
            z_source, z_ema = source(x), ema(x)
        z = adapting(x)
        h, h_ema = entropy(z), entropy(z_ema)
        loss = torch.zeros((), dtype=x.dtype)
        for i in range(len(x)):
            if h[i] < tau:
                loss = loss + torch.exp(tau - h_ema[i]) * h[i]
            elif h_ema[i] >= tau:
                loss = loss - 2.0 * h[i]
        optimizer.zero_grad()
        (loss / len(x)).backward()
        optimizer.step()
        with torch.no_grad():
            if after:  # lines 17 to 19: update theta, compute z, update the average
                z, z_ema = adapting(x), ema(x)
            z = z.detach()
            m = torch.stack([t.softmax(1).amax(1) for t in (z_source, z, z_ema)])
            c = 1 / 3 + 0.1 * (m - m.mean(0))
            answers.append(
                (c[0, :, None] * z_source + c[1, :, None] * z + c[2, :, None] * z_ema, -z.logsumexp(1))
            )
            for e, f in zip(ema.parameters(), adapting.parameters(), strict=True):
                e.mul_(0.99).add_(f, alpha=0.01)
    return answers


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("output", ["before", "after"])
def test_one_copy_of_the_weights_equals_three_models(
    net: nn.Module, stream: list[Tensor], batched: bool, output: str
) -> None:
    from testtime.parts import adam

    adapter = PAFKIP(
        net,
        5,
        adam(1e-2),
        decay=0.99,
        augment=identity,
        options=PAFKIPOptions(batched=batched, output=output),
    )
    expected = three_copies(net, stream, after=output == "after")
    kept = {"minimised": 0, "maximised": 0}
    for x, (z, score) in zip(stream, expected, strict=True):
        y = adapter(x)
        torch.testing.assert_close(y.logits, z, rtol=0, atol=1e-9)
        torch.testing.assert_close(y.score, score, rtol=0, atol=1e-9)
        for name in kept:
            kept[name] += int(y.selected[name].sum())
    assert kept["minimised"] > 20
    assert kept["maximised"] > 20, "the stream must meet both sides of the filters"


def test_frozen_weights_exist_once(net: nn.Module) -> None:
    adapter = PAFKIP(net, 5)
    frozen = [p for name, p in net.named_parameters() if not name.startswith("bn")]
    storages = {p.data_ptr() for p in frozen}
    trees = (adapter.model, adapter.ema.model, adapter.origin)
    moving = {id(p) for tree in trees for p in norm_affine(tree)}
    others = [p for tree in trees for p in tree.parameters() if id(p) not in moving]
    assert len(others) == 3 * len(frozen)
    assert {p.data_ptr() for p in others} == storages
    assert len(moving) == 3 * 4


def test_state_is_small(net: nn.Module) -> None:
    numbers = sum(v.numel() for v in PAFKIP(net, 5).state_dict().values())
    affine = sum(p.numel() for p in norm_affine(net))
    assert numbers == 1 + affine * 4 + 4, (
        "clock, parameters, average, two Adam moments, a step count per tensor"
    )


@pytest.mark.parametrize("models", [("source",), ("adapting",), ("ema",), ("source", "ema")])
def test_any_of_the_three_models_may_answer(
    net: nn.Module, stream: list[Tensor], models: tuple[str, ...]
) -> None:
    adapter = PAFKIP(net, 5, options=PAFKIPOptions(models=models), augment=identity)
    y = adapter(stream[0])
    if models == ("source",):
        torch.testing.assert_close(y.logits, net(stream[0]).detach(), rtol=0, atol=1e-10)
    assert y.shape == (24, 5)


def test_source_statistics_of_the_batch(net: nn.Module, stream: list[Tensor]) -> None:
    adapter = PAFKIP(
        net, 5, options=PAFKIPOptions(models=("source",), source_statistics="batch"), augment=identity
    )
    expected = copy.deepcopy(net).train()(stream[3]).detach()
    torch.testing.assert_close(adapter(stream[3]).logits, expected, rtol=0, atol=1e-10)


def test_ema_as_primary_filter_is_equation_5(net: nn.Module, stream: list[Tensor]) -> None:
    options = PAFKIPOptions(primary="ema", minimise="none", maximise="none")
    adapter = PAFKIP(net, 5, sgd(0.0, 0.0), alpha=1.0, augment=identity, options=options)
    y = adapter(stream[0])
    p = softmax(adapter.ema(stream[0]).numpy())
    known = -(p * np.log(p)).sum(1) < 0.4 * math.log(5)
    assert y.selected["minimised"].numpy().tolist() == known.tolist()
    assert y.selected["maximised"].numpy().tolist() == (~known).tolist()


def test_the_source_model_sees_no_augmentation(net: nn.Module, stream: list[Tensor]) -> None:
    y = PAFKIP(net, 5, options=PAFKIPOptions(models=("source",)))(stream[0])
    torch.testing.assert_close(y.logits, net(stream[0]).detach(), rtol=0, atol=1e-10)


def test_layer_norm_models_adapt_too() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.Flatten(2), nn.LayerNorm(4), nn.Flatten(), nn.Linear(16, 3))
    assert PAFKIP(net, 3, margin=2.0)(torch.rand(6, 3, 8, 8)).updated


def test_unknown_models_are_refused(net: nn.Module) -> None:
    with pytest.raises(ValueError, match="source.*adapting.*ema"):
        PAFKIP(net, 5, options=PAFKIPOptions(models=("teacher",)))
