"""Write the pages of docs/methods from the facts that the classes of methods declare.

python scripts/method_pages.py            # writes docs/methods/*.md
python scripts/method_pages.py --check    # exits with 1 where a page would change

A page describes a family: methods that adapt the same thing. A new method is added to a family here; everything else is read
from its class (testtime.facts.Facts). `make docs` adds its docstring.
"""

import re
import sys
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote_plus

from generated_pages import write_or_check

from testtime.catalogue import catalogue
from testtime.methods import METHODS

ROOT = Path(__file__).parents[1] / "docs" / "methods"
WRITTEN = "<!-- Written by scripts/method_pages.py from the classes of the methods; do not edit. -->"


class Family(NamedTuple):
    """Methods that adapt the same thing.

    Args:
        title: title of the page.
        about: what is adapted, and when that helps.
        methods: names of the methods, the simplest first.
    """

    title: str
    about: str
    methods: tuple[str, ...]


FAMILIES = {
    "statistics": Family(
        "Normalisation statistics",
        "Nothing is learned. `Source` is the model as it was shipped, the base of every table; `BN-adapt` normalises "
        "with the statistics of the batch, the control of every method that does so too. Which statistics a BatchNorm "
        "layer uses is a *norm policy*, model -> model, and goes under any method: `Tent(alpha_statistics(model, "
        "0.2))`, `EATA(unmix_tns(model), 10)`. The policies are in [testtime.norm](../api/norm.md): source, batch, "
        "alpha, ema, robust, running, instance-aware, un-mixed.",
        ("source", "bn-adapt"),
    ),
    "entropy": Family(
        "Norm parameters by entropy",
        "Confident predictions are a goal that needs no labels. These methods lower the entropy of the predictions, "
        "most of them by the scale and shift of the normalisation layers alone, and differ in which samples they "
        "trust and in what keeps the weights near the source.",
        ("tent", "eta", "eata", "sar", "deyo", "shot-im", "core", "roid", "cmf", "memo"),
    ),
    "teachers": Family(
        "Pseudo-labels and teachers",
        "The model learns from predictions: its own where it is confident, or those of a teacher, which is an average "
        "over time and over views of the image.",
        ("pl", "rpl", "cotta", "petal", "rmt", "adacontrast"),
    ),
    "memory": Family(
        "Memory banks",
        "The model learns from a memory that is balanced over classes, recent and confident, instead of from the "
        "batch at hand. This is for streams in which a batch is not representative: few classes at a time, or unknown "
        "ones among them.",
        ("note", "rotta", "sotta", "stamp"),
    ),
    "open_set": Family(
        "Open-set streams",
        "The stream contains unknown classes, on which plain entropy minimisation grows confident. These methods "
        "separate known from unknown samples while they adapt. Every adapter has an open-set score, `y.score`, higher "
        "for unknown samples; the tables are in [Results](../results.md). [STAMP](memory.md#stamp) belongs here too.",
        ("ostta", "unient", "unient+", "paf-kip"),
    ),
    "prototypes": Family(
        "Prototypes and heads, without gradients",
        "The network stays as it is; the classification of its features is adjusted. One forward for each batch.",
        ("t3a", "lame", "adanpc"),
    ),
    "alignment": Family(
        "Features aligned with the source",
        "Features or predictions are held to something that the source model gives: statistics of its activations, "
        "Gaussians or prototypes of its classes, its predictions under small transformations.",
        ("actmad", "cafa", "santa", "tipi"),
    ),
    "modules": Family(
        "Parameters beside the network, and meta-learning",
        "The weights of the network stay; what learns are prompts, adapters, small networks beside it or a few "
        "coefficients. Some are trained on the source first ([testtime.source](../api/source.md)), so that a step at "
        "test time helps the task.",
        ("ecotta", "vdp", "vida", "foa", "nhl", "itta", "meta-dmoe", "atlas"),
    ),
    "training": Family(
        "Test-time training with a branch",
        "A self-supervised branch is trained with the network on the source and learns on at test time. They need the "
        "source data once, and they also take models with logits for each pixel and multi-task models.",
        ("ttt", "ttt++", "tttflow", "clust3", "nc-ttt", "ttt-mae"),
    ),
    "multi_task": Family(
        "Multi-task models",
        "All tasks of a model are adapted together. Outputs are a dictionary by task, and a model declares its tasks "
        "([testtime.multitask](../api/multitask.md)). The methods of [test-time training](training.md) and "
        "[TENT](entropy.md#tent), [TIPI](alignment.md#tipi), [ActMAD](alignment.md#actmad) and "
        "[BN-adapt](statistics.md#bn-adapt) take such models too. [Many tasks at once](../examples/many_tasks.md) "
        "shows one adapt, beside its control.",
        ("s4t",),
    ),
    "forecasting": Family(
        "Forecasters",
        "A series reveals its own past, so that the truth of an earlier forecast is known at test time. These methods take a "
        "`testtime.forecasting.Forecaster` and windows of its `length + horizon` last observations, learn from the forecast "
        "whose truth has arrived, and forecast. Output bias, scale and shift, gated calibration and norm tuning are in "
        "[testtime.forecasting](../api/forecasting.md). [Forecasting](../forecasting.md) shows what they are worth, and where "
        "they do not help.",
        ("adcsd",),
    ),
    "image_text": Family(
        "Image and text",
        "These methods take a zero-shot classifier, which is made of class names (`testtime.vision_language.ZeroShot`). "
        "Prompt tuning gives each image of a batch a prompt of its own and drops it after the answer; `ZERO` and `TDA` are the "
        "cheap controls without a gradient. All methods for classifiers take such a model too. [Image and "
        "text](../vision_language.md) shows how to use your own CLIP, and what they are worth.",
        ("zero", "tda", "tpt", "difftpt", "rlcf"),
    ),
}

