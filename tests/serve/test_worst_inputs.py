"""What the worst admitted input costs: every sample passes the network once, and never with numbers near the smallest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_session import images, network, tent
from torch import Tensor, nn

from testtime.methods import Tent
from testtime.models import resnet20
from testtime.serve import Session, SessionOptions, replay
from testtime.serve.gate import GateOptions, InputGate

N = 4
PLAIN = SessionOptions(snapshot_every=0, gate=GateOptions(contrast=0.0, tiny=0.0))


def noise(seed: int) -> Tensor:
    return torch.rand(N, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def _sparse(seed: int) -> Tensor:
    x = noise(seed) * 1e-39
    x[:, 0, 0, 0] = 1
    return x


KINDS: dict[str, Callable[[int], Tensor]] = {
    "denormal": lambda seed: noise(seed) * 1e-39,
    "small": lambda seed: noise(seed) * 1e-30,
    "half-denormal": lambda seed: torch.where(noise(seed) < 0.5, noise(seed + 1) * 1e-39, noise(seed)),
    "sparse": _sparse,
    "flat": lambda seed: 0.5 + noise(seed) * 1e-7,
    "low-contrast": lambda seed: 0.5 + noise(seed) * 1e-4,
    "negative": lambda seed: 3 * noise(seed) - 1,
    "binary": lambda seed: (noise(seed) < 0.5).float(),
    "one-level": lambda seed: torch.full((N, 3, 8, 8), 0.1 + seed / 1000),
    "copies": lambda seed: noise(seed)[:1].repeat(N, 1, 1, 1),
    "nan": lambda seed: noise(seed).masked_fill(torch.arange(N)[:, None, None, None] == 1, torch.nan),
}


class Rows:
    """Counts the samples that a network gets, and finds the smallest size of their values."""

    def __init__(self, net: nn.Module) -> None:
        self.count, self.smallest = 0, torch.inf
        first = next(m for m in net.modules() if isinstance(m, nn.Conv2d))
        first.register_forward_pre_hook(self.seen)

    def seen(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        sizes = inputs[0].detach().abs()
        self.count += len(sizes)
        self.smallest = min(
            self.smallest, float(sizes[sizes > 0].min()) if bool((sizes > 0).any()) else torch.inf
        )


def deep() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return resnet20().eval()


def served(folder: Path, make: Callable[[int], Tensor], options: SessionOptions) -> tuple[int, int, float]:
    """Samples answered, samples that passed the network, and the smallest value that it got."""
    with Session(Tent(deep()), folder, options=options) as session:
        session.predict(noise(0))
        rows = Rows(session.adapter.model)
        answered = 0
        for seed in (10, 20):
            answer = session.submit(make(seed))
            answered += sum(reason is None for reason in answer.refused)
    return answered, rows.count, rows.smallest


@pytest.mark.filterwarnings("ignore::testtime.errors.AdapterWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_every_sample_passes_the_network_once(tmp_path: Path, kind: str) -> None:
    answered, passed, smallest = served(tmp_path, KINDS[kind], SessionOptions(snapshot_every=0))
    assert answered == passed == 2 * (N - (kind == "nan"))
    assert smallest >= 1e-30


@pytest.mark.filterwarnings("ignore::testtime.errors.AdapterWarning")
def test_without_these_settings_a_step_fails_and_is_paid_twice(tmp_path: Path) -> None:
    answered, passed, smallest = served(tmp_path, KINDS["denormal"], PLAIN)
    assert (answered, passed) == (2 * N, 4 * N)
    assert 0 < smallest < 1e-38


def test_contrast_is_a_share_of_the_range() -> None:
    gate = InputGate(GateOptions(contrast=0.01, repeats=0))
    x = torch.full((2, 3, 4, 4), 100.0)
    x[0, 0, 0, 0], x[1, 0, 0, 0] = 101.5, 104.0
    assert gate.screen(x, (), (0.0, 255.0)).quarantined == ("constant", None)
    assert gate.screen(x, (), None).quarantined == (None, None)
    assert InputGate(GateOptions(constant=False)).screen(x[:, :1] * 0, (), None).quarantined == (
        None,
        "repeated",
    )


def test_what_is_not_tiny_stays_as_it_is() -> None:
    gate = InputGate(GateOptions())
    x = torch.tensor([[0.0, -1e-29, torch.nan, 1e-29]])
    assert gate.settled(x) is x
    found = gate.settled(torch.tensor([[1e-39, -1e-31, 1.0, torch.inf]]))
    assert torch.equal(found, torch.tensor([[0.0, 0.0, 1.0, torch.inf]]))


def test_a_replay_follows_the_settings_of_the_log(tmp_path: Path) -> None:
    """Logs of earlier versions do not name these settings: then all values were as they came."""
    x = torch.cat([images(0), images(1) * 1e-35, 0.5 + images(2) * 1e-5])
    for number, options in enumerate((PLAIN, SessionOptions(snapshot_every=0))):
        with Session(tent(), tmp_path / str(number), options=options) as session:
            learned = [session.submit(x[i : i + 4]).learned for i in (0, 4, 8)]
        assert learned == [True, number == 0, True]
        found = replay(tmp_path / str(number), network(), {"default": x})
        assert (found.answers, found.differences) == (3, [])
    assert GateOptions.replayed({"repeats": 8, "constant": True}) == GateOptions(
        repeats=8, contrast=0, tiny=0
    )
