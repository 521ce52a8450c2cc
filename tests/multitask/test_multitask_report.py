"""The report of a study: it stands alone, is well formed, and holds the figures."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

from written_study import write_sheet, write_study

from testtime.multitask.report import _printed, highlights, write_report
from testtime.multitask.results import read_results, write_command

VOID = {"meta", "br", "link", "hr", "img", "input", "source"}


class Checker(HTMLParser):
    """Every element that is opened is closed, in order; ids are unique."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids += [value for name, value in attrs if name == "id" and value]
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


def test_the_page_stands_alone_and_holds_all_parts(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "run")
    write_sheet(folder)
    write_command(folder, ["multitask", "bench", "table1"])
    html = write_report(folder).read_text()
    found = checked(html)
    assert not re.search(
        r"(src|href|srcset)\s*=\s*[\"'](?!#|data:image/png;base64,)", html
    )  # nothing is fetched
    assert "http" not in re.sub(r"base64,[^\"]*", "", html)
    assert found.tags.count("svg") == 1 + 4 + 3  # Delta, the tasks, the synchrony
    assert {"result", "steps", "synchrony", "cost", "pictures", "rates", "made"} <= set(found.ids)
    assert "domains" not in found.ids
    assert found.tags.count("img") == 1
    assert html.count("data:image/png;base64,") == 2  # light and dark
    assert "&lt;sic&gt;" in html
    assert "S4T on &lt;eight&gt; images." in html
    assert "testtime multitask bench table1" in html
    assert 'class="band c1"' in html


def test_the_lead_says_who_is_first_and_what_the_control_explains(tmp_path: Path) -> None:
    html = write_report(write_study(tmp_path / "run")).read_text()
    lead = re.sub(r"<[^>]*>", "", re.search(r'<p class="lead">(.*?)</p>', html)[1])  # type: ignore[index]
    assert lead == (
        "Of the rows that learn, S4T has the highest ΔTTT after step 40: +14.9 ±0.5 % (3 seeds); next is TENT with "
        "+5.0 ±0.5 %. The control, which learns nothing and only estimates the BatchNorm statistics of the same network "
        "again, reaches +8.5 %, which explains 58 % of it."
    )


def test_a_control_that_wins_is_said_to_win(tmp_path: Path) -> None:
    html = write_report(
        write_study(tmp_path / "run", rows=("Base", "BN only", "TENT"), seeds=(0,))
    ).read_text()
    assert "<strong>TENT</strong> has the highest" in html
    assert "reaches +7.2 %, and learning adds nothing to that." in html


def lead_of(folder: Path) -> str:
    html = write_report(folder).read_text()
    return re.sub(r"<[^>]*>", "", re.search(r'<p class="lead">(.*?)</p>', html)[1])  # type: ignore[index]


def test_a_study_that_is_not_finished_says_so_first_and_names_no_winner(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "run", seeds=(0, 1))
    (folder / "cells" / "tent--target--1.json").unlink()
    lead = lead_of(folder)
    assert lead.startswith("This study is not finished: 1 cell has no result.")
    assert "highest" not in lead
    html = write_report(folder).read_text().partition("<main>")[2].partition('id="rates"')[0]
    assert not re.search(r'class="[^"]*best', html)
    assert 'class="first' not in html
    assert "Without a result: TENT, target, seed 1." in html


def test_seeds_and_domains_that_were_asked_for_count_as_missing(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "run", rows=("Base", "TENT"), seeds=(0,))
    about = json.loads((folder / "study.json").read_text())
    houses = about["domains"]["target"]
    about |= {"seeds": [0, 1], "domains": {**about["domains"], "night": houses}}
    (folder / "study.json").write_text(json.dumps(about))
    assert read_results(folder).missing == [
        f"{row}, {domain}, seed {seed}"
        for row in ("Base", "TENT")
        for domain in ("target", "night")
        for seed in (0, 1)
        if (domain, seed) != ("target", 0)
    ]
    del about["seeds"], about["domains"]["night"]  # an earlier version did not write the seeds
    (folder / "study.json").write_text(json.dumps(about))
    assert read_results(folder).missing == []


def test_rows_that_are_equal_in_print_share_the_first_place(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "run", seeds=(0,))
    cell = json.loads((folder / "cells" / "s4t--target--0.json").read_text())
    twin = {**cell, "row": "TENT", "source": "plain"}
    twin["values"] = {task: [v * 1.00001 for v in series] for task, series in cell["values"].items()}
    (folder / "cells" / "tent--target--0.json").write_text(json.dumps(twin))
    lead = lead_of(folder)
    assert lead.startswith("Of the rows that learn, ")
    assert re.match(
        r"Of the rows that learn, (TENT and S4T|S4T and TENT) share the highest ΔTTT after step 40", lead
    )
    assert "next" not in lead


