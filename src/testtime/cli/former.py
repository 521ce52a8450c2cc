"""Spellings of commands from the version before: each is translated, and says how it is spelled now."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence

__all__ = ["translated"]

FORMER = {
    "bench": ("run {}", "list online", ""),
    "demo": ("demo", "", ""),
    "multitask list": ("list multitask", "", ""),
    "multitask bench": ("run multitask-{}", "list multitask", "runs/multitask/{}"),
    "multitask analyse": ("run multitask-{}", "list multitask", "runs/multitask/analyse-{}"),
    "multitask report": ("report {}", "report", ""),
    "multitask demo": ("run multitask-demo", "", ""),
    "space list": ("list space", "", ""),
    "space bench": ("run space-{}", "list space", "runs/space/{preset}/{}"),
    "space report": ("report {}", "report", ""),
    "space demo": ("run space-demo", "", ""),
}
"""By former command: the present one of a name, that of no name, and the folder of a run."""
SETTINGS = {
    **{name: f"{name.replace('-', '_')}={{}}" for name in ("order", "severity", "batch-size", "images")},
    **{"source": "source={}", "open-sets": "open_sets={names}", "encoders": "encoders={names}"},
    **{"skip-damaged": "skip_damaged=true", "no-mirror": "mirror=false"},
}
"""By former option: the setting of the family."""
FLAGS = ("list", "no-labels", "skip-damaged", "no-mirror")
LISTS = ("rows", "encoders", "seeds")  # options with several words


def translated(argv: Sequence[str]) -> list[str]:
    """Return a command line with a former spelling replaced by the present one, which is printed on standard error.

    >>> translated(["list"])
    ['list']
    """
    for name, (present, bare, folder) in FORMER.items():
        words = name.split()
        if [*argv[: len(words)]] == words:
            now = _now(_read(argv[len(words) :]), present, bare, folder)
            if now != [*argv]:
                message = f"testtime {name} is now: {shlex.join(['testtime', *now])}"
                late = "the old spelling goes with the next version"
                print(f"DeprecationWarning: {message}; {late}", file=sys.stderr)
            return now
    return [*argv]


def _read(words: Sequence[str]) -> dict[str, list[str]]:
    """The words after each option; those of no option under the empty name."""
    found: dict[str, list[str]] = {"": []}
    key = ""
    for word in words:
        if word.startswith("--"):
            key, equals, value = word[2:].partition("=")
            found[key] = [value] if equals else []
        else:
            full = key in FLAGS or (key not in LISTS and found[key])
            found["" if full else key].append(word)
    return found


def _now(given: dict[str, list[str]], present: str, bare: str, folder: str) -> list[str]:
    """The present command line."""
    names, settings = given.pop(""), []
    if {"-h", "help"} & {*names, *given}:
        return [present.split()[0], "--help"]
    if given.pop("no-labels", None) is not None:
        given.setdefault("out", [f"runs/{'-'.join([*names, 'no-labels'])}"])
        settings, names = [f"stream={name}" for name in names], ["no-labels"]
    if "{}" in present and (not names or "list" in given):
        return bare.split()
    preset = "".join(given.pop("preset", ["tiny"]))
    if folder:
        root = "/".join(folder.split("/")[:2])
        place = folder.replace(root, "".join(given.get("out", [root])))
        given["out"] = [place.format(*names[:1], preset=preset)]
    if "analyse-" in folder and names[0] == "masks":
        names[0] = "masked-loss"
    given |= {now: given.pop(was) for was, now in (("cache", "store"), ("seed", "seeds")) if was in given}
    if "seeds" in given:
        given["seeds"] = [",".join(given["seeds"])]
    methods = _split(given.pop("methods", []))
    given |= {"rows": rows} if (rows := [m for m in methods if ":" not in m]) else {}
    given |= {"methods": [",".join(own)]} if (own := [m for m in methods if ":" in m]) else {}
    settings += [f"preset={preset}"] * (preset != "tiny")
    for name, form in SETTINGS.items():
        if (words := given.pop(name, None)) is not None:
            settings.append(form.format("".join(words), names=json.dumps(_split(words))))
    options = [word for name, words in given.items() for word in (f"--{name}", *words)]
    return [*present.format(*names[:1]).split(), *names[1:], *options, *["--set"] * bool(settings), *settings]


def _split(words: Sequence[str]) -> list[str]:
    return [word.strip() for word in ",".join(words).split(",") if word.strip()]
