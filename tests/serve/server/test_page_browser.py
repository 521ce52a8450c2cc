"""The page in a browser: tokens, rollback, pause, the switch to a candidate; phone width, light and dark.

Screenshots are left in the folder of the environment variable TEST_ARTEFACTS, otherwise in a temporary one.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("fastapi", reason="pip install -e '.[serve]'")
pytest.importorskip("playwright", reason="pip install -e '.[dev]'")
import uvicorn
from playwright import sync_api
from server_world import MANAGE, TOKENS, USE, images, served

from testtime.methods import Source
from testtime.serve import Session
from testtime.serve.alarms import StreamAlarms
from testtime.serve.guards import AlarmOptions
from testtime.serve.page import ROUTER
from testtime.serve.server import Configuration, ServerOptions, create_app, listening, open_session
from testtime.serve.shadow import Shadow

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="neither chromium nor google-chrome is installed"),
]
SECONDS = 60_000  # a busy machine
EVIL = "<img src=x onerror=\"document.title='broken'\">"


@pytest.fixture(scope="module")
def shots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    wanted = os.environ.get("TEST_ARTEFACTS")
    found = Path(wanted).resolve() / "page" if wanted else tmp_path_factory.mktemp("page")
    found.mkdir(parents=True, exist_ok=True)
    return found


@pytest.fixture
def world(tmp_path: Path) -> Iterator[tuple[str, Session]]:
    """A server with tokens whose stream has learned, was given bad images and has a snapshot; its address and its session."""
    model, used = served(), Configuration("tent")
    session, _ = open_session(model, used, tmp_path)
    candidates = {"tent": used, "bn-adapt": Configuration("bn-adapt")}
    built = {name: model.build(one) for name, one in candidates.items()}
    reference = StreamAlarms.reference_of(model.network, session.adapter)
    with (
        Shadow(built, Source(model.network), share=1.0, least=32, every=1) as shadow,
        StreamAlarms(reference, AlarmOptions(share=1.0), waiting=50) as alarms,
    ):
        options = ServerOptions(model, used, TOKENS, candidates=candidates, shadow=shadow, alarms=alarms)
        app = create_app(session, options, (ROUTER,))
        for seed in range(30):
            x = images(seed, 8)
            if seed == 20:
                x[0], x[1, 0, 0, 0] = 0.5, torch.nan
            answer = session.submit(x, "hall-1")
            shadow.offer(x[[not r for r in answer.refused]], "hall-1")
            if seed == 15:
                session.snapshot("hall-1")
        events = session.history("hall-1")[-1]["events"]
        events.append({"kind": "alarm", "reason": EVIL, "step": 29})
        session.submit(images(99), "door")
        for seed in range(20):  # answers that are never the shipped model's
            classes = reference.shipped_prediction(images(seed, 8))[1]
            alarms.offer(images(seed, 8), torch.nn.functional.one_hot((classes + 1) % 3, 3).float(), "hall-1")
        alarms.settle()
        shadow.settle()
        found = listening("127.0.0.1", 0)
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [found]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{found.getsockname()[1]}", session
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as p:
        one = p.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield one
        one.close()


def opened(browser: Any, url: str, width: int, scheme: str, seen: list[str]) -> Any:
    """The page with the client's token, after its figures are drawn."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    page.set_default_timeout(SECONDS)
    page.on("request", lambda request: seen.append(request.url))
    page.on("pageerror", lambda error: seen.append(f"error: {error}"))
    page.goto(url)
    page.fill("#token", USE)
    page.click("#go")
    page.wait_for_selector("#charts svg")
    page.click("nav button >> text=hall-1")
    page.wait_for_selector("h1 >> text=small")
    page.wait_for_selector("#method >> text=hall-1")
    return page


@pytest.mark.timeout(900)
def test_it_fits_phones_and_asks_no_other_host(world: tuple[str, Session], browser: Any, shots: Path) -> None:
    url, seen = world[0], []
    for width in (1280, 390):
        for scheme in ("light", "dark"):
            page = opened(browser, url, width, scheme, seen)
            page.wait_for_selector("#held article")
            page.screenshot(path=shots / f"page-{width}-{scheme}.png", full_page=True)
            assert page.evaluate("document.documentElement.scrollWidth") == width
            (dark,) = page.evaluate("[getComputedStyle(document.body).backgroundColor]")
            assert (int(dark.split("(")[1].split(",")[0]) < 60) == (scheme == "dark")
            roll = page.locator('[data-to="shipped"]').bounding_box()
            assert roll["x"] + roll["width"] <= width
            page.context.close()
    assert all(one.startswith((url + "/", "data:")) for one in seen), seen


