"""One adapter over several processes gives what it gives in one process, and they hold equal states."""

import contextlib
import copy
import os
import threading

import pytest
import torch
from torch import nn

from testtime import Adapter
from testtime.adapter import state_hash
from testtime.errors import RankError
from testtime.intake.named import NamedTensors
from testtime.intake.shards import Shards
from testtime.laws.batches import fed
from testtime.laws.worlds import WORLDS
from testtime.methods import EATA, NHL, PAFKIP, RPL, SAR, T3A, CoTTA, RoTTA, Tent
from testtime.models import load_model
from testtime.norm import unmix_tns
from testtime.parts import sgd
from testtime.prediction import Prediction
from testtime.wrap import DataParallel


class Threads:
    """A group of threads that exchange tensors."""

    def __init__(self, size):
        self.size, self.barrier, self.given = size, threading.Barrier(size, timeout=30), [None] * size
        self.mine = threading.local()

    @property
    def rank(self):
        return self.mine.rank

    def gather(self, value):
        self.given[self.rank] = value
        try:
            self.barrier.wait()
            found = [v.clone() for v in self.given]
            self.barrier.wait()
        except threading.BrokenBarrierError as error:
            raise RankError("a thread was lost") from error
        return found


def together(size, work):
    """What ``work(rank, group)`` returns, or the error that it raises, in each of several threads."""
    group, found = Threads(size), [None] * size

    def run(rank):
        group.mine.rank = rank
        try:
            found[rank] = work(rank, group)
        except Exception as error:  # noqa: BLE001 - returned to the test
            found[rank] = error
            if isinstance(error, RankError):
                group.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def _network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6), nn.Flatten(),
        nn.Linear(6 * 16, 4),
    ).double().eval()  # fmt: skip


NETWORK = _network()  # threads share the global generator


def network():
    return copy.deepcopy(NETWORK)


def batches(n=4, size=13):
    g = torch.Generator().manual_seed(1)
    return [torch.rand(size, 3, 8, 8, generator=g, dtype=torch.float64) for _ in range(n)]


def shares(x, size):
    """Uneven shares, one of them empty with three processes."""
    return torch.tensor_split(x, [9] if size == 2 else [5, 5])


METHODS = {
    "TENT": lambda: Tent(network()),
    "SAR": lambda: SAR(network(), classes=4),
    "RPL": lambda: RPL(network()),
    "CoTTA": lambda: CoTTA(network(), optimizer=sgd(0.01)),
    "RoTTA": lambda: RoTTA(network(), classes=4, capacity=8, frequency=8),
    "PAF+KIP": lambda: PAFKIP(network(), classes=4),
    "T3A": lambda: T3A(network()),
}


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("method", METHODS)
def test_it_gives_what_one_process_gives(method, size):
    alone = METHODS[method]()
    expected = [alone(x).logits for x in batches()]

    def work(rank, group):
        adapter = METHODS[method]()
        parallel = DataParallel(adapter, group, check_every=1)
        found = [parallel(shares(x, size)[rank]).logits for x in batches()]
        return found, state_hash(adapter), adapter.state_dict()

    results = together(size, work)
    found = [torch.cat([logits[i] for logits, _, _ in results]) for i in range(4)]
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-9, rtol=0)
    assert len({hashed for _, hashed, _ in results}) == 1
    for name, value in alone.state_dict().items():
        assert torch.allclose(results[0][2][name].double(), value.double(), atol=1e-9, rtol=0), name


def test_its_state_continues_in_one_process():
    x = batches(6)
    alone = Tent(network())
    for b in x:
        expected = alone(b)

    def work(rank, group):
        parallel = DataParallel(Tent(network()), group)
        for b in x[:5]:
            parallel(shares(b, 2)[rank])
        return parallel.state_dict()

    continued = Tent(network())
    continued.load_state_dict(together(2, work)[0])
    assert torch.allclose(continued(x[5]).logits, expected.logits, atol=1e-9)