NEEDS = {
    "classifier": "logits (N, C)",
    "class logits": "logits (N, C), or (N, C, H, W) for each pixel",
    "norm": "normalisation layers with scale and shift",
    "BatchNorm": "BatchNorm layers",
    "convolution": "convolutions",
    "linear head": "a last linear layer",
    "branch": "a self-supervised branch trained with the network",
    "transformer": "blocks of a vision transformer",
    "images": "images",
    "views": "images, of which views are made",
    "forecaster": "a `testtime.forecasting.Forecaster`",
    "image-text": "a `testtime.vision_language.ZeroShot`",
    "tensor": "batches that are one tensor",
    "floating-point": "floating-point inputs",
}
OUTPUTS = ("classifier", "class logits")
SPECIAL = {"classifier", "linear head", "branch", "forecaster"}  # needs that a segmenter alone does not meet
SOURCE = {
    "none": "none",
    "statistics": "statistics, by `prepare(batches)`",
    "data": "images, by `prepare(batches)`",
}
OUTPUT = {
    "before": "before the update on its batch",
    "after": "after the update on its batch",
    "teacher": "by a teacher",
}


def anchor(name: str) -> str:
    """Return the anchor of a method on its page.

    >>> anchor("ttt++"), anchor("paf-kip")
    ('ttt-plus-plus', 'paf-kip')
    """
    return name.replace("+", "-plus")


def pages() -> dict[str, str]:
    """Return the text of every page by its file name.

    Raises:
        ValueError: a method belongs to no family, or a family names a method that there is not.
    """
    methods = {method["name"]: method for method in catalogue()}
    named = [name for family in FAMILIES.values() for name in family.methods]
    if sorted(named) != sorted(methods):
        differing = ", ".join(sorted(set(named) ^ set(methods))) or "a method that is named twice"
        raise ValueError(f"expected every method in one family of scripts/method_pages.py; see {differing}")
    found = {"index.md": _index(methods)}
    for slug, family in FAMILIES.items():
        found[f"{slug}.md"] = _family(family, [methods[name] for name in family.methods])
    return found


