"""Check the built documentation: `make docs` ends with it.

python scripts/check_site.py site

Every public name of the package has a docstring and stands in the reference, and no page loads a file from elsewhere. Broken
links and anchors are found by `mkdocs build --strict`.
"""

import re
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe

SRC = Path(__file__).parents[1] / "src"
INTERNAL = {
    "__main__",
    "build",
    "claims",
    "cli",
    "construction",
    "files",
    "gate",
    "intake",
    "labels",
    "lazy",
    "moved",
}
INTERNAL |= {"notices", "processor", "progress", "state", "toml", "workers"}
"""Modules of the package that are not for its users; what users need of them is handed out elsewhere."""

ASSET = re.compile(r"<(?:script|img|link|iframe)\b[^>]*?(?:src|href)=\"(?:https?:)?//[^\"]*\"[^>]*>")


def public_names() -> Iterator[tuple[str, Any]]:
    """Yield every public name of the package, with what it names.

    A name is public that a package or module has in ``__all__``; modules of a package that has one are not looked into.
    """
    package: Any = griffe.load("testtime", search_paths=[str(SRC)])
    yield from _exported(package)
    for module in package.modules.values():
        if module.name not in INTERNAL:
            yield from _public(module)


def _public(module: Any) -> Iterator[tuple[str, Any]]:
    yield from _exported(module)
    if not module.exports:
        for inner in module.modules.values():
            yield from _public(inner)


def _exported(module: Any) -> Iterator[tuple[str, Any]]:
    for export in module.exports or ():
        found = module[str(export)]
        found = found.final_target if found.is_alias else found
        named_alike = found.is_module and str(export) in found.members  # a function that hides its module
        yield f"{module.path}.{export}", found[str(export)] if named_alike else found


def inventory(site: Path) -> set[str]:
    """Return the names that the reference of a built site has anchors for.

    Args:
        site: folder of the site, with ``objects.inv``.
    """
    packed = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    return {line.split(" ", 1)[0] for line in zlib.decompress(packed).decode().splitlines()}


def faults(site: Path) -> list[str]:
    """Return what is wrong with a built site, in sentences."""
    known, found = inventory(site), []
    for name, named in public_names():
        if not named.has_docstring:
            found.append(f"{name} has no docstring: write one where {named.path} is defined")
        if not {name, named.path} & known:
            found.append(f"{name} is in no page of docs/api or docs/methods: add its module there")
    for page in sorted(site.rglob("*.html")):
        for tag in ASSET.findall(page.read_text(encoding="utf-8")):
            found.append(f"{page.relative_to(site)} loads a file from elsewhere: {tag}")
    return found


def main() -> int:
    """Print the faults; 1 if there are any."""
    site = Path(sys.argv[1] if len(sys.argv) > 1 else "site")
    found = faults(site)
    print("\n".join(found) or f"{site}: every public name is documented, nothing is loaded from elsewhere")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
