"""How good is the choice without labels? Runs of testtime run no-labels on streams that had labels, judged by them.

    python scripts/judge_choices.py runs/choosing/*

For each stream: what is chosen among all candidates, and how far below the best it is. Then the same among subsets of six that
hold the source model and five drawn at random, 200 for each stream, beside simpler rules: the source model always, the most
confident, the one whose answers agree most with the source model's without being it, one at random. A collapse is an accuracy
of less than three quarters of the source model's. Last, how far the estimates are from the truth, in points, mean over
candidates and streams.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from testtime.experiments import read_run
from testtime.experiments.online.no_labels import read_candidates, true_accuracy
from testtime.selection import Candidate, Diagnostics, judge, recommend

SUBSETS, SIZE, COLLAPSE, SOURCE = 200, 6, 0.75, "Source"


def rules(
    seen: Mapping[str, list[Diagnostics]],
    looks: NDArray[np.int64],
    of: Mapping[str, Candidate],
    rng: np.random.Generator,
) -> dict[str, Callable[[list[str]], str]]:
    """By name, from the names of some candidates to one of them."""

    def taken(some: list[str], by: NDArray[np.int64]) -> str:
        return recommend({name: seen[name] for name in some}, by).name

    return {
        "testtime recommend": lambda some: taken(some, looks),
        "consistency alone": lambda some: taken(some, np.zeros_like(looks)),
        "AETTA alone": lambda some: max(some, key=lambda name: of[name].aetta),
        "most confident": lambda some: max(some, key=lambda name: of[name].confidence),
        "nearest to Source": lambda some: max(set(some) - {SOURCE}, key=lambda name: of[name].agreement),
        "Source": lambda some: SOURCE,
        "at random": lambda some: str(rng.choice(some)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", help="folders of testtime run no-labels")
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    found: dict[str, list[tuple[float, bool]]] = {}
    off: dict[str, list[float]] = {"testtime recommend": [], "AETTA": []}
    print(f"{'stream':28}{'chosen':18}{'':>6}  {'best':18}{'':>6}{'Source':>8}")
    for folder in given.runs:
        run = read_run(folder)
        (seen, looks), truth = read_candidates(run), true_accuracy(run)
        chosen, best = recommend(seen, looks).name, max(truth, key=lambda name: truth[name])
        print(
            f"{Path(folder).name:28}{chosen:18}{truth[chosen]:6.1f}  {best:18}{truth[best]:6.1f}{truth[SOURCE]:8.1f}"
        )
        of = {c.name: c for c in judge(seen, looks)}
        choose = rules(seen, looks, of, rng)
        for c in of.values():
            off["testtime recommend"].append(abs(c.accuracy - truth[c.name]))
            off["AETTA"].append(abs(c.aetta - truth[c.name]))
        others = [name for name in seen if name != SOURCE]
        for _ in range(SUBSETS):
            some = [SOURCE, *rng.choice(others, SIZE - 1, replace=False).tolist()]
            most = max(truth[name] for name in some)
            for name, rule in choose.items():
                one = rule(some)
                found.setdefault(name, []).append((most - truth[one], truth[one] < COLLAPSE * truth[SOURCE]))
    print(f"\n{'of six candidates':22}{'within 1 point':>16}{'points lost':>13}{'collapses':>11}")
    for name, results in found.items():
        lost = np.array([points for points, _ in results])
        collapsed = 100 * np.mean([bad for _, bad in results])
        print(f"{name:22}{100 * np.mean(lost <= 1):15.0f}%{lost.mean():13.1f}{collapsed:10.1f}%")
    print(
        "\npoints off the truth: "
        + ", ".join(f"{name} {np.nanmean(points):.1f}" for name, points in off.items())
    )


if __name__ == "__main__":
    main()
