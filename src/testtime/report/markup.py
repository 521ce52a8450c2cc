"""Text with a few inline elements, by MarkupSafe: the only way in which HTML enters a page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from markupsafe import Markup, escape

__all__ = ["Text", "code", "dim", "join", "listed", "phrase", "plain", "strong", "sub", "sup"]

Text = str | Markup
"""A string, which is escaped, or :class:`markupsafe.Markup`, which the functions of this module make and which enters as it is.

>>> str(strong("a < b") + ", " + sub("TTT"))
'<strong>a &lt; b</strong>, <sub>TTT</sub>'
"""


def plain(text: Text) -> str:
    """Return a text without its elements.

    >>> plain("Δ" + sub("TTT") + " < 1")
    'ΔTTT < 1'
    """
    return text.striptags() if isinstance(text, Markup) else text


def phrase(template: str, *arguments: Text) -> Markup:
    """Fill the places ``{}`` of a sentence. The sentence and all arguments that are no markup are escaped.

    >>> str(phrase("{} has {} %", strong("TENT"), "<5"))
    '<strong>TENT</strong> has &lt;5 %'
    """
    return escape(template).format(*arguments)


def join(parts: Sequence[Text], by: Text = " ") -> Text:
    """Join texts; the result is plain where all of them are."""
    return (escape(by) if any(isinstance(part, Markup) for part in (by, *parts)) else by).join(parts)


def listed(parts: Sequence[Text]) -> Text:
    """Join texts as a phrase.

    >>> listed(["a"]), listed(["a", "b", "c"]), str(listed([strong("a"), "b"]))
    ('a', 'a, b and c', '<strong>a</strong> and b')
    """
    return join([join(parts[:-1], ", "), parts[-1]], " and ") if len(parts) > 1 else join(parts)


def _element(start: str, text: Text) -> Markup:
    return Markup(f"<{start}>{escape(text)}</{start.split()[0]}>")


strong: Callable[[Text], Markup] = partial(_element, "strong")
"""Bold text."""
code: Callable[[Text], Markup] = partial(_element, "code")
"""Text of a program."""
sub: Callable[[Text], Markup] = partial(_element, "sub")
"""Text below the line."""
sup: Callable[[Text], Markup] = partial(_element, "sup")
"""Text above the line."""
dim: Callable[[Text], Markup] = partial(_element, 'span class="dim"')
"""Text of the second rank, such as a unit."""
