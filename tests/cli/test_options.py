"""Types of options: what they convert, what they refuse, and that an error is one line."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from testtime.cli import options
from testtime.cli.options import new_file, new_folder, number, seeds, size, url, whole, words


@pytest.mark.parametrize(
    ("convert", "text", "value"),
    [
        (whole(), "1", 1),
        (whole(0), "0", 0),
        (number(), "0.5", 0.5),
        (number(1), "1", 1.0),
        (words, " tent , eata,", ("tent", "eata")),
        (seeds, "2, 0", (2, 0)),
        (size, "48X64", (48, 64)),
        (url, "s3://bucket/a", "s3://bucket/a"),
    ],
)
def test_values(convert: Callable[[str], Any], text: str, value: object) -> None:
    assert convert(text) == value


@pytest.mark.parametrize(
    ("convert", "texts"),
    [
        (whole(), ("0", "-3", "x", "1.5", "", "²")),
        (whole(32), ("31",)),
        (number(), ("0", "-1", "nan", "inf", "x")),
        (number(1), ("-0.1", "1.1", "nan")),
        (words, ("", " , ", "a,b,a")),
        (seeds, ("", "1,1", "-1", "one", "1.0")),
        (size, ("0", "64x", "axb", "1x2x3", "-4")),
        (url, ("", "bucket", "s3:/bucket", "://a", "s3://")),
    ],
)
def test_what_is_refused(convert: Callable[[str], Any], texts: tuple[str, ...]) -> None:
    for text in texts:
        with pytest.raises(argparse.ArgumentTypeError, match=r"expected|stands twice"):
            convert(text)


def test_places_for_results(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    assert new_folder(str(tmp_path / "a" / "b")) == str(tmp_path / "a" / "b")
    assert new_file(str(tmp_path / "page.html")) == str(tmp_path / "page.html")
    for refused in (str(file), str(file / "below"), ""):
        with pytest.raises(argparse.ArgumentTypeError, match="expected a folder"):
            new_folder(refused)
    with pytest.raises(argparse.ArgumentTypeError, match="is no folder; make it first"):
        new_file(str(tmp_path / "nowhere" / "page.html"))
    with pytest.raises(argparse.ArgumentTypeError, match="expected the name of a file"):
        new_file(str(tmp_path))
    assert sorted(tmp_path.iterdir()) == [file]


def test_a_device_that_is_not_there_is_named_with_those_that_are() -> None:
    assert options.device("cpu") == "cpu"
    with pytest.raises(argparse.ArgumentTypeError, match=r"no device 'gpu' here; there is cpu"):
        options.device("gpu")


@pytest.mark.parametrize("convert", [new_folder, new_file])
def test_a_folder_that_is_closed_to_the_user_is_refused(
    convert: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        options.os, "access", lambda path, mode: Path(path) != tmp_path
    )  # root may write anywhere
    with pytest.raises(argparse.ArgumentTypeError, match="is read-only for this user; choose another folder"):
        convert(str(tmp_path / "run"))
