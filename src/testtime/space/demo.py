"""One house end to end, in minutes: render, tokenise, pre-train, transfer, judge, draw."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from testtime.space.analyses import FLOOR, SENSED, WHOLE
from testtime.space.pictures import write_pictures
from testtime.space.points import Lab
from testtime.space.presets import PRESETS, Preset

__all__ = ["run_demo"]


def run_demo(
    folder: str | Path,
    preset: Preset = PRESETS["demo"],
    seed: int = 0,
    jobs: int = 2,
    say: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Run three points in one house and draw what they see; what was done is not done again.

    Args:
        folder: of everything.
        preset: how large.
        seed: of the models.
        jobs: processes that render.
        say: is told what begins.

    Returns:
        the results of scratch, TST-MM (sensory) and TST-MM (all), as :func:`testtime.space.report.write_report` reads them.
    """
    lab = Lab(preset, folder, seed, jobs)
    results = []
    for point in (FLOOR, SENSED, WHOLE):
        say(f"{point.name}: {', '.join(point.modalities)}")
        result = lab.result(point)
        results.append({**result, "row": point.name, "column": "mIoU", "value": result["mIoU"]})
    if not (Path(folder) / "pictures" / "pictures.json").exists():
        say("pictures")
        model = lab.pretrained(WHOLE)
        drawn = ("rgb", "depth", "normals", "edge", "classes")
        tokenizers = {f"tok_{name}": lab.tokenizer(name, WHOLE) for name in drawn}
        segmenters = {"scratch": lab.transferred(FLOOR), "TST-MM": lab.transferred(WHOLE)}
        data = lab.read(preset.test(WHOLE.test))
        step = max(1, len(data) // 6)
        write_pictures(
            folder, model, tokenizers, segmenters, data, range(0, step * 6, step)[: min(6, len(data))]
        )
    return results
