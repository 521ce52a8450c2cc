"""The former names of sets and protocols give what the experiments have, in their former signature."""

import importlib
import sys

import numpy as np
import pytest
from PIL import Image

from testtime.data import Crop
from testtime.experiments.online.listing import entries


def former(name):
    sys.modules.pop(name, None)
    with pytest.warns(DeprecationWarning, match=f"{name} is now testtime.experiments.online.former"):
        return importlib.import_module(name)


def test_domains_take_their_former_arguments(tmp_path):
    folder = tmp_path / "imagenet/val/n01440764"
    folder.mkdir(parents=True)
    Image.fromarray(np.zeros((300, 400, 3), np.uint8)).save(folder / "a.png")
    found, kind = former("testtime.bench.sets").domains("imagenet", tmp_path, ("fog", "snow"), 3)
    assert kind.startswith("ours-")
    assert [(d.condition.corruption, d.condition.severity) for d in found] == [("fog", 3), ("snow", 3)]
    assert found[0].size == Crop(224, 256)


def test_protocols_are_the_experiments():
    protocols = former("testtime.bench.protocols").PROTOCOLS
    assert set(protocols) == set(entries())
    assert protocols["paper-table-3"].closed == "imagenet"
    assert protocols["digits-open"].columns == entries()["digits-open"]["columns"]
