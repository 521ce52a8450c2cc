"""Measure how accurate a source model is on the blends of every two corruptions, and write it to the package.

    python scripts/measure_difficulty.py field-wandering --data .data

It goes on where it stopped: every accuracy is written as soon as it is known.
"""

from __future__ import annotations

import argparse
from itertools import combinations
from pathlib import Path

import testtime.bench
from testtime.bench import sets
from testtime.bench.protocols import protocol
from testtime.progress import progress


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("protocol", help="of order wandering")
    parser.add_argument("--data", default=".data", help="folder of data sets and weights (.data)")
    given = parser.parse_args()
    wanted = protocol(given.protocol)
    difficulty = sets.difficulty(wanted.closed, wanted.model, given.data)
    difficulty.file = Path(testtime.bench.__file__).parent / "difficulties" / f"{wanted.model}.json"
    difficulty.file.parent.mkdir(exist_ok=True)
    pairs = list(combinations(wanted.corruptions, 2))
    for first, second in progress(pairs, len(pairs), "pairs of corruptions"):
        difficulty(first, second)
    print(f"{len(difficulty.known)} accuracies in {difficulty.file}")


if __name__ == "__main__":
    main()
