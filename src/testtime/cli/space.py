"""``testtime space``: ingest; list, bench, report and demo are other names of ``testtime list`` and ``testtime run``."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from testtime.cli.options import Once, above, device, existing, new_folder, print_progress, share, whole
from testtime.errors import need_packages

__all__ = ["add"]

PROGRESS = "it says how far it is, and the same command goes on where it was left"


def add(parser: argparse.ArgumentParser) -> None:
    """Give a parser the commands of this family; what they need is imported when they run."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    commands.add_parser("list", help="list the presets and the experiments").set_defaults(run=_list)

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

    bench = commands.add_parser("bench", help="old name of testtime run space-NAME")
    bench.add_argument("analysis", nargs="?", help="a name; testtime list space shows them")
    bench.add_argument("--preset", default="tiny", help="size of the experiment (tiny)")
    bench.add_argument(
        "--out", type=new_folder, default="runs/space", metavar="DIR", help="folder of all runs (runs/space)"
    )
    bench.add_argument("--jobs", type=whole(), default=2, metavar="N", help="processes (2)")
    bench.add_argument(
        "--seeds", type=whole(0), nargs="+", action=Once, metavar="N", help="instead of the experiment's"
    )
    bench.add_argument(
        "--encoders",
        nargs="+",
        action=Once,
        default=[],
        metavar="NAME",
        help="more rows of mIoU: encoders of other libraries, as huggingface:NAME or timm:NAME",
    )
    bench.add_argument("--device", type=device, default="cpu", help="cpu or cuda (cpu)")
    bench.set_defaults(run=_bench)

    report = commands.add_parser("report", help="write the page of a run again")
    report.add_argument("run_folder", metavar="RUN", help="folder of the run")
    report.set_defaults(run=_report)

    demo = commands.add_parser(
        "demo", help="one house end to end: render, tokenise, pre-train, transfer, evaluate, draw"
    )
    demo.add_argument(
        "--out", type=new_folder, default="runs/space-demo", metavar="DIR", help="folder (runs/space-demo)"
    )
    demo.add_argument("--seed", type=whole(0), default=0, metavar="N", help="(0)")
    demo.add_argument("--jobs", type=whole(), default=2, metavar="N", help="processes (2)")
    demo.set_defaults(run=_demo)


def _list(arguments: argparse.Namespace) -> int:
    from testtime.cli.experiments import listing
    from testtime.experiments.space.presets import PRESETS

    print("presets")
    for name, preset in PRESETS.items():
        print(
            f"  {name:12} {preset.image[0]}x{preset.image[1]}, {preset.size.encoder} + {preset.size.decoder} blocks of "
            f"width {preset.size.dim}; {preset.frames:,} frames, {preset.recipe.steps:,} steps of {preset.recipe.batch}"
        )
    return listing("space")


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
    if arguments.analysis is None:
        return _list(arguments)
    given = {"preset": arguments.preset, "encoders": arguments.encoders}
    changes = {
        "device": arguments.device,
        "settings": {name: value for name, value in given.items() if value not in ("tiny", [])},
        **({"seeds": tuple(arguments.seeds)} if arguments.seeds else {}),
    }
    out = Path(arguments.out) / arguments.preset / arguments.analysis
    return _run(f"space-{arguments.analysis}", changes, out, arguments)


def _report(arguments: argparse.Namespace) -> int:
    from testtime.experiments import find_experiment, read_run
    from testtime.report import write_page

    run = read_run(arguments.run_folder)
    page = find_experiment(run.about["experiment"]).page(run)
    print(write_page(Path(arguments.run_folder) / "report.html", page))
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    print(
        "A small model learns a house from its sensors, without labels. What is that worth when labels come from elsewhere?"
    )
    return _run("space-demo", {"seeds": (arguments.seed,)}, Path(arguments.out), arguments)


def _run(name: str, changes: Mapping[str, Any], out: Path, arguments: argparse.Namespace) -> int:
    from testtime.cli.experiments import run
    from testtime.experiments import Here, Processes
    from testtime.scenes.tracer import warn_if_slow

    need_packages(PIL="images", cv2="scenes", vector_quantize_pytorch="space", pycocotools="space")
    warn_if_slow(print_progress)
    backend = Here() if arguments.jobs == 1 else Processes(arguments.jobs)
    return run(name, changes, str(out), None, backend, command=["testtime", *arguments.argv])