def test_prepare_predict_and_reset_are_shared_too():
    source, x = batches(3), batches(1)[0]
    alone = EATA(network(), classes=4)
    alone.prepare(source)

    def work(rank, group):
        parallel = DataParallel(EATA(network(), classes=4), group)
        parallel.prepare(source)
        first = parallel(shares(x, 2)[rank])
        parallel.reset()
        return first, parallel.predict(shares(x, 2)[rank]), parallel.state_dict()

    results = together(2, work)
    assert isinstance(results[0][0], Prediction)
    assert torch.allclose(torch.cat([r[0].logits for r in results]), alone(x).logits, atol=1e-9)
    alone.reset()
    assert torch.allclose(torch.cat([r[1].logits for r in results]), alone.predict(x).logits, atol=1e-9)
    for name, value in alone.state_dict().items():
        assert torch.allclose(results[1][2][name].double(), value.double(), atol=1e-9), name


def test_an_image_that_is_refused_is_refused_in_its_own_process_alone():
    x = batches(1)[0]
    x[11, 0, 0, 0] = torch.nan

    def work(rank, group):
        return DataParallel(Tent(network()), group)(shares(x, 2)[rank]).valid.tolist()

    assert together(2, work) == [[True] * 9, [True, True, False, True]]


def test_gradients_of_a_repeated_forward_are_shared_too():
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network()

        def forward(self, x):
            return torch.utils.checkpoint.checkpoint(self.net, x, use_reentrant=False)

    alone = Tent(Checkpointed())
    alone(batches(1)[0])

    def work(rank, group):
        parallel = DataParallel(Tent(Checkpointed()), group)
        parallel(shares(batches(1)[0], 2)[rank])
        return parallel.state_dict()

    for state in together(2, work):
        for name, value in alone.state_dict().items():
            assert torch.allclose(state[name].double(), value.double(), atol=1e-9), name


def dictionaries(n=3):
    return [NamedTensors(dict(x.entries)).to(torch.float64) for x in WORLDS["dictionary"].stream(n, 13)]


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("make", [Tent, T3A])
def test_dictionaries_are_shared_out_too(make, size):
    model = WORLDS["dictionary"].network().network.double()
    alone = make(copy.deepcopy(model))
    expected = [alone(fed(x)).logits for x in dictionaries()]

    def work(rank, group):
        parallel = DataParallel(make(copy.deepcopy(model)), group, check_every=1)
        share = torch.tensor_split(torch.arange(13), [9] if size == 2 else [5, 5])[rank]
        return [parallel(fed(x[share])).logits for x in dictionaries()], state_hash(parallel.adapter)

    results = together(size, work)
    for i, one in enumerate(expected):
        found = torch.cat([logits[i] for logits, _ in results])
        assert torch.allclose(found, one, atol=1e-9, rtol=0)
    assert len({hashed for _, hashed in results}) == 1


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda x: {**x, "facts": x["facts"].float()}, ValueError, "this one is rank . and has .*facts"),
        (
            lambda x: {("token_ids" if n == "input_ids" else n): v for n, v in x.items()},
            ValueError,
            "token_ids|input_ids",
        ),
        (lambda x: x["facts"], ValueError, r"a dictionary of 13 samples of \d+ bytes"),
        (
            lambda x: {**x, "facts": None},
            TypeError,
            r"ranks \[1\] got no batch: .* or a dictionary of tensors",
        ),
        (lambda x: {}, TypeError, r"ranks \[1\] got no batch"),
    ],
)
def test_dictionaries_that_do_not_fit_are_refused_in_every_process(change, error, message):
    model = WORLDS["dictionary"].network().network.double()
    x = dictionaries(1)[0]

    def work(rank, group):
        parallel = DataParallel(Tent(copy.deepcopy(model)), group)
        with pytest.raises(error, match=message):
            parallel(change(fed(x)) if rank else fed(x))
        return True

    assert together(2, work) == [True, True]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (lambda rank: torch.rand(3, 3, 8, 8 + rank), ValueError, r"rank 1: \(3, 3, 8, 9\), torch.float32"),
        (lambda rank: [1, 2] if rank else torch.rand(3, 3, 8, 8), TypeError, r"ranks \[1\] got no batch"),
        (
            lambda rank: torch.rand(2, 3, 8, 8).to([torch.float32, torch.int64][rank]),
            TypeError,
            r"ranks \[1\]",
        ),
        (lambda rank: torch.rand(0, 3, 8, 8), ValueError, "empty shares in all"),
        (
            lambda rank: torch.rand(4, 5, 8, 8, dtype=torch.float64),
            ValueError,
            "does not take a batch of shape",
        ),
    ],
)
def test_shares_that_do_not_fit_are_refused_in_every_process(given, error, message):
    def work(rank, group):
        parallel = DataParallel(Tent(network()), group)
        before = state_hash(parallel.adapter)
        with pytest.raises(error, match=message):
            parallel(given(rank))
        return state_hash(parallel.adapter) == before

    assert together(2, work) == [True, True]


