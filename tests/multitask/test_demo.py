"""The demo at its smallest: everything it promises is there, and it is not done twice."""

from dataclasses import replace
from pathlib import Path

import pytest

from testtime.multitask.demo import DEMO, run_demo
from testtime.multitask.presets import Domain
from testtime.multitask.results import read_results


@pytest.mark.slow
def test_the_smallest_demo(tmp_path: Path) -> None:
    pytest.importorskip("embreex")
    size = (32, 32)
    small = replace(
        DEMO,
        recipe=replace(DEMO.recipe, iterations=3, batch=4),
        domains={
            "source": Domain(0, 1, 6, size),
            "validation": Domain(1, 1, 8, size, shift="fog"),
            "target": Domain(2, 1, 10, size, style="other", shift="dim"),
        },
    )
    said: list[str] = []
    page = run_demo(tmp_path, small, jobs=1, steps=2, say=said.append)
    html = page.read_text()
    assert html.count("data:image/png;base64,") == 6
    results = read_results(tmp_path)
    assert results.rows == ["Unadapted", "BN only", "S4T"]
    assert results.controls == ["BN only"]
    assert results.mean("Unadapted", lambda o: o.last) == 0
    assert results.outcomes[0].curve.steps == [0, 1, 2]
    (control,), (ours,) = results.of("BN only"), results.of("S4T")
    assert control.gains[0] == ours.gains[0] == 0  # the same network
    assert any("S4T: 2 steps" in line for line in said)
    said.clear()
    assert run_demo(tmp_path, small, jobs=1, steps=2, say=said.append).read_text()
    assert not any("steps on" in line for line in said)
