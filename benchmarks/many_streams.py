"""Many streams on one model: memory and disk of a stream, the time of an exchange, of a resume and of the lists.

    python benchmarks/many_streams.py --streams 10000 --out many.json

Every stream sends two batches of corrupted digits, one after all others have sent their first, so that each but the last ones
left the memory in between and comes back from its snapshot. Before the second round the session is closed and resumed. The
streams of a sample are compared, bit for bit, with an adapter of their own.
Times are of the processor unless said, and ratios to a step of the adapter alone in the same run.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import torch
from torch import Tensor, nn

from testtime import state_hash
from testtime.adapter import Adapter
from testtime.data import embedded
from testtime.files import write_json
from testtime.methods import Tent
from testtime.models import load_model, resnet20
from testtime.serve import Session, SessionOptions
from testtime.serve.page import ROUTER
from testtime.serve.server import Configuration, ServedModel, ServerOptions, create_app

FEW = 100  # streams of the session whose resume is compared


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return resnet20().eval() if name == "resnet20" else load_model(name)


@cache
def digits() -> Tensor:
    test = embedded().test
    return test.batch(range(len(test)))


def batch(stream: int, turn: int, size: int) -> Tensor:
    """Digits under noise that no other batch has: (size, 3, 32, 32)."""
    draws = torch.Generator().manual_seed(2 * stream + turn)
    rows = torch.randint(len(digits()), (size,), generator=draws)
    return (digits()[rows] + 0.2 * torch.randn(size, 3, 32, 32, generator=draws)).clamp(0, 1)


def resident() -> int:
    """Resident memory of this process in bytes, without that of files."""
    gc.collect()
    pages = Path("/proc/self/statm").read_text().split()
    return (int(pages[1]) - int(pages[2])) * os.sysconf("SC_PAGE_SIZE")


def seconds(call: Callable[[], object], times: int = 5) -> float:
    """Median processor time of a call."""
    found = []
    for _ in range(times):
        start = time.process_time()
        call()
        found.append(time.process_time() - start)
    return statistics.median(found)


def name(stream: int) -> str:
    return f"camera-{stream:05d}"


def send(
    session: Session, streams: Iterable[int], turn: int, size: int
) -> tuple[list[str], list[float], int]:
    """Send a batch of every stream: hashes of the states, processor seconds of the requests, most states in memory."""
    states, spent, most = list[str](), list[float](), 0
    for stream in streams:
        x, start = batch(stream, turn, size), time.process_time()
        states.append(session.submit(x, name(stream)).state)
        spent.append(time.process_time() - start)
        most = max(most, len(session._turns.all()))
    return states, spent, most


def alone(make: Callable[[], Adapter], stream: int, size: int) -> list[str]:
    adapter, states = make(), []
    for turn in range(2):
        adapter(batch(stream, turn, size))
        states.append(state_hash(adapter)[:16])
    return states


def asked(session: Session, model: nn.Module) -> dict[str, float]:
    """Milliseconds of the processor, and bytes, of what is asked of a server without a connection."""
    served = ServedModel(model, "served", 10, 32)
    app = create_app(session, ServerOptions(served, Configuration("tent")), (ROUTER,))
    transport, found = httpx.ASGITransport(app), dict[str, float]()

    async def ask() -> None:
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            for path in ("/streams", "/streams?limit=100", f"/streams/{name(0)}", "/metrics", "/"):
                start = time.process_time()
                for _ in range(3):
                    response = await client.get(path)
                    assert response.status_code == 200, response.text
                found[f"{path} ms"] = 1000 * (time.process_time() - start) / 3
                found[f"{path} bytes"] = len(response.content)

    asyncio.run(ask())
    return found


def resumed(model: nn.Module, folder: Path, options: SessionOptions) -> float:
    """Processor seconds until a session is resumed and has listed its streams."""
    start = time.process_time()
    with Session.resume(model, folder, options=options) as session:
        session.streams()
        return time.process_time() - start


def run(model: str, streams: int, few: int, size: int, sample: int, folder: Path) -> dict[str, Any]:
    net, chosen = network(model), range(0, streams, max(1, streams // sample))
    options = SessionOptions(snapshot_every=0, resident=few, streams=streams, history=16)
    made = Tent(net)
    step = seconds(lambda: made(batch(0, 0, size)), 20)
    want = [alone(lambda: Tent(net), stream, size) for stream in chosen]
    with Session(Tent(net), folder / "few", options=options) as session:
        send(session, range(FEW), 0, size)
    resume_few = resumed(net, folder / "few", options)
    with Session(Tent(net), folder / "many", options=options) as session:
        send(session, range(2), 0, size)
        before = resident()
        send(session, range(2, few), 0, size)
        grown = (resident() - before) / (few - 2)
        state = session.status(name(0)).bytes
        again = [session._turns.in_memory(name(i)) for i in range(2)]
        swap = seconds(lambda: [session._engine.activate(one) for one in again if one], 50) / 2
        states, _, most = send(session, range(few, streams), 0, size)
        session.settle()
        full = resident()
    files = [path.stat() for path in (folder / "many" / "streams").rglob("*.safetensors")]
    resume_many = resumed(net, folder / "many", options)
    with Session.resume(net, folder / "many", options=options) as session:
        second, back, most_again = send(session, range(streams), 1, size)
        session.settle()
        asked_of = asked(session, net)
    got = [[None if s < few else states[s - few], second[s]] for s in chosen]
    equal = sum(
        all(a is None or a == b for a, b in zip(g, w, strict=True)) for g, w in zip(got, want, strict=True)
    )
    return {
        "model": model,
        "streams": streams,
        "resident": few,
        "batch": size,
        "compared": len(want),
        "equal": equal,
        "most_in_memory": max(most, most_again),
        "state_bytes": state,
        "memory_bytes_of_a_resident_stream": grown,
        "memory_growth_bytes_beyond_resident": full - before - grown * (few - 2),
        "disk_bytes": sum(one.st_size for one in files) / streams,
        "disk_bytes_allocated": 512 * sum(one.st_blocks for one in files) / streams,
        "step_ms": 1000 * step,
        "exchange_ms": 1000 * swap,
        "request_from_disk_of_a_step": statistics.median(back) / step,
        "resume_s": resume_many,
        f"resume_s_of_{FEW}": resume_few,
        **asked_of,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="digits-cnn", choices=("digits-cnn", "resnet20"))
    parser.add_argument("--streams", type=int, default=10_000)
    parser.add_argument("--resident", type=int, default=256)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument(
        "--sample", type=int, default=100, help="streams that are compared with an adapter each"
    )
    parser.add_argument("--out", help="file for the figures, JSON")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = run(given.model, given.streams, given.resident, given.batch, given.sample, Path(folder))
    for key, value in found.items():
        print(f"{key:<40} {value:.4g}" if isinstance(value, float) else f"{key:<40} {value}")
    if given.out:
        facts = {
            "command": ["benchmarks/many_streams.py", *sys.argv[1:]],
            "torch": torch.__version__,
            **found,
        }
        print(write_json(given.out, json.loads(json.dumps(facts))))


if __name__ == "__main__":
    main()