def test_the_columns_of_the_conclusion_come_first(tmp_path: Path) -> None:
    html = write_report(write_study(tmp_path / "run")).read_text()
    heads = re.findall(r'<th scope="col"><abbr[^>]*>([^<]+)</abbr>', html.partition('id="steps"')[0])
    assert heads[:2] == ["Δ last", "Δ beyond"]
    assert sorted(heads[2:]) == sorted(["segmentation", "depth", "normals", "edges", "Δ oracle", "Δ own"])


def test_several_domains_have_a_chart_and_tables_of_their_own(tmp_path: Path) -> None:
    html = write_report(write_study(tmp_path / "run", domains=("noise 0", "noise 0.4"))).read_text()
    found = checked(html)
    assert "domains" in found.ids
    assert found.tags.count("svg") == 2 * (1 + 4) + 3 + 1
    assert "Delta_TTT at the last step by domain" in html
    assert ">noise 0.4</text>" in html


def test_the_base_alone_makes_a_page_too(tmp_path: Path) -> None:
    html = write_report(write_study(tmp_path / "run", rows=("Base",), seeds=(0,))).read_text()
    checked(html)
    assert "Only the base row is there so far." in html


def test_six_rows_at_most_have_a_colour(tmp_path: Path) -> None:
    colours = highlights(read_results(write_study(tmp_path / "run")))
    assert colours["S4T"] == 1
    assert sorted(colours.values()) == [1, 2, 3, 4, 5]


def test_published_gains_stand_beside_ours(tmp_path: Path) -> None:
    html = write_report(write_study(tmp_path / "run")).read_text()
    inside = re.search(r"What the paper prints \(tables 1 and 7\)(.*?)</details>", html, re.S)[1]  # type: ignore[index]
    assert re.search(
        r">S4T</th><td>\+34.9</td><td>\+34.2</td><td>\+2.1</td><td>\+1.2</td><td class=\"headline\">\+16.3<",
        inside,
    )
    assert re.search(r">NC-TTT</th><td>\+23.4</td>.*?<td class=\"headline\">–<", inside)
    assert "Taskonomy → NYUD-v2" in inside


def test_each_table_of_the_paper_has_its_form() -> None:
    assert _printed("table 5")["noise 0.4"] == {"S4T": 19.73}
    assert _printed("table 2")["Taskonomy -> NYUD-v2"]["S4T"] == 34.94
    assert _printed("table 2")["Taskonomy -> NYUD-v2"]["Base"] == 0.0
    assert _printed("table 3") == {
        "table 3": {"random": 32.76, "not overlapping": 32.56, "same for all": 34.94, "hide tasks": 33.06}
    }
    assert "S4T (single)" not in _printed("table 8")["Taskonomy -> NYUD-v2"]
    assert list(_printed("tables 1 and 7, figures 3 and 4")) == [
        "Taskonomy -> NYUD-v2",
        "Taskonomy -> PASCAL-Context",
        "NYUD-v2 -> Taskonomy",
        "PASCAL-Context -> Taskonomy",
    ]
    assert _printed("section 4") == {}


def test_rows_that_are_numbers_are_a_sweep(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "run", rows=("Base", "BN only", "TENT", "S4T"), seeds=(0, 1))
    names = {"BN only": "0", "TENT": "0.5", "S4T": "0.8"}
    for path in [folder / "study.json", *folder.glob("cells/*.json")]:
        about = json.loads(path.read_text())
        if "rows" in about:
            about["rows"] = [names.get(row, row) for row in about["rows"]]
        else:
            about["row"] = names.get(about["row"], about["row"])
        path.write_text(json.dumps(about))
    html = write_report(folder).read_text()
    assert "sweep" in checked(html).ids
    assert "0: +7.4; 0.5: +4.7; 0.8: +14.6" in html


def test_a_network_that_is_not_adapted_does_not_count_as_learning(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "run", rows=("Base", "BN only", "TENT"), seeds=(0,))
    path = folder / "cells" / "tent--target--0.json"
    cell = json.loads(path.read_text())
    cell["values"] = {task: [series[0] * 1.01] * len(series) for task, series in cell["values"].items()}
    path.write_text(json.dumps(cell))
    assert read_results(folder).learners == []
    assert "the best row that learns" not in write_report(folder).read_text()


def test_every_table_has_the_columns_that_its_section_is_about(tmp_path: Path) -> None:
    page = write_report(write_study(tmp_path / "run")).read_text()
    sections = dict(re.findall(r'<section id="(\w+)">(.*?)</section>', page, re.DOTALL))
    heads = {
        name: {
            re.sub(r"<[^>]+>", "", cell)
            for cell in re.findall(r'<th scope="col"[^>]*>(.*?)</th>', text, re.DOTALL)
        }
        for name, text in sections.items()
    }
    assert any(head.startswith("Δ beyond") for head in heads["result"])
    assert {head[:2] for head in heads["synchrony"]} >= {"SV", "DT", "CS"}
    assert not any(head.startswith("Δ") for head in heads["synchrony"])
