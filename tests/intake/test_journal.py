"""The state before a step: what is written in it gets its value back, and nothing else is copied."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from testtime import adam, sgd
from testtime.adapter import Adapter, state_hash
from testtime.intake.journal import LARGE, Journal, as_it_is
from testtime.intake.sharing import Stateful
from testtime.intake.trees import modules_of
from testtime.methods import T3A, AdaNPC, CoTTA, RoTTA, SoTTA, Tent
from testtime.methods.sotta import HUS
from testtime.norm import norm_affine
from testtime.norm.layer import advance
from testtime.wrap import Guarded, Repeat


class Bank(Stateful):
    """A bank of one large and one small buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("large", torch.arange(float(LARGE)))
        self.register_buffer("small", torch.zeros(3))


WRITES = {
    "in place": lambda b: b.large.mul_(2),
    "in a row": lambda b: b.large[:2].fill_(7),
    "by an index": lambda b: b.large.__setitem__(torch.tensor([1, 5]), 3.0),
    "through data": lambda b: b.large.data.add_(1),
    "through numpy": lambda b: np.add(b.large.numpy(), 1, out=b.large.numpy()),
    "by a longer one": lambda b: setattr(b, "large", torch.cat([b.large, b.large])),
    "twice": lambda b: (b.small.add_(1), b.large.add_(1), b.small.add_(1), b.large.add_(1)),
}


@pytest.mark.parametrize("how", WRITES)
def test_what_was_written_gets_its_value_back(how):
    bank = Bank()
    kept = {k: v.clone() for k, v in bank.moving().items()}
    before = Journal().before([bank])
    WRITES[how](bank)
    assert any(not torch.equal(v, bank.moving()[k]) for k, v in kept.items())
    before.undo()
    assert all(torch.equal(v, bank.moving()[k]) for k, v in kept.items())


def test_what_was_not_written_is_the_same_tensor_as_before():
    bank = Bank()
    large, address = bank.large, torch._C._data_address(bank.large)
    before = Journal().before([bank])
    bank.small += 1
    before.undo()
    assert bank.large is large
    assert torch._C._data_address(bank.large) == address
    assert bank.small.tolist() == [0, 0, 0]


def test_memory_that_torch_does_not_own_is_copied():
    array = np.zeros(3, np.float32)
    kept = as_it_is(torch.from_numpy(array))
    array += 1
    assert kept.tolist() == [0, 0, 0]


def test_a_copy_of_an_adapter_has_a_journal_of_its_own():
    one = Tent(network())
    one(images(0))
    other = copy.deepcopy(one)
    assert other(images(1)).equal(one(images(1)))
    assert state_hash(one) == state_hash(other)
    before = state_hash(one)
    other(images(2))
    assert state_hash(one) == before


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.AdaptiveAvgPool2d(4),
        nn.Flatten(), nn.Linear(1024, 40),
    )  # fmt: skip


def images(seed):
    return torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def prepared(net):
    one = AdaNPC(net)
    one.prepare([images(i) for i in range(8)])
    return one


def copied(one, x):
    """Bytes of the state that a step copies for its undo, and bytes of the state."""
    # Held, so that the address of one that is freed is not that of a new one.
    storages = {k: v.untyped_storage() for k, v in one._moving(learned=True).items()}
    before = one._journal.before(one._parts(learned=True).values())
    with torch.enable_grad():
        one.step(x)
    advance(one)
    moved = one._moving(learned=True)
    same = [v for k, v in moved.items() if v.untyped_storage()._cdata == storages[k]._cdata]
    rows = {id(kept.tensor): sum(values.nbytes for _, values in kept.rows) for kept in before.rows}
    written = [v for v in same if not torch._C._is_cow_tensor(v)]
    del before
    return sum(rows.get(id(v), v.nbytes) for v in written), sum(v.nbytes for v in moved.values())


@pytest.mark.parametrize(
    ("make", "share"),
    [
        (lambda net: CoTTA(net, views=2), 0.03),
        (lambda net: CoTTA(net, sgd(1e-3), views=2), 0.03),
        (
            lambda net: RoTTA(net, 40, capacity=256, frequency=256),
            0.05,
        ),  # four of 256 images, and what is small
        (lambda net: SoTTA(net, 40, capacity=256, frequency=256, threshold=0.0), 0.05),
        (T3A, 0.0),
        (prepared, 0.35),  # a ring of the features of the stream
        (Tent, 1.0),
    ],
)
def test_a_step_copies_what_it_writes_in_place_and_no_more(make, share):
    one = make(network())
    one(images(0))
    bytes_copied, size = copied(one, images(1))
    assert bytes_copied <= share * size
    if share < 1:
        assert size > 100_000


def test_a_failed_step_of_large_parameters_is_undone():
    class Fails(Adapter):
        def __init__(self, model):
            super().__init__(model)
            self.adapt(norm_affine(self.model), adam(1e-2))

        def step(self, x):
            y = self.model(x)
            self.update(y.square().mean())
            if self.clock == 1:
                self._adapted[0].data.add_(1)
                raise RuntimeError("lost")
            return y

    torch.manual_seed(0)
    wide = nn.Sequential(nn.Flatten(), nn.Linear(192, LARGE), nn.LayerNorm(LARGE), nn.Linear(LARGE, 2))
    one = Fails(wide)
    one(images(0))
    before = state_hash(one)
    with pytest.raises(RuntimeError, match="lost"):
        one(images(1))
    assert state_hash(one) == before


class Overwrites(Adapter):
    """Writes a bank in every step, and fails where it is asked to."""

    def __init__(self, model):
        super().__init__(model)
        self.memory = HUS(2, capacity=4)
        self.fails = False

    def step(self, x):
        y = self.model(x)
        for part in x.split(2):
            self.memory.add(
                part, torch.zeros(2, dtype=torch.long), torch.ones(2, dtype=torch.bool), torch.rand(2, 2)
            )
        if self.fails:
            raise RuntimeError("lost")
        return y.detach()


@pytest.mark.parametrize("steps", [0, 1, 2])  # the bank is not there, free in part, full
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_failed_step_gives_a_bank_its_rows_back(steps, wrapped):
    inner = Overwrites(network())
    one = Repeat(inner, 2) if wrapped else inner
    for i in range(steps):
        one(images(i)[:2])
    before = state_hash(one)
    inner.fails = True
    with pytest.raises((RuntimeError, ValueError), match="lost"):
        one(images(9))
    assert state_hash(one) == before
    inner.fails = False
    assert one(images(9)).valid.all()
    assert state_hash(one) != before


class Replaced(Stateful):
    """A bank that replaces its buffers."""

    writes = False

    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("large", torch.zeros(LARGE))


def test_a_part_that_replaces_its_buffers_gets_the_very_tensors_back():
    part = Replaced()
    count, large = part.count, part.large
    before = Journal().before([part])
    part.count, part.large = part.count + 1, torch.ones(2 * LARGE)
    before.undo()
    assert part.count is count
    assert part.large is large


def test_parts_that_say_so_never_write_to_their_buffers():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 5))
    guarded = Guarded(Tent(model))
    guarded.prepare([torch.rand(64, 3, 8, 8)])
    parts = [m for m in modules_of(guarded, Stateful) if not m.writes]
    assert {type(m).__name__ for m in parts} == {"Competence", "Evidence", "Healthy", "Rest", "Usual"}
    for n in (16, 1, 8, 8, 8, 8, 8):
        held = [(v, v.clone()) for m in parts for v in m._buffers.values()]
        guarded(torch.rand(n, 3, 8, 8))
        assert all(torch.equal(live, kept) for live, kept in held)
