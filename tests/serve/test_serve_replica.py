"""Replicas hand streams over through a shared folder: nothing acknowledged is lost, and a stale owner changes nothing."""

from __future__ import annotations

import io
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from small_session import images, tent
from torch import Tensor

from testtime.errors import DataError
from testtime.serve import GateOptions, SessionOptions
from testtime.serve.directory import DirectoryLock
from testtime.serve.leases import Leases, StreamBusy, StreamLost
from testtime.serve.ray import application, batch_of, fields_of
from testtime.serve.replica import Replica, ReplicaOptions


def options(every: int = 2, silence: float = 5.0, patience: float = 20.0) -> ReplicaOptions:
    return ReplicaOptions(SessionOptions(snapshot_every=every), silence, patience)


def alone(seeds: list[int]) -> Tensor:
    """Logits of the last batch of an adapter that meets these batches."""
    adapter = tent()
    return [adapter(images(seed)).logits for seed in seeds][-1]


def kill(replica: Replica) -> None:
    """End a replica as SIGKILL does: its lock is free, and nothing else is done."""
    replica._over.set()
    for thread in replica._threads:
        thread.join()
    replica._session._audit.close()
    replica._session._lock.release()


def owner(root: Path, name: str, silence: float = 5.0) -> tuple[Leases, DirectoryLock]:
    home = root / "replicas" / name
    home.mkdir(parents=True)
    leases = Leases(root, name, silence=silence)
    leases.beat()
    return leases, DirectoryLock(home)


def test_a_stream_moves_between_living_replicas_and_stays_what_it_is(tmp_path: Path) -> None:
    one, two = Replica(tent(), tmp_path, options(0)), Replica(tent(), tmp_path, options(0))
    order = [one, one, two, one, two, two]
    for i, replica in enumerate(order):
        served = replica.submit(images(i), "cam")
        assert (served.answer.offset, served.replica) == (4 * i, replica.name)
        assert torch.equal(served.answer.logits, alone(list(range(i + 1))))
    assert (one.streams(), two.streams()) == ((), ("cam",))
    assert served.epoch == 4  # four changes of owner
    two.close()
    assert one.submit(images(6), "cam").answer.offset == 24
    one.close()


def test_what_a_killed_replica_acknowledged_is_there_and_the_rest_is_not(tmp_path: Path) -> None:
    one, two = Replica(tent(), tmp_path, options()), Replica(tent(), tmp_path, options())
    assert [one.submit(images(i), "cam").acknowledged for i in range(5)] == [0, 8, 8, 16, 16]
    kill(one)
    served = two.submit(images(9), "cam")
    assert (served.answer.offset, served.epoch) == (16, 2)
    assert torch.equal(served.answer.logits, alone([0, 1, 2, 3, 9]))
    two.close()


def test_a_replica_that_was_silent_cannot_write_over_its_successor(tmp_path: Path) -> None:
    one, two = Replica(tent(), tmp_path, options(1)), Replica(tent(), tmp_path, options(1, 0.4))
    one.submit(images(0), "cam")
    one._leases.beat = lambda: None  # type: ignore[method-assign]
    one._give_up = lambda: None  # type: ignore[method-assign]
    kill_threads = one._threads
    one._over.set()
    for thread in kill_threads:
        thread.join()  # it hangs: its lock is held, it shows no sign of life
    two._leases._host = "another"
    served = two.submit(images(1), "cam")
    assert (served.answer.offset, served.epoch) == (4, 2)
    one._over.clear()
    seat = one._seats["cam"]
    with pytest.raises(StreamLost, match="taken over"):
        one._acknowledge(seat)
    names = sorted(path.name for path in (tmp_path / "streams/cam").glob("*.safetensors"))
    assert [name[:9] for name in names] == ["000000001", "000000002"]
    again = one.submit(
        images(2), "cam"
    )  # it asks for the stream, and continues with the state of the successor
    assert (again.answer.offset, again.epoch) == (8, 3)
    assert torch.equal(again.answer.logits, alone([0, 1, 2]))
    two.close()
    one._threads = []
    one.close()


def test_a_living_owner_is_asked_and_keeps_its_stream(tmp_path: Path) -> None:
    (one, held), (two, other) = owner(tmp_path, "one"), owner(tmp_path, "two")
    lease = one.acquire("cam", 1.0)
    assert not one.wanted(lease)
    with pytest.raises(StreamBusy, match="replica one"):
        two.acquire("cam", 0.1)
    assert one.wanted(lease)
    assert one.holds(lease)
    one.release(lease)
    assert two.acquire("cam", 0.0).epoch == 2
    assert not one.holds(lease)
    held.release()
    other.release()


def test_an_owner_on_another_host_is_dead_after_its_silence_alone(tmp_path: Path) -> None:
    (one, held), (two, other) = owner(tmp_path, "one"), owner(tmp_path, "two", 0.3)
    two._host = "another"
    one.acquire("cam", 0.0)
    beating = threading.Event()

    def beat() -> None:
        while not beating.wait(0.05):
            one.beat()

    thread = threading.Thread(target=beat)
    thread.start()
    with pytest.raises(StreamBusy):
        two.acquire("cam", 1.0)
    beating.set()
    thread.join()
    assert two.acquire("cam", 5.0).epoch == 2
    held.release()
    other.release()


