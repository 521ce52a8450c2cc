"""Only markup that the package makes enters a page; everything else is escaped."""

import pytest

from testtime.report import code, join, listed, phrase, show, signed, strong, sub
from testtime.report.markup import plain

HOSTILE = '<img src=x onerror="alert(1)">'


def test_strings_are_escaped_wherever_they_meet_markup() -> None:
    safe = "&lt;img src=x onerror=&#34;alert(1)&#34;&gt;"
    assert str(strong(HOSTILE)) == f"<strong>{safe}</strong>"
    assert str(HOSTILE + code("a") + HOSTILE) == f"{safe}<code>a</code>{safe}"
    assert str(phrase("{} and {}", HOSTILE, sub(HOSTILE))) == f"{safe} and <sub>{safe}</sub>"
    assert str(phrase("<b>{}</b>", "x")) == "&lt;b&gt;x&lt;/b&gt;"
    assert str(listed([strong("a"), HOSTILE, "b"])) == f"<strong>a</strong>, {safe} and b"
    assert str(join(["a", strong("b")], "<")) == "a&lt;<strong>b</strong>"


def test_plain_texts_stay_plain() -> None:
    assert listed(["a & b", "c"]) == "a & b and c"
    assert isinstance(join(["a", "b"]), str)
    assert plain(strong("a < b") + " & c") == "a < b & c"
    assert plain("<b>") == "<b>"


@pytest.mark.parametrize(
    ("value", "places", "shown", "with_sign"),
    [
        (0.04, 1, "0.0", "0.0"),
        (-0.04, 1, "0.0", "0.0"),
        (-0.05001, 1, "-0.1", "-0.1"),
        (78.25, 1, "78.2", "+78.2"),
        (9999.96, 1, "10,000.0", "+10,000.0"),
        (123456.0, 0, "123,456", "+123,456"),
        (-12345.6, 1, "-12,345.6", "-12,345.6"),
        (2.0, None, "2", "+2"),
        (float("inf"), 1, "inf", "+inf"),
        (None, 1, "–", "–"),
        (float("nan"), 1, "–", "–"),
    ],
)
def test_numbers_in_print(value: float | None, places: int | None, shown: str, with_sign: str) -> None:
    assert show(value, places) == shown
    assert signed(value, places) == with_sign
