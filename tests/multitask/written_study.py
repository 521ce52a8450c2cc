"""The folder of a study as run_study leaves it, written by hand: curves whose every figure is known."""

import json
import math
from pathlib import Path

from PIL import Image

HIGHER = {"semseg": True, "depth": False, "normals": False, "edge": True}
START = {"semseg": 20.0, "depth": 1.0, "normals": 40.0, "edge": 25.0}
ROWS = ("Base", "BN only", "S4T's network, BN only", "TENT", "S4T")


def values(row: str, seed: int, steps: int, strength: float = 1.0) -> dict[str, list[float]]:
    """The base stays; a row rises to its gain g (each task by the factor 1 + g/100 in its better direction) at a step of
    its own, and falls back a little: g at the peak, 0.9 g at the last step."""
    gain, rise = {
        "Base": (0.0, 1),
        "BN only": (8.0, 10),
        "S4T's network, BN only": (9.0, 10),
        "TENT": (5.0, 20),
        "S4T": (16.0, 12),
    }[row]
    gain = strength * (gain + 0.5 * seed * (gain > 0))
    found = {}
    for place, (task, start) in enumerate(START.items()):
        peak = min(rise + 2 * place, steps - 1)
        start = start * (1 + 0.01 * seed)
        curve = []
        for t in range(steps + 1):
            share = t / peak if t <= peak else 1 - 0.1 * (t - peak) / (steps - peak)
            factor = gain * share / 100
            curve.append(start * (1 + factor if HIGHER[task] else 1 - factor))
        found[task] = curve
    return found


def write_study(
    folder: Path,
    rows: tuple[str, ...] = ROWS,
    seeds: tuple[int, ...] = (0, 1, 2),
    domains: tuple[str, ...] = ("target",),
    steps: int = 40,
) -> Path:
    (folder / "cells").mkdir(parents=True)
    for row in rows:
        for place, domain in enumerate(domains):
            for seed in seeds:
                cell = {
                    "study": "table1",
                    "row": row,
                    "seed": seed,
                    "domain": domain,
                    "preset": "tiny",
                    "source": "s4t" if "S4T" in row else "plain",
                    "rate": 0.01 if row == "S4T" else 0.0,
                    "steps": list(range(steps + 1)),
                    "values": values(row, seed, steps, 1.0 - 0.3 * place),
                    "higher_is_better": HIGHER,
                    "parameters": 1_250_000 if "S4T" in row else 1_000_000,
                    "seconds": 12.5 + seed,
                }
                name = "".join(c if c.isalnum() or c in "+-." else "_" for c in row.lower())
                (folder / "cells" / f"{name}--{domain}--{seed}.json").write_text(json.dumps(cell))
    houses = {"first": 0, "houses": 30, "frames": 40, "size": [64, 64], "style": "default", "shift": None}
    about = {
        "study": "table1",
        "title": "Four tasks at once, from one style of house to another <sic>",
        "published": "tables 1 and 7",
        "rows": list(rows),
        "protocol": {
            "scope": "single_batch",
            "steps": steps,
            "batch": 8,
            "eval_on": "full_target",
            "record_every": 1,
        },
        "preset": "tiny",
        "domains": dict.fromkeys(("source", "validation", *domains), houses),
    }
    (folder / "study.json").write_text(json.dumps(about))
    rate = {"rate": 0.01, "tried": {"0.001": 3.0, "0.01": 7.5, "0.1": math.nan}}
    (folder / "rate-s4t.json").write_text(json.dumps(rate))
    return folder


def write_sheet(folder: Path) -> None:
    where = folder / "pictures"
    where.mkdir()
    for tone in ("light", "dark"):
        Image.new("RGB", (900, 400), (200, 60, 60)).save(where / f"0-{tone}.png")
    listed = {
        "about": "S4T on <eight> images.",
        "sheets": [{"light": "0-light.png", "dark": "0-dark.png", "caption": "Image 4 of the batch"}],
    }
    (where / "pictures.json").write_text(json.dumps(listed))
