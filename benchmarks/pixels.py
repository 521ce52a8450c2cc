"""Time frames of scenes and tokenizers in process CPU time: ``python benchmarks/pixels.py``.

A frame of 224 x 224 pixels with all modalities is timed against its ray tracing alone (rays through all pixels, and one from
each to a lamp), and the ids of a VQ tokenizer against its encoder alone. ``--peer DIR/src`` times another version of
the library in turn (``git worktree add DIR COMMIT``); both run in processes of their own.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path


def runs() -> dict[str, Callable[[], object]]:
    """Return what is timed, by name; each call renders 4 frames, or encodes 8 images."""
    import numpy as np
    import torch

    from testtime.scenes import Renderer, generate_house
    from testtime.scenes.cameras import place_cameras, rays
    from testtime.space.modalities import RGB
    from testtime.space.tokenizers import VQTokenizer

    torch.set_num_threads(1)
    house = generate_house(3)
    renderer, cameras, size = Renderer(house), place_cameras(house, 4), (224, 224)
    directions = [rays(camera, size) for camera in cameras]
    lamp = np.array(house.lights[0].position)

    def trace() -> None:
        for camera, way in zip(cameras, directions, strict=True):
            hits = renderer.tracer.trace(np.broadcast_to(camera.position, way.shape), way)  # type: ignore[attr-defined]
            points = camera.position + np.where(hits.triangle >= 0, hits.t, 0)[:, None] * way
            renderer.tracer.occluded(points, np.broadcast_to(lamp, points.shape))

    x = torch.rand(8, 3, *size, generator=torch.Generator().manual_seed(0))
    vq = {patch: VQTokenizer(RGB, size=size, patch=patch, codebook=1024).eval() for patch in (8, 16)}
    made: dict[str, Callable[[], object]] = {
        "frame": lambda: [renderer.frame(camera, size).canny for camera in cameras],
        "ray tracing": trace,
    }
    for patch, tokenizer in vq.items():
        made[f"ids, patch {patch}"] = lambda t=tokenizer: t.encode(x)
        made[f"encoder, patch {patch}"] = torch.no_grad()(lambda t=tokenizer: t.encoder(x))
    return made


COUNT = {"frame": 4, "ray tracing": 4}


def work() -> None:
    """Answer each name on the standard input with the CPU seconds of its call."""
    made = runs()
    print(" ".join(name.replace(" ", "_") for name in made), flush=True)
    for line in sys.stdin:
        start = time.process_time()
        made[line.strip().replace("_", " ")]()
        print(time.process_time() - start, flush=True)


def worker(source: Path) -> tuple[subprocess.Popen[str], list[str]]:
    """Start a process that times the library in a ``src`` folder; return it and the names of what it times."""
    if not (source / "testtime").is_dir():
        raise SystemExit(f"{source} has no folder testtime; expected the src folder of a checkout")
    process = subprocess.Popen(
        [sys.executable, __file__, "--work"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    return process, process.stdout.readline().split()


def main() -> None:
    """Print the table, with the processor and the load."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--peer", type=Path, help="src folder of another version")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work()
        return
    import testtime
    from testtime.processor import machine_load, processor_name

    print(f"{processor_name()}, 1 thread, load {machine_load()}")
    here = Path(testtime.__file__).parents[1]
    workers = [worker(source) for source in ([here] if arguments.peer is None else [here, arguments.peer])]
    names = workers[0][1]
    taken: list[dict[str, list[float]]] = [{name: [] for name in names} for _ in workers]
    for number in range(arguments.rounds + 1):
        for name in names:
            for (process, _), times in zip(workers, taken, strict=True):
                assert process.stdin is not None
                assert process.stdout is not None
                print(name, file=process.stdin, flush=True)
                second = float(process.stdout.readline())
                if number:
                    times[name].append(second)
    for process, _ in workers:
        process.communicate()
    for name, base in zip(names[::2], names[1::2], strict=True):
        ours = taken[0]
        count = COUNT.get(name, 8)
        ratio = statistics.median(a / b for a, b in zip(ours[name], ours[base], strict=True))
        line = f"{name:14} {count / statistics.median(ours[name]):7.1f} /s {ratio:6.2f} x {base}"
        if arguments.peer is not None:
            against = statistics.median(b / a for a, b in zip(ours[name], taken[1][name], strict=True))
            line += f" {against:6.2f} x as fast as the peer"
        print(line.replace("_", " "))


if __name__ == "__main__":
    main()
