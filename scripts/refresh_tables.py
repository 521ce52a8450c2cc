"""Write the tables of the documentation again from the results.

    python scripts/refresh_tables.py [docs/results.md ...]

A table stands between two comments: ``<!-- table 1 of results/cifar10-open -->``, or of several runs side by side, and
``<!-- end of table -->``. Nothing else of the page is touched.
"""

import argparse
import re
from pathlib import Path

from testtime.experiments import find_experiment, read_run
from testtime.files import write_text

TABLE = re.compile(r"(<!-- table (\d+) of ([^>]*?) -->\n).*?(<!-- end of table -->)", re.DOTALL)
ROOT = Path(__file__).resolve().parents[1]


def refreshed(text: str) -> str:
    """Return a page with its tables written again."""
    return TABLE.sub(lambda m: f"{m[1]}\n{_table(int(m[2]), m[3].split())}\n\n{m[4]}", text)


def _table(number: int, folders: list[str]) -> str:
    runs = [read_run(ROOT / folder) for folder in folders]
    experiment = find_experiment(runs[0].about["experiment"])
    tables = experiment.tables(runs[0]) if len(runs) == 1 else experiment.compared(runs)
    table, _, remarks = tables[number - 1].markdown().partition("\n\n")
    return "\n".join([table, "", *(f"- {line}" for line in remarks.splitlines())])


def main() -> None:
    """Refresh some pages, or all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pages", nargs="*", type=Path, help="pages (all of docs/)")
    for page in parser.parse_args().pages or sorted((ROOT / "docs").rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        if text != (new := refreshed(text)):
            print(write_text(page, new))


if __name__ == "__main__":
    main()
