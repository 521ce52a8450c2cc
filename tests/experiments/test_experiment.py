"""Units and their addresses, resources and their stand-ins; and the one complete experiment, on real digits."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_family import Toy

from testtime.errors import DataError
from testtime.experiments import Request, Unit, find_experiment, read_run, run_experiment
from testtime.experiments.experiment import closure
from testtime.experiments.store import Store, execute
from testtime.files import read_json, write_json


def unit(name: str = "u", **parameters: object) -> Unit:
    return Unit("toy_family:source", {"seed": 0, "steps": 1, **parameters}, name)


def test_an_address_is_of_kind_parameters_and_needs_alone() -> None:
    a = unit(list=(1, 2))
    assert a.address == unit("other", list=[1, 2]).address == "2a61cbe930e008378f44ccdbe91e77aa"
    assert a.address == replace(a, code={"x": "1"}, places={"data": "/d"}, weight=3.0, alone=True).address
    assert (
        len(
            {
                x.address
                for x in (
                    a,
                    unit(list=[2, 1]),
                    replace(a, kind="toy_family:rate"),
                    replace(a, needs={"n": a}),
                )
            }
        )
        == 4
    )


def test_parameters_are_values_of_json() -> None:
    with pytest.raises(
        TypeError, match="u: the parameter 'f' is no value of JSON .*; pass names and numbers"
    ):
        unit(f=len)
    with pytest.raises(TypeError, match="Out of range float values"):
        unit(f=float("nan"))
    with pytest.raises(ValueError, match="the kind of a unit is 'package.module:function', got 'source'"):
        Unit("source", {}, "u")


def test_needs_come_first_and_once_and_bring_their_versions() -> None:
    a = Unit("m:f", {"n": 1}, "a", code={"A": "1"})
    b, c = (Unit("m:f", {"n": n}, str(n), {"a": a}) for n in (2, 3))
    d = Unit("m:f", {"n": 4}, "d", {"b": b, "c": c}, {"D": "2"})
    assert [u.name for u in closure([d, a])] == ["a", "2", "3", "d"]
    assert d.versions == {"D": "2", "b: a: A": "1", "c: a: A": "1"}


def test_a_unit_is_executed_from_plain_values_and_leaves_the_global_generators(tmp_path: Path) -> None:
    plan = Toy().plan(Request("toy", seeds=(0,), precision="float32"))
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index]  # noqa: NPY002
    for one in closure(plan.units):
        assert execute(one.described(), str(tmp_path)) == {"state": "done"}
        assert execute(one.described(), str(tmp_path)) == {"state": "done"}
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()  # type: ignore[index]  # noqa: NPY002
    found = Store(tmp_path).result(plan.cells[1].unit.address)
    assert found is not None
    assert found["result"]["value"] == 1.5
    again = Store(tmp_path / "again")
    for one in closure(plan.units):
        execute(one.described(), str(again.root))
    other = again.result(plan.cells[1].unit.address)
    assert other is not None
    assert other["result"]["random"] == found["result"]["random"]
    assert {"versions", "machine", "precision", "threads", "seconds"} <= found["made"].keys()
    assert "places" not in found["unit"]


def test_a_damaged_or_later_result_is_named(tmp_path: Path) -> None:
    request = Request("toy", seeds=(0,), precision="float32")
    run_experiment(Toy(), request, tmp_path / "run", say=lambda line: None)
    path = next((tmp_path / "run/results").glob("two_0-*.json"))
    content = read_json(path, "")
    write_json(path, {**content, "schema": 99})
    with pytest.raises(
        DataError,
        match=r"two_0-\w+.json is damaged .*it has schema 99, this version of testtime reads up to 1",
    ):
        read_run(tmp_path / "run")
    path.write_text("{}")
    with pytest.raises(DataError, match="schema is missing"):
        read_run(tmp_path / "run")
    with pytest.raises(
        ValueError, match="is not the folder of a run: it has no run.json; testtime run makes one"
    ):
        read_run(tmp_path)


def test_digits_train_adapt_and_fill_their_table(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="the embedded data come with testtime[demo]")
    digits = find_experiment("digits")
    request = Request(
        "digits",
        seeds=(0,),
        limit=64,
        rows=("TENT", "BN-adapt"),
        precision="float32",
        settings={"epochs": 2, "corruptions": ["contrast"]},
    )
    run_experiment(digits, request, tmp_path / "run", say=lambda line: None)
    (table,) = digits.tables(read_run(tmp_path / "run"))
    assert [(row.label, row.role) for row in table.rows] == [
        ("Source", "base"),
        ("BN-adapt", "control"),
        ("TENT", "method"),
    ]
    errors = {row.label: table.value(row.label, table.column("contrast")) for row in table.rows}
    assert errors["BN-adapt"] < errors["Source"] - 20
    assert errors == {row.label: table.value(row.label, table.column("mean")) for row in table.rows}
    weights = list(tmp_path.glob("store/units/*/*/source.safetensors"))
    assert len(weights) == 1
    assert not list(tmp_path.glob("store/units/*/*/checkpoint*"))
    assert all(path.stat().st_size < 5000 for path in (tmp_path / "run").rglob("*.json"))


def test_importing_the_package_imports_nothing_else() -> None:
    script = (
        "import sys, testtime.experiments; print(sum(name.startswith('testtime') for name in sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert int(found) <= 4
