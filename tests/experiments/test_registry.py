"""The registry: lists without torch, experiments by name, and methods and data of other packages."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest

import testtime
from testtime import plugins
from testtime.build import find_method
from testtime.data import from_arrays
from testtime.data.named import named, reader
from testtime.errors import DataError
from testtime.experiments import Experiment, find_experiment, list_experiments

TOY = "toy_family"


def test_lists_import_neither_torch_nor_numpy() -> None:
    script = (
        "import sys; from testtime.experiments import list_experiments; print(sorted(list_experiments()), "
        "'torch' in sys.modules, 'numpy' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert found.startswith("['demo'")
    assert found.endswith("False False\n")


def test_every_listed_experiment_is_found_and_has_its_title_and_family() -> None:
    for family, listed in list_experiments().items():
        for one in listed:
            found = find_experiment(one.name)
            assert isinstance(found, Experiment)
            assert (found.name, found.title, found.source, found.family) == (
                one.name,
                one.title,
                one.source,
                family,
            )


def test_unknown_names_are_refused_with_the_one_that_was_meant() -> None:
    with pytest.raises(
        ValueError, match=r"no experiment 'digit' \(did you mean 'digits'\?\); testtime list shows all"
    ):
        find_experiment("digit")
    with pytest.raises(ValueError, match=r"no family 'dem' \(did you mean 'demo'\?\)"):
        list_experiments("dem")


def points(**named: str) -> object:
    def entry_points(group: str) -> list[EntryPoint]:
        return [EntryPoint(name, value, group) for name, value in named.items()]

    return entry_points


def test_methods_are_found_by_name_entry_point_and_import_path(monkeypatch: pytest.MonkeyPatch) -> None:
    from testtime.methods import Tent, UniEntPlus

    assert find_method("Tent") is find_method("tent") is Tent
    assert find_method("unient+") is UniEntPlus
    assert find_method("testtime.methods.tent:Tent") is Tent
    with pytest.raises(ValueError, match="no method 'tnet' .did you mean 'tent'"):
        find_method("tnet")
    with pytest.raises(ValueError, match="expected a class of testtime.Adapter, got <function adapt"):
        find_method("testtime.build:adapt")
    with pytest.raises(ImportError, match="expected an import path as package.module:name"):
        find_method("testtime.saving:nothing")
    monkeypatch.setattr(plugins, "entry_points", points(mine="testtime.methods.tent:Tent"))
    assert find_method("mine") is Tent
    assert testtime.Adapter in Tent.__mro__


def test_data_sets_and_experiments_of_other_packages_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = from_arrays("mine", np.zeros((2, 1, 8, 8), np.uint8))
    monkeypatch.setattr(testtime.data, "mine", lambda root: images, raising=False)
    mine = {"mine": "testtime.data:mine", "bad": "builtins:len", "wrong": "builtins:str"}
    monkeypatch.setattr(plugins, "entry_points", points(**mine))
    assert named("mine", tmp_path) is images
    assert reader("other") is None
    with pytest.raises(DataError, match="the entry point bad of testtime.data cannot read .*: TypeError"):
        named("bad", tmp_path)
    with pytest.raises(
        DataError, match="wrong of testtime.data returned str, expected a testtime.data.ImageSet"
    ):
        named("wrong", tmp_path)
    monkeypatch.setattr(plugins, "entry_points", points(toys=TOY))
    assert [one.name for one in list_experiments()["toys"]] == ["toy"]
    assert find_experiment("toy").title == "Numbers"
