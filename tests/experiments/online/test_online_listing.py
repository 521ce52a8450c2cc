"""The experiments as their files have them, and that every one can be planned and built."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from small_online import asked

from testtime.build import argument, find_method, nested_arguments
from testtime.data.named import NAMED
from testtime.experiments import Request, list_experiments
from testtime.experiments.online import listing
from testtime.experiments.online.experiment import Batches, Inputs, online
from testtime.metrics import h_score
from testtime.models import MODELS
from testtime.streams.named import ORDERS

ENTRIES = listing.entries()


@pytest.mark.parametrize("name", ENTRIES)
def test_every_experiment_names_what_exists_and_can_be_planned(name: str) -> None:
    one = online(name)
    assert one.entry["closed"] in NAMED
    assert one.entry["model"] in MODELS
    assert len({column.name for column in one.columns}) == len(one.columns)
    assert {column.open_set for column in one.columns} <= {None, *NAMED}
    for row in one.rows:
        cls = find_method(row.about["method"])
        arguments = {key: argument(value) for key, value in row.about["arguments"].items()}
        assert set(nested_arguments(cls, arguments)) <= set(inspect.signature(cls).parameters)
    names = ("weights", "corruptions", one.entry["closed"], *(c.open_set for c in one.columns if c.open_set))
    inputs = Inputs(
        one.entry["closed"], one.entry["model"], 32, dict.fromkeys(names, "digest"), {"data": "."}
    )
    request = Request(name, one.seeds, precision="float32", token="t")
    plan = one.plan_with(request, inputs, one.columns)
    assert len(plan.cells) == len(one.rows) * len(one.columns) * len(one.seeds)
    assert len({cell.unit.address for cell in plan.cells}) == len(plan.cells)
    for label, by_column in plan.about["published"].items():
        assert label in {row.label for row in one.rows}
        assert by_column.keys() <= {column.name for column in one.columns}


def test_the_list_needs_no_torch() -> None:
    script = (
        "import sys, testtime.experiments.registry as r; names = [e.name for e in r.list_experiments('online')['online']];"
        "print(len(names), names[0], names[-1], 'torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.split() == [
        str(len(ENTRIES) + len(listing.FEW_LABELS) + 1),
        "cifar10-open",
        "no-labels",
        "False",
    ]
    assert list_experiments("online")["online"][0].title.startswith("CIFAR-10-C with unknown images")


TABLES = ["cifar10", "cifar100", "imagenet", "ablation", "batch-size-cifar10", "batch-size-cifar100"]
TABLES += ["ratio-cifar10", "ratio-cifar100"]


@pytest.mark.parametrize("name", TABLES)
def test_published_h_scores_are_harmonic_means(name: str) -> None:
    columns = listing.read("published.toml")[name]["columns"]
    rows = [row for entry in ENTRIES.values() for row in listing.rows(entry)]
    table = listing.published(name, rows, columns)
    assert len(table) >= 5
    for label, by_column in table.items():
        for column, (accuracy, auroc, h) in by_column.items():
            if (label, h) == ("UniEnt", 87.12) and column == "150":
                continue  # the paper prints 87.12 beside 84.52 and 90.24, whose mean is 87.29
            assert accuracy is not None
            assert auroc is not None
            assert h_score(accuracy, auroc) == pytest.approx(h, abs=0.02)


def test_published_figures_that_the_specification_names() -> None:
    entry = ENTRIES["paper-table-1"]
    table = listing.published(entry["published"], list(listing.rows(entry)), ["SVHN"])
    assert {row: figures["SVHN"][2] for row, figures in table.items()} == {
        "Source": 79.76,
        "TENT": 72.47,
        "CoTTA": 84.05,
        "EATA": 83.34,
        "RoTTA": 84.01,
        "SoTTA": 56.02,
        "OSTTA": 77.57,
        "STAMP": 77.81,
        "UniEnt": 87.29,
        "UniEnt+": 88.23,
        "PAF+KIP": 92.30,
    }
    assert listing.published("soft-hard-imagenet", ["min soft, max hard"], ["Textures"]) == {
        "min soft, max hard": {"Textures": (None, None, 60.77)}
    }
    latency = listing.read("published.toml")["latency"]
    assert latency["PAF+KIP"] / latency["TENT"] == pytest.approx(3.46, abs=0.01)


def test_the_field_has_every_kind_of_stream() -> None:
    field = {name.removeprefix("field-"): one for name, one in ENTRIES.items() if name.startswith("field-")}
    assert {one["order"] for one in field.values()} == set(ORDERS)
    assert field["reset"]["reset"]
    assert field["forgetting"]["returns"]
    assert field["single"]["columns"][0]["batch_size"] == 1
    assert field["long"]["rounds"] * len(field["long"]["corruptions"]) == 60
    assert len(listing.rows(field["unmixed"])) == 20
    assert len(listing.rows(field["continual"])) == 45


def test_what_the_paper_ran_on_imagenet() -> None:
    one = online("paper-table-3")
    row = next(row.about for row in one.rows if row.label == "PAF+KIP")
    assert row["arguments"] == {"alpha": 0.7, "optimizer": "testtime.parts:sgd(2.5e-4)"}
    assert argument(row["arguments"]["optimizer"]).lr == 2.5e-4
    assert {column.batch_size for column in one.columns} == {64}


def test_no_note_of_an_experiment_counts_images() -> None:
    for name, one in ENTRIES.items():
        for text in (one["note"], one["title"], *(column["note"] for column in one["columns"])):
            assert not re.search(r"images for each|[0-9,]+ (closed-set )?images", text), (name, text)


def test_columns_and_rows_of_a_request() -> None:
    table = online("paper-table-1")
    places = {"data": "."}
    request = Request(
        "paper-table-1",
        rows=("pafkip", "Tent"),
        settings={"open_sets": ["textures", "cifar100"], "batch_size": 50},
    )
    assert [(c.name, c.open_set, c.batch_size) for c in table.chosen_columns(request, places)] == [
        ("Textures", "textures", 50),
        ("cifar100", "cifar100", 50),
    ]
    assert [row.label for row in table.chosen_rows(table.rows, request)] == ["Source", "TENT", "PAF+KIP"]
    sizes = online("paper-table-7a").chosen_columns(
        Request("x", settings={"open_sets": ["textures"]}), places
    )
    assert [(c.name, c.batch_size) for c in sizes] == [
        ("50 textures", 50),
        ("100 textures", 100),
        ("150 textures", 150),
        ("200 textures", 200),
    ]

    def labels(name: str, *rows: str) -> list[str]:
        one = online(name)
        return [row.label for row in one.chosen_rows(one.rows, Request(name, rows=rows))]

    assert labels("field-continual", "bn-adapt") == ["Source", "BN-adapt"]
    assert labels("field-long", "eta") == ["Source", "ETA"]
    assert labels("cifar10-ablation", "pafkip") == ["PAF+KIP"]
    assert len(labels("paper-figure-3", "pafkip")) == 6
    (single,) = online("field-single").chosen_columns(
        Request("x", settings={"open_sets": ["svhn"], "batch_size": 10}), places
    )
    assert (single.open_set, single.batch_size) == ("svhn", 10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "a batch holds at least 1 image, got batch_size 0"),
        ({"batch_size": 1}, "a batch of 1 with 1 unknown for each known image holds no known one"),
        ({"slow_limit": 0}, "slow_limit is a whole number from 1"),
        ({"rounds": 0}, "rounds is a whole number from 1"),
        ({"severity": 9}, "severity is a whole number from 1 to 5, got 9"),
        ({"order": "mixd"}, r"no order 'mixd' \(did you mean 'mixed'\?\)"),
        ({"order": "wandering"}, "needs a target and a pace"),
        ({"corruptions": ["fogg"]}, r"no corruption 'fogg' \(did you mean 'fog'\?\)"),
        ({"open_sets": []}, "is empty"),
        ({"open_sets": ["photograph"]}, r"no data set 'photograph' \(did you mean 'photographs'\?\)"),
        ({"rows": ("tnet",)}, r"has no row 'tnet' \(did you mean 'TENT'\?\); its rows are Source"),
    ],
)
def test_what_cannot_be_run_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        online("digits-open").plan(asked(**changes))
    with pytest.raises(ValueError, match="ratio is a number above 0"):
        Batches("a", "svhn", ratio=0).check()


def test_an_unknown_experiment_is_named() -> None:
    with pytest.raises(ValueError, match=r"no experiment 'cifar10-opne' \(did you mean 'cifar10-open'\?\)"):
        online("cifar10-opne")


def test_the_address_of_a_unit_is_a_function_of_what_it_depends_on() -> None:
    def address(**changes: Any) -> str:
        return online("digits-open").plan(asked(rows=("Source",), **changes)).cells[0].unit.address

    assert address() == address()
    others = [
        {"limit": 31},
        {"seeds": (1,)},
        {"severity": 4},
        {"speed": 1.0},
        {"reset": True},
        {"batch_size": 40},
    ]
    assert len({address(), *(address(**other) for other in others)}) == 1 + len(others)
    assert address() == address(data="..")
    parameters = online("digits-open").plan(asked()).cells[0].unit.parameters
    assert not {"target", "pace", "speed", "reset", "returns"} & parameters.keys()
    json.dumps(parameters)


def test_experiments_share_the_cells_that_are_equal() -> None:
    """TENT of the ablation is TENT of the table."""

    def units(name: str, label: str) -> set[str]:
        one = online(name)
        facts = {"weights": "a", "corruptions": "b", "cifar10": "c", "textures": "d"}
        inputs = Inputs("cifar10", one.entry["model"], 32, facts, {})
        request = replace(Request(name, (0,), precision="float32"), token=name)
        columns = [column for column in one.columns if column.name == "Textures"]
        return {c.unit.address for c in one.plan_with(request, inputs, columns).cells if c.row == label}

    assert units("cifar10-ablation", "no filter") == units("cifar10-open", "TENT")
    assert units("cifar10-ablation", "primary") != units("cifar10-open", "PAF+KIP")