@pytest.mark.timeout(900)
def test_what_it_shows(world: tuple[str, Session], browser: Any) -> None:
    url, session = world
    page = opened(browser, url, 1280, "light", seen := [])
    page.wait_for_selector("#held article")
    held = page.inner_text("#held")
    assert "constant" in held
    assert "not finite" in held
    assert EVIL in page.inner_text("#events")  # as text
    assert EVIL in page.inner_text("#alarms")
    alarm = page.inner_text("#alarms")
    assert "Worse than the shipped model" in alarm
    assert "by more than 1 % of the samples; such an alarm is false in at most 5 % of all streams" in alarm
    assert "broken" not in page.title()
    assert f"{session.status('hall-1').offset}" in page.inner_text("#tiles")
    assert page.locator("#charts figure").count() == 6
    page.wait_for_selector("#candidates tr >> nth=1")
    assert "bn-adapt" in page.inner_text("#candidates")
    assert page.inner_text("#advice").startswith(("Keep tent", "Switch to bn-adapt"))
    assert not [one for one in seen if one.startswith("error")]


@pytest.mark.timeout(900)
def test_lines_break_where_nothing_came(world: tuple[str, Session], browser: Any) -> None:
    page = opened(browser, world[0], 1280, "light", [])
    points = [[0, 1], [1, 2], [2, 3], [30, 9], [31, 5]]
    assert page.evaluate("points => parts(points).map(part => part.length)", points) == [3, 2]
    assert page.evaluate("points => smooth(points)", points) == [[0, 1], [1, 1.5], [2, 2], [30, 9], [31, 7]]
    assert page.evaluate("parts([[5, 1]]).length") == 1


@pytest.mark.timeout(900)
def test_management_asks_for_the_token_once(world: tuple[str, Session], browser: Any) -> None:
    url, session = world
    page = opened(browser, url, 1280, "light", seen := [])
    page.click("#pause")
    page.fill("#token", "this-one-is-not-the-right-token")
    page.click("#go")
    page.wait_for_selector("#problem >> text=does not allow")
    page.fill("#token", MANAGE)
    page.click("#go")
    page.wait_for_selector("#pause >> text=Resume")
    assert session.status("hall-1").paused
    assert "does not learn" in page.inner_text("#alarms")
    page.click("#pause")
    page.wait_for_selector("#pause >> text=Pause")
    assert not session.status("hall-1").paused
    (first, *_) = session.snapshots("hall-1")
    assert session.status("hall-1").state != first.state
    page.click(f'[data-to="{first.number}"]')
    page.click("#cancel")
    assert session.status("hall-1").state != first.state
    page.click(f'[data-to="{first.number}"]')
    page.click("#go")
    page.wait_for_selector(f"#done >> text=snapshot {first.number}")
    assert session.status("hall-1").state == first.state
    page.click('[data-to="shipped"]')
    page.click("#go")
    page.wait_for_selector("#done >> text=the shipped model")
    assert session.status("hall-1").state != first.state
    page.click('[data-switch="bn-adapt"]')
    page.click("#go")
    page.wait_for_selector("#done >> text=bn-adapt serves")
    page.wait_for_selector("#method >> text=bn-adapt")
    page.reload()  # the tab has the tokens
    page.wait_for_selector("#charts svg")
    assert not [one for one in seen if one.startswith("error")]


@pytest.mark.timeout(900)
def test_many_streams_are_a_list_to_choose_from(world: tuple[str, Session], browser: Any) -> None:
    url, session = world
    page = opened(browser, url, 390, "light", seen := [])
    for i in range(20):
        session.submit(images(i), f"gate-{i}")
    page.wait_for_selector("nav option >> nth=21", state="attached")
    assert page.locator("nav option").count() == 22
    page.select_option("nav select", "gate-7")
    page.wait_for_selector("#method >> text=gate-7")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    for i in range(100):
        session.submit(images(i, 1), f"yard-{i}")
    page.wait_for_selector("nav input")
    assert page.locator("nav option").count() == 0
    page.fill("nav input", "ard-7")
    page.wait_for_selector("datalist option >> nth=10", state="attached")
    assert page.locator("datalist option").count() == 11  # yard-7, and yard-70 to yard-79
    page.fill("nav input", "yard-77")
    page.press("nav input", "Enter")
    page.wait_for_selector("#method >> text=yard-77")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    session.forget("yard-77")
    page.wait_for_selector("#method >> text=door")
    assert not [one for one in seen if one.startswith("error")]
