"""The execution of a unit: what an own function may do to its process, and files that are not what they should be."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from testtime.errors import DataError
from testtime.experiments import Unit, Workspace
from testtime.experiments.store import Store, execute, read_result
from testtime.files import read_json, write_json

HERE = "test_store"


def wandering(work: Workspace) -> dict[str, Any]:
    """Change what belongs to the process."""
    os.chdir(work.folder)
    random.seed(1)
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    return {"value": 1}


def leaving(work: Workspace) -> dict[str, Any]:
    sys.exit(work.parameters["code"])


def number(work: Workspace) -> Any:
    return 3


def once(work: Workspace) -> dict[str, Any]:
    return {"value": work.parameters["value"]}


def attempt(root: Path, kind: str, **parameters: Any) -> tuple[Unit, dict[str, Any]]:
    unit = Unit(f"{HERE}:{kind}", parameters, kind)
    return unit, dict(execute(unit.described(), str(root)))


def test_a_unit_leaves_the_working_folder_and_the_generators_as_they_were(tmp_path: Path) -> None:
    def state() -> list[Any]:
        legacy: Any = np.random.get_state()  # noqa: NPY002
        return [Path.cwd(), random.getstate(), legacy[1].tolist(), torch.get_rng_state().tolist()]

    before = state()
    assert attempt(tmp_path, "wandering")[1] == {"state": "done"}
    assert state() == before


@pytest.mark.parametrize("code", [0, 3, "enough"])
def test_a_unit_that_exits_has_failed_and_does_not_end_the_process(tmp_path: Path, code: object) -> None:
    assert attempt(tmp_path, "leaving", code=code)[1]["error"] == f"SystemExit: {code}"


def test_a_result_that_is_no_dictionary_is_a_failure_and_leaves_no_file(tmp_path: Path) -> None:
    unit, outcome = attempt(tmp_path, "number")
    assert outcome["error"] == "TypeError: test_store:number returned int, expected a dictionary of values"
    assert not (Store(tmp_path).folder(unit.address) / "result.json").exists()


def test_the_result_of_another_unit_is_refused_by_name(tmp_path: Path) -> None:
    store = Store(tmp_path)
    one, _ = attempt(tmp_path, "once", value=1)
    two, _ = attempt(tmp_path, "once", value=2)
    path = store.folder(two.address) / "result.json"
    path.write_bytes((store.folder(one.address) / "result.json").read_bytes())
    with pytest.raises(
        DataError, match=r"result\.json is damaged .*result of another unit, once.*; delete it"
    ):
        execute(two.described(), str(tmp_path))
    path.unlink()
    assert execute(two.described(), str(tmp_path)) == {"state": "done"}
    assert read_result(path, two.address)["result"] == {"value": 2}


def test_a_result_of_a_later_schema_is_refused_and_kept(tmp_path: Path) -> None:
    unit, _ = attempt(tmp_path, "once", value=1)
    path = Store(tmp_path).folder(unit.address) / "result.json"
    content = read_json(path, "") | {"schema": 99}
    write_json(path, content)
    with pytest.raises(DataError, match="it has schema 99, this version of testtime reads up to 1"):
        execute(unit.described(), str(tmp_path))
    assert read_json(path, "") == content
