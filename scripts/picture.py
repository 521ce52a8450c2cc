"""Draw the picture of the README from a run: mean H-score of every method, with its deviation over seeds.

python scripts/picture.py results/cifar10-open docs/result.svg
"""

import argparse
from pathlib import Path

from testtime.experiments import find_experiment, read_run
from testtime.report import Point, row_chart, write_chart

HEADLINE, OURS = "mean H", "PAF+KIP"


def main() -> None:
    """Read the run, write the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    run = read_run(options.run)
    table = find_experiment(run.about["experiment"]).tables(run)[0].sorted_by(HEADLINE)
    column = table.column(HEADLINE)
    points = [
        Point(
            f"{row.label}  {table.cell(row.label, column)[0]}",
            table.value(row.label, column),
            spread=table.spread(row.label, column),
            colour=1 if row.label == OURS else 0,
        )
        for row in table.rows
    ]
    seeds = len(run.request.seeds or ())
    x = f"H-score, mean of {len(run.about['about']['columns'])} open sets, %; ± the deviation over {seeds} seeds"
    chart = row_chart(points, title=run.about["title"], x=x)
    assert chart is not None
    print(write_chart(options.out, chart))


if __name__ == "__main__":
    main()
