"""How good is the choice without labels? Runs of testtime bench --no-labels on streams that had labels, judged by them.

    python scripts/judge_choices.py runs/choosing/*

For each stream: what is chosen among all candidates, and how far below the best it is. Then the same among subsets of six that
hold the source model and five drawn at random, 200 for each stream, beside simpler rules: the source model always, the most
confident, the one whose answers agree most with the source model's without being it, one at random. A collapse is an accuracy
of less than three quarters of the source model's.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from testtime.bench.shadow import judged, read_looks, read_signs
from testtime.choosing import Candidate, Signs, judge, recommend

SUBSETS, SIZE, COLLAPSE, SOURCE = 200, 6, 0.75, "Source"


def rules(
    rng: np.random.Generator, looks: NDArray[np.float32]
) -> dict[str, Callable[[Mapping[str, list[Signs]]], str]]:
    """By name, from the signs of candidates to one of them."""

    def of(key: Callable[[Candidate], float]) -> Callable[[Mapping[str, list[Signs]]], str]:
        return lambda seen: max(judge(seen), key=key).name

    return {
        "testtime recommend": lambda seen: recommend(seen, looks).name,
        "AETTA alone": of(lambda c: c.aetta),
        "consistency alone": lambda seen: recommend(seen, np.zeros_like(looks)).name,
        "most confident": of(lambda c: c.confidence),
        "nearest to Source": of(lambda c: c.agreement if c.name != SOURCE else -1),
        "Source": lambda seen: SOURCE,
        "at random": lambda seen: list(seen)[rng.integers(len(seen))],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", help="folders of testtime bench --no-labels")
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    found: dict[str, list[tuple[float, bool]]] = {name: [] for name in rules(rng, np.empty(0))}
    print(f"{'stream':28}{'chosen':18}{'':>6}  {'best':18}{'':>6}{'Source':>8}")
    for folder in given.runs:
        seen, looks, truth = read_signs(folder), read_looks(folder), judged(folder)
        chosen, best = recommend(seen, looks).name, max(truth, key=lambda name: truth[name])
        print(
            f"{Path(folder).name:28}{chosen:18}{truth[chosen]:6.1f}  {best:18}{truth[best]:6.1f}{truth[SOURCE]:8.1f}"
        )
        others = [name for name in seen if name != SOURCE]
        for _ in range(SUBSETS):
            some = [SOURCE, *rng.choice(others, SIZE - 1, replace=False)]
            part = {name: seen[name] for name in some}
            most = max(truth[name] for name in some)
            for name, rule in rules(rng, looks).items():
                one = rule(part)
                found[name].append((most - truth[one], truth[one] < COLLAPSE * truth[SOURCE]))
    print(f"\n{'of six candidates':34}{'within 1 point':>16}{'points lost':>13}{'collapses':>11}")
    for name, results in found.items():
        lost = np.array([points for points, _ in results])
        collapsed = 100 * np.mean([bad for _, bad in results])
        print(f"{name:34}{100 * np.mean(lost <= 1):15.0f}%{lost.mean():13.1f}{collapsed:10.1f}%")


if __name__ == "__main__":
    main()
