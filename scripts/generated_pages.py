"""Write generated pages of the documentation, or compare them with those that stand: for the scripts beside it."""

import argparse
from collections.abc import Mapping
from pathlib import Path

__all__ = ["write_or_check"]

ROOT = Path(__file__).resolve().parents[1]


def write_or_check(folder: Path, pages: Mapping[str, str], about: str) -> int:
    """Write the pages that differ; with ``--check`` on the command line, write nothing.

    Args:
        folder: folder of the pages in this repository, which is made.
        pages: text by file name.
        about: help of the command line.

    Returns:
        exit status: 1 where ``--check`` found a difference.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    words = "write nothing; exit with 1 where a page would change"
    parser.add_argument("--check", action="store_true", help=words)
    check = parser.parse_args().check
    folder.mkdir(parents=True, exist_ok=True)
    changed = []
    for name, text in pages.items():
        path = folder / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            changed.append(name)
            if not check:
                path.write_text(text, encoding="utf-8")
    found = ", ".join(changed) or "nothing"
    print(f"{folder.relative_to(ROOT)}: {found} {'would change' if check else 'changed'}")
    return int(check and bool(changed))
