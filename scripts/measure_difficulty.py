"""Measure how accurate a source model is on the blends that a wandering protocol meets, and write them to the package.

    python scripts/measure_difficulty.py field-wandering --data .data --seeds 0 1 2

It goes on where it stopped: every accuracy is written as soon as it is known.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import testtime.bench
from testtime.bench import sets
from testtime.bench.cell import make_stream
from testtime.bench.protocols import protocol


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("protocol", help="of order wandering")
    parser.add_argument("--data", default=".data", help="folder of data sets and weights (.data)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the walks (0)")
    given = parser.parse_args()
    wanted = protocol(given.protocol)
    file = Path(testtime.bench.__file__).parent / "difficulties" / f"{wanted.model}.json"
    file.parent.mkdir(exist_ok=True)
    kept = sets.difficulty(wanted.closed, wanted.model, given.data)
    kept.file = file  # make_stream asks the same object: it is cached
    for seed in given.seeds:
        stream = make_stream(wanted, wanted.columns[0], seed, given.data, wanted.limit)
        print(
            f"seed {seed}: {len(stream.domains)} blends in {len(stream)} batches; {len(kept.known)} accuracies in {file}"
        )


if __name__ == "__main__":
    main()
