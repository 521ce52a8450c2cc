"""Spellings of commands from the version before: each is translated, and says how it is spelled now."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence

from testtime.experiments.registry import FAMILIES

__all__ = ["translated"]

Given = dict[str, list[str]]  # the words after each option; those of no option under ""
FLAGS = ("list", "no-labels", "skip-damaged", "no-mirror")
MANY = ("rows", "encoders", "seeds")
SETTINGS = {
    "order": "order",
    "severity": "severity",
    "batch-size": "batch_size",
    "images": "images",
    "source": "source",
}


def translated(argv: Sequence[str]) -> list[str]:
    """Return a command line with a former spelling replaced by the present one, which is printed on standard error.

    >>> translated(["list"])
    ['list']
    """
    for name, translate in FORMER.items():
        words = name.split()
        ported = {"bench": "online", "demo": "online"}.get(words[0], words[0]) in FAMILIES
        if ported and [*argv[: len(words)]] == words:
            given = _read(argv[len(words) :])
            now = (
                [translate({"": ["NAME"]})[0], "--help"]
                if {"-h", "help"} & {*given, *given[""]}
                else translate(given)
            )
            if now != [*argv]:
                told = f"testtime {name} is now: {shlex.join(['testtime', *now])}"
                print(
                    f"DeprecationWarning: {told}; the old spelling goes with the next version",
                    file=sys.stderr,
                )
            return now
    return [*argv]


def _read(words: Sequence[str]) -> Given:
    found: Given = {"": []}
    key = ""
    for word in words:
        if word.startswith("--"):
            key, equals, value = word[2:].partition("=")
            found[key] = [value] if equals else []
        else:
            full = key in FLAGS or (key not in MANY and found[key])
            found["" if full else key].append(word)
    return found


def _spelled(command: Sequence[str], given: Given) -> list[str]:
    return [*command, *(w for key, words in given.items() if key for w in (f"--{key}", *words))]


def _set(given: Given, *settings: str) -> None:
    """Add settings; they stand last."""
    if settings:
        given["set"] = [*given.pop("set", []), *settings]


def _split(given: Given, name: str) -> list[str]:
    return [word.strip() for word in ",".join(given.pop(name, [])).split(",") if word.strip()]


def _bench(given: Given) -> list[str]:
    names, hidden = given.pop(""), given.pop("no-labels", None) is not None
    if "list" in given or not (names or hidden):
        return ["list", "online"]
    methods, sets = _split(given, "methods"), _split(given, "open-sets")
    if rows := [name for name in methods if ":" not in name]:
        given["rows"] = rows
    if own := [name for name in methods if ":" in name]:
        given["methods"] = [",".join(own)]
    if "cache" in given:
        given["store"] = given.pop("cache")
    if hidden:
        given.setdefault("out", [f"runs/{names[0]}-no-labels" if names else "runs/no-labels"])
        _set(given, *(f"stream={name}" for name in names))
        names = ["no-labels"]
    _set(given, *(f"{now}={given.pop(old)[0]}" for old, now in SETTINGS.items() if given.get(old)))
    _set(given, *([f"open_sets={sets}".replace("'", '"')] if sets else []))
    _set(given, *["skip_damaged=true"] * (given.pop("skip-damaged", None) is not None))
    _set(given, *["mirror=false"] * (given.pop("no-mirror", None) is not None))
    return _spelled(["run", *names], given)


def _family(family: str, kind: str = "") -> Callable[[Given], list[str]]:
    def translate(given: Given) -> list[str]:
        names, preset = given.pop(""), "".join(given.pop("preset", ["tiny"]))
        if not names:
            return ["list", family]
        level = f"{preset}/" if family == "space" else ""
        given["out"] = [f"{''.join(given.get('out', [f'runs/{family}']))}/{level}{kind}{names[0]}"]
        if seeds := given.pop("seeds", given.pop("seed", [])):
            given["seeds"] = [",".join(seeds)]
        _set(given, *[f"preset={preset}"] * (preset != "tiny"))
        if "encoders" in given:
            _set(given, f"encoders={given.pop('encoders')}".replace("'", '"'))
        names[0] = "masked-loss" if kind and names[0] == "masks" else names[0]
        return _spelled(["run", f"{family}-{names[0]}", *names[1:]], given)

    return translate


def _family_demo(family: str) -> Callable[[Given], list[str]]:
    def translate(given: Given) -> list[str]:
        if "seed" in given:
            given["seeds"] = given.pop("seed")
        return _spelled(["run", f"{family}-demo"], given)

    return translate


def _report(given: Given) -> list[str]:
    return _spelled(["report", *given.pop("")], given)


def _demo(given: Given) -> list[str]:
    methods, names = _split(given, "methods"), given.pop("")
    return _spelled(["demo", *names], {**given, **({"rows": methods} if methods else {})})


FORMER: dict[str, Callable[[Given], list[str]]] = {
    "bench": _bench,
    "demo": _demo,
    "multitask list": lambda given: ["list", "multitask"],
    "multitask bench": _family("multitask"),
    "multitask analyse": _family("multitask", "analyse-"),
    "multitask report": _report,
    "multitask demo": _family_demo("multitask"),
    "space list": lambda given: ["list", "space"],
    "space bench": _family("space"),
    "space report": _report,
    "space demo": _family_demo("space"),
}
