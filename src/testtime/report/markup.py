"""Text with a few inline elements: the only way in which HTML enters a page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape, unescape
from typing import final

__all__ = ["Markup", "Text", "code", "dim", "emphasis", "html", "join", "link", "listed", "phrase"]
__all__ += ["plain", "strong", "sub", "sup"]


@final
class Markup:
    """HTML that enters a page as it is. The functions of this module make it; every plain string is escaped.

    >>> str(strong("a < b") + ", " + sub("TTT"))
    '<strong>a &lt; b</strong>, <sub>TTT</sub>'
    """

    __slots__ = ("_html",)

    def __init__(self, trusted: str) -> None:
        self._html = trusted

    def __html__(self) -> str:
        return self._html

    def __str__(self) -> str:
        return self._html

    def __repr__(self) -> str:
        return f"Markup({self._html!r})"

    def __add__(self, other: Text) -> Markup:
        return Markup(self._html + html(other))

    def __radd__(self, other: str) -> Markup:
        return Markup(html(other) + self._html)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Markup) and self._html == other._html

    def __hash__(self) -> int:
        return hash(self._html)

    def __bool__(self) -> bool:
        return bool(self._html)


Text = str | Markup


def html(text: Text) -> str:
    """Return the HTML of a text: escaped, unless it is markup."""
    return str(text) if isinstance(text, Markup) else escape(text)


def plain(text: Text) -> str:
    """Return a text without its elements.

    >>> plain("Δ" + sub("TTT") + " < 1")
    'ΔTTT < 1'
    """
    return unescape(re.sub("<[^>]*>", "", str(text))) if isinstance(text, Markup) else text


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


def _element(name: str, text: Text, attributes: str = "") -> Markup:
    return Markup(f"<{name}{attributes}>{html(text)}</{name}>")


def strong(text: Text) -> Markup:
    """Important text."""
    return _element("strong", text)


def emphasis(text: Text) -> Markup:
    """Emphasised text."""
    return _element("em", text)


def code(text: Text) -> Markup:
    """A command, a path or a name of a program."""
    return _element("code", text)


def sub(text: Text) -> Markup:
    """A subscript."""
    return _element("sub", text)


def sup(text: Text) -> Markup:
    """A superscript."""
    return _element("sup", text)


def dim(text: Text) -> Markup:
    """Text of the second rank, such as a unit."""
    return _element("span", text, ' class="dim"')


def link(address: str, text: Text = "") -> Markup:
    """A link to a web page, a file beside the page, or a section (``#name``).

    Raises:
        ValueError: the address has another scheme than http or https.
    """
    scheme, colon, _ = address.partition(":")
    if colon and "/" not in scheme and "#" not in scheme and scheme.lower() not in ("http", "https"):
        raise ValueError(f"expected an address of http, https or beside the page, got {address!r}")
    return _element("a", text or address, f' href="{escape(address)}"')
