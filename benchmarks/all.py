"""Make the measured part of docs/performance.md again: every benchmark, one after the other.

    python benchmarks/all.py                       # all parts; parts that are done are not run again
    python benchmarks/all.py --only steps,state    # some of them
    python benchmarks/all.py --again --only jobs   # once more
    python benchmarks/all.py --page docs/performance.md
    python benchmarks/all.py --quick               # whether every part runs, with its least work; keeps nothing

Each part is a command of this folder and leaves a file: what it printed, with the processor, the load when it began, and the
peers that are installed (torch-ttt 0.0.2, imagecorruptions 1.1.2; a comparison with one that is not says so). ``--page``
writes what there is between the two marks of a page. A part that was interrupted begins again, ``steps`` and ``length``
at the method that they had come to.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from testtime.files import read_json, write_json, write_text
from testtime.processor import machine_load, processor_name

HERE = Path(__file__).parent
LENGTH = "bn-adapt,tent,eata,sar,roid,paf-kip,t3a,lame,sotta"  # rotta and cotta take an hour more
PARTS: dict[str, tuple[str, list[str], float]] = {
    "steps": ("Steps of every method", ["steps.py", "--rounds", "3"], 25),
    "base": ("What the base adds", ["state.py", "--only", "base"], 3),
    "state": ("Resets, memory banks and torch-ttt", ["state.py", "--only", "reset,peer,banks"], 12),
    "autograd": ("Time of lean autograd", ["state.py", "--only", "autograd", "--rounds", "6"], 12),
    "memory": ("Memory of a step", ["memory.py"], 5),
    "scale": ("Classes and memory banks", ["scale.py"], 5),
    "layout": ("Layouts and torch.compile on a CPU", ["layout.py"], 8),
    "length": ("Streams of a million images", ["length.py", "--methods", LENGTH], 20),
    "corruptions": ("Corruptions and streams", ["corruptions.py"], 30),
    "pixels": ("Scenes and tokenizers", ["pixels.py"], 1),
    "jobs": ("Grids of short units", ["jobs.py", "--units", "200"], 5),
}
"""Heading, command and minutes on one idle processor of each part."""
QUICK: dict[str, list[str]] = {
    "steps": ["--methods", "tent", "--batch-size", "8", "--rounds", "1"],
    "memory": ["--methods", "TENT"],
    "scale": ["--methods", "TENT", "--classes", "10", "--banks", "64", "--rounds", "1"],
    "layout": ["--models", "digits-cnn", "--rounds", "1"],
    "length": ["--methods", "tent", "--images", "4000"],
    "corruptions": ["--kinds", "fog", "--sizes", "32", "--severities", "1", "--rounds", "1"],
    "jobs": ["--units", "4", "--jobs", "0", "1"],
}
"""Further arguments of a part for its least work; of the others it is one round."""
FILES = ("steps", "length")
"""Parts that keep files of their own."""
PEERS = ("torch-ttt", "imagecorruptions")
MARKS = ("<!-- benchmarks/all.py -->", "<!-- end of benchmarks/all.py -->")


def peers() -> dict[str, str]:
    """The version of every peer, or that it is not installed."""
    found = {}
    for name in PEERS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed, skipped"
    return found


def run(name: str, quick: Path | None) -> dict[str, Any]:
    """Run a part, quickly where there is a folder for what it then keeps, and return what it printed."""
    _, command, _ = PARTS[name]
    if quick is not None:
        command = command + QUICK.get(name, ["--rounds", "1"])
        command = command + (["--out", str(quick / name)] if name in FILES else [])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    load, start = machine_load(), time.monotonic()
    done = subprocess.run(
        [sys.executable, str(HERE / command[0]), *command[1:]],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        check=False,
    )
    return {
        "part": name, "command": "python benchmarks/" + " ".join(command), "failed": done.returncode != 0,
        "text": done.stdout.strip(), "processor": processor_name(), "processors": os.cpu_count(), "load": load,
        "seconds": round(time.monotonic() - start, 1), "torch": torch.__version__, "peers": peers(),
    }  # fmt: skip


def section(found: dict[str, Any]) -> list[str]:
    """The Markdown of a part."""
    peer = ", ".join(f"{name} {what}" for name, what in found["peers"].items())
    text = found["text"]
    body = [text] if text.startswith("|") else ["```text", text, "```"]
    return [
        f"### {PARTS[found['part']][0]}",
        "",
        f"`{found['command']}` on {found['processor']}, {found['processors']} processors with a load of {found['load']}, torch "
        f"{found['torch']}; peers: {peer}.",
        "",
        *body,
        "",
    ]


def write_page(path: Path, folder: Path) -> None:
    """Put the parts that there are between the marks of a page.

    Raises:
        ValueError: the page lacks the marks.
    """
    page = path.read_text()
    first, last = MARKS
    if first not in page or last not in page:
        raise ValueError(f"{path} has no place for the tables; expected the lines {first} and {last}")
    found = [
        read_json(folder / f"{name}.json", "a part") for name in PARTS if (folder / f"{name}.json").exists()
    ]
    text = "\n".join(line for one in found if not one["failed"] for line in section(one))
    write_text(path, re.sub(f"{first}.*{last}", lambda _: f"{first}\n\n{text}\n{last}", page, flags=re.S))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--again", action="store_true", help="run parts that are done too")
    parser.add_argument("--out", default="benchmarks/results/all", help="folder, one file a part")
    parser.add_argument(
        "--quick", action="store_true", help="the least work of each part, of which nothing is kept"
    )
    parser.add_argument("--page", help="page to write the tables to, such as docs/performance.md")
    given = parser.parse_args()
    names = given.only.split(",")
    if unknown := set(names) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; there is {', '.join(PARTS)}")
    if given.quick and given.page:
        parser.error("--quick keeps nothing that a page could show")
    with TemporaryDirectory() as temporary:
        folder = Path(temporary if given.quick else given.out)
        failed = run_all(names, folder, given.again, given.quick)
    if given.page:
        write_page(Path(given.page), folder)
    sys.exit(1 if failed else 0)


def run_all(names: list[str], folder: Path, again: bool, quick: bool) -> list[str]:
    """Run the parts of which there is no file in the folder, or all of them again, and return those that failed."""
    waiting = [name for name in names if again or not (folder / f"{name}.json").exists()]
    pace, failed = 1.0, []  # measured minutes for an expected one
    for place, name in enumerate(waiting):
        left = pace * sum(PARTS[other][2] for other in waiting[place:])
        about = "" if quick else f", about {left:.0f} minutes remaining"
        print(f"{place + 1} of {len(waiting)}: {name}{about}", flush=True)
        found = run(name, folder if quick else None)
        pace = (pace + found["seconds"] / 60 / PARTS[name][2]) / 2
        print(found["text"], flush=True)
        if found["failed"]:
            failed.append(name)
            print(f"{name} failed; the other parts go on", file=sys.stderr)
        else:
            write_json(folder / f"{name}.json", found)
    return failed


if __name__ == "__main__":
    main()
