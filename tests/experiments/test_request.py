"""Requests as TOML files, and what two requests of one folder make together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from testtime.errors import DataError
from testtime.experiments import Request
from testtime.toml import read_toml, write_toml

WHOLE = Request(
    "digits",
    seeds=(0, 3),
    rows=("TENT", "PAF+KIP"),
    limit=100,
    device="cuda:1",
    precision="bfloat16",
    data="/some/place",
    model="timm:resnet18",
    settings={"order": "gradual", "rate": 1e-5, "large": 1e16, "corruptions": ["fog", "snow"], "reset": True},
    token="ab12",
)


@pytest.mark.parametrize("request_", [WHOLE, Request("digits")])
def test_a_request_comes_back_from_its_file(tmp_path: Path, request_: Request) -> None:
    assert Request.read(request_.write(tmp_path / "run.toml")) == request_


def test_strings_of_every_kind_come_back(tmp_path: Path) -> None:
    text = "a\"b\\c\n\t\x00\x1f\x7f é 😀 ' # ="
    content = {"quoted key é": text, "list": [text, "b"], "table.x": {"a b": [1, 2.5, False], "empty": []}}
    assert read_toml(write_toml(tmp_path / "a.toml", content)) == content


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), {"a": {"b": 1}}, object(), [None]])
def test_what_is_no_flat_toml_is_refused_and_nothing_is_written(tmp_path: Path, value: object) -> None:
    with pytest.raises(
        ValueError, match="expected strings, finite numbers, truth values or lists of them, got"
    ):
        write_toml(tmp_path / "a.toml", {"table": {"key": value}})
    assert not (tmp_path / "a.toml").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            'experiment = "digits"\nseed = 1\n',
            r"no key 'seed' \(did you mean 'seeds'\?\); there are data, device",
        ),
        ("seeds = [0]\n", "expected the key experiment, a name of testtime list.; repair it, or delete it"),
        ('experiment = "digits"\nseeds = [0, 0]\n', "expected different seeds from 0, at least one"),
        ('experiment = "digits"\nseeds = ["a"]\n', "is damaged"),
        ("experiment = digits\n", "is damaged .TOMLDecodeError"),
        ('experiment = "digits"\nlimit = 0\n', "expected a limit from 1, got 0"),
        ('experiment = "digits"\nrows = []\n', "the list of rows is empty"),
        ('experiment = "digits"\nrows = "TENT"\n', "expected rows as a list of strings, got 'TENT'"),
        ('experiment = "digits"\nmethods = "my_method:Mine"\n', "expected methods as a list of strings"),
        ('experiment = "digits"\nseeds = 0\n', "expected seeds as a list of whole numbers, got 0"),
        ('experiment = "digits"\nseeds = [true]\n', "expected seeds as a list of whole numbers"),
        ('experiment = "digits"\nseeds = [4294967296]\n', "expected seeds up to 4294967295, got 4294967296"),
        ('experiment = "digits"\nlimit = 2.5\n', "expected limit as a whole number, got 2.5"),
        ('experiment = "digits"\ndevice = 0\n', "expected device as a string, got 0"),
        ('experiment = "digits"\nprecision = "half"\n', "no precision 'half'; there are auto, float32"),
        ('experiment = "digits"\nsettings = 3\n', "expected settings as a table of names and values, got 3"),
        ("experiment = 5\n", "expected experiment as a string, got 5"),
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "run.toml"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        Request.read(path)
    assert str(path) in str(caught.value)


def test_two_requests_of_one_folder_have_the_rows_and_seeds_of_both() -> None:
    before = replace(WHOLE, settings={})
    joined = replace(before, rows=("CoTTA", "TENT"), seeds=(3, 1), token="").joined(before)
    assert (joined.rows, joined.seeds, joined.token) == (("TENT", "PAF+KIP", "CoTTA"), (0, 1, 3), "ab12")
    assert replace(before, rows=None).joined(before).rows is None
    with pytest.raises(
        ValueError,
        match="holds a run with order gradual, this one has the default order; give another folder",
    ):
        replace(WHOLE, settings={**WHOLE.settings, "order": None}).joined(WHOLE)
    with pytest.raises(
        ValueError, match="holds a run with precision bfloat16, this one has precision float32"
    ):
        replace(before, precision="float32").joined(before)
