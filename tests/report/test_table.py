"""Tables: what is best, how numbers are printed, sorted and shaded."""

import math

import pytest

from testtime.report import Cell, Column, Row, Table, strong


def cells(values: list[object], column: Column, **options: object) -> list[dict[str, object]]:
    rows = [Row(f"row {i}", [value]) for i, value in enumerate(values)]  # type: ignore[list-item]
    return [shown[0] for _, shown in Table("t", [column], rows, **options).body]  # type: ignore[arg-type]


def bold(values: list[object], column: Column, **options: object) -> list[int]:
    return [i for i, c in enumerate(cells(values, column, **options)) if "best" in str(c["classes"]).split()]


@pytest.mark.parametrize(
    ("values", "better", "places", "first"),
    [
        ([1.0, 3.0, 2.0], "higher", 1, [1]),
        ([1.0, 3.0, 2.0], "lower", 1, [0]),
        ([1.0, 3.0, 2.0], None, 1, []),
        ([78.24, 78.16, 70.0], "higher", 1, []),  # equal in print
        ([78.24, 78.16, 70.0], "higher", 2, [0]),
        ([5.0, 5.0, 5.0], "higher", 1, []),
        ([math.nan, 1.0, None, 2.0], "higher", 1, [3]),
        ([math.nan, 1.0], "higher", 1, []),  # alone
        (["a", 1.0, 2.0], "lower", 1, [1]),
    ],
)
def test_the_best_is_bold_and_a_tie_is_not(
    values: list[object], better: str | None, places: int, first: list[int]
) -> None:
    assert bold(values, Column("x", better=better, places=places)) == first  # type: ignore[arg-type]


def test_an_unfinished_run_has_no_best() -> None:
    assert bold([1.0, 2.0], Column("x", better="higher"), best=False) == []


def test_a_ceiling_is_never_the_best() -> None:
    column = Column("x", better="higher")
    rows = [Row("ours", [2.0]), Row("other", [1.0]), Row("labels", [9.0], role="ceiling")]
    assert ["best" in c["classes"] for _, (c,) in Table("t", [column], rows).body] == [True, False, False]


def test_numbers_are_printed_with_spread_and_published_value() -> None:
    one, two, three = cells([Cell(1.234, 0.06, 1.5), Cell(2.0), Cell(-0.01, math.nan)], Column("x", places=2))
    assert (one["text"], one["spread"], one["published"]) == ("1.23", "±0.06", "1.50")
    assert (two["text"], two["spread"], two["published"]) == ("2.00", "", "")
    assert (three["text"], three["spread"]) == ("-0.01", "")
    # Every cell has the same room for the spread, so that the numbers stand below each other.
    assert {c["room"] for c in (one, two, three)} == {len("±0.06")}
    assert cells([Cell(0.5, text="half"), 1.0], Column("x", signed=True))[0]["text"] == "half"
    assert [c["text"] for c in cells([0.5, -1.0, 0.0, None], Column("x", signed=True))] == [
        "+0.5",
        "-1.0",
        "0.0",
        "–",
    ]


def test_sort_keys_are_exact_numbers_and_plain_words() -> None:
    values = [1 / 3, Cell(2, text="two"), "Über & co", strong("Bold"), None, math.nan, -1e-12]
    keys = [c["sort"] for c in cells(values, Column("x"))]
    assert keys == [repr(1 / 3), "2.0", "über & co", "bold", "", "", "-1e-12"]


@pytest.mark.parametrize("shade", ["heat", "bar"])
def test_a_shade_is_stronger_for_a_larger_number(shade: str) -> None:
    found = [c["share"] for c in cells([10.0, 20.0, 40.0, math.nan], Column("x", shade=shade))]  # type: ignore[arg-type]
    assert found == {"heat": [0, 33, 100, None], "bar": [25, 50, 100, None]}[shade]


def test_shades_compare_the_table_or_the_column() -> None:
    columns = [Column("x", shade="bar"), Column("y", shade="bar"), Column("z")]
    rows = [Row("a", [1.0, 10.0, 999.0]), Row("b", [2.0, 20.0, 999.0])]
    of = {scale: [[c["share"] for c in line] for _, line in Table("t", columns, rows, scale=scale).body]
          for scale in ("table", "column")}  # fmt: skip
    assert of == {"table": [[5, 50, None], [10, 100, None]], "column": [[50, 50, None], [100, 100, None]]}


def test_groups_span_their_neighbours() -> None:
    names = ["", "A", "A", "B", "A"]
    table = Table("t", [Column("x", group=name) for name in names], [])
    assert table.groups == [("", 1), ("A", 2), ("B", 1), ("A", 1)]
    assert Table("t", [Column("x")], []).groups == []


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected 2 cells in the row 'a' of the table 'Errors', got 1"):
        Table("Errors", [Column("x"), Column("y")], [Row("a", [1.0])])
