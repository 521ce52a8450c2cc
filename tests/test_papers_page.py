"""The page of the papers: its items, its rules on tables made by hand, and that it is up to date."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import papers_page
import pytest
from papers_page import Difference, compared, verdict

from testtime import cli
from testtime.experiments import Column, Record, Row, Table, find_experiment, list_experiments
from testtime.experiments.space.analyses import entries
from testtime.experiments.space.presets import PRESETS

ROOT = Path(__file__).resolve().parents[1]
VALUES = {  # by row: column "a" of seeds 0 to 2, column "b" of seed 0
    "ours": ([3.0, 4.0, 5.0], 9.0),
    "best": ([2.0, 3.0, 5.0], 7.0),
    "worst": ([1.0, 1.0, 1.0], 1.0),
    "labels": ([9.0, 9.0, 9.0], 0.0),
}


def table(better: Any = "higher") -> Table:
    rows = [Row(name, "ceiling" if name == "labels" else "method") for name in VALUES]
    columns = [Column(name, float, name, better=better) for name in "ab"]
    records = [Record(name, "a", seed, v) for name, (a, _) in VALUES.items() for seed, v in enumerate(a)]
    return Table.of("t", rows, columns, [*records, *(Record(n, "b", 0, b) for n, (_, b) in VALUES.items())])


def by_seed(better: Any = "higher", **facts: Any) -> list[dict[int, float]]:
    found = compared([table(better)], None, facts)
    return [{seed: round(value, 6) for seed, value in one.by_seed.items()} for one in found]


def test_comparisons_are_positive_where_they_agree_with_the_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    assert by_seed(rows=["ours"], over=["worst", "best"], of=["a"]) == [
        {0: 2, 1: 3, 2: 4},
        {0: 1, 1: 1, 2: 0},
    ]
    assert by_seed("lower", rows=["ours"], over=["worst"], of=["a"]) == [{0: -2, 1: -3, 2: -4}]
    assert by_seed(rows=["ours"], over=["worst"], of=["a"], lower=True) == [{0: -2, 1: -3, 2: -4}]
    assert by_seed(rows=["ours"], over="best", of=["a"]) == [{0: 1, 1: 1, 2: 0}]  # no ceiling is the best
    assert by_seed("lower", rows=["ours"], over="best", of=["b"]) == [{0: -8}]
    assert by_seed(rows=["ours", "worst"], of=["b"], over_of=["a"]) == [
        {0: 3}
    ]  # the mean of two rows, a common seed
    assert by_seed(rows=["ours"], of=["b"], over=["worst"], over_of=["a"], allow=2) == [{0: 9 - 1 + 2}]
    assert by_seed(rows=["ours", "best"], of=["a", "b"], diagonal=True) == [{0: 5 - 5.5}]
    assert by_seed(rows=["ours", "worst"], of=["a"], most=3) == [{0: 1, 1: 0, 2: -1}]
    assert by_seed("lower", rows=["ours"], of=["a", "b"], within=0.5) == [{0: 100 * (0.5 - 2)}]
    monkeypatch.setattr(papers_page, "_read", lambda folder: (None, [table()]))
    assert by_seed(rows=["best", "worst"], above="other", but=["ours"], of=["a"]) == [{0: -1, 1: -2, 2: -4}]
    assert by_seed(rows=["ours", "best"], above="other", but=["ours", "best"], of=["b"]) == [{0: 7 - 1}]
    (told,) = compared([table()], None, {"rows": ["ours"], "over": ["best"], "of": ["b"]})
    assert str(told) == "b: ours 9.0 against best 7.0: +2.0"


def test_rank_correlation_over_methods() -> None:
    assert by_seed(of=["b"], correlates="a") == [{0: 1.0}]
    columns = [Column(n, float, n, better=b) for n, b in (("gain", "higher"), ("spread", "lower"))]
    records = [Record(row, name, 0, value) for row, pair in {"x": (1, 1), "y": (2, 2), "z": (3, 3)}.items()
               for name, value in zip(("gain", "spread"), pair, strict=True)]  # fmt: skip
    found = compared(
        [Table.of("t", [Row(n) for n in "xyz"], columns, records)],
        None,
        {"of": ["spread"], "correlates": "gain"},
    )
    assert found[0].by_seed == pytest.approx({0: -1.0})  # the most spread gains most


def test_verdicts_change_with_the_results() -> None:
    def judged(*values: list[float]) -> str:
        return verdict([Difference("", dict(enumerate(one))) for one in values])

    assert judged([1, 2, 3], [0.1, 0.2, 0.3]) == "reproduced"
    assert judged([1, 2]) == "same shape"  # two seeds
    assert judged([2, 3, -0.5], [1, 1, 1]) == "same shape"
    assert judged([1, 2, -0.9], [1, 1, 1]) == "not at this size"  # 0.7, with a standard error of 0.85
    assert judged([1, 2, 3], [-1, -1, -1]) == "same shape"
    assert judged([1, 2, 3], [-1, -1, -1], [-1, -1, -1]) == "not at this size"
    assert judged([-1, -2, -3], [1, 2, 3]) == "contradicted"
    assert judged([0.04, 0.01, -0.02]) == "contradicted"  # equal in print on every seed
    assert judged([-1, -2, 0.5]) == judged([-1]) == "not at this size"


def test_every_item_names_an_experiment_and_a_reason() -> None:
    names = {one.name for family in list_experiments().values() for one in family}
    found = [item for paper in papers_page.items().values() for item in paper["items"]]
    assert {item[key] for item in found for key in ("run", "protocol") if key in item} <= names
    for item in found:
        assert item["reason"].endswith("."), item["item"]
        assert "run" in item or "verdict" in item, item["item"]
        if made := papers_page.command(item):
            cli.parser().parse_args(shlex.split(made)[1:])


def test_comparisons_name_rows_of_their_experiments() -> None:
    """A misspelt row would show only after the long run."""
    checked = 0
    for item in (
        item for paper in papers_page.items().values() for item in paper["items"] if "compare" in item
    ):
        name = item["run"]
        rows = getattr(find_experiment(name), "rows", ())
        if name.startswith("space-"):
            cells = entries(name.removeprefix("space-"), PRESETS["tiny"])
            rows, columns = [Row(entry.row) for entry in cells], {entry.column for entry in cells}
            of = [column for facts in item["compare"] for column in (*facts["of"], *facts.get("over_of", ()))]
            assert {*of} <= columns, item["item"]
        if isinstance(rows, Sequence) and rows:
            over = (facts["over"] for facts in item["compare"] if isinstance(facts.get("over"), list))
            named = [*(facts.get("rows", []) for facts in item["compare"]), *over]
            assert {label for labels in named for label in labels} <= {row.label for row in rows}, item[
                "item"
            ]
            checked += 1
    assert checked > 40


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reason": ""}, "table.toml, Table 1: expected reason"),
        ({"verdict": "reproduced"}, "expected comparisons, or one of the verdicts"),
        ({"verdict": "drawn", "compare": []}, "expected comparisons, or one of the verdicts"),
        ({"claim": "x"}, "expected the keys"),
    ],
)
def test_an_item_without_a_reason_or_with_a_typed_verdict_is_refused(
    change: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    item = {"item": "Table 1", "shows": "a", "published": "b", "reason": "c.", "verdict": "drawn", **change}
    lines = [f"{key} = {value if isinstance(value, list) else repr(value)}" for key, value in item.items()]
    (tmp_path / "table.toml").write_text("\n".join(["[[items]]", *lines]))
    monkeypatch.setattr(papers_page, "ITEMS", tmp_path)
    with pytest.raises(ValueError, match=message):
        papers_page.items()


def test_the_page_is_up_to_date() -> None:
    there = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")
    assert papers_page.pages() == {"papers.md": there}, (
        "docs/papers.md is out of date: python scripts/papers_page.py"
    )
    for name in re.findall(r"\]\((images/[^)]+)\)", there):
        assert (ROOT / "docs" / name).is_file(), name
