r"""Markup of docstrings for the documentation: what `make docs` reads as reStructuredText becomes Markdown.

An extension of Griffe, which mkdocs.yml names. Roles (``:func:`name` ``) become links, `.. math::` and ``:math:`` become
MathML, doctests become code blocks, and sections such as *A step* and *Departures* get a heading. A role that names nothing in
the package is a warning, and `make docs` fails on warnings.

>>> markdown(":math:`x_i` is normalised.\n\n>>> 1 + 1\n2\n\nA step:\n    1. predict;\n    2. update.").splitlines()[2:]
['```pycon', '>>> 1 + 1', '2', '```', '', '**A step**', '', '1. predict;', '2. update.']
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from textwrap import dedent, indent
from typing import Any, Literal

import griffe
from latex2mathml.converter import convert

SECTIONS = "Args|Arguments|Attributes|Examples|Raises|Returns|Warns|Yields"  # what Griffe reads itself
ROLE = re.compile(r":(func|class|meth|data|mod|attr):`(?:([^`<]+)<)?(~?)([\w.]+)>?`")
MATH_BLOCK = re.compile(
    r"^([ ]*)\.\. math::[ ]*(.*)\n((?:\1[ ]{4}.*(?:\n|\Z)|[ ]*\n(?=\1[ ]{4}))*)", re.MULTILINE
)
MATH = re.compile(r":math:`([^`]+)`")
DOCTEST = re.compile(r"^([ ]*)>>> (?:.*\S.*(?:\n|\Z))+", re.MULTILINE)
SECTION = re.compile(
    rf"^(?!(?:{SECTIONS}):)([A-Z][\w -]*):[ ]*\n((?:[ ]{{4}}.*(?:\n|\Z)|[ ]*\n(?=[ ]{{4}}))+)", re.MULTILINE
)
LABELLED = re.compile(r"^(Cost|Reference|References|Example|Shape): ", re.MULTILINE)
CASES = re.compile(r"\\begin\{cases\}.*?\\end\{cases\}", re.DOTALL)
FUNCTION = re.compile(
    r"(?:(?<=[A-Za-z}\d])(\s+))?(\\(?:log|exp|max|min|cos|sin))(?![A-Za-z])(?:(\s+)(?=[A-Za-z\\]))?"
)
UNKNOWN = {r"\_": "_", r"\arg": r"\operatorname{arg}", r"\lVert": r"\|", r"\rVert": r"\|"}  # to the converter
LITERAL = re.compile(r"::[ ]*$", re.MULTILINE)

log = logging.getLogger(f"mkdocs.plugins.{__name__}")


def markdown(text: str, resolve: Callable[[str], str | None] = lambda name: None) -> str:
    """Return a docstring in Markdown.

    Args:
        text: the docstring, without its indentation.
        resolve: full path of the object that a role names; None for none.
    """

    def link(match: re.Match[str]) -> str:
        _, title, short, name = match.groups()
        shown = title.strip() if title else name.rpartition(".")[2] if short else name
        path = resolve(name)
        return f"`{shown}`" if path is None else f'<autoref identifier="{path}" optional>`{shown}`</autoref>'

    text = MATH_BLOCK.sub(_display, text)
    text = MATH.sub(lambda match: f'<span class="math">{_mathml(match[1])}</span>', text)
    text = ROLE.sub(link, text)
    text = DOCTEST.sub(_fenced, text)
    text = LITERAL.sub(":", text)
    text = SECTION.sub(lambda match: f"**{match[1]}**\n\n{dedent(match[2])}", text)
    return LABELLED.sub(r"**\1:** ", text)


def _display(match: re.Match[str]) -> str:
    space, first, rest = match.groups()
    tex = f"{first}\n{rest}".strip()
    outside = CASES.sub("", tex)
    if r"\\" in outside or "&" in outside:
        tex = rf"\begin{{align*}}{tex}\end{{align*}}"
    return indent(f'\n<div class="math">{_mathml(tex, "block")}</div>\n\n', space)


def _mathml(tex: str, display: Literal["inline", "block"] = "inline") -> str:
    """MathML of LaTeX, with thin spaces around the names of functions, which the converter leaves out."""

    def spaced(match: re.Match[str]) -> str:
        before, name, after = match.groups()
        return (r"\," if before else "") + name + (r"\," if after else "")

    for command, known in UNKNOWN.items():
        tex = tex.replace(command, known)
    return convert(FUNCTION.sub(spaced, tex), display=display)


def _fenced(match: re.Match[str]) -> str:
    return f"{match[1]}```pycon\n{match[0].rstrip()}\n{match[1]}```\n"


def _objects(found: griffe.Object) -> Iterator[griffe.Object]:
    yield found
    for member in found.members.values():
        if not member.is_alias:
            yield from _objects(member)  # type: ignore[arg-type]


class DocstringMarkup(griffe.Extension):
    """Rewrite the docstrings of a package when all of it is loaded."""

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **kwargs: Any) -> None:
        """Rewrite every docstring."""
        for found in _objects(pkg):
            if found.docstring is not None:
                found.docstring.value = markdown(found.docstring.value, lambda name, o=found: _path(o, name))


def _path(found: griffe.Object, name: str) -> str | None:
    """Full path of what a docstring names: in its class, its module or the package; None outside of the package."""
    package, (first, _, rest) = found.package, name.partition(".")
    scope: Any = package if first == package.name else found
    while scope is not None and first != package.name and first not in scope.all_members:
        scope = scope.parent
    if scope is None and rest:
        return None  # of another package
    try:
        target = scope.all_members[first] if first != package.name else package
        if target.is_alias and not target.target_path.startswith(f"{package.name}."):
            return None
        target = target[rest] if rest else target
        return str(target.final_target.path if target.is_alias else target.path)
    except (AttributeError, KeyError, griffe.AliasResolutionError):
        log.warning("%s: a docstring names %r, which is not there", found.path, name)
        return None
