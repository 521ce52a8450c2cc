"""``testtime multitask train``: a source network of a preset."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from testtime.cli.options import Commands, Device, Jobs, Option, Precision, Seed, new_folder, print_progress
from testtime.errors import need_packages, unknown_name

if TYPE_CHECKING:
    from testtime.data import DenseSet

__all__ = ["COMMANDS", "train"]


def train(
    *,
    out: Annotated[str, Option("folder of checkpoint, losses and weights", new_folder, "DIR")],
    preset: Annotated[str, Option("size of the network and its training")] = "tiny",
    model: Annotated[Literal["plain", "s4t"], Option("s4t has the synchronizer")] = "s4t",
    data: Annotated[str | None, Option("spaces of testtime scenes make (rendered)", metavar="DIR")] = None,
    seed: Seed = 0,
    iterations: Annotated[int | None, Option("in place of the preset's")] = None,
    device: Device = "cpu",
    precision: Precision = None,
    devices: Annotated[int | None, Option("processes that share each batch (needs the extra train)")] = None,
    jobs: Jobs = 2,
) -> int:
    """Train a source network; the same command goes on where it was left."""
    from testtime.experiments.multitask.listing import CONSTANTS
    from testtime.multitask import branches, training
    from testtime.multitask.houses import TASKS, Houses
    from testtime.processor import resolve_precision
    from testtime.scenes.groups import read_grouped
    from testtime.scenes.tracer import warn_if_slow
    from testtime.training.fabric import launch_fabric

    presets = CONSTANTS["presets"]
    if preset not in presets:
        raise unknown_name("preset", preset, presets)
    chosen: dict[str, Any] = presets[preset]
    need_packages(PIL="images", cv2="scenes")
    if data is not None and not Path(data).is_dir():
        raise ValueError(f"--data {data}: no such folder; testtime scenes make makes one")
    warn_if_slow(print_progress)
    started = training.started_precision(out)
    resolved = resolve_precision(precision or "auto", device, started, print_progress)
    steps = {} if iterations is None else {"iterations": iterations}
    recipe = training.Recipe(**{**chosen["recipe"], "precision": resolved, **steps})
    fabric = None if devices is None else launch_fabric(device, devices, resolved)

    def images() -> DenseSet:
        if data is not None:
            return read_grouped(data)
        return Houses(**chosen["source"]).read(Path(out).parent, jobs)

    first = fabric is None or fabric.global_rank == 0
    if first:
        images()  # one process renders, the others read
    if fabric is not None:
        fabric.barrier()
    branch = {"branch": "synchronizer", "arguments": chosen["branch"]} if model == "s4t" else {"branch": None}
    network = branches.build(TASKS, {**chosen["network"], **branch}, seed)
    training.train(network, images(), recipe, out, seed, device, fabric)
    if first:
        print(Path(out) / "model.safetensors")
    return 0


COMMANDS: Commands = {"train": train}
