"""Write a page of docs/examples from every example with percent cells.

python scripts/example_pages.py            # writes docs/examples/*.md
python scripts/example_pages.py --check    # exits with 1 where a page would change

A cell "# %% [markdown]" becomes text, a cell "# %%" code. The pictures of a page are the files of docs/images that the example
writes: PICTURES says after which heading each stands.
"""

import sys
from pathlib import Path

from generated_pages import write_or_check

ROOT = Path(__file__).parents[1]
WRITTEN = "<!-- Written by scripts/example_pages.py from examples/{name}; do not edit. -->"
PICTURES = {
    "own_images.py": {
        "A signal without labels": ("drift-diversity.svg", "Diversity of the predictions along the stream"),
        "What the labels say": ("drift-accuracy.svg", "Accuracy along the stream"),
    },
    "many_tasks.py": {
        "Adapt, beside the control": ("tasks-gain.svg", "Mean gain over the unadapted network by step"),
        "What it looks like": ("tasks.jpg", "Images, depth and normals before and after, and the labels"),
    },
    "one_house.py": {
        "Fine-tuning and the test": ("house-miou.svg", "mIoU of four segmenters"),
        "What it looks like": ("house.png", "Pictures, two segmentations and the labels"),
    },
}


def page(name: str) -> str:
    """Return the page of an example.

    Args:
        name: name of the file in examples/.
    """
    text = (ROOT / "examples" / name).read_text(encoding="utf-8")
    parts, heading = [WRITTEN.format(name=name)], ""
    for cell in text.split("# %%")[1:]:
        first, _, body = cell.partition("\n")
        if "[markdown]" in first:
            words = "\n".join(line.removeprefix("#").removeprefix(" ") for line in body.strip().splitlines())
            parts += _picture(name, heading) if words.startswith("#") else []
            heading = words.partition("\n")[0].lstrip("# ") if words.startswith("#") else heading
            parts.append(words)
        else:
            parts.append(f"```python\n{body.strip()}\n```")
    parts += _picture(name, heading)
    return "\n\n".join(parts) + "\n"


def pages() -> dict[str, str]:
    """Return the text of every page by its file name."""
    return {f"{Path(name).stem}.md": page(name) for name in PICTURES}


def _picture(name: str, heading: str) -> list[str]:
    if heading not in PICTURES[name]:
        return []
    file, words = PICTURES[name][heading]
    return [f"![{words}](../images/{file})", f"*`python examples/{name} docs/images`*"]


if __name__ == "__main__":
    sys.exit(write_or_check(ROOT / "docs" / "examples", pages(), __doc__))
