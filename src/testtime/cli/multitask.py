"""``testtime multitask``: list, train, bench, report, analyse, demo."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from testtime.cli.options import (
    Once,
    add_precision,
    device,
    new_file,
    new_folder,
    print_progress,
    seeds,
    whole,
)
from testtime.errors import missing_extra, need_packages, unknown_name

if TYPE_CHECKING:
    from testtime.data import DenseSet

__all__ = ["add"]

PREFIX = "multitask-"
PROGRESS = "it says how far it is, and the same command goes on where it was left"


def add(parser: argparse.ArgumentParser) -> None:
    """Give a parser the commands of this family; what they need is imported when they run."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    commands.add_parser("list", help="list the presets and the studies").set_defaults(run=_list)

    train = commands.add_parser("train", help=f"train a source network; {PROGRESS}")
    train.add_argument("--preset", default="tiny", help="size of the network and its training (tiny)")
    train.add_argument(
        "--model", choices=("plain", "s4t"), default="s4t", help="with the synchronizer or without (s4t)"
    )
    train.add_argument(
        "--data", metavar="DIR", help="spaces of testtime scenes make (rendered as the preset says)"
    )
    train.add_argument(
        "--out",
        type=new_folder,
        required=True,
        metavar="DIR",
        help="folder of checkpoint, losses and weights",
    )
    train.add_argument(
        "--seed", type=whole(0), default=0, metavar="N", help="of order, augmentation and masks (0)"
    )
    train.add_argument("--iterations", type=whole(), metavar="N", help="instead of the preset's")
    train.add_argument("--device", type=device, default="cpu", help="cpu or cuda (cpu)")
    add_precision(train)
    train.add_argument(
        "--devices",
        type=whole(),
        metavar="N",
        help="share each batch among N processes (needs the extra train)",
    )
    train.add_argument("--jobs", type=whole(), default=2, metavar="N", help="processes that render (2)")
    train.set_defaults(run=_train)

    bench = commands.add_parser("bench", help=f"run a study and make its page; {PROGRESS}")
    bench.add_argument("study", nargs="?", help="a name; testtime multitask list shows them")
    bench.add_argument("--preset", default="tiny", help="size of the experiment (tiny)")
    bench.add_argument(
        "--out",
        type=new_folder,
        default="runs/multitask",
        metavar="DIR",
        help="folder of all studies (runs/multitask)",
    )
    bench.add_argument("--jobs", type=whole(), default=2, metavar="N", help="processes (2)")
    bench.add_argument("--seeds", type=seeds, metavar="0,1,2", help="instead of the study's")
    bench.add_argument(
        "--rows",
        nargs="+",
        action=Once,
        metavar="ROW",
        help="some of the study's; its base is always run",
    )
    bench.set_defaults(run=_bench)

    report = commands.add_parser("report", help="make the page of a study and print its table")
    report.add_argument("run_folder", metavar="RUN", help="folder of the study's results")
    report.add_argument("--out", type=new_file, metavar="FILE", help="the page (report.html in the folder)")
    report.set_defaults(run=_report)

    analyse = commands.add_parser(
        "analyse", help="look at the trained networks as the paper's figures do, and make a page"
    )
    analyse.add_argument(
        "analysis",
        choices=("affinity", "masks", "cost", "direction"),
        help="figure 6, figure 7, tables 6 and 9, and where learning goes",
    )
    analyse.add_argument("--preset", default="tiny", help="size of the experiment (tiny)")
    analyse.add_argument(
        "--out",
        type=new_folder,
        default="runs/multitask",
        metavar="DIR",
        help="folder of all studies (runs/multitask)",
    )
    analyse.add_argument("--seed", type=whole(0), metavar="N", help="seed of the networks")
    analyse.add_argument("--jobs", type=whole(), default=2, metavar="N", help="processes (2)")
    analyse.set_defaults(run=_analyse)

    demo = commands.add_parser("demo", help="train, shift, adapt and look, in a few minutes")
    demo.add_argument(
        "--out",
        type=new_folder,
        default="runs/multitask-demo",
        metavar="DIR",
        help="folder (runs/multitask-demo)",
    )
    demo.add_argument("--seed", type=whole(0), default=0, metavar="N", help="(0)")
    demo.add_argument("--jobs", type=whole(), default=2, metavar="N", help="processes that render (2)")
    demo.set_defaults(run=_demo)


def _list(arguments: argparse.Namespace) -> int:
    from testtime.experiments.multitask.listing import LISTED, read_constants

    print("presets")
    for name, preset in read_constants("experiments")["presets"].items():
        network, source, recipe = preset["network"], preset["source"], preset["recipe"]
        images, (height, width) = source["houses"] * source["frames"], source["size"]
        print(
            f"  {name:18} ResNet-{network['depth']}, width {network['width']}; {images:,} images of {height}x{width}; "
            f"{recipe['iterations']:,} steps of {recipe['batch']}"
        )
    print("studies and analyses")
    for one in LISTED:
        print(
            f"  {one.name.removeprefix(PREFIX):18} {one.title}{f' ({one.source} of the paper)' * bool(one.source)}"
        )
    return 0


