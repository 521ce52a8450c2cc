"""The catalogue is read from the text of files, and is what the classes say."""

import inspect
from importlib.metadata import EntryPoint

import pytest
from torch import nn

import testtime
from testtime import methods, plugins
from testtime.catalogue import catalogue, read_facts, text
from testtime.facts import norm_kinds
from testtime.methods import METHODS

KEPT = ("name", "label", "source", "output", "stochastic", "venue", "paper", "code")


def of_class(cls):
    return {
        **{key: getattr(cls, key) for key in KEPT},
        "class": cls.__name__,
        "needs": list(cls.needs),
        "norm": list(norm_kinds(cls.needs)),
        "sentence": inspect.getdoc(cls).split("\n", 1)[0],
        "forwards": float(cls.cost[0]),
        "backwards": float(cls.cost[1]),
        "reference": f"{cls.paper}, {cls.venue}." if cls.paper else "",
    }


def test_what_is_read_from_the_files_is_what_the_classes_declare():
    classes = sorted((getattr(methods, name) for name in METHODS), key=lambda cls: cls.name)
    assert catalogue() == [of_class(cls) for cls in classes]


MINE = '''
import testtime
from torch import nn

class Mine(testtime.Adapter):
    """Do something.

    And more.
    """

    label = "Mine!"
    needs: tuple = ("norm", "BatchNorm")
    cost, venue = (2, 1.5), "Here 2026"

class Theirs(Mine):
    pass

class Computed(testtime.Adapter):
    cost = (1, 2 ** 3)
'''


def test_a_class_of_another_package_is_read_if_it_is_plain(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    found = read_facts(path, "Mine")
    assert (found["name"], found["label"], found["norm"]) == ("mine!", "Mine!", ["BatchNorm"])
    assert (found["forwards"], found["backwards"], found["output"]) == (2, 1.5, "before")
    assert (found["sentence"], found["venue"], found["reference"]) == ("Do something.", "Here 2026", "")
    assert [read_facts(path, name) for name in ("Theirs", "Computed", "Nothing")] == [None, None, None]


def test_methods_of_other_packages_are_listed_and_not_imported(tmp_path, monkeypatch):
    package = tmp_path / "someones"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    given = {"mine": "someones.mine:Mine", "theirs": "someones.mine:Theirs", "gone": "no_such.mine:Mine"}
    made = [EntryPoint(name, value, "testtime.methods") for name, value in given.items()]
    monkeypatch.setattr(plugins, "entry_points", lambda group: made)
    found = {m["name"]: m for m in catalogue()}
    assert found["mine"]["forwards"] == 2
    assert found["theirs"] == {"name": "theirs", "class": "someones.mine:Theirs", "package": "someones"}
    assert set(given) <= set(testtime.list_methods())
    shown = text(catalogue()).splitlines()
    assert [line.split() for line in shown if line.startswith("theirs ")] == [
        ["theirs", "someones.mine:Theirs,", "of", "someones"]
    ]
    assert any(line.startswith("mine ") and line.endswith("BatchNorm") for line in shown)


@pytest.mark.parametrize("name", ["mine", "testtime.methods.tent:Tent", "TENT"])
def test_adapt_takes_names_of_other_packages_and_import_paths(name, monkeypatch):
    made = [EntryPoint("mine", "testtime.methods.tent:Tent", "testtime.methods")]
    monkeypatch.setattr(plugins, "entry_points", lambda group: made)
    net = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))
    assert type(testtime.adapt(net, name)) is methods.Tent
