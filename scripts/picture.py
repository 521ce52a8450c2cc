"""Draw the picture of the README from a run: mean H-score of every method, with the spread over seeds.

python scripts/picture.py runs/cifar10-open docs/result.svg
"""

import argparse
import statistics
from html import escape
from pathlib import Path

from testtime.bench import read_run

WIDTH, ROW, LEFT, TOP = 760, 26, 110, 74


def main() -> None:
    """Read the run, write the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    run = read_run(options.run)
    seeds = run.about["seeds"]

    def by_seed(row: str) -> list[float]:
        cells = [cell for column in run.columns for cell in run.cells(row, column)]
        scores = [[c["average"]["h_score"] for c in cells if c["seed"] == seed] for seed in seeds]
        return [statistics.mean(score) for score in scores if score]

    figures = {row: by_seed(row) for row in run.ranked}
    low = 10 * (min(min(v) for v in figures.values()) // 10)
    high = 5 * (max(max(v) for v in figures.values()) // 5 + 1)

    def at(value: float) -> float:
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - 70)

    bottom = TOP + ROW * len(figures)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + 34}" width="{WIDTH}" role="img" '
        'font-family="system-ui, sans-serif" font-size="13">',
        f"<title>{escape(run.about['title'])}: mean H-score by method</title>",
        '<rect width="100%" height="100%" rx="8" fill="#fff"/>',
        f'<text x="16" y="26" font-size="16" font-weight="600" fill="#1b1f24">{escape(run.about["title"])}</text>',
        f'<text x="16" y="48" fill="#57606a">H-score, mean of {len(run.columns)} open sets, in percent; the line is '
        f"the standard deviation over {len(seeds)} seeds</text>",
    ]
    for value in range(int(low), int(high) + 1, 5):
        x = at(value)
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 8}" y2="{bottom}" stroke="#e6e8eb"/>')
        parts.append(
            f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle" fill="#57606a">{value}</text>'
        )
    for i, (row, values) in enumerate(figures.items()):
        y, mean = TOP + ROW * i, statistics.mean(values)
        colour = "#0969da" if row == "PAF+KIP" else "#8c959f"
        weight = "600" if row == "PAF+KIP" else "400"
        parts.append(
            f'<text x="{LEFT - 10}" y="{y + 15}" text-anchor="end" font-weight="{weight}" fill="#1b1f24">{escape(row)}</text>'
            f'<line x1="{LEFT}" x2="{at(mean):.1f}" y1="{y + 11}" y2="{y + 11}" stroke="#d0d7de"/>'
            f'<circle cx="{at(mean):.1f}" cy="{y + 11}" r="5" fill="{colour}"/>'
        )
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        if spread:
            parts.append(
                f'<line x1="{at(mean - spread):.1f}" x2="{at(mean + spread):.1f}" y1="{y + 11}" y2="{y + 11}" '
                'stroke="#1b1f24" stroke-width="1.5"/>'
            )
        parts.append(
            f'<text x="{at(mean + spread) + 8:.1f}" y="{y + 15}" fill="#1b1f24" font-weight="{weight}">{mean:.1f}</text>'
        )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text("\n".join([*parts, "</svg>"]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
