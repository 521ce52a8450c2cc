"""Commands from signatures: what reaches the function, what is refused, and that listing needs neither torch nor numpy."""

from __future__ import annotations

import argparse
import inspect
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest

from testtime import __version__
from testtime.cli import main, parser
from testtime.cli.command import Parser, add_command
from testtime.cli.options import Option, seeds, whole

GIVEN: dict[str, Any] = {}


@dataclass(frozen=True)
class Size:
    """A group of options."""

    width: Annotated[int, Option("pixels")] = 3
    kinds: Annotated[tuple[Literal["fog", "snow"], ...] | None, Option("some of those")] = None


MANY = ["a", "b", "--width", "5", "--kinds", "snow", "--kinds", "fog", "--seeds", "3", "--seeds", "1"]
MANY += ["--levels", "3", "--quick", "--order", "continual", "--levels", "3"]


def work(
    *names: Annotated[str, Option("what to do", several=True)],
    size: Size,
    order: Annotated[Literal["mixed", "continual"], Option("the order")] = "mixed",
    seeds: Annotated[tuple[int, ...], Option("random seeds", seeds)] = (0,),
    levels: Annotated[tuple[int, ...], Option("levels", whole(2), several=True)] = (8, 5),
    fast: Annotated[bool, Option("do it fast", names=("--fast", "--quick"))] = False,
    command: Sequence[str] = (),
) -> int:
    """Work on names."""
    GIVEN.update(locals())
    return 7


@pytest.fixture
def made() -> Parser:
    parser = Parser(prog="it")
    add_command(parser.add_subparsers(required=True, metavar="COMMAND"), "work", work)
    return parser


def test_a_function_gets_typed_values_and_its_defaults(made: Parser) -> None:
    for words, values in (
        (["a"], {"names": ("a",), "size": Size(), "order": "mixed", "seeds": (0,), "levels": (8, 5)}),
        (
            [
                "a",
                "b",
                "--width",
                "5",
                "--kinds",
                "snow",
                "fog",
                "--seeds",
                "3,1",
                "--levels",
                "3",
                "3",
                "--quick",
                "--order",
                "continual",
            ],
            {"names": ("a", "b"), "size": Size(5, ("snow", "fog")), "seeds": (3, 1), "levels": (3, 3)},
        ),
    ):
        arguments = {**vars(made.parse_args(["work", *words])), "command": ["it", *words]}
        assert arguments["function"](arguments) == 7
        assert {name: GIVEN[name] for name in values} == values
        assert GIVEN["command"] == ["it", *words]
        assert GIVEN["fast"] is ("--quick" in words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "work a --order mixd",
            "argument --order: no choice 'mixd' (did you mean 'mixed'?); there are mixed, continual",
        ),
        (
            "work a --widht 3",
            "no option '--widht' (did you mean '--width'?); there are --help, --width, --kinds",
        ),
        ("work --widht=3", "no option '--widht' (did you mean '--width'?)"),
        ("work a --wid 3", "no option '--wid' (did you mean '--width'?)"),
        ("work a --width 0", "argument --width: expected a whole number from 1, got '0'"),
        ("work a --kinds fog fog", "argument --kinds: fog stands twice in 'fog fog'; name it once"),
        ("work a --kinds rain", "argument --kinds: no choice 'rain'; there are fog, snow"),
        ("work a --fast b", "'b' was not expected; names stand before the options"),
        ("work", "the following arguments are required: names"),
        ("wrok a", "no choice 'wrok' (did you mean 'work'?); there are work"),
        ("--wrok", "no option '--wrok'"),
    ],
)
def test_an_error_is_one_line_that_says_what_to_do(
    made: Parser, words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        made.parse_args(words.split())
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert line.endswith(f"it{' work' * words.startswith('work')} --help explains")


def test_help_shows_defaults_and_choices(made: Parser, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        made.parse_args(["work", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for part in (
        "Work on names.",
        "pixels (3)",
        "--kinds {fog,snow}",
        "levels (8 5)",
        "the order (mixed)",
        "do it fast",
    ):
        assert part in shown


def commands(made: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Every command by its words."""
    found = {}
    for action in made._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                found[name] = below
                found |= {f"{name} {rest}": one for rest, one in commands(below).items()}
    return found


def test_every_command_has_a_description_and_every_option_a_help() -> None:
    for name, one in commands(parser()).items():
        assert one.description, name
        for action in one._actions:
            assert action.help or isinstance(action, argparse._SubParsersAction), (name, action.dest)


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert left.value.code == 0
    assert capsys.readouterr().out == f"testtime {__version__}\n"


LISTS = {
    "--version": f"testtime {__version__}",
    "--help": "list the experiments",
    "run --help": "--precision {auto,float32,bfloat16}",
    "list --help": "usage: testtime list",
    "methods --help": "usage: testtime methods",
    "scenes --help": "make",
    "scenes make --help": "--camera-seed N",
    "space --help": "ingest",
    "space ingest --help": "--tokenizer {fsq,vq}",
    "multitask --help": "train",
    "multitask train --help": "--iterations N",
    "demo --help": "--limit N",
    "report --help": "RUN [RUN ...]",
    "list online": "digits-open  ",
    "list space": "space-main",
    "list multitask": "multitask-table1",
    "list": "digits  Handwritten digits",
    "list demo": "digits  Handwritten digits",
    "list --json": '"name": "digits"',
    "bench --list": "digits-open  ",
    "multitask list": "multitask-table1",
    "space list": "space-main",
    "methods": "paf-kip",
    "methods --json": '"reference": "Wang, Shelhamer,',
}
CODE = """
import sys
sys.modules["torch"] = sys.modules["numpy"] = None
from testtime.cli import main
for command in {!r}:
    print("##", command, flush=True)
    try:
        code = main(command.split())
    except SystemExit as left:
        code = left.code
    print("code", code, flush=True)
"""


def test_listing_and_help_import_neither_torch_nor_numpy() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(list(LISTS))], capture_output=True, text=True, check=False
    )
    assert [line[:18] for line in done.stderr.splitlines()] == ["DeprecationWarning"] * 3  # former spellings
    shown = dict(part.split("\n", 1) for part in done.stdout.split("## ")[1:])
    for command, part in LISTS.items():
        assert part in shown[command], command
        assert shown[command].endswith("code 0\n"), command
    assert list(shown) == list(LISTS)


def test_functions_of_commands_are_typed() -> None:
    from testtime.cli import COMMANDS, FAMILIES

    for function in [
        *COMMANDS.values(),
        *(f for _, functions in FAMILIES.values() for f in functions.values()),
    ]:
        signature = inspect.signature(function)
        assert signature.return_annotation == "int"
        assert all("Namespace" not in str(p.annotation) for p in signature.parameters.values())
        assert len(signature.parameters) <= 12, function


def test_methods_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "--json"]) == 0
    found = {m["name"]: m for m in json.loads(capsys.readouterr().out)}
    assert (found["paf-kip"]["forwards"], found["paf-kip"]["backwards"]) == (3, 1)
    assert found["paf-kip"]["stochastic"] is True
    assert found["paf-kip"]["reference"].endswith("BMVC 2025.")
    assert found["bn-adapt"]["norm"] == ["BatchNorm"]
    assert (found["eata"]["source"], found["cotta"]["output"]) == ("data", "teacher")