def test_every_epoch_has_one_owner(tmp_path: Path) -> None:
    owners = [owner(tmp_path, f"r{i}")[0] for i in range(6)]
    found: list[int] = []

    def work(leases: Leases) -> None:
        for _ in range(5):
            lease = leases.acquire("cam", 30.0)
            found.append(lease.epoch)
            assert leases.holds(lease)
            (tmp_path / "snapshot").touch()
            leases.publish(lease, tmp_path / "snapshot", lease.epoch)
            leases.release(lease)

    threads = [threading.Thread(target=work, args=(leases,)) for leases in owners]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == list(range(1, 31))
    folder = tmp_path / "streams/cam"
    assert sorted(p.name for p in folder.glob("*.claim")) == ["000000030.claim"]
    assert [number for number, _ in owners[0].snapshots(owners[0].acquire("cam", 1.0))] == [30, 29, 28, 27]


def test_what_was_not_acknowledged_does_not_replace_what_was(tmp_path: Path) -> None:
    leases, held = owner(tmp_path, "one")
    folder = leases.acquire("cam", 0.0).folder
    for epoch, number in [(1, 4), (1, 5), (1, 6), (2, 5)]:  # (1, 6) came late: epoch 2 began from (1, 4)
        (folder / f"{epoch:09d}-{number:09d}.safetensors").touch()
    chain = leases.snapshots(leases.acquire("cam", 0.0))
    assert [(number, path.name[:9]) for number, path in chain] == [(5, "000000002"), (4, "000000001")]
    held.release()


def test_a_damaged_snapshot_is_passed_over_and_bad_input_leaves_nothing(tmp_path: Path) -> None:
    one = Replica(tent(), tmp_path, options(1))
    for bad in (torch.zeros(2, 3, 6, 6, dtype=torch.int64), torch.zeros(0, 3, 6, 6)):
        with pytest.raises((TypeError, ValueError), match="expected"):
            one.submit(bad, "cam")
    with pytest.raises(ValueError, match="name of a stream"):
        one.submit(images(0), "../cam")
    assert not (tmp_path / "streams").exists()
    for i in range(3):
        one.submit(images(i), "cam")
    kill(one)
    newest = max((tmp_path / "streams/cam").glob("*.safetensors"))
    newest.write_bytes(newest.read_bytes()[:-5])
    two = Replica(tent(), tmp_path, options(1))
    assert two.submit(images(2), "cam").answer.offset == 8
    two.leave("cam")
    for path in (tmp_path / "streams/cam").glob("*.safetensors"):
        path.write_bytes(b"no snapshot")
    with pytest.raises(DataError, match="none can be used"):
        two.submit(images(3), "cam")
    assert two.streams() == ()
    two.close()
    with pytest.raises(RuntimeError, match="closed"):
        two.submit(images(0), "cam")


def test_a_full_disk_does_not_cost_the_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = Replica(tent(), tmp_path, options(1))
    one.submit(images(0), "cam")
    with monkeypatch.context() as patched:
        patched.setattr(Leases, "publish", _full)
        served = one.submit(images(1), "cam")
        assert (served.answer.offset, served.acknowledged, one.error) == (4, 4, "disk full")
        with pytest.raises(OSError, match="disk full"):
            one.leave("cam")
    assert one.submit(images(2), "cam").acknowledged == 12
    one.close()


def _full(*_: object) -> None:
    raise OSError("disk full")


def test_requests_are_arrays_tensors_or_images() -> None:
    Image = pytest.importorskip("PIL.Image", reason="Pillow comes with testtime[images]")
    pixels = np.random.default_rng(0).integers(0, 256, (6, 4, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    want = torch.from_numpy(pixels).permute(2, 0, 1).float().div(255)
    assert torch.equal(batch_of(file.getvalue()), want[None])
    assert batch_of([file.getvalue()] * 2, (3, 8, 8)).shape == (2, 3, 8, 8)
    grey = np.asarray(Image.fromarray(pixels).convert("L"))
    assert torch.equal(batch_of(file.getvalue(), (1, 6, 4))[0, 0], torch.tensor(grey).float().div(255))
    with pytest.raises(ValueError, match=r"expected a model of images .* this one takes \(2, 6, 4\)"):
        batch_of(file.getvalue(), (2, 6, 4))
    array = want[None].numpy()
    array.flags.writeable = False
    assert torch.equal(batch_of(array), want[None])
    for bad, error in (("text", TypeError), ([], ValueError), (b"no image", ValueError)):
        with pytest.raises(error, match="expected"):
            batch_of(bad)
    with pytest.raises(TypeError, match="floating-point"):
        batch_of(np.array(["a"]))


def test_the_fields_of_an_answer_are_arrays(tmp_path: Path) -> None:
    one = Replica(tent(), tmp_path, ReplicaOptions(SessionOptions(gate=GateOptions(shape=(3, 6, 6)))))
    found = fields_of(one.submit(images(0), "cam"))
    assert np.array_equal(found["logits"], alone([0]).detach().numpy())
    assert found["predicted"].tolist() == alone([0]).argmax(1).tolist()
    assert (found["offset"], found["acknowledged"], found["replica"]) == (0, 0, one.name)
    one.close()
    assert time.time() - (tmp_path / "replicas" / one.name / "alive").stat().st_mtime < 60


def test_without_ray_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"testtime\[ray\]"):
        application(tent, tmp_path)
    with pytest.raises(ValueError, match="silence"):
        ReplicaOptions(silence=60.0)
