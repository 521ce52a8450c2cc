"""Importing one method loads that method; the table of methods needs no torch."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import testtime
from testtime import methods
from testtime.lazy import lazily

PACKAGES = [
    "testtime",
    "testtime.methods",
    "testtime.metrics",
    "testtime.models",
    "testtime.norm",
    "testtime.parts",
]
FOREIGN = (
    "data",
    "scenes",
    "space",
    "multitask",
    "corruptions",
    "bench",
    "cli",
    "models",
    "source",
    "training",
)


def loaded_by(code):
    """The modules that are loaded after some code has run in a process of its own."""
    show = "import sys; print(*sorted(m for m in sys.modules if m.split('.')[0] in ('testtime', 'torch')))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{show}"], capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def test_one_method_loads_few_modules_and_no_reader_renderer_or_other_method():
    found = [m for m in loaded_by("from testtime.methods.tent import Tent") if m.startswith("testtime")]
    assert len(found) <= 41, found
    assert [m for m in found if m.startswith("testtime.methods.")] == ["testtime.methods.tent"]
    assert not [m for m in found if m.split(".")[1:2] and m.split(".")[1] in FOREIGN]


def test_an_adapter_does_not_load_the_compiler_of_torch():
    code = "; ".join(
        [
            "import torch",
            "from testtime.methods import SAR, Tent",
            "from testtime.models.digits import DigitsCNN",
            "adapters = [Tent(DigitsCNN().eval()), SAR(DigitsCNN().eval(), 10)]",
            "[(a(torch.rand(2, 3, 32, 32)), a.load_state_dict(a.state_dict()), a.reset()) for a in adapters]",
        ]
    )
    assert not [m for m in loaded_by(code) if m.startswith("torch._dynamo.")]


def test_the_first_training_of_the_demo_loads_no_compiler() -> None:
    code = """
import pathlib, tempfile, types
from testtime.experiments.demo import train_on_digits
folder = pathlib.Path(tempfile.mkdtemp())
train_on_digits(types.SimpleNamespace(parameters={"seed": 0, "epochs": 1}, folder=folder, progress=print, needs={}))
"""
    assert not [m for m in loaded_by(code) if m.startswith("torch._dynamo.")]


def test_the_names_of_all_methods_are_known_without_torch():
    code = "from testtime.methods import METHODS; assert METHODS['Tent'].name == 'tent'"
    assert not [m for m in loaded_by(code) if m.startswith("torch")]


def test_the_table_of_methods_has_each_module_once():
    files = {path.stem for path in Path(methods.__path__[0]).glob("*.py")} - {"__init__"}
    modules = [entry.module for entry in methods.METHODS.values()]
    assert sorted(m for m in modules if "." not in m) == sorted(files)
    assert len({entry.name for entry in methods.METHODS.values()}) == len(modules)
    assert all(entry.name == entry.name.lower() for entry in methods.METHODS.values())


@pytest.mark.parametrize("package", PACKAGES)
def test_a_lazy_package_gives_type_checkers_the_names_that_it_imports(package):
    module = importlib.import_module(package)
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    block = next(n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")
    declared = {alias.name: node.module for node in block.body for alias in node.names}
    assert sorted(declared) == sorted(module.__all__) == dir(module)
    for name, home in declared.items():
        assert getattr(module, name) is getattr(importlib.import_module(home), name)
        assert not (Path(module.__path__[0]) / f"{name}.py").exists(), "a module would take the name's place"


def test_an_unknown_name_of_a_lazy_package_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'testtime.norm' has no attribute 'nothing'"):
        importlib.import_module("testtime.norm").nothing  # noqa: B018


def test_a_name_is_fetched_once(monkeypatch):
    get, _ = lazily("testtime", {"moved": "current_name"})
    monkeypatch.setitem(vars(testtime), "current_name", None)
    assert get("current_name") is testtime.current_name is testtime.moved.current_name
