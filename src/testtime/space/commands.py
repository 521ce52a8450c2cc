"""``testtime space``: list, bench, report, demo."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["add"]

PROGRESS = "it says how far it is, and the same command goes on where it was left"


def add(parser: argparse.ArgumentParser) -> None:
    """Give a parser the commands of this family; what they need is imported when they run."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    commands.add_parser("list", help="list the presets and the analyses").set_defaults(run=_list)

    bench = commands.add_parser("bench", help=f"run an analysis and make its page; {PROGRESS}")
    bench.add_argument("analysis", nargs="?", help="a name; testtime space list shows them")
    bench.add_argument("--preset", default="tiny", help="size of the experiment (tiny)")
    bench.add_argument(
        "--out", default="runs/space", metavar="DIR", help="folder of all analyses (runs/space)"
    )
    bench.add_argument("--jobs", type=int, default=2, metavar="N", help="processes that render (2)")
    bench.add_argument("--seeds", type=int, nargs="+", metavar="N", help="instead of the analysis'")
    bench.set_defaults(run=_bench)

    report = commands.add_parser("report", help="make the page of an analysis")
    report.add_argument("run_folder", metavar="RUN", help="folder of its results")
    report.set_defaults(run=_report)

    demo = commands.add_parser(
        "demo", help="one house end to end: render, tokenise, pre-train, transfer, judge, draw"
    )
    demo.add_argument("--out", default="runs/space-demo", metavar="DIR", help="folder (runs/space-demo)")
    demo.add_argument("--seed", type=int, default=0, metavar="N", help="(0)")
    demo.add_argument("--jobs", type=int, default=2, metavar="N", help="processes that render (2)")
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
        points = {e.point for e in analysis.entries(PRESETS["tiny"])}
        print(
            f"  {analysis.name:12} {analysis.title} ({analysis.published} of the paper); {len(points)} points"
        )
    return 0


def _bench(arguments: argparse.Namespace) -> int:
    from testtime.space.analyses import ANALYSES
    from testtime.space.points import Lab
    from testtime.space.presets import PRESETS
    from testtime.space.report import text_table, write_report

    if arguments.analysis is None:
        return _list(arguments)
    for name, there, kind in (
        (arguments.analysis, ANALYSES, "analysis"),
        (arguments.preset, PRESETS, "preset"),
    ):
        if name not in there:
            raise ValueError(f"no {kind} {name!r}; there are {', '.join(there)}")
    analysis, preset = ANALYSES[arguments.analysis], PRESETS[arguments.preset]
    out = Path(arguments.out) / preset.name
    folder = out / analysis.name
    folder.mkdir(parents=True, exist_ok=True)
    entries = analysis.entries(preset)
    results: list[dict[str, Any]] = []
    for seed in arguments.seeds or analysis.seeds:
        lab = Lab(preset, out, seed, arguments.jobs)
        for number, entry in enumerate(entries, 1):
            result = lab.result(entry.point)
            results.append({**result, "row": entry.row, "column": entry.column})
            _say(f"seed {seed}, {number}/{len(entries)}: {entry.point.name}: mIoU {result['mIoU']:.2f}")
            _write(folder, analysis.name, preset.name, arguments.argv, results)
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

    print(
        "A small model learns a house from its sensors, without labels. What is that worth when labels come from elsewhere?"
    )
    folder = Path(arguments.out)
    results = run_demo(folder, seed=arguments.seed, jobs=arguments.jobs, say=_say)
    _write(folder, "main", "demo", arguments.argv, results)
    print(text_table(ANALYSES["main"], results))
    print(f"The report, with pictures: {write_report(folder)}")
    return 0


def _write(
    folder: Path, analysis: str, preset: str, argv: Sequence[str], results: Sequence[dict[str, Any]]
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
        "results": list(results),
    }
    partial = folder / "results.partial"
    partial.write_text(json.dumps(about, indent=1) + "\n")
    partial.replace(folder / "results.json")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
