"""Tables and pages of test-space training: values, best rows, the diagonal, classes, runs that are not finished."""

import re
from pathlib import Path

import pytest

from testtime.experiments import Request, find_experiment, read_run
from testtime.experiments.provenance import SCHEMA, provenance
from testtime.experiments.run import RunFolder
from testtime.experiments.space.analyses import ANALYSES, entries
from testtime.experiments.space.planning import MEASURES, Planner
from testtime.experiments.space.presets import PRESETS
from testtime.report import page_html

RESULTS = Path(__file__).parents[3] / "results" / "space"
NAMES = {name for names in MEASURES.values() for name in names}


def made(folder, name, value, seeds=(0, 1), leave=0):
    """A run whose values are a function of the number of the entry and the entry, plus the seed."""
    experiment = find_experiment(f"space-{name}")
    request = Request(experiment.name, seeds, precision="float32")
    plan, run = experiment.plan(request), RunFolder(folder)
    run.write(experiment, request, plan, provenance(["testtime", "run", experiment.name], "cpu", "float32"))
    shown = entries(name, PRESETS[experiment.settings["preset"]])
    results = {}
    for cell, (i, entry) in zip(plan.cells, list(enumerate(shown)) * len(seeds), strict=True):
        found = results.setdefault(cell.unit.address, (cell.unit, {}))[1]
        found.setdefault(
            entry.measure, value(i, entry) + cell.seed
        )  # the pseudo-labeller has one unit for all seeds
        together = next((names for names in MEASURES.values() if entry.measure in names), ())
        found |= {name: 1.0 for name in together if name not in {*found, "IoU"}}
        if entry.measure.endswith("mIoU"):
            found["IoU"] = {"wall": 50.0 + i, "bed": None}
    for unit, result in list(results.values())[: len(results) - leave]:
        content = {"schema": SCHEMA, "unit": unit.described(), "result": result, "made": {"seconds": 1.0}}
        run.adopt(unit, content)
    return experiment, read_run(folder)


def html(experiment, run):
    return page_html(experiment.page(run))


def plain(text):
    return " ".join(re.sub(r"<[^>]*>", " ", text).split())


def test_variants_that_share_a_cell_are_averaged_by_seed(tmp_path):
    experiment, run = made(tmp_path / "run", "specialise", lambda i, e: float(i))
    (table,) = experiment.tables(run)
    values = {(row, key.split()[-1]): found for (row, key), found in table.values.items()}
    assert values["the test house", "1"] == {0: 0.0, 1: 1.0}
    assert values["houses never seen", "1"] == {0: 2.5, 1: 3.5}  # variants 1 to 4


def test_the_page_of_the_main_table(tmp_path):
    experiment, run = made(tmp_path / "run", "main", lambda i, e: 20.0 + 5 * i)
    text = html(experiment, run)
    assert "Highest is <strong>TST-MM (all), decoded</strong> with 50.5 ±0.7 (mIoU in %, 2 seeds)." in text
    assert "testtime run space-main" in text
    assert "<svg" in text
    block = next(b for b in experiment.page(run).sections[2].blocks)
    wall = next(row for row in block.rows if row.label == "wall")
    assert wall.cells == [50.0, 51.0, 52.0, 53.0, 54.0, 55.0, 56.0]
    (bed,) = (row for row in block.rows if row.label == "bed")
    assert all(cell != cell for cell in bed.cells)  # NaN is printed as a dash


@pytest.mark.parametrize("name", ["spaces", "features"])
def test_the_page_of_the_houses_compares_the_diagonal(name, tmp_path):
    experiment, run = made(tmp_path / "run", name, lambda i, e: 40.0 if e.row[-1] == e.column[-1] else 30.0)
    text = html(experiment, run)
    assert "worth 40.5 % mIoU in the house it was pre-trained in and 30.5 % in another (2 seeds)" in text
    assert "a difference of +10.0 points" in text
    assert len([chart for chart in experiment.figures(run) if chart]) == 2  # the matrix and the dots


def test_columns_that_are_numbers_are_drawn(tmp_path):
    experiment, run = made(tmp_path / "run", "worth", lambda i, e: 30.0 + i)
    (chart,) = experiment.figures(run)
    assert "the test house: 30.5, 30.5; other houses: 31.5, 32.5, 33.5, 34.5, 35.5" in chart.description


def test_the_text_table(tmp_path):
    experiment, run = made(tmp_path / "run", "mixin", lambda i, e: 10.0 * i)
    lines = experiment.tables(run)[0].text().splitlines()
    assert lines[0] == "What do the transfer set's images add?"
    assert lines[-2].split() == ["both", "20.5", "±0.7", "*"]


def test_every_experiment_keeps_compute_and_asks_for_what_is_measured():
    tiny = PRESETS["tiny"]
    for name in ANALYSES:
        shown = entries(name, tiny)
        assert len({(e.row, e.column, e.variant) for e in shown}) == len(shown)
        for entry in shown:
            assert entry.measure in NAMES
            variant = entry.variant
            if variant.places and variant.places != tiny.outside.places:
                least = 0.99 * tiny.frames if variant.places[0].whole else tiny.frames // 5
                assert tiny.space(variant.places).frames >= least


