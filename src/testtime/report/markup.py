"""Text with a few inline elements: the only way in which HTML enters a page."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape, unescape
from typing import final

__all__ = ["Markup", "Text", "code", "dim", "emphasis", "html", "join", "link", "listed", "phrase"]
__all__ += ["plain", "strong", "sub", "sup"]


@final
@dataclass(frozen=True)
class Markup:
    """HTML that enters a page as it is. The functions of this module make it; every plain string is escaped.

    >>> str(strong("a < b") + ", " + sub("TTT"))
    '<strong>a &lt; b</strong>, <sub>TTT</sub>'
    """

    trusted: str

    def __str__(self) -> str:
        return self.trusted

    __html__ = __str__  # what Jinja2 asks a text that it does not escape

    def __add__(self, other: Text) -> Markup:
        return Markup(self.trusted + html(other))

    def __radd__(self, other: str) -> Markup:
        return Markup(html(other) + self.trusted)


Text = str | Markup
"""A string, which is escaped, or :class:`Markup`."""


def html(text: Text) -> str:
    """Return the HTML of a text: escaped, unless it is markup."""
    return text.trusted if isinstance(text, Markup) else escape(text)


def plain(text: Text) -> str:
    """Return a text without its elements.

    >>> plain("Δ" + sub("TTT") + " < 1")
    'ΔTTT < 1'
    """
    return unescape(re.sub("<[^>]*>", "", text.trusted)) if isinstance(text, Markup) else text


def phrase(template: str, *arguments: Text) -> Markup:
    """Fill the places ``{}`` of a sentence. The sentence and all arguments that are no markup are escaped.

    >>> str(phrase("{} has {} %", strong("TENT"), "<5"))
    '<strong>TENT</strong> has &lt;5 %'
    """
    return Markup(escape(template).format(*map(html, arguments)))


def join(parts: Sequence[Text], by: Text = " ") -> Text:
    """Join texts; the result is plain where all of them are."""
    if isinstance(by, str) and all(isinstance(part, str) for part in parts):
        return by.join(str(part) for part in parts)
    return Markup(html(by).join(map(html, parts)))


def listed(parts: Sequence[Text]) -> Text:
    """Join texts as a phrase.

    >>> listed(["a"]), listed(["a", "b", "c"]), str(listed([strong("a"), "b"]))
    ('a', 'a, b and c', '<strong>a</strong> and b')
    """
    return join([join(parts[:-1], ", "), parts[-1]], " and ") if len(parts) > 1 else join(parts)


def _element(start: str, text: Text) -> Markup:
    return Markup(f"<{start}>{html(text)}</{start.split()[0]}>")


strong: Callable[[Text], Markup] = partial(_element, "strong")
"""Bold text."""
emphasis: Callable[[Text], Markup] = partial(_element, "em")
"""Text in italics."""
code: Callable[[Text], Markup] = partial(_element, "code")
"""Text of a program."""
sub: Callable[[Text], Markup] = partial(_element, "sub")
"""Text below the line."""
sup: Callable[[Text], Markup] = partial(_element, "sup")
"""Text above the line."""
dim: Callable[[Text], Markup] = partial(_element, 'span class="dim"')
"""Text of the second rank, such as a unit."""


def link(address: str, text: Text = "") -> Markup:
    """Return a link to a web page, a file beside the page, or a section (``#name``).

    Raises:
        ValueError: the address has another scheme than http or https.
    """
    scheme = re.match(r"\s*([^/?#]*):", address)
    if scheme and scheme[1].lower() not in ("http", "https"):
        raise ValueError(f"expected an address of http, https or beside the page, got {address!r}")
    return _element(f'a href="{escape(address)}"', text or address)
