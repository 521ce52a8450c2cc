"""Measure how accurate a source model is on the blends of every two corruptions, and write it to the package.

    python scripts/measure_difficulty.py field-wandering --data .data

It goes on where it stopped: every accuracy is written as soon as it is known.
"""

from __future__ import annotations

import argparse
from itertools import combinations
from pathlib import Path

import testtime.experiments.online
from testtime.experiments.online.experiment import online
from testtime.experiments.online.stream import difficulty as measured
from testtime.progress import progress


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiment", help="experiment of order wandering")
    parser.add_argument("--data", default=".data", help="folder of data sets and weights (.data)")
    given = parser.parse_args()
    wanted = online(given.experiment).entry
    difficulty = measured(wanted["closed"], wanted["model"], {"data": given.data})
    folder = Path(testtime.experiments.online.__file__).parent / "difficulties"
    folder.mkdir(exist_ok=True)
    difficulty.file = folder / f"{wanted['closed']}-{wanted['model']}.json"
    pairs = list(combinations(wanted["corruptions"], 2))
    for first, second in progress(pairs, len(pairs), "pairs of corruptions"):
        difficulty(first, second)
    print(f"{len(difficulty.known)} accuracies in {difficulty.file}")


if __name__ == "__main__":
    main()