def test_every_experiment_is_planned():
    for name in ANALYSES:
        if name == "own":  # which needs a walk, see test_own_space.py
            continue
        experiment = find_experiment(f"space-{name}")
        plan = experiment.plan(Request(experiment.name, (0, 1)))
        assert len(plan.cells) == 2 * len(entries(name, PRESETS["tiny"]))
        assert {cell.row for cell in plan.cells} == {row.label for row in plan.rows}


def test_floor_and_ceiling_place_the_others(tmp_path):
    experiment, run = made(tmp_path / "run", "summary", lambda i, e: 20.0 + 5 * i)
    (table,) = experiment.tables(run)
    placed = table.column("between floor and ceiling")
    found = [table.cell(row.label, placed)[0] for row in table.rows]
    assert found == ["0.00", "0.17", "0.33", "0.50", "0.67", "0.83", "1.00"]
    assert [row.role for row in table.rows][::6] == ["base", "ceiling"]
    assert table.best(table.columns[0]) == "TST-MM (all)"  # the ceiling is never the best
    assert "Highest is <strong>TST-MM (all)</strong>" in html(experiment, run)


def test_columns_of_their_own_measure_are_compared_alone(tmp_path):
    experiment, run = made(tmp_path / "run", "tasks", lambda i, e: 2.0 + i / 10 if i % 4 else 40.0 + i)
    text = plain(html(experiment, run))
    assert "Highest is TST-MM (all), mIoU with 52.5 ±0.7 (mIoU, 2 seeds)." in text
    assert "Highest is TST-MM (all), CIDEr-D with 3.9 ±0.7 (CIDEr-D, 2 seeds)." in text
    assert len([chart for chart in experiment.figures(run) if chart]) == 4
    table = experiment.page(run).sections[0].blocks[0]
    assert table.scale == "column"


def test_a_run_that_is_not_finished_says_so_first(tmp_path):
    experiment, run = made(tmp_path / "run", "main", lambda i, e: 20.0 + 5 * i, leave=3)
    text = plain(html(experiment, run))
    assert "11 of 14 cells have a result" in text
    assert "Highest" not in text
    assert experiment.tables(run)[0].leaders(experiment.tables(run)[0].columns[0]) == []


def test_rows_that_are_equal_in_print_are_all_the_highest(tmp_path):
    experiment, run = made(tmp_path / "run", "frozen", lambda i, e: 20.0 + 0.001 * i)
    assert "Highest are <strong>" in html(experiment, run)
    (table,) = experiment.tables(run)
    assert table.best(table.columns[0]) is None
    assert len(table.leaders(table.columns[0])) == 4


def test_rows_encoders_and_a_limit_are_chosen():
    experiment = find_experiment("space-main")
    settings = {"encoders": ["timm:vit_tiny_patch16_224"]}
    request = Request(experiment.name, (0,), rows=("tst-mae",), limit=7, settings=settings)
    with pytest.raises(ValueError, match="no row 'tst-may'"):
        experiment.plan(Request(experiment.name, (0,), rows=("tst-may",)))
    (cell,) = experiment.plan(request).cells
    assert (cell.row, cell.unit.parameters["views"]["frames"]) == ("TST-MAE", 7)
    plan = experiment.plan(Request(experiment.name, (0,), settings=settings))
    encoder = plan.cells[-1].unit.needs["transfer"].parameters["encoder"]
    assert encoder == {"objective": "named", "name": "timm:vit_tiny_patch16_224"}


def test_what_the_family_does_not_have_is_refused():
    experiment = find_experiment("space-main")
    with pytest.raises(ValueError, match="no preset 'huge'; there are tiny"):
        experiment.plan(Request(experiment.name, (0,), settings={"preset": "huge"}))
    with pytest.raises(ValueError, match="space-main has no methods to choose"):
        experiment.plan(Request(experiment.name, (0,), methods=("Tent",)))


def test_figures_that_are_committed():
    def means(name, column=0):
        run = read_run(RESULTS / name)
        assert not run.missing
        (table,) = find_experiment(run.about["experiment"]).tables(run)
        return {row.label: round(table.value(row.label, table.columns[column]), 1) for row in table.rows}

    assert means("main") == {
        "Scratch, RGB": 29.9,
        "Scratch, multimodal": 40.1,
        "TST-MAE": 31.8,
        "TST-MM (sensory)": 31.8,
        "TST-MM (all)": 31.7,
        "The pseudo-labeller itself": 37.2,
    }
    assert list(means("frozen").values()) == [19.5, 30.5, 29.6, 31.0]
    assert means("features", 2) == {"trained in 0": 25.2, "trained in 1": 22.9, "trained in 2": 26.8}
    assert list(means("propagate").values()) == [51.1, 54.8, 54.3, 55.0, 70.3]
    assert list(means("retrieval").values()) == [1.0, 0.0, 1.3, 4.0]
    run = read_run(RESULTS / "features")
    text = html(find_experiment("space-features"), run)
    assert "worth 28.1 % mIoU in the house it was pre-trained in and 25.9 % in another (3 seeds)" in text


def test_a_committed_run_is_that_of_the_plan():
    run = read_run(RESULTS / "main")
    (planned,) = {Planner(PRESETS["tiny"], 0).measured(entries("main", PRESETS["tiny"])[3].variant).address}
    cell = next(c for c in run.about["cells"] if c["row"] == "TST-MM (sensory)" and c["seed"] == 0)
    assert run.results[cell["unit"]]["unit"]["name"] == "segmentation of TST-MM (sensory), seed 0"
    assert cell["unit"] == planned
