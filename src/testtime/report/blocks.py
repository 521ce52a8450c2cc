"""What a page consists of: sections, and the blocks in them. Every string is escaped; see :mod:`testtime.report.markup`."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, final

from testtime.report.markup import Text
from testtime.report.table import Table

if TYPE_CHECKING:
    from testtime.report.drawing import Chart

__all__ = ["Block", "Bullets", "Definitions", "Details", "Figure", "Grid", "Legend", "Note", "Page"]
__all__ += ["Picture", "Section"]

SIGNATURES = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}


@final
@dataclass(frozen=True)
class Note:
    """A paragraph of the second rank: how a table or a chart is to be read."""

    text: Text


@final
@dataclass(frozen=True)
class Bullets:
    """A list of short texts."""

    items: Sequence[Text]


@final
@dataclass(frozen=True)
class Definitions:
    """Names and what belongs to them, such as the settings of a run."""

    items: Sequence[tuple[Text, object]]


@final
@dataclass(frozen=True)
class Figure:
    """A chart with its caption; nothing where there is no chart, because there was nothing to draw."""

    chart: Chart | None
    caption: Text


@final
@dataclass(frozen=True)
class Grid:
    """Small charts (drawn with ``small=True``) or narrow tables side by side, each at least ``width`` rem wide."""

    blocks: Sequence[Block]
    width: float = 18.0


@final
@dataclass(frozen=True)
class Legend:
    """Names in the colours of their lines (:func:`colours`); a press brings the line forward in every chart of the page."""

    keys: dict[str, int]


@final
@dataclass(frozen=True)
class Picture:
    """A PNG or JPEG that travels inside the page.

    Args:
        image: path of the file, or its bytes.
        caption: caption; empty for none.
        alt: description for screen readers; empty takes the caption.
        dark: the same on a dark ground; None shows ``image`` on both.
    """

    image: Path | bytes
    caption: Text = ""
    alt: str = ""
    dark: Path | bytes | None = None

    @property
    def uris(self) -> tuple[str, str]:
        """The picture as data URIs, for a light and for a dark ground; the second is empty where it is the same."""
        return _data_uri(self.image), "" if self.dark is None else _data_uri(self.dark)


@final
@dataclass(frozen=True)
class Details:
    """Blocks that are folded away behind a line of text, unless they are ``opened`` at first."""

    summary: Text
    blocks: Sequence[Block]
    opened: bool = False


Block = Text | Note | Bullets | Definitions | Figure | Grid | Legend | Picture | Details | Table
"""What a section of a page is made of; a paragraph is a string."""


@final
@dataclass(frozen=True)
class Section:
    """A section of a page: its anchor, its name in the contents, heading and blocks. One with nothing to show is left out."""

    id: str
    short: str
    heading: Text
    blocks: Sequence[Block]


@final
@dataclass(frozen=True)
class Page:
    """A page that needs nothing else.

    Args:
        title: title.
        kicker: a line above the title: where this page belongs.
        lead: findings, as a paragraph or as blocks.
        sections: sections.
        unfinished: missing parts of a run that is not finished; it stands before everything else. Empty for a whole run.
    """

    title: str
    kicker: Text
    lead: Text | Sequence[Block]
    sections: Sequence[Section]
    unfinished: Text = ""


def _data_uri(image: Path | bytes) -> str:
    data = image if isinstance(image, bytes) else Path(image).read_bytes()
    kind = next((kind for start, kind in SIGNATURES.items() if data.startswith(start)), None)
    if kind is None:
        name = "the bytes given" if isinstance(image, bytes) else str(image)
        raise ValueError(f"expected a PNG or JPEG for a page, {name} is neither")
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
