"""The page in a browser: phone width, light and dark, sorting. Screenshots are left in the folder of the artefacts.

The folder is that of the environment variable TEST_ARTEFACTS, otherwise a temporary one of pytest.
"""

import json
import os
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import sample

from testtime.report import write_page

pytest.importorskip("altair", reason="the charts need testtime[report]")

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next(filter(None, (shutil.which(name) for name in NAMES)), None)
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason=f"none of the browsers is installed: {', '.join(NAMES)}"
)

CHECKS = """
const light = (probe, below = 'white') => {
  const c = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  for (const fill of [below, probe]) { c.fillStyle = fill; c.fillRect(0, 0, 1, 1); }
  const [r, g, b] = c.getImageData(0, 0, 1, 1).data;
  return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
const of = frame => {
  const d = frame.contentDocument, w = frame.contentWindow, style = e => w.getComputedStyle(e);
  const seen = e => e.getClientRects().length > 0;
  const rows = t => [...t.tBodies[0].rows].filter(r => !r.hidden).map(r => r.cells[0].textContent);
  const table = d.querySelector('table'), heads = [...table.querySelectorAll('tr.heads th')];
  const found = {width: d.documentElement.scrollWidth, height: d.documentElement.scrollHeight,
    wide: [...d.querySelectorAll('svg.wide')].filter(seen).length,
    narrow: [...d.querySelectorAll('svg.narrow')].filter(seen).length,
    text: Math.min(...[...d.querySelectorAll('svg text')].filter(seen).map(e => e.getBoundingClientRect().height)),
    clipped: [...d.querySelectorAll('svg.chart')].filter(seen).filter(s => { const r = s.getBoundingClientRect();
      return r.right > w.innerWidth + 1 || r.left < 0; }).length,
    paper: light(style(d.body).backgroundColor), ink: light(style(d.body).color), order: [rows(table)]};
  const press = i => { heads[i].querySelector('button').click();
    found.order.push([heads[i].ariaSort, ...rows(table)]); };
  press(1); press(1); press(1); press(4); press(5); press(0);
  const field = d.querySelector('input[type=search]');
  field.value = 'METHOD 1'; field.dispatchEvent(new Event('input')); found.filtered = rows(table);
  field.value = ''; field.dispatchEvent(new Event('input')); found.all = rows(table).length;
  const heat = [...d.querySelectorAll('td.heat')].map(e => [parseInt(e.style.getPropertyValue('--share')),
    light(style(e).backgroundColor, style(d.body).backgroundColor), light(style(e).color)]);
  found.heat = heat.sort((a, b) => a[0] - b[0]);
  const name = [...d.querySelectorAll('[data-line]')].find(e => e.textContent === 'STAMP'); name.click();
  found.forward = [...d.querySelectorAll('svg .forward')].map(e => e.querySelector('title').textContent);
  return found;
};
onload = () => { document.title = JSON.stringify([...document.querySelectorAll('iframe')].map(of)); };
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    wanted = os.environ.get("TEST_ARTEFACTS")
    found = Path(wanted).resolve() / "report" if wanted else tmp_path_factory.mktemp("report")
    write_page(found / "page.html", sample.page())
    return found


def browse(*arguments: str) -> str:
    assert BROWSER is not None
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--allow-file-access-from-files",
    ]
    done = subprocess.run(
        [BROWSER, *flags, *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def wrap(folder: Path, widths: tuple[int, ...], height: int, script: str = "") -> str:
    """A page that shows the page in frames, since a window is never as narrow as a phone."""
    frames = "".join(
        f'<iframe src="page.html" style="width:{w}px;height:{height}px"></iframe>' for w in widths
    )
    style = "body{margin:0}iframe{border:0;display:block}"
    path = folder / f"frame-{'-'.join(map(str, widths))}{'-checks' * bool(script)}.html"
    head = f'<!DOCTYPE html><meta name="color-scheme" content="light dark"><style>{style}</style>'
    path.write_text(
        f"{head}{frames}<script>{script}</script>",
        encoding="utf-8",
    )
    return path.as_uri()


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[tuple[int, str], dict[str, Any]]:
    """What the checks saw, by width and colours."""
    seen = {}
    for tone, number in (("light", 1), ("dark", 0)):
        document = browse(
            f"--blink-settings=preferredColorScheme={number}",
            "--window-size=1400,900",
            "--dump-dom",
            wrap(folder, (1280, 390), 900, CHECKS),
        )
        title = re.search(r"<title>(.*?)</title>", document, re.DOTALL)
        assert title, document[:2000]
        for width, one in zip((1280, 390), json.loads(unescape(title[1])), strict=True):
            seen[width, tone] = one
    return seen


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_wider_than_the_page(found: dict[tuple[int, str], dict[str, Any]], width: int) -> None:
    one = found[width, "light"]
    assert one["width"] == width
    assert one["clipped"] == 0
    assert (one["wide"], one["narrow"]) == ((5, 0) if width == 1280 else (0, 5))
    assert one["text"] >= 10  # pixels of a line of text, in the smallest drawing


@pytest.mark.parametrize("width", [1280, 390])
def test_light_is_light_and_dark_is_dark(found: dict[tuple[int, str], dict[str, Any]], width: int) -> None:
    light, dark = found[width, "light"], found[width, "dark"]
    assert light["paper"] > 240 > 60 > light["ink"]
    assert dark["paper"] < 40 < 200 < dark["ink"]


@pytest.mark.parametrize("tone", ["light", "dark"])
def test_a_stronger_heat_is_further_from_the_paper_and_its_number_is_read(
    found: dict[tuple[int, str], dict[str, Any]], tone: str
) -> None:
    one = found[1280, tone]
    steps = [abs(luminance - one["paper"]) for _, luminance, _ in one["heat"]]
    assert steps == sorted(steps)
    assert steps[-1] > steps[0] + 40
    assert all(abs(text - ground) > 60 for _, ground, text in one["heat"])


def test_tables_are_sorted_and_filtered(found: dict[tuple[int, str], dict[str, Any]]) -> None:
    one = found[390, "light"]
    first, down, up, again, gaps, words, names = one["order"]
    assert len(first) == 12
    assert down == ["descending", *first[::-1]]
    assert up == ["ascending", *first]
    assert again == [None, *first]
    # A missing number comes last, ties keep their order.
    assert gaps == ["descending", *(name for name in first if name != "TENT"), "TENT"]
    assert words == ["descending", *(name for name in first if not name.startswith("Source")), "Source"]
    assert names[0] == "ascending"
    assert names[-2:] == ["STAMP†", "TENT"]
    assert names.index("method 9") < names.index("method 10")  # numbers in names by their value
    assert sorted(one["filtered"]) == ["method 10", "method 11"]
    assert one["all"] == 12


def test_a_name_of_the_legend_brings_its_line_forward(found: dict[tuple[int, str], dict[str, Any]]) -> None:
    assert found[1280, "light"]["forward"] == ["STAMP"] * 4  # wide, narrow and two small drawings


@pytest.mark.parametrize(("width", "tone"), [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")])
def test_screenshots(
    folder: Path, found: dict[tuple[int, str], dict[str, Any]], width: int, tone: str
) -> None:
    height = found[width, tone]["height"]
    picture = folder / f"page-{width}-{tone}.png"
    number = 1 if tone == "light" else 0
    browse(
        f"--blink-settings=preferredColorScheme={number}",
        f"--window-size={max(width, 500)},{height}",
        f"--screenshot={picture}",
        wrap(folder, (width,), height),
    )
    assert picture.stat().st_size > 50_000
