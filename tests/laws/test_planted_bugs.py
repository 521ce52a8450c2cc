"""For each law an adapter with one bug, which this law catches and no other law does."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from testtime.adapter import Adapter
from testtime.laws import LAWS, broken_laws
from testtime.norm import NormPolicy, advance, batch_statistics, norm_affine
from testtime.parts import adam, entropy
from testtime.prediction import Prediction


class Sound(Adapter):
    """Entropy minimisation without a bug; every planted bug changes one thing."""

    def __init__(self, model: nn.Module, norm: Callable[[nn.Module], nn.Module] = batch_statistics) -> None:
        super().__init__(norm(model))
        self.norm = norm
        self.adapt(norm_affine(self.model), adam(1e-2))

    def loss(self, logits: Tensor) -> Tensor:
        return entropy(logits).mean()

    def step(self, x: Tensor) -> Tensor:
        logits = self.model(x)
        self.update(self.loss(logits))
        return logits


class FreezesTheCallersModel(Sound):
    broken = "source_untouched"

    def __init__(self, model: nn.Module, norm: Callable[[nn.Module], nn.Module] = batch_statistics) -> None:
        model.requires_grad_(False)
        super().__init__(model, norm)


class KeepsTheCallersBatch(Sound):
    """Replays the last batch, which it holds by reference."""

    broken = "tensors_owned"
    last: Tensor

    def __init__(self, model: nn.Module, norm: Callable[[nn.Module], nn.Module] = batch_statistics) -> None:
        super().__init__(model, norm)
        self.register_buffer("last", torch.zeros(0))

    def step(self, x: Tensor) -> Tensor:
        logits = self.model(x)
        self.update(self.loss(logits))
        self.last = x
        return logits


class SeedsTheGlobalGenerator(Sound):
    broken = "ambient_untouched"

    def step(self, x: Tensor) -> Tensor:
        torch.manual_seed(int(self.clock))
        return super().step(x)


class LooksWhereGradientsAreOff(Sound):
    broken = "any_grad_context"

    def forward(self, x: Tensor) -> Prediction:
        return super().forward(x) if torch.is_grad_enabled() else self.predict(x)


class TakesLabels(Sound):
    broken = "label_blind"

    def step(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        return super().step(x)


class MaskOfFloats(Sound):
    broken = "same_form"

    def step(self, x: Tensor) -> Tensor:
        logits = super().step(x)
        return Prediction(logits, selected={"kept": (entropy(logits.detach()) < 1).float()})


class NeverUpdates(Sound):
    broken = "alive"
    cost: ClassVar = (1, 0)

    def step(self, x: Tensor) -> Tensor:
        return self.model(x)


class KeepsTracking(Sound):
    """Lets source statistics follow the stream, though under batch statistics nobody reads them."""

    broken = "frozen_is_frozen"

    def loss(self, logits: Tensor) -> Tensor:
        for m in self.modules():
            if isinstance(m, NormPolicy):
                m.source_mean = 0.9 * m.source_mean + 0.1 * logits.detach().mean()
        return super().loss(logits)


class CoolsItsLogits(Sound):
    broken = "null_step"

    def _predict_batch(self, x: Tensor) -> Tensor:
        return self.model(x) / 1.1

    def step(self, x: Tensor) -> Tensor:
        return super().step(x) / 1.1


class SaysAfterButAnswersBefore(Sound):
    broken = "output_timing"
    output: ClassVar = "after"


class FollowsTheGlobalGenerator(Sound):
    """It puts the generator back, but draws from wherever it stood."""

    broken = "deterministic"

    def loss(self, logits: Tensor) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            weight = torch.rand(len(logits))
        return (weight * entropy(logits)).mean()


class LearnsFromTheFirstHalf(Sound):
    broken = "order_equivariant"
    output: ClassVar = "after"
    cost: ClassVar = (2, 1)

    def step(self, x: Tensor) -> Tensor:
        self.update(self.loss(self.model(x)[: (len(x) + 1) // 2]))
        with torch.no_grad():
            return self.model(x)


class MeanOfNothing(Sound):
    """Remembers the mean entropy of the confident images, of which a batch may hold none."""

    broken = "any_batch"
    level: Tensor

    def __init__(self, model: nn.Module, norm: Callable[[nn.Module], nn.Module] = batch_statistics) -> None:
        super().__init__(model, norm)
        self.register_buffer("level", torch.zeros(()))

    def loss(self, logits: Tensor) -> Tensor:
        h = entropy(logits)
        self.level = h[h < 1.5].detach().mean().float()
        return h.mean()


class PaintsOverBadImages(Sound):
    broken = "survives_nonfinite"

    def forward(self, x: Tensor) -> Prediction:
        bad = ~torch.isfinite(x).flatten(1).all(1)
        y = super().forward(torch.where(bad[:, None, None, None], 0.5, x))
        y[bad], y.valid = torch.nan, ~bad
        return y


class PreparesFromWhatComes(Sound):
    """Overrides ``prepare``, so that nobody screens its source."""

    broken = "survives_nonfinite"
    source: ClassVar = "data"
    level: Tensor

    def __init__(self, model: nn.Module, norm: Callable[[nn.Module], nn.Module] = batch_statistics) -> None:
        super().__init__(model, norm)
        self.register_buffer("level", torch.zeros(()))
        self.remember_birth()

    def prepare(self, source: Iterable[Tensor]) -> None:
        batches = [torch.nan_to_num(x) for x in source]
        super().prepare([torch.cat(batches).clamp(0, 1)])

    def _prepare(self, batches: Iterable[Tensor]) -> None:
        self.level = torch.stack([x.mean() for x in batches]).mean()


class CacheOutlivesReset(Sound):
    """From its third step on it caches a threshold; a load drops the cache, a reset forgets to."""

    broken = "no_residue"
    level: Tensor

    def __init__(self, model: nn.Module, norm: Callable[[nn.Module], nn.Module] = batch_statistics) -> None:
        super().__init__(model, norm)
        self.register_buffer("level", torch.zeros(()))
        self.cache: Tensor | None = None

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        super().load_state_dict(state_dict, strict, assign)
        self.cache = None

    def loss(self, logits: Tensor) -> Tensor:
        h = entropy(logits)
        if int(self.clock) < 2:
            return h.mean()
        if int(self.clock) == 2:
            self.level = h.detach().mean().to(self.level)
        if self.cache is None:
            self.cache = self.level.clone()
        return (h * torch.exp(self.cache - h.detach())).mean()


class CorrectsItsLastAnswer(Sound):
    """Holds the last answer, and smooths it once the next batch is there: the future reaches what was answered."""

    broken = "no_future"

    def __init__(self, model: nn.Module, norm: Callable[[nn.Module], nn.Module] = batch_statistics) -> None:
        super().__init__(model, norm)
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Prediction:
        y = super().forward(x)
        if self.last is not None and int(self.clock) > 1 and bool(y.valid.any()):
            self.last.mul_(1 + 1e-3 * y.logits[y.valid].mean())
        self.last = y.logits
        return y


class ForgetsToReset(Sound):
    """Declares that it answers each image as if it came alone, and goes on from where the last batch left it."""

    broken = "each_alone"
    episodic = True


class BufferThatGrows(Sound):
    broken = "bounded"
    history: Tensor

    def __init__(self, model: nn.Module, norm: Callable[[nn.Module], nn.Module] = batch_statistics) -> None:
        super().__init__(model, norm)
        self.register_buffer("history", torch.zeros(0))

    def loss(self, logits: Tensor) -> Tensor:
        self.history = torch.cat([self.history, entropy(logits.detach()).to(self.history)])
        return super().loss(logits)


class TicksTwice(Sound):
    """Counts a second look at the batch as a second batch."""

    broken = "one_tick"
    cost: ClassVar = (2, 1)

    def step(self, x: Tensor) -> Tensor:
        logits = super().step(x)
        advance(self)
        with torch.no_grad():
            self.model(x)
        return logits


class GoesThroughNumpy(Sound):
    broken = "any_precision"

    def loss(self, logits: Tensor) -> Tensor:
        keep = torch.from_numpy(logits.detach().numpy().max(axis=1) > -1e9)
        return entropy(logits)[keep].mean()


class EpsilonOfFloat32(Sound):
    """Divides by a number that float16 does not have."""

    broken = "any_precision"

    def loss(self, logits: Tensor) -> Tensor:
        nothing = torch.zeros((), dtype=logits.dtype)
        return super().loss(logits) + nothing / (nothing + 1e-8)


class CounterOutlivesReset(Sound):
    broken = "reset_is_birth"
    seen: Tensor

    def __init__(self, model: nn.Module, norm: Callable[[nn.Module], nn.Module] = batch_statistics) -> None:
        super().__init__(model, norm)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def reset(self) -> None:
        seen = self.seen
        super().reset()
        self.seen = seen

    def loss(self, logits: Tensor) -> Tensor:
        self.seen = self.seen + len(logits)
        return super().loss(logits)


class WarmsUpAgain(Sound):
    """The first step after construction is gentler, and that it is over is not part of the state."""

    broken = "save_is_enough"

    def __init__(self, model: nn.Module, norm: Callable[[nn.Module], nn.Module] = batch_statistics) -> None:
        super().__init__(model, norm)
        self.warm = False

    def reset(self) -> None:
        super().reset()
        self.warm = False

    def loss(self, logits: Tensor) -> Tensor:
        h = entropy(logits)
        loss = h.mean() if self.warm else (h * torch.exp(-h.detach())).mean()
        self.warm = True
        return loss


class ForgetsWhatItWasBornWith(Sound):
    """``prepare`` changes what a reset brings back, and a state does not say so."""

    broken = "save_is_enough"
    source = "data"
    shown: Tensor

    def __init__(self, model: nn.Module, norm: Callable[[nn.Module], nn.Module] = batch_statistics) -> None:
        super().__init__(model, norm)
        self.register_buffer("shown", torch.zeros((), dtype=torch.int64))

    def _prepare(self, batches: Iterable[Tensor]) -> None:
        self.shown = torch.tensor(sum(len(x) for x in batches))


class CacheOutlivesLoad(CacheOutlivesReset):
    """The same cache; a reset drops it, a load forgets to."""

    broken = "restore_is_total"

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        Adapter.load_state_dict(self, state_dict, strict, assign)

    def reset(self) -> None:
        super().reset()
        self.cache = None


class LiveSnapshot(Sound):
    broken = "snapshot_is_a_value"

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", **kwargs: Any) -> Any:
        state = super().state_dict(*args, destination=destination, prefix=prefix, **kwargs)
        state.update({prefix + k: v.detach() for k, v in self._moving(learned=True).items() if k != "clock"})
        return state


class CountsLooks(Sound):
    broken = "predict_is_pure"
    looks: Tensor

    def __init__(self, model: nn.Module, norm: Callable[[nn.Module], nn.Module] = batch_statistics) -> None:
        super().__init__(model, norm)
        self.register_buffer("looks", torch.zeros((), dtype=torch.int64))

    def _predict_batch(self, x: Tensor) -> Tensor:
        self.looks = self.looks + 1
        return super()._predict_batch(x)


class ForgetsItsPrefix(Sound):
    """Overwrites state_dict with the signature that a user sees."""

    broken = "composes"

    def state_dict(self, *args: Any, destination: Any = None, **kwargs: Any) -> Any:
        state = super().state_dict()
        if destination is not None:
            destination.update(state)
        return state


class MoreForwardsThanDeclared(Sound):
    broken = "declared"

    def step(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.model(x)
        return super().step(x)


BUGS = [c for c in vars().values() if isinstance(c, type) and issubclass(c, Sound) and c is not Sound]


def test_without_a_bug_every_law_holds() -> None:
    assert broken_laws(Sound) == {}


def test_every_law_has_a_bug() -> None:
    assert {bug.broken for bug in BUGS} == set(LAWS)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.__name__)
def test_is_caught_by_its_law(bug: Any) -> None:
    assert set(broken_laws(bug, worlds=["batchnorm"], laws=[bug.broken])) == {bug.broken}


@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.__name__)
def test_is_caught_by_its_law_alone(bug: Any) -> None:
    assert set(broken_laws(bug, worlds=["batchnorm"])) == {bug.broken}
