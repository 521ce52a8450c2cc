"""Pages: what stands where, that nothing is fetched, and that no name becomes an element."""

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import sample

from testtime.report import (
    Cell,
    Column,
    Definitions,
    Details,
    Figure,
    Grid,
    Note,
    Page,
    Picture,
    Row,
    Section,
    Series,
    Table,
    line_chart,
    page_html,
    strong,
    write_chart,
    write_page,
)

pytest.importorskip("altair", reason="the charts need testtime[report]")

VOID = {"meta", "img", "source", "br", "input"}


class Reader(HTMLParser):
    """The elements of a page with their attributes and ancestors, and its text by element."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(page)
        self.close()
        assert self.open == [], "elements that are not closed"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))


@pytest.fixture(scope="module")
def html() -> str:
    return page_html(sample.page())


def test_no_name_becomes_an_element_or_an_attribute(html: str) -> None:
    read = Reader(html)
    assert [tag for tag, _ in read.elements].count("script") == 1
    assert not [(tag, a) for tag, a in read.elements if any(key.startswith("on") for key in a)]
    # The name stands in the page wherever it was given: title, kicker, lead, banner, table, captions, axes, legend ...
    whole = [tag for tag, text in read.texts if sample.HOSTILE in text]
    wanted = "title p h1 strong code th td span text desc figcaption dt dd summary li"
    assert set(wanted.split()) <= set(whole)
    shown = [(tag, a) for tag, a in read.elements if tag in ("img", "abbr")]
    of = {tag: {key: v for key, v in a.items() if v and sample.HOSTILE in v} for tag, a in shown}
    assert of == {"img": {"alt": sample.HOSTILE}, "abbr": {"title": sample.HOSTILE}}


def test_the_page_needs_nothing_else(html: str) -> None:
    read = Reader(html)
    addresses = [
        a.get(key) for _, a in read.elements for key in ("src", "srcset", "href", "xlink:href") if a.get(key)
    ]
    assert addresses
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in addresses if address)
    assert "url(" not in html
    assert "@import" not in html
    assert "http" not in html.replace("http-equiv", "")


def test_ids_are_used_once_and_links_lead_somewhere(html: str) -> None:
    read = Reader(html)
    ids = [a["id"] for _, a in read.elements if "id" in a]
    assert len(ids) == len(set(ids))
    for tag, attributes in read.elements:
        for key in ("aria-labelledby", "aria-describedby"):
            assert attributes.get(key) in (None, *ids), tag
    links = [a["href"] for tag, a in read.elements if tag == "a"]
    assert links == ["#result", "#time", "#small", "#pictures", "#made"]
    assert {str(link)[1:] for link in links} <= set(ids)


def test_every_drawing_is_an_image_with_its_figures(html: str) -> None:
    read = Reader(html)
    drawings = [a for tag, a in read.elements if tag == "svg"]
    assert len(drawings) == 2 * 5 + 3
    assert all(a["role"] == "img" and a["viewbox"] for a in drawings)
    told = [text for tag, text in read.texts if tag == "desc"]
    assert "r" not in told
    assert any("STAMP, continual: 22.00 ±0.90" in text for text in told)


def test_the_banner_stands_first() -> None:
    section = Section("a", "A", "A", ["text"])
    whole = page_html(Page("t", "k", "l", [section], "2 of 3 cells."))
    body = whole[whole.index("<body>") + len("<body>") :].lstrip()
    assert body.startswith(
        '<div class="unfinished" role="alert"><strong>Not finished.</strong> 2 of 3 cells.</div>'
    )
    assert "Not finished" not in page_html(Page("t", "k", "l", [section]))


def test_what_is_empty_is_left_out() -> None:
    sections = [
        Section("a", "A", "A", []),
        Section("b", "B", "B", [Figure(None, "x"), ""]),
        Section("c", "C", "C", [Grid([Figure(None, "x")]), Details("x", [Figure(None, "y")])]),
        Section("d", "D", "D", [Figure(None, "x"), Note("seen")]),
    ]
    read = Reader(page_html(Page("t", "k", "", sections)))
    assert [a["id"] for tag, a in read.elements if tag == "section"] == ["d"]
    assert "figure" not in [tag for tag, _ in read.elements]


def test_a_table_as_html() -> None:
    columns = [
        Column("x", "%", group="G", better="higher", explain="why"),
        Column("y", better="lower", style="left"),
    ]
    rows = [Row("a", [Cell(2.0, 0.25, 3.0), None]), Row("b", [1.0, "B"], role="control", mark="†")]
    page = page_html(
        Page("t", "k", "l", [Section("s", "S", "S", [Table("cap", columns, rows, corner="row")])])
    )
    body = re.sub(r"\s*\n\s*", "", page[page.index("<table") : page.index("</table>")])
    assert '<th colspan="1"' not in body
    assert '<tr class="groups"><td></td><th scope="colgroup">G</th>' in body
    assert '<abbr title="why">x</abbr><span class="unit">%</span>' in body
    assert '<td class="best" data-sort="2.0">2.0<span class="spread r4">±0.2</span><span class="pub' in body
    assert '<span class="published">3.0<span class="spread r4"></span></span></td>' in body
    assert '<td class="left" data-sort="">–</td></tr>' in body
    assert '<tr class="control"><th scope="row">b<sup>†</sup></th><td data-sort="1.0">1.0' in body
    assert '<td class="left" data-sort="b">B</td>' in body


def test_pictures_travel_in_the_page(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(sample.LIGHT)
    light, dark = Picture(file, dark=sample.DARK).uris
    assert base64.b64decode(light.removeprefix("data:image/png;base64,")) == sample.LIGHT
    assert base64.b64decode(dark.removeprefix("data:image/png;base64,")) == sample.DARK
    assert Picture(b"\xff\xd8\xff\xe0").uris == ("data:image/jpeg;base64,/9j/4A==", "")
    (tmp_path / "b.png").write_bytes(b"<svg onload='alert(1)'>")
    with pytest.raises(ValueError, match=r"expected a PNG or JPEG for a page, .*b\.png is neither"):
        _ = Picture(tmp_path / "b.png").uris


def test_sections_of_one_id_are_refused() -> None:
    with pytest.raises(ValueError, match="expected a different id for each section, got a twice"):
        page_html(Page("t", "k", "l", [Section("a", "A", "A", ["x"]), Section("a", "B", "B", ["x"])]))


def test_a_page_is_written_the_same_every_time(tmp_path: Path, html: str) -> None:
    path = write_page(tmp_path / "deep" / "page.html", sample.page())
    assert path.read_text(encoding="utf-8") == html
    assert [file.name for file in path.parent.iterdir()] == ["page.html"]


def test_many_points_stay_small() -> None:
    series = [
        Series(f"s{k}", range(1500), [float((i * (k + 3)) % 97) for i in range(1500)], k % 7)
        for k in range(10)
    ]
    figure = Figure(line_chart(series, title="t", y="y"), "c")
    assert len(page_html(Page("t", "k", "l", [Section("a", "A", "A", [figure])])).encode()) < 500_000


def test_text_of_other_types_is_printed() -> None:
    facts = Definitions([("n", 3), ("none", None), (strong("m"), "<")])
    page = page_html(Page("t", "k", "l", [Section("a", "A", "A", [facts])]))
    assert "<dt>n</dt><dd>3</dd><dt>none</dt><dd>None</dd><dt><strong>m</strong></dt><dd>&lt;</dd>" in page


def test_a_path_of_no_text_is_written(tmp_path: Path) -> None:
    page = Page("t", "k", "l", [Section("a", "A", "A", [Definitions([("path", "a\udce9b")])])])
    assert "<dd>a\N{REPLACEMENT CHARACTER}b</dd>" in write_page(tmp_path / "a.html", page).read_text(
        encoding="utf-8"
    )


def test_a_chart_as_a_file(tmp_path: Path) -> None:
    chart = sample.lines()
    assert chart is not None
    text = write_chart(tmp_path / "a.svg", chart).read_text(encoding="utf-8")
    assert text.startswith('<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 ')
    defined, used = set(re.findall(r"--(\w+):", text)), set(re.findall(r"var\(--(\w+)\)", text))
    assert used <= defined
    assert "prefers-color-scheme:dark" in text
