"""Modules that have moved are found by their former names, with a warning."""

import importlib
import subprocess
import sys

import pytest

from testtime import moved


@pytest.mark.parametrize("old", sorted(moved.MODULES))
def test_a_former_module_name_gives_the_same_objects_and_warns(old):
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=f"{old} is now {moved.MODULES[old]}"):
        former = importlib.import_module(old)
    new = importlib.import_module(moved.MODULES[old])
    assert former.__all__ == list(new.__all__)
    assert all(getattr(former, name) is getattr(new, name) for name in new.__all__)


def test_no_module_lies_under_a_former_name():
    for old in moved.MODULES:
        sys.modules.pop(old, None)
        with pytest.warns(DeprecationWarning, match="is now"):
            assert importlib.import_module(old).__doc__.startswith("The former name")


def test_from_imports_of_former_names_work_in_a_new_process():
    code = (
        "from testtime.choosing import recommend; from testtime.multitask.tasks import Depth; "
        "print(recommend.__module__, Depth.__module__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["testtime.selection", "testtime.tasks"]


def test_a_former_name_in_a_module_warns_and_gives_the_present_one(monkeypatch):
    import testtime.errors as errors

    get = moved.renamed("testtime.errors", {"FormerError": "DataError", "Moved": "testtime.tasks:Depth"})
    with pytest.warns(
        DeprecationWarning, match=r"testtime.errors.FormerError is now testtime.errors.DataError"
    ):
        assert get("FormerError") is errors.DataError
    with pytest.warns(DeprecationWarning, match=r"now testtime.tasks.Depth"):
        assert get("Moved") is importlib.import_module("testtime.tasks").Depth
    with pytest.raises(AttributeError, match="has no attribute 'other'"):
        get("other")


@pytest.mark.parametrize(
    ("former", "present"),
    [
        ("testtime.data.omnidata:sampled", "testtime.data.omnidata:view_set"),
        ("testtime.data.omnidata:spaces_of", "testtime.data.omnidata:select_spaces"),
        ("testtime.data.omnidata:split_of", "testtime.data.omnidata:read_split"),
        ("testtime.metrics:alike", "testtime.metrics:appearance_clusters"),
        ("testtime.metrics:looks", "testtime.metrics:appearance_features"),
        ("testtime.metrics.appearance:alike", "testtime.metrics:appearance_clusters"),
        ("testtime.metrics.dense:EdgeF", "testtime.metrics.edges:EdgeF"),
        ("testtime.streams:LADDER", "testtime.streams:GRADUAL_SEVERITIES"),
        ("testtime.streams:Wandering", "testtime.streams:CCCStream"),
        ("testtime.streams.ccc:path", "testtime.streams.ccc:severity_path"),
        ("testtime.streams.domain:number", "testtime.streams.domain:derive_seed"),
        ("testtime.scenes.cameras:look", "testtime.scenes.cameras:camera_pose"),
        ("testtime.scenes.furnish:small_things", "testtime.scenes.furnish:small_objects"),
        ("testtime.scenes.shifts:named", "testtime.scenes.shifts:resolve_shift"),
        ("testtime.scenes.tracer:available", "testtime.scenes.tracer:default_backend"),
        ("testtime.space.walkthrough:take_apart", "testtime.space.walkthrough:extract_frames"),
        ("testtime.selection:looks", "testtime.metrics:appearance_features"),
    ],
)
def test_former_names_of_functions_and_classes_warn(former, present):
    (old_module, old), (new_module, new) = (name.split(":") for name in (former, present))
    home = importlib.import_module(old_module)
    vars(home).pop(old, None)  # the module of this name, where another test has imported it
    with pytest.warns(DeprecationWarning, match=f"{former.replace(':', '.')} is now"):
        found = getattr(home, old)
    assert found is getattr(importlib.import_module(new_module), new)
