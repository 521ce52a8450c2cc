"""Convert the results of a former version into the format of testtime.experiments.

    python scripts/convert_results.py FAMILY OLD NEW

FAMILY is a module of scripts/convert_results, OLD the folder of the family's runs, NEW the folder that gets the converted ones.
What the former version did not keep, such as the version of a method's code, is not made up: it is left empty.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    families = sorted(path.stem for path in Path(__file__).with_suffix("").glob("*.py"))
    if len(sys.argv) != 4 or sys.argv[1] not in families:
        sys.exit(f"usage: python scripts/convert_results.py FAMILY OLD NEW; families: {', '.join(families)}")
    family, old, new = sys.argv[1:]
    module = runpy.run_path(str(Path(__file__).with_suffix("") / f"{family}.py"))
    for line in module["convert"](Path(old), Path(new)) or ():
        print(line)
