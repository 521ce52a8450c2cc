"""Routes of the page: the page itself, which holds no data, and the history of a stream."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Depends, Path, Query
from fastapi.responses import HTMLResponse

from testtime.serve.page.views import HistoryView, ShadowView, held_view, record_view, shadow_view
from testtime.serve.server.access import client
from testtime.serve.server.problems import responses
from testtime.serve.server.schemas import STREAM
from testtime.serve.server.service import Service

if TYPE_CHECKING:
    from testtime.serve import Session

__all__ = ["ROUTER", "page"]

ROUTER = APIRouter(tags=["page"])
MOST = 2048  # records of an answer


@cache
def page() -> tuple[str, dict[str, str]]:
    """Return the HTML of the page and its headers, which forbid every other script, style and host."""
    style = _file("testtime.report", "templates/style.css") + _file("testtime.serve.page", "page.css")
    script = _file("testtime.serve.page", "charts.js") + _file("testtime.serve.page", "page.js")
    html = _file("testtime.serve.page", "page.html")
    for place, text in (("/*style*/", style), ("/*script*/", script)):
        html = html.replace(place, text)
    policy = (
        f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; img-src data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return html, {
        "Content-Security-Policy": policy,
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }


@ROUTER.get("/", include_in_schema=False)
async def shown() -> HTMLResponse:
    """The page for people; its data come from the other routes, which ask for a token."""
    html, headers = page()
    return HTMLResponse(html, headers=headers)


@ROUTER.get(
    "/streams/{stream}/history",
    response_model=HistoryView,
    responses=responses(404),
    summary="The last requests of a stream",
)
async def history(
    stream: Annotated[str, Path(description="identity of the stream", pattern=STREAM)],
    service: Annotated[Service, Depends(client)],
    after: Annotated[int, Query(ge=-1, description="offset after which requests are listed")] = -1,
) -> HistoryView:
    """Time, estimates and events of the last requests of a stream, and the samples that were not learned from."""

    def job(session: Session) -> HistoryView:
        service.need(stream)
        records = [record_view(one) for one in session.history(stream) if one["offset"] > after][-MOST:]
        held = [held_view(one) for one in session.quarantine(stream)]
        return HistoryView(stream=stream, model=service.options.model.name, records=records, held=held)

    return await service.ask(job)


@ROUTER.get(
    "/shadow", response_model=ShadowView, responses=responses(), summary="Other methods on the same images"
)
async def shadow(service: Annotated[Service, Depends(client)]) -> ShadowView:
    """Which of the methods that run in shadow is recommended, and why; ``PUT /configuration`` switches to it."""
    running = service.options.shadow
    if running is None:
        return ShadowView(running=False)
    return shadow_view(running, service.options.candidates, service.candidate)


def _file(package: str, name: str) -> str:
    return (resources.files(package) / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
