"""Modules that have moved are found by their former names, with a warning."""

import dataclasses
import importlib
import inspect
import json
import subprocess
import sys

import pytest
import torch
from torch import nn

import testtime
from testtime import moved
from testtime.files import read_tensors, write_tensors
from testtime.methods import RMT, STAMP, RoTTA, SoTTA, Tent
from testtime.methods.rotta import RoTTAOptions
from testtime.methods.sotta import SoTTAOptions
from testtime.methods.stamp import STAMPOptions


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
        ("testtime.space.ingest:LAYOUTS", "testtime.space.sources:LAYOUTS"),
        ("testtime.space.ingest:Sensed", "testtime.space.sources:SensorSet"),
        ("testtime.space.retrieval:expected_vectors", "testtime.space.retrieval:predicted_vectors"),
        ("testtime.space.walkthrough:normals_of", "testtime.space.normals:normals_of"),
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


@pytest.mark.parametrize("taker", sorted(moved.ARGUMENTS))
def test_a_changed_argument_names_one_that_there_is(taker):
    module, _, name = taker.partition(":")
    takes = inspect.signature(getattr(importlib.import_module(module), name)).parameters
    for old, new in moved.ARGUMENTS[taker].items():
        home, _, field = new.rpartition(".")
        assert old not in takes or old == "outputs", "the present meaning hides the former one"
        if home:
            assert field in {f.name for f in dataclasses.fields(takes[home].default)}
        else:
            assert not new or new in takes


def test_a_seed_of_a_method_without_randomness_is_left_out_with_one_warning():
    net = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))
    with pytest.warns(DeprecationWarning, match="Tent draws no random numbers: leave out seed") as warned:
        adapter = testtime.adapt(net, "tent", seed=3)
    assert len(warned) == 1
    assert warned[0].filename == __file__
    assert adapter.seed == 0
    with pytest.warns(DeprecationWarning, match="Tent draws no random numbers"):
        Tent(net, seed=3)
    with pytest.raises(TypeError, match="unexpected keyword argument 'sede'"):
        Tent(net, sede=3)


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = [nn.Flatten(), nn.Linear(4 * 36, 3)]
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), *head).eval()


def test_a_keyword_that_moved_into_the_options_warns_and_works():
    with pytest.warns(
        DeprecationWarning, match=r"STAMP\(epsilon=...\) is now STAMP\(options=STAMPOptions\(epsilon"
    ):
        stamp = STAMP(network(), 3, views=2, epsilon=0.0, options=STAMPOptions(capacity=8))
    assert stamp.options == STAMPOptions(capacity=8, epsilon=0.0)
    with pytest.warns(DeprecationWarning, match=r"RMT\(outputs=...\) is now RMT\(projection=...\)"):
        assert RMT(network(), outputs=16).projection == 16
    with pytest.raises(ValueError, match="expected count"), pytest.warns(DeprecationWarning, match="count"):
        STAMP(network(), 3, count="batch")


def test_the_keyword_outputs_of_every_method_is_not_taken_for_the_former_one():
    assert RMT(network(), outputs=None).projection == 128
    rmt = RMT(network(), outputs=lambda y: y, projection=None)
    assert rmt.projection is None
    assert callable(rmt.outputs)


FORMER = {
    "tent": (lambda: Tent(network(), testtime.adam(0.1)), {"seed": 3}),
    "rmt": (lambda: RMT(network(), projection=4), {"outputs": 4, "replay": 8, "head": None}),
    "rmt without a projection": (lambda: RMT(network(), projection=None), {"outputs": None, "warm_up": 1}),
    "rotta": (
        lambda: RoTTA(network(), 3, capacity=8, frequency=8, options=RoTTAOptions(lambda_t=2.0)),
        {"lambda_t": 2.0, "lambda_u": 1.0, "teacher_observes": True},
    ),
    "sotta": (
        lambda: SoTTA(network(), 3, capacity=8, frequency=8, options=SoTTAOptions(skip=("0",))),
        {"observe_twice": False, "skip": ["0"]},
    ),
    "stamp": (
        lambda: STAMP(network(), 3, views=2, options=STAMPOptions(capacity=8, skip=("0",))),
        {"capacity": 8, "skip": ["0"], "epsilon": 1e-5},
    ),
}


@pytest.mark.parametrize("name", FORMER)
def test_a_state_that_was_saved_with_former_arguments_loads(name, tmp_path, recwarn):
    make, former = FORMER[name]
    adapter, net = make(), network()
    if adapter.source != "none":
        adapter.prepare([torch.rand(8, 3, 8, 8)])
    adapter(torch.rand(5, 3, 8, 8))
    testtime.save(adapter, tmp_path)
    tensors, metadata = read_tensors(tmp_path / "adapter.safetensors", "again")
    description = json.loads(metadata["testtime"])
    assert testtime.state_hash(testtime.load(tmp_path, net)) == testtime.state_hash(adapter)
    for present in ("options", "projection", "outputs"):
        description["arguments"].pop(present, None)
    description["arguments"] |= former
    write_tensors(
        tmp_path / "adapter.safetensors", tensors, {"testtime": json.dumps(description), "sha256": ""}
    )
    (tmp_path / "adapter.json").unlink()
    loaded = testtime.load(tmp_path, net)
    assert testtime.state_hash(loaded) == testtime.state_hash(adapter)
    assert getattr(loaded, "projection", None) == getattr(adapter, "projection", None)
    assert not [w for w in recwarn if issubclass(w.category, DeprecationWarning)]
