"""The page of a study: it stands alone, is well formed, and holds the figures."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from written_study import result, write_study

from testtime.experiments import read_run
from testtime.experiments.multitask.listing import CONSTANTS, PUBLISHED
from testtime.experiments.multitask.pages import highlights
from testtime.experiments.multitask.results import Judged
from testtime.experiments.multitask.studies import STUDIES
from testtime.report import page_html

pytest.importorskip("altair", reason="pip install -e '.[report]'")
VOID = {"meta", "br", "link", "hr", "img", "input", "source"}


class Checker(HTMLParser):
    """Every element that is opened is closed, in order; ids are unique."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.charts = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids += [value for name, value in attrs if name == "id" and value]
        self.charts += tag == "svg" and "narrow" not in (dict(attrs).get("class") or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def checked(html: str) -> Checker:
    checker = Checker()
    checker.feed(html)
    assert checker.open == []
    assert len(set(checker.ids)) == len(checker.ids)
    return checker


def page_of(folder: Path) -> str:
    run = read_run(folder)
    return page_html(STUDIES[run.about["experiment"]].page(run))


def lead_of(folder: Path) -> str:
    run = read_run(folder)
    return re.sub(r"<[^>]*>", "", str(STUDIES[run.about["experiment"]].page(run).lead[0]))


def section(html: str, name: str) -> str:
    """The content of a section without its charts."""
    inner = re.search(rf'<section id="{name}".*?</section>', html, re.DOTALL)
    assert inner is not None
    return re.sub(r"<svg.*?</svg>", "", inner[0], flags=re.DOTALL)


def test_the_page_stands_alone_and_holds_all_parts(tmp_path: Path) -> None:
    html = page_of(write_study(tmp_path / "run", pictures=True))
    found = checked(html)
    assert not re.search(
        r"(src|href|srcset)\s*=\s*[\"'](?!#|data:image/png;base64,)", html
    )  # nothing is fetched
    assert found.charts == 1 + 4 + 3  # Delta, the tasks, the synchrony
    assert {"result", "steps", "synchrony", "cost", "pictures", "rates", "made"} <= set(found.ids)
    assert "domains" not in found.ids
    assert "sweep" not in found.ids
    assert found.tags.count("img") == 1
    assert html.count("data:image/png;base64,") == 2  # light and dark
    assert "Image 4 of &lt;the&gt; batch" in html
    assert "Images of target that S4T adapted to, seed 0" in html
    assert "the control (S4T&#39;s network, BN only)" in html
    assert "testtime run multitask-table1" in html
    assert "a rendered set of houses stands in for Taskonomy, NYUD-v2 and PASCAL-Context" in html


@pytest.mark.usefixtures("undrawn")
def test_the_lead_says_who_is_first_and_what_the_control_explains(tmp_path: Path) -> None:
    assert lead_of(write_study(tmp_path / "run")) == (
        "Of the rows that learn, S4T has the highest ΔTTT after step 40: +14.9 ±0.5 % (3 seeds); next is TENT with "
        "+5.0 ±0.5 %. The control, which learns nothing and only estimates the BatchNorm statistics of the same network "
        "again, reaches +8.5 %, which explains 58 % of it."
    )


@pytest.mark.usefixtures("undrawn")
def test_a_control_that_wins_is_said_to_win(tmp_path: Path) -> None:
    lead = lead_of(write_study(tmp_path / "run", rows=("Base", "BN only", "TENT"), seeds=(0,)))
    assert "TENT has the highest" in lead
    assert lead.endswith("reaches +7.2 %, and learning adds nothing to that.")


@pytest.mark.usefixtures("undrawn")
def test_a_study_that_is_not_finished_says_so_first_and_names_no_winner(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "run", seeds=(0, 1), **{"TENT--target--1": None})
    assert lead_of(folder) == ""
    html = page_of(folder)
    assert "<strong>Not finished.</strong> 9 of 10 cells have a result" in html
    assert html.index("Not finished.") < html.index("<h1>")
    assert not re.search(r'class="[^"]*best', section(html, "result"))
    assert "Not finished, 1 without a result: TENT, target, seed 1." in html


@pytest.mark.usefixtures("undrawn")
def test_rows_that_are_equal_in_print_share_the_first_place(tmp_path: Path) -> None:
    twin = result("S4T", 0)
    twin["values"] = {task: [v * 1.00001 for v in series] for task, series in twin["values"].items()}
    lead = lead_of(write_study(tmp_path / "run", seeds=(0,), **{"TENT--target--0": twin}))
    assert re.match(
        r"Of the rows that learn, (TENT and S4T|S4T and TENT) share the highest ΔTTT after step 40", lead
    )
    assert "next" not in lead


@pytest.mark.usefixtures("undrawn")
def test_the_columns_of_the_conclusion_come_first(tmp_path: Path) -> None:
    html = page_of(write_study(tmp_path / "run"))
    table = section(html, "result").partition("<tbody>")[0]
    places = [
        table.index(head) for head in ("Δ last", "Δ beyond", "segmentation", "edges", "Δ oracle", "Δ own")
    ]
    assert places == sorted(places)
    synchrony = section(html, "synchrony").partition("<tbody>")[0]
    assert all(head in synchrony for head in ("SV", "DTW", "CS"))
    assert "Δ beyond" not in synchrony


def test_several_domains_have_a_chart_and_tables_of_their_own(tmp_path: Path) -> None:
    html = page_of(write_study(tmp_path / "run", noise=(0.0, 0.4)))
    found = checked(html)
    assert "domains" in found.ids
    assert found.charts == 2 * (1 + 4) + 3 + 1
    assert "Delta_TTT at the last step, each domain against its own base" in html


def test_the_base_alone_makes_a_page_too(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "run", rows=("Base",), seeds=(0,))
    checked(page_of(folder))
    assert lead_of(folder) == "No row that learns is there so far."


@pytest.mark.usefixtures("undrawn")
def test_without_a_base_the_page_says_so(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "run", ("Base", "S4T"), (0,), **{"Base--target--0": None})
    html = page_of(folder)
    checked(html)
    assert "1 of 2 cells have a result" in html


def test_six_rows_at_most_have_a_colour(tmp_path: Path) -> None:
    colours = highlights(Judged.read(read_run(write_study(tmp_path / "run"))).table())
    assert colours["S4T"] == 1
    assert sorted(colours.values()) == [1, 2, 3, 4, 5]


def cells_of(html: str, row: str) -> list[str]:
    """The printed numbers of a row."""
    line = next(found for found in re.findall(r"<tr.*?</tr>", html, re.DOTALL) if f">{row}<" in found)
    return re.findall(r"[+-]?\d+\.\d+|–", re.sub(r"<[^>]*>", " ", line.partition("</th>")[2]))


@pytest.mark.usefixtures("undrawn")
def test_published_gains_stand_beside_ours(tmp_path: Path) -> None:
    html = page_of(write_study(tmp_path / "run"))
    inside = html.partition("What the paper prints (table 1, figures 3 and 4)")[2].partition("</details>")[0]
    assert cells_of(inside, "S4T") == ["+34.9", "+34.2", "+16.3"]
    assert cells_of(inside, "NC-TTT") == ["+23.4", "+31.4", "–"]
    assert "Taskonomy → NYUD-v2" in inside


@pytest.mark.usefixtures("undrawn")
def test_published_gains_of_domains_stand_beside_those_of_s4t(tmp_path: Path) -> None:
    rows = ("Base", "S4T's network, BN only", "S4T")
    html = page_of(write_study(tmp_path / "run", rows, noise=(0.0, 0.4), name="multitask-noise"))
    assert "against the base of target" in html
    inside = html.partition("What the paper prints (table 5)")[2].partition("</details>")[0]
    assert cells_of(inside, "target") == ["+34.9", "+16.3"]
    assert cells_of(inside, "target \\+ noise 0.4".replace("\\", "")) == ["+19.7", "+11.4"]


def test_each_table_of_the_paper_names_our_rows() -> None:
    for name, facts in CONSTANTS["experiments"].items():
        for table in facts.get("published", ()):
            for rows in PUBLISHED[table].values():
                ours = {row.label for row in STUDIES[name].rows} | {"target"}
                named = {row for row in rows if " + noise " not in row and row != "S4T (single)"}
                assert named <= ours, (name, table)


def test_a_sweep_is_drawn_over_its_setting(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "run", ("Base", "0", "0.5", "0.8"), (0, 1), name="multitask-ratio")
    html = page_of(folder)
    assert "sweep" in checked(html).ids
    assert "0: +7.4; 0.5: +4.7; 0.8: +14.6" in html


@pytest.mark.usefixtures("undrawn")
def test_rates_that_were_tried_are_listed_with_the_chosen_one_in_bold(tmp_path: Path) -> None:
    html = section(page_of(write_study(tmp_path / "run")), "rates")
    assert cells_of(html, "S4T") == ["+3.0", "+7.5", "–"]
    assert re.search(r'class="[^"]*best[^"]*"[^>]*>\s*\+7\.5', html)
