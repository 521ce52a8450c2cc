"""What a run showed and what its stream was, in sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence

from testtime.experiments.online.results import Results
from testtime.report import Text, first_of, join, listed, mean, phrase, show, strong, sup

__all__ = ["JOINED", "lead"]

ARRIVAL = {
    "continual": "{corruptions} of severity {severity}{times}, one after the other",
    "gradual": "{corruptions}{times}, one after the other, whose severity rises from 1 to 5 and falls again",
    "mixed": "{corruptions} of severity {severity}{times}, shuffled into one",
    "correlated": "{corruptions} of severity {severity}{times}, one after the other, the images of a class in succession",
    "mixed-correlated": "{corruptions} of severity {severity}{times}, shuffled into one, the images of a class in succession",
    "label-shift": "{corruptions} of severity {severity}{times}, one after the other, in each of which every class "
    "dominates for a time",
    "wandering": "blends of two of {corruptions} whose severities change all the time, such that the source model is "
    "right in about {target} %",
}
JOINED = ("mixed", "mixed-correlated", "wandering")  # orders without one domain after the other


def lead(results: Results) -> Text:
    """Return what a run found, what arrived, and in what it differs from the experiment."""
    parts: list[Text] = [] if results.run.missing else [_winner(results)]
    parts.append(f"The stream: {_stream(results)}.")
    if results.changes:
        parts.append(
            f"Changed from the experiment {results.run.about['experiment']}: {'; '.join(results.changes)}."
        )
    parts += [f"{used} stands in for {prefers}." for used, prefers in results.run.stand_ins.values()]
    if left := results.about.get("left_out"):
        parts.append(
            f"Left out, for want of images of the source: {listed(left)}; the setting source names their folder."
        )
    return join(parts)


def _winner(results: Results) -> Text:
    measure = "H-score" if results.opened else "accuracy"
    values = {row: results.mean(row, results.headline) for row in results.rows}
    best = first_of(values)
    others = {row: value for row, value in values.items() if row not in best}
    by_column = [
        {row: mean(results.values(row, column, results.headline)) for row in results.rows}
        for column in results.columns
    ]
    by_column = [found for found in by_column if not all(map(math.isnan, found.values()))]
    several = len(by_column) > 1
    figure = f"{show(values[best[0]])} %{' on average' if several else ''}"
    if not others:
        tie = ", no difference between them" if len(best) > 1 else ""
        return phrase("{}: {} {}{}.", _names(results, best), measure, figure, tie)
    second = first_of(others)
    after = phrase(
        "; next {} {} with {} %",
        "are" if len(second) > 1 else "is",
        _names(results, second),
        show(others[second[0]]),
    )
    if "Source" in others and "Source" not in second:
        after += f". The model without adaptation has {show(others['Source'])} %"
    if len(best) > 1:
        return phrase("{} share the highest {}, {}{}.", _names(results, best), measure, figure, after)
    firsts = [first_of(found) for found in by_column]
    alone, shared = (
        sum(best[0] in first and (len(first) > 1) == tie for first in firsts) for tie in (False, True)
    )
    where = f", and is first in {alone} of {len(by_column)} settings" if several else ""
    where += f" and one of the first in {shared}" if several and shared else ""
    return phrase("{} has the highest {}, {}{}{}.", _names(results, best), measure, figure, where, after)


def _names(results: Results, rows: Sequence[str]) -> Text:
    return listed([join([strong(row), sup("†")], "") if results.fewer(row) else strong(row) for row in rows])


def _stream(results: Results) -> str:
    """What arrived, from what the results say."""
    stream = results.about["stream"]
    kinds, rounds = len(stream["corruptions"]), stream["rounds"]
    words = {
        "corruptions": f"{kinds} corruption{'s' * (kinds != 1)}",
        "severity": stream["severity"],
        "times": f", {rounds} times over" if rounds > 1 else "",
        "target": show(100 * (stream["target"] or math.nan), 0),
    }
    parts = [ARRIVAL[stream["order"]].format(**words)]
    if stream["returns"]:
        parts[0] += ", and the clean images at last"
    if stream["speed"]:
        parts.append("the source model answers the batches that a method is too slow for")
    counts: dict[str, list[str]] = {}
    for row in results.rows:
        counts.setdefault(f"{results.per_domain(row):,.0f}", []).append(row)
    most = max(counts, key=lambda count: len(counts[count]))
    fewer = [f"{count} for {listed(rows)}" for count, rows in counts.items() if count != most]
    whole = "in all" if stream["order"] in JOINED else "in each"
    parts.append(f"{most} known images {whole}{f' ({listed(fewer)})' if fewer else ''}")
    shown = [column for column in results.about["columns"] if column["name"] in results.columns]
    opened = [column for column in shown if column["open_set"] is not None]
    if opened:
        ratios = [f"{ratio:g}" for ratio in sorted({column["ratio"] for column in opened})]
        where = f" in {listed([c['name'] for c in opened])}" if len(opened) < len(shown) else ""
        parts.append(f"{listed(ratios)} unknown for each known one{where}")
    sizes = {column["batch_size"] for column in shown}
    parts.append(f"batches of {min(sizes)}" + (f" to {max(sizes)}" if len(sizes) > 1 else ""))
    parts.append("a reset before each domain" if stream["reset"] else "never a reset")
    seeds = len(results.run.request.seeds or ())
    parts.append(f"{seeds} seed{'s' * (seeds != 1)}")
    return "; ".join(parts)
