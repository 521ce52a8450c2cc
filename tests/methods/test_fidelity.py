"""Who names the arguments that reproduce a published code has a test against an independent loop."""

import importlib
import re
from pathlib import Path

import pytest

from testtime import methods

MODULES = sorted({getattr(methods, name).__module__ for name in methods.__all__})
CLAIMING = [
    m for m in MODULES if "code step by step" in " ".join((importlib.import_module(m).__doc__ or "").split())
]


@pytest.mark.parametrize("module", CLAIMING)
def test_a_published_code_has_a_loop(module: str) -> None:
    """The test of the method's file runs it beside a plain loop."""
    path = Path(__file__).with_name(f"test_{module.rpartition('.')[2]}.py")
    assert re.search(r"^def test_equals_the_(published_)?loop", path.read_text(), re.MULTILINE), path.name


def test_most_methods_name_such_arguments() -> None:
    assert len(CLAIMING) > 20
    assert methods.Tent.__module__ in CLAIMING
