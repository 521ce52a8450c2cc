"""``testtime multitask``: list, train, bench, report, analyse, demo."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

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
from testtime.errors import did_you_mean, missing_extra, need_packages, unknown_name
from testtime.files import read_json

__all__ = ["add"]

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
    analyse.add_argument("--seed", type=whole(0), default=0, metavar="N", help="of the networks (0)")
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
    from testtime.multitask.presets import PRESETS
    from testtime.multitask.studies import STUDIES

    print("presets")
    for preset in PRESETS.values():
        source = preset.domain("source")
        print(
            f"  {preset.name:18} ResNet-{preset.depth}, width {preset.width}; {source.houses * source.frames:,} images of "
            f"{source.size[0]}x{source.size[1]}; {preset.recipe.iterations:,} steps of {preset.recipe.batch}"
        )
    print("studies")
    for study in STUDIES.values():
        cells = len(study.rows) * len(study.seeds) * len(study.domains)
        where = f" ({study.published} of the paper)" if study.published else ""
        print(f"  {study.name:18} {study.title}{where}; {cells} cells")
        print(f"  {'':18} rows: {', '.join(row.name for row in study.rows)}")
    return 0


def _train(arguments: argparse.Namespace) -> int:
    import torch

    from testtime.multitask.training import started_precision, train
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
    recipe = replace(preset.recipe, **changes)
    fabric = _fabric(arguments, recipe.precision) if arguments.devices is not None else None
    if fabric is None or fabric.global_rank == 0:
        data = _source(arguments, preset)
    if fabric is not None:
        fabric.barrier()
        data = _source(arguments, preset)
    torch.manual_seed(arguments.seed)
    net = preset.network()
    model = preset.synchronized(net) if arguments.model == "s4t" else net
    train(model, data, recipe, arguments.out, arguments.seed, arguments.device, fabric)
    if fabric is None or fabric.global_rank == 0:
        print(Path(arguments.out) / "model.safetensors")
    return 0


def _source(arguments: argparse.Namespace, preset: Any) -> Any:
    """The labelled source: spaces that lie there, or the preset's own, rendered beside the output."""
    from testtime.data.shared_classes import relabelled
    from testtime.multitask.presets import GROUPS
    from testtime.scenes.disk import read_scenes

    if arguments.data is None:
        folder = Path(arguments.out).parent
        preset.domain("source").prepare(folder, arguments.jobs)
        return preset.domain("source").read(folder)
    classes = {name: group for group, members in GROUPS.items() for name in members}
    return relabelled(read_scenes(arguments.data), classes, tuple(GROUPS))


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
    from testtime.multitask.pictures import draw_study
    from testtime.multitask.report import write_report
    from testtime.multitask.results import read_results, text_table, write_command
    from testtime.multitask.studies import STUDIES
    from testtime.multitask.study import run_study

    if arguments.study is None:
        return _list(arguments)
    if arguments.study not in STUDIES:
        raise unknown_name("study", arguments.study, STUDIES)
    study, preset = STUDIES[arguments.study], _preset(arguments.preset)
    rows = None
    if arguments.rows is not None:
        names = {row.name.lower(): row.name for row in study.rows}
        unknown = [row for row in arguments.rows if row.lower() not in names]
        if unknown:
            raise ValueError(
                f"{study.name} has no row {', '.join(unknown)}{did_you_mean(unknown[0], names.values())}; its rows are "
                f"{', '.join(names.values())}"
            )
        rows = [names[row.lower()] for row in arguments.rows]
    _need_renderer()
    folder = Path(arguments.out) / study.name
    _same_preset(folder, preset.name)
    failures = run_study(study, preset, folder, arguments.jobs, arguments.seeds, rows, print_progress)
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    write_command(folder, arguments.argv)
    print_progress("pictures")
    draw_study(study, preset, folder)
    page = write_report(folder)
    print(text_table(read_results(folder)))
    print(page)
    return 1 if failures else 0


def _report(arguments: argparse.Namespace) -> int:
    from testtime.multitask.report import write_report
    from testtime.multitask.results import read_results, text_table

    page = write_report(arguments.run_folder, arguments.out)
    print(text_table(read_results(arguments.run_folder)))
    print(page)
    return 0


def _analyse(arguments: argparse.Namespace) -> int:
    from testtime.multitask.analyse import analyse

    preset = _preset(arguments.preset)
    _need_renderer()
    where = Path(arguments.out), arguments.seed, arguments.jobs
    print(analyse(arguments.analysis, preset, *where, argv=arguments.argv, say=print_progress))
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    from testtime.multitask.demo import run_demo
    from testtime.multitask.results import read_results, text_table, write_command

    _need_renderer()
    print(
        "Four tasks, learned in houses of one style, met in another style and in dim light: what does adapting change?"
    )
    write_command(arguments.out, arguments.argv)
    page = run_demo(arguments.out, seed=arguments.seed, jobs=arguments.jobs, say=print_progress)
    print(text_table(read_results(arguments.out)))
    print(f"The report, with pictures of every task: {page}")
    return 0


def _same_preset(folder: Path, preset: str) -> None:
    """Cells of two presets do not belong into one table."""
    from testtime.multitask.study import AGAIN, CELL

    path = next(folder.glob("cells/*.json"), None)
    if path is not None and (there := read_json(path, AGAIN, CELL, finite=False)["preset"]) != preset:
        raise ValueError(
            f"{folder} holds results of the preset {there!r}; choose another --out for {preset!r}"
        )


def _preset(name: str) -> Any:
    from testtime.multitask.presets import PRESETS

    if name not in PRESETS:
        raise unknown_name("preset", name, PRESETS)
    return PRESETS[name]


def _need_renderer() -> None:
    from testtime.scenes.tracer import warn_if_slow

    need_packages(PIL="images", cv2="scenes")
    warn_if_slow(print_progress)