def _index(methods: dict[str, dict[str, Any]]) -> str:
    lines = [
        WRITTEN,
        "",
        "# Methods",
        "",
        f"{len(methods)} methods, grouped by what they adapt. One paper, one file, one class; all under one contract: "
        "any of them takes any model that has what it needs, under any [norm policy](../api/norm.md) and in any "
        "[wrapper](../api/wrap.md). `testtime methods` prints these facts, `testtime methods --json` gives them to "
        "programs.",
        "",
        "- *needs*: what the model must have; a `ValueError` says what is missing.",
        "- *cost*: forwards and backwards of the whole batch in a step, at most; a backward takes about two forwards.",
        "- *source*: what `adapter.prepare(batches)` must get before the first batch.",
        "- Logits for each pixel (N, C, H, W), those of a segmenter, are taken by "
        + ", ".join(_link(m) for m in methods.values() if not SPECIAL & {*m["needs"]})
        + " ([Segmentation](../guides/segmentation.md)); the others take logits (N, C), and refuse with a message.",
        "",
        "[Choose a method](../choosing.md) begins with what you have; [The field](../field.md) and "
        "[Results](../results.md) show what they are worth on streams, beside their controls.",
    ]
    for slug, family in FAMILIES.items():
        lines += [
            "",
            f"## [{family.title}]({slug}.md)",
            "",
            *_table([methods[n] for n in family.methods], slug),
        ]
    return "\n".join(lines) + "\n"


def _link(m: dict[str, Any]) -> str:
    slug = next(slug for slug, family in FAMILIES.items() if m["name"] in family.methods)
    return f"[{m['label']}]({slug}.md#{anchor(m['name'])})"


def _table(methods: list[dict[str, Any]], slug: str = "") -> list[str]:
    lines = ["| method | what it does | needs | cost | source |", "|---|---|---|---|---|"]
    for m in methods:
        link = f"[{m['label']}]({slug and f'{slug}.md'}#{anchor(m['name'])})"
        needs = ", ".join(need for need in m["needs"] if need not in OUTPUTS) or "–"
        cost = f"{m['forwards']:g}&nbsp;+&nbsp;{m['backwards']:g}"
        source = "–" if m["source"] == "none" else m["source"]
        lines.append(f"| {link} | {_sentence(m)} | {needs} | {cost} | {source} |")
    return lines


def _family(family: Family, methods: list[dict[str, Any]]) -> str:
    lines = [WRITTEN, "", f"# {family.title}", "", family.about, "", *_table(methods)]
    for m in methods:
        given = re.sub(r"[^\w\s-]", "", m["label"]).lower()  # the anchor that a heading has by itself
        named = "" if given == anchor(m["name"]) else f" {{ #{anchor(m['name'])} }}"
        lines += ["", f"## {m['label']}{named}", "", *_facts(m), "", *_docstring(m)]
    return "\n".join(lines) + "\n"


def _facts(m: dict[str, Any]) -> list[str]:
    needs = "; ".join(NEEDS[need] for need in m["needs"]) or "nothing"
    facts = {
        "In code": f'`testtime.adapt(model, "{m["name"]}")`, or `testtime.methods.{m["class"]}`',
        "Needs": needs,
        "Cost of a batch": f"{_times(m['forwards'], 'forward')}, {_times(m['backwards'], 'backward')}",
        "Source data": SOURCE[m["source"]],
        "Prediction": OUTPUT[m["output"]] + (", with random draws" if m["stochastic"] else ""),
    }
    if m["paper"]:
        search = f"https://scholar.google.com/scholar?q={quote_plus(m['paper'])}"
        facts["Paper"] = f"[{m['paper']}]({search}), {m['venue']}"
    if m["code"]:
        facts["Published code"] = f"[{m['code']}](https://{m['code']})"
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts.items())]


def _docstring(m: dict[str, Any]) -> list[str]:
    module = METHODS[m["class"]].module
    return [
        f"::: {module if module.startswith('testtime.') else f'testtime.methods.{module}'}",
        "    options:",
        "      show_root_heading: false",
        "      show_root_toc_entry: false",
        "      heading_level: 3",
    ]


def _times(count: float, what: str) -> str:
    return f"no {what}" if count == 0 else f"{count:g} {what}{'' if count == 1 else 's'}"


def _sentence(m: dict[str, Any]) -> str:
    return str(m["sentence"]).replace("|", r"\|")


if __name__ == "__main__":
    sys.exit(write_or_check(ROOT, pages(), __doc__))
