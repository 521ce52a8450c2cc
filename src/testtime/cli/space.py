"""``testtime space``: list, ingest, bench, report, demo."""

from __future__ import annotations

import argparse
import platform
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from testtime.cli.options import Once, above, device, existing, new_folder, print_progress, share, whole
from testtime.errors import need_packages, unknown_name
from testtime.files import write_json

__all__ = ["add"]

PROGRESS = "it says how far it is, and the same command goes on where it was left"


def add(parser: argparse.ArgumentParser) -> None:
    """Give a parser the commands of this family; what they need is imported when they run."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    commands.add_parser("list", help="list the presets and the analyses").set_defaults(run=_list)

    ingest = commands.add_parser(
        "ingest", help=f"make tokens, shards and a contact sheet of a place; {PROGRESS}"
    )
    ingest.add_argument(
        "source", metavar="PATH", help="scenes, a public layout, a folder of pictures, or a video"
    )
    ingest.add_argument(
        "--out",
        type=new_folder,
        required=True,
        metavar="DIR",
        help="folder of tokenizers, shards, report and sheet",
    )
    ingest.add_argument("--layout", metavar="NAME", help="of the source, where it is not found out")
    ingest.add_argument("--spaces", nargs="+", action=Once, metavar="NAME", help="some of the source's")
    ingest.add_argument(
        "--sensors",
        nargs="+",
        action=Once,
        choices=("depth", "normals", "edge"),
        metavar="NAME",
        help="of depth, normals, edge; those that are there",
    )
    ingest.add_argument("--size", type=whole(), default=64, metavar="N", help="pixels of a crop's side (64)")
    ingest.add_argument("--patch", type=whole(), default=8, metavar="N", help="pixels of a token's side (8)")
    ingest.add_argument("--crops", type=whole(), default=4, metavar="N", help="of each frame (4)")
    ingest.add_argument("--limit", type=whole(), metavar="N", help="frames at most, evenly spread")
    ingest.add_argument("--tokenizer", choices=("fsq", "vq"), default="fsq", help="(fsq)")
    ingest.add_argument(
        "--levels", type=whole(2), nargs="+", default=[8, 5, 5, 5], metavar="N", help="of fsq (8 5 5 5)"
    )
    ingest.add_argument("--codebook", type=whole(), default=512, metavar="N", help="of vq (512)")
    ingest.add_argument(
        "--steps", type=whole(), default=400, metavar="N", help="of each tokenizer's training (400)"
    )
    ingest.add_argument(
        "--depth", type=existing, metavar="DIR", help="of a walk-through: its depth, if it lies elsewhere"
    )
    ingest.add_argument(
        "--intrinsics", type=existing, metavar="FILE", help="of a walk-through: fx, fy, cx, cy as JSON"
    )
    ingest.add_argument(
        "--fov", type=above, metavar="DEGREES", help="of a walk-through: horizontal, instead of intrinsics"
    )
    ingest.add_argument("--fps", type=above, default=2.0, help="frames taken from a second of a video (2)")
    ingest.add_argument(
        "--every", type=whole(), metavar="N", help="every N-th frame of a video, instead of --fps"
    )
    ingest.add_argument(
        "--blur", type=share, default=0.5, help="leave out frames below this share of sharpness (0.5)"
    )
    ingest.add_argument(
        "--longest", type=whole(), default=512, metavar="N", help="pixels of a frame's longer side (512)"
    )
    ingest.add_argument("--rows", type=whole(), default=4, metavar="N", help="frames on the sheet (4)")
    ingest.add_argument("--seed", type=whole(0), default=0, metavar="N", help="(0)")
    ingest.add_argument("--device", type=device, default="cpu", help="cpu or cuda (cpu)")
    ingest.set_defaults(run=_ingest)

    bench = commands.add_parser("bench", help=f"run an analysis and make its page; {PROGRESS}")
    bench.add_argument("analysis", nargs="?", help="a name; testtime space list shows them")
    bench.add_argument("--preset", default="tiny", help="size of the experiment (tiny)")
    bench.add_argument(
        "--out",
        type=new_folder,
        default="runs/space",
        metavar="DIR",
        help="folder of all analyses (runs/space)",
    )
    bench.add_argument("--jobs", type=whole(), default=2, metavar="N", help="processes that render (2)")
    bench.add_argument(
        "--seeds", type=whole(0), nargs="+", action=Once, metavar="N", help="instead of the analysis'"
    )
    bench.add_argument(
        "--encoders",
        nargs="+",
        action=Once,
        default=[],
        metavar="NAME",
        help="more rows of mIoU: encoders of others, as huggingface:NAME or timm:NAME",
    )
    bench.add_argument(
        "--device", type=device, default="cpu", help="of pre-training and transfer, cpu or cuda (cpu)"
    )
    bench.set_defaults(run=_bench)

    report = commands.add_parser("report", help="make the page of an analysis")
    report.add_argument("run_folder", metavar="RUN", help="folder of its results")
    report.set_defaults(run=_report)

    demo = commands.add_parser(
        "demo", help="one house end to end: render, tokenise, pre-train, transfer, judge, draw"
    )
    demo.add_argument(
        "--out", type=new_folder, default="runs/space-demo", metavar="DIR", help="folder (runs/space-demo)"
    )
    demo.add_argument("--seed", type=whole(0), default=0, metavar="N", help="(0)")
    demo.add_argument("--jobs", type=whole(), default=2, metavar="N", help="processes that render (2)")
    demo.set_defaults(run=_demo)


def _list(arguments: argparse.Namespace) -> int:
    from testtime.space.analyses import ANALYSES
    from testtime.space.presets import PRESETS

    print("presets")
    for preset in PRESETS.values():
        print(
            f"  {preset.name:12} {preset.image[0]}x{preset.image[1]}, {preset.size.encoder} + {preset.size.decoder} blocks of "
            f"width {preset.size.dim}; {preset.frames:,} frames, {preset.recipe.steps:,} steps of {preset.recipe.batch}"
        )
    print("analyses")
    for analysis in ANALYSES.values():
        points = {replace(e.point, name="") for e in analysis.entries(PRESETS["tiny"])}
        where = f" ({analysis.published} of the paper)" if analysis.published else ""
        print(f"  {analysis.name:12} {analysis.title}{where}; {len(points)} points")
    return 0


def _ingest(arguments: argparse.Namespace) -> int:
    from testtime.space.ingest import TokenizerRecipe, ingest, read_space, summary

    a, out = arguments, Path(arguments.out)
    need_packages(PIL="images", cv2="scenes", vector_quantize_pytorch="space")
    if a.size % a.patch:
        raise ValueError(f"--size {a.size} is not a multiple of --patch {a.patch}")
    data = read_space(
        a.source,
        a.layout,
        a.spaces,
        out / "frames",
        a.depth,
        a.intrinsics,
        a.fov,
        a.fps,
        a.every,
        a.blur,
        a.longest,
    )
    recipe = TokenizerRecipe(a.tokenizer, tuple(a.levels), a.codebook, steps=a.steps)
    found = ingest(
        data,
        out,
        a.size,
        a.patch,
        a.crops,
        recipe=recipe,
        sensors=a.sensors,
        seed=a.seed,
        rows=a.rows,
        limit=a.limit,
        device=a.device,
        say=print_progress,
    )
    print(summary(found))
    print(out / "sheet.png")
    return 0


def _bench(arguments: argparse.Namespace) -> int:
    from testtime.space.analyses import ANALYSES, Entry
    from testtime.space.points import Lab, Point
    from testtime.space.presets import PRESETS
    from testtime.space.report import text_table, write_report

    if arguments.analysis is None:
        return _list(arguments)
    for name, there, kind in (
        (arguments.analysis, ANALYSES, "analysis"),
        (arguments.preset, PRESETS, "preset"),
    ):
        if name not in there:
            raise unknown_name(kind, name, there)
    _need_models()
    analysis, preset = ANALYSES[arguments.analysis], PRESETS[arguments.preset]
    out = Path(arguments.out) / preset.name
    folder = out / analysis.name
    folder.mkdir(parents=True, exist_ok=True)
    entries = [
        *analysis.entries(preset),
        *(Entry(name, "mIoU", Point(name, "named")) for name in arguments.encoders),
    ]
    results: list[dict[str, Any]] = []
    seeds = arguments.seeds or analysis.seeds
    planned = len(seeds) * len(entries)
    for seed in seeds:
        lab = Lab(preset, out, seed, arguments.jobs, arguments.device)
        for number, entry in enumerate(entries, 1):
            result = lab.result(entry.point, entry.measure)
            value = result[entry.measure]
            results.append({**result, "row": entry.row, "column": entry.column, "value": value})
            print_progress(
                f"seed {seed}, {number}/{len(entries)}: {entry.point.name}: {entry.measure} {value:.2f}"
            )
            _write(folder, analysis.name, preset.name, arguments.argv, results, planned)
    page = write_report(folder)
    print(text_table(analysis, results))
    print(page)
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from testtime.space.report import write_report

    print(write_report(arguments.run_folder))
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    from testtime.space.analyses import ANALYSES
    from testtime.space.demo import run_demo
    from testtime.space.report import text_table, write_report

    _need_models()
    print(
        "A small model learns a house from its sensors, without labels. What is that worth when labels come from elsewhere?"
    )
    folder = Path(arguments.out)
    results = run_demo(folder, seed=arguments.seed, jobs=arguments.jobs, say=print_progress)
    _write(folder, "main", "demo", arguments.argv, results, len(results))
    print(text_table(ANALYSES["main"], results))
    print(f"The report, with pictures: {write_report(folder)}")
    return 0


def _write(
    folder: Path,
    analysis: str,
    preset: str,
    argv: Sequence[str],
    results: Sequence[dict[str, Any]],
    planned: int,
) -> None:
    import torch

    from testtime import __version__

    machine = {
        "versions": f"testtime {__version__}, torch {torch.__version__}, python {platform.python_version()}",
        "machine": f"{platform.system()}, {platform.machine()}",
    }
    about = {
        "analysis": analysis,
        "preset": preset,
        "command": ["testtime", *argv],
        "machine": machine,
        "planned": planned,
        "results": list(results),
    }
    write_json(folder / "results.json", about)


def _need_models() -> None:
    from testtime.scenes.tracer import warn_if_slow

    need_packages(PIL="images", cv2="scenes", vector_quantize_pytorch="space", pycocotools="space")
    warn_if_slow(print_progress)
