"""Make the measured part of docs/performance.md again: every benchmark, one after the other.

    python benchmarks/all.py                       # all parts; parts that are done are not run again
    python benchmarks/all.py --only steps,state    # some of them
    python benchmarks/all.py --again --only jobs   # once more
    python benchmarks/all.py --page docs/performance.md

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
from typing import Any

import torch

from testtime.files import read_json, write_json, write_text
from testtime.processor import machine_load, processor_name

HERE = Path(__file__).parent
PARTS: dict[str, tuple[str, list[str], float]] = {
    "steps": ("Steps of every method", ["steps.py"], 25),
    "base": ("What the base adds", ["state.py", "--only", "base"], 3),
    "state": ("Resets, memory banks and torch-ttt", ["state.py", "--only", "reset,peer,banks"], 12),
    "autograd": ("Time of lean autograd", ["state.py", "--only", "autograd", "--rounds", "6"], 12),
    "memory": ("Memory of a step", ["memory.py"], 5),
    "scale": ("Classes and memory banks", ["scale.py"], 5),
    "layout": ("Layouts and torch.compile on a CPU", ["layout.py"], 8),
    "length": ("Streams of a million images", ["length.py"], 60),
    "corruptions": ("Corruptions and streams", ["corruptions.py"], 30),
    "jobs": ("Grids of short units", ["jobs.py", "--units", "200"], 5),
}
"""Heading, command and minutes on one idle processor of each part."""
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


def run(name: str) -> dict[str, Any]:
    """Run a part and return what it printed."""
    _, command, _ = PARTS[name]
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
    parser.add_argument("--page", help="page to write the tables to, such as docs/performance.md")
    given = parser.parse_args()
    folder, names = Path(given.out), given.only.split(",")
    if unknown := set(names) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; there is {', '.join(PARTS)}")
    waiting = [name for name in names if given.again or not (folder / f"{name}.json").exists()]
    pace = 1.0  # measured minutes for an expected one
    for place, name in enumerate(waiting):
        left = pace * sum(PARTS[other][2] for other in waiting[place:])
        print(f"{place + 1} of {len(waiting)}: {name}, about {left:.0f} minutes remaining", flush=True)
        found = run(name)
        pace = (pace + found["seconds"] / 60 / PARTS[name][2]) / 2
        print(found["text"], flush=True)
        if found["failed"]:
            print(f"{name} failed; the other parts go on", file=sys.stderr)
        else:
            write_json(folder / f"{name}.json", found)
    if given.page:
        write_page(Path(given.page), folder)


if __name__ == "__main__":
    main()
