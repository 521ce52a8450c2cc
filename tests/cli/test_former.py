"""Former spellings: each is translated to a present command, with one line that says so."""

from __future__ import annotations

import shlex

import pytest

from testtime.cli import main
from testtime.cli.former import translated

TABLE = [
    ("bench", "list online"),
    ("bench --list", "list online"),
    ("bench digits-open", "run digits-open"),
    ("bench digits-open --limit 4 --jobs=2 --seeds 0,1", "run digits-open --limit 4 --jobs 2 --seeds 0,1"),
    ("bench --device cpu digits-open", "run digits-open --device cpu"),
    ("bench a --methods paf-kip,source", "run a --rows paf-kip source"),
    ("bench a --methods tent,mine:Mine", "run a --rows tent --methods mine:Mine"),
    ("bench a --open-sets svhn,none", 'run a --set \'open_sets=["svhn", "none"]\''),
    (
        "bench a --order mixed --severity 3 --batch-size 8 --out x",
        "run a --out x --set order=mixed severity=3 batch_size=8",
    ),
    ("bench a --cache c", "run a --store c"),
    ("bench a --limit", "run a --limit"),
    ("bench a --limt 3", "run a --limt 3"),  # refused there, with the name that was meant
    ("bench a --no-labels", "run no-labels --out runs/a-no-labels --set stream=a"),
    (
        "bench --no-labels --images photos --model m.pt --source s --skip-damaged --no-mirror",
        "run no-labels --model m.pt --out runs/no-labels "
        "--set images=photos source=s skip_damaged=true mirror=false",
    ),
    ("bench --help", "run --help"),
    ("demo --methods source,paf-kip --limit 3", "demo --limit 3 --rows source paf-kip"),
    ("demo --limit 3", "demo --limit 3"),
    ("multitask list", "list multitask"),
    ("multitask bench", "list multitask"),
    (
        "multitask bench table1 --preset paper --out d --seeds 0,1 --rows S4T 'BN only'",
        "run multitask-table1 --out d/table1 --seeds 0,1 --rows S4T 'BN only' --set preset=paper",
    ),
    ("multitask bench masks", "run multitask-masks --out runs/multitask/masks"),
    (
        "multitask analyse masks --seed 1",
        "run multitask-masked-loss --out runs/multitask/analyse-masks --seeds 1",
    ),
    ("multitask analyse cost", "run multitask-cost --out runs/multitask/analyse-cost"),
    ("multitask report r --out p.html", "report r --out p.html"),
    ("multitask demo --seed 2 --out d", "run multitask-demo --out d --seeds 2"),
    ("multitask train --out d", "multitask train --out d"),
    ("space list", "list space"),
    (
        "space bench main --preset small --seeds 0 1 --encoders timm:a --device cuda",
        "run space-main --seeds 0,1 --device cuda --out runs/space/small/main --set preset=small 'encoders=[\"timm:a\"]'",
    ),
    ("space report r", "report r"),
    ("space demo --jobs 1", "run space-demo --jobs 1"),
    ("space ingest p --out d", "space ingest p --out d"),
    ("run digits --jobs 2", "run digits --jobs 2"),
    ("", ""),
]


@pytest.mark.parametrize(("before", "now"), TABLE)
def test_a_former_spelling_is_translated_and_says_how_it_is_spelled_now(
    before: str, now: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shlex.join(translated(shlex.split(before))) == now
    printed = capsys.readouterr()
    assert printed.out == ""
    if before == now:
        assert printed.err == ""
    else:
        (line,) = printed.err.splitlines()
        assert line.startswith("DeprecationWarning: testtime ")
        assert f" is now: testtime {now};" in line


def test_a_translated_command_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["space", "list"]) == 0
    printed = capsys.readouterr()
    assert "space-main " in printed.out
    assert printed.err.startswith("DeprecationWarning: testtime space list is now: testtime list space; ")