def test_adapters_that_were_built_differently_are_refused():
    def work(rank, group):
        model = network()
        with torch.no_grad():
            model[1].weight += rank
        with pytest.raises(RankError, match=r"the states of ranks \[1\] differ from that of rank 0"):
            DataParallel(Tent(model), group)
        return True

    assert together(2, work) == [True, True]


@pytest.mark.parametrize("make", [lambda: NHL(network()), lambda: Tent(unmix_tns(network()))])
def test_layers_that_mix_samples_otherwise_are_refused(make):
    with pytest.raises(ValueError, match="cannot share its batches out: its layer model.network"):
        DataParallel(make(), Threads(1))


def test_it_needs_an_adapter_and_processes():
    with pytest.raises(TypeError, match=r"build one: Tent\(model\)"):
        DataParallel(network())
    with pytest.raises(RuntimeError, match="init_process_group"):
        DataParallel(Tent(network()))
    with pytest.raises(ValueError, match="timeout is a number of seconds"):
        DataParallel(Tent(network()), Threads(1), timeout=0)


def _rank(rank, port, results, die):
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE="2")
    dist.init_process_group("gloo", rank=rank, world_size=2)
    adapter = Tent(network())
    parallel, hashes = DataParallel(adapter, timeout=20), []
    for i, x in enumerate(batches(5)):
        if die and rank and i == 3:
            adapter.update = lambda *_: os._exit(9)  # in the middle of a step
        before = state_hash(adapter)
        try:
            parallel(shares(x, 2)[rank])
        except RankError as error:
            results.put((rank, [*hashes, "lost", before == state_hash(adapter), str(error)]))
            results.close()
            results.join_thread()
            os._exit(0)
        hashes.append(state_hash(adapter))
    results.put((rank, hashes))
    with contextlib.suppress(Exception):
        dist.destroy_process_group()


@pytest.mark.parametrize("die", [False, True])
def test_processes_of_torch(die, free_port):
    context = torch.multiprocessing.get_context("fork")
    results = context.Queue()
    ranks = [context.Process(target=_rank, args=(r, free_port, results, die)) for r in range(2)]
    for process in ranks:
        process.start()
    found = dict(results.get(timeout=60) for _ in range(1 if die else 2))
    for process in ranks:
        process.join(30)
    if die:
        assert found[0][3:5] == ["lost", True]
        assert "rank 0 of 2 lost another process" in found[0][5]
    else:
        assert found[0] == found[1]
        assert len(set(found[0])) == 5


@pytest.fixture
def free_port():
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def test_copies_share_the_processes():
    group = Threads(1)
    group.mine.rank = 0
    parallel = DataParallel(Tent(network()), group)
    other = copy.deepcopy(parallel)
    other(batches(1)[0])
    assert (int(parallel.adapter.clock), int(other.adapter.clock)) == (0, 1)
    assert copy.deepcopy(Shards(group)).group is group


@pytest.mark.slow
def test_the_public_network_in_float32():
    x = [torch.rand(24, 3, 32, 32, generator=torch.Generator().manual_seed(i)) for i in range(5)]
    alone: Adapter = Tent(load_model("digits-cnn"))
    expected = [alone(b).logits for b in x]

    def work(rank, group):
        parallel = DataParallel(Tent(load_model("digits-cnn")), group)
        return [parallel(shares(b, 2)[rank]).logits for b in x]

    results = together(2, work)
    for i in range(5):
        assert torch.allclose(torch.cat([r[i] for r in results]), expected[i], atol=1e-4)
