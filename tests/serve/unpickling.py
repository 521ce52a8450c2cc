"""A process that saves, loads, serves, snapshots and resumes, and takes a step in two processes; prints what was unpickled.

``python unpickling.py FOLDER``: a JSON object, classes that ``pickle`` looked up by name, by stage. The hook of the
interpreter sees every lookup, of the C implementation too.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import warnings
from collections import defaultdict
from pathlib import Path

STAGE = ["start"]
FOUND: dict[str, list[list[str]]] = defaultdict(list)


def audit(event: str, args: tuple[object, ...]) -> None:
    if event == "pickle.find_class":
        FOUND[STAGE[0]].append([str(word) for word in args])


sys.addaudithook(audit)

import torch  # noqa: E402 - after the hook
import torch.distributed as dist  # noqa: E402
from small_session import images, network, tent  # noqa: E402

import testtime  # noqa: E402
from testtime.serve import Session, SessionOptions, verify_session  # noqa: E402
from testtime.wrap import DataParallel  # noqa: E402


def one_process(folder: Path) -> None:
    STAGE[0] = "save and load"
    adapter = tent()
    adapter(images(0))
    testtime.save(adapter, folder / "saved")
    loaded = testtime.load(folder / "saved", network())
    assert testtime.state_hash(loaded) == testtime.state_hash(adapter)
    STAGE[0] = "serve"
    options = SessionOptions(snapshot_every=2, resident=1)
    with Session(tent(), folder / "session", options=options) as session:
        for i in range(4):
            for name in "ab":
                session.submit(images(10 * ord(name) + i), name)
        session.settle(60)
        session.rollback("a", session.snapshots("a")[0].number)
        session.rollback("a")
        session.configure(tent(lr=0.5))
        session.submit(images(9), "a")
    STAGE[0] = "resume"
    with Session.resume(network(), folder / "session") as session:
        session.submit(images(8), "b")
    STAGE[0] = "verify"
    assert verify_session(folder / "session").faults == ()


def rank(number: int, port: int) -> None:
    STAGE[0] = "two processes"
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=number, world_size=2)
    adapter = DataParallel(tent(), check_every=1)
    for i in range(2):
        adapter(images(i)[:3] if number else images(i)[3:])
    dist.barrier()
    dist.destroy_process_group()


def two_processes() -> list[list[str]]:
    """What a rank unpickled; the other is a child of this process with the hook of it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    reading, writing = os.pipe()
    child = os.fork()
    rank(1 if child == 0 else 0, port)
    if child == 0:
        os.write(writing, json.dumps(FOUND["two processes"]).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        others: list[list[str]] = json.loads(file.read())
    assert os.waitpid(child, 0)[1] == 0
    return others


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    others = two_processes()  # first: no threads run yet
    FOUND["the other process"] += others
    one_process(Path(sys.argv[1]))
    import pickle

    STAGE[0] = "the hook"
    pickle.loads(pickle.dumps(Path()))
    print(json.dumps(FOUND))