def _train(arguments: argparse.Namespace) -> int:
    from testtime.experiments.multitask.houses import TASKS
    from testtime.multitask.branches import build
    from testtime.multitask.training import Recipe, started_precision, train
    from testtime.processor import resolve_precision

    preset = _preset(arguments.preset)
    _need_renderer()
    if arguments.data is not None and not Path(arguments.data).is_dir():
        raise ValueError(f"--data {arguments.data}: no such folder; testtime scenes make makes one")
    changes: dict[str, Any] = {
        "precision": resolve_precision(
            arguments.precision, arguments.device, started_precision(arguments.out), print_progress
        )
    }
    if arguments.iterations is not None:
        changes["iterations"] = arguments.iterations
    recipe = Recipe(**{**preset["recipe"], **changes})
    fabric = _fabric(arguments, recipe.precision) if arguments.devices is not None else None
    if fabric is None or fabric.global_rank == 0:
        data = _source(arguments, preset)
    if fabric is not None:
        fabric.barrier()
        data = _source(arguments, preset)
    branch = (
        {"branch": "synchronizer", "arguments": preset["branch"]}
        if arguments.model == "s4t"
        else {"branch": None}
    )
    model = build(TASKS, {**preset["network"], **branch}, arguments.seed)
    train(model, data, recipe, arguments.out, arguments.seed, arguments.device, fabric)
    if fabric is None or fabric.global_rank == 0:
        print(Path(arguments.out) / "model.safetensors")
    return 0


def _source(arguments: argparse.Namespace, preset: Mapping[str, Any]) -> DenseSet:
    """The labelled source: spaces that lie there, or the preset's own, rendered beside the output."""
    from testtime.experiments.multitask.houses import Houses
    from testtime.scenes.groups import read_grouped

    if arguments.data is None:
        return Houses(**preset["source"]).read(Path(arguments.out).parent, arguments.jobs)
    return read_grouped(arguments.data)


def _fabric(arguments: argparse.Namespace, precision: str) -> Any:
    try:
        from lightning_fabric import Fabric
    except ImportError as error:
        raise missing_extra("lightning-fabric", "train") from error
    fabric = Fabric(
        accelerator=arguments.device.partition(":")[0],
        devices=arguments.devices,
        strategy="ddp" if arguments.devices > 1 else "auto",
        precision="bf16-mixed" if precision == "bfloat16" else "32-true",
    )
    fabric.launch()
    return fabric


def _bench(arguments: argparse.Namespace) -> int:
    if arguments.study is None:
        return _list(arguments)
    return _run(arguments, arguments.study, arguments.preset, arguments.seeds, arguments.rows)


def _analyse(arguments: argparse.Namespace) -> int:
    name = {"masks": "masked-loss"}.get(arguments.analysis, arguments.analysis)
    return _run(arguments, name, arguments.preset, [arguments.seed] if arguments.seed is not None else None)


def _demo(arguments: argparse.Namespace) -> int:
    print(
        "Four tasks, learned in houses of one style, met in another style and in dim light: what does adapting change?"
    )
    return _run(arguments, "demo", "demo", [arguments.seed or 0])


def _run(
    arguments: argparse.Namespace,
    name: str,
    preset: str,
    seeds: Sequence[int] | None,
    rows: Sequence[str] | None = None,
) -> int:
    """Run an experiment of the family, print its tables and write its page."""
    from testtime.cli.experiments import run
    from testtime.experiments import Here, Processes, find_experiment
    from testtime.experiments.multitask.listing import LISTED

    names = [one.name.removeprefix(PREFIX) for one in LISTED]
    if name not in names:
        raise unknown_name("study", name, names)
    _preset(preset)
    settings = {} if preset == find_experiment(PREFIX + name).settings["preset"] else {"preset": preset}
    changes: dict[str, Any] = {"precision": "float32", "settings": settings}
    changes |= {
        key: tuple(value) for key, value in {"seeds": seeds, "rows": rows}.items() if value is not None
    }
    _need_renderer()
    folder = arguments.out if name == "demo" else str(Path(arguments.out) / name)
    backend = Processes(arguments.jobs) if arguments.jobs > 1 else Here()
    return run(PREFIX + name, changes, folder, backend=backend, command=["testtime", *arguments.argv])


def _report(arguments: argparse.Namespace) -> int:
    from testtime.experiments import find_experiment, read_run
    from testtime.report import write_page

    run = read_run(arguments.run_folder)
    experiment = find_experiment(run.about["experiment"])
    for table in experiment.tables(run):
        print(table.text(), end="\n\n")
    print(write_page(arguments.out or run.folder / "report.html", experiment.page(run)))
    return 0


def _preset(name: str) -> Mapping[str, Any]:
    from testtime.experiments.multitask.planning import PRESETS

    if name not in PRESETS:
        raise unknown_name("preset", name, PRESETS)
    return PRESETS[name]


def _need_renderer() -> None:
    from testtime.scenes.tracer import warn_if_slow

    need_packages(PIL="images", cv2="scenes")
    warn_if_slow(print_progress)
