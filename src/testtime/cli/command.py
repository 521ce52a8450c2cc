"""Commands from the signatures of typed functions; the errors of their parsers are one line."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

from testtime.cli.options import once, seeds, whole, words
from testtime.errors import did_you_mean

__all__ = ["Parser", "add_command"]


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, with the name that was probably meant."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with 2."""
        self.exit(2, f"{self.prog}: {message}; {self.prog} --help explains\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuse every argument that this parser does not know; those after a command are for the parser of the command."""
        known = [name for name in self._option_string_actions if name.startswith("--")]
        for word in args:
            name = word.partition("=")[0]
            if word == "--" or (self._subparsers and not word.startswith("-")):
                break
            if word.startswith("--") and name not in known and " " not in name:
                self.error(f"no option {name!r}{did_you_mean(name, known)}; there are {', '.join(known)}")
        found, extra = super().parse_known_args(args, namespace)
        if extra:
            self.error(f"{extra[0]!r} was not expected; names stand before the options")
        return found, extra

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            names = [str(choice) for choice in action.choices]
            message = f"no choice {value!r}{did_you_mean(str(value), names)}; there are {', '.join(names)}"
            raise argparse.ArgumentError(action, message)


def add_command(commands: Any, name: str, function: Callable[..., int]) -> None:
    """Add a command: its description is the function's docstring, its options the function's parameters.

    Every parameter has an :class:`testtime.cli.options.Option` in its annotation. Keyword-only parameters become options, the
    others arguments; whole numbers, lists of words and literals are read as their types say. A parameter whose type is a
    dataclass stands for the fields of it. The parameter ``command`` gets the command line.

    Args:
        commands: subparsers.
        name: name of the command.
        function: function of the command; it returns the exit code.
    """
    about = " ".join((inspect.getdoc(function) or "").split())
    short = about[:1].lower() + about[1:].rstrip(".")
    parser = commands.add_parser(name, help=short.replace("%", "%%"), description=about)
    signature, hints = inspect.signature(function), get_type_hints(function, include_extras=True)
    groups: dict[str, Any] = {key: hint for key, hint in hints.items() if is_dataclass(hint)}
    for key, parameter in signature.parameters.items():
        if key in groups:
            of_fields = get_type_hints(groups[key], include_extras=True)
            for field in fields(groups[key]):
                _add_option(parser, field.name, of_fields[field.name], field.default)
        elif key != "command":
            _add_option(parser, key, hints[key], parameter.default, parameter.kind is parameter.KEYWORD_ONLY)

    def run(given: Mapping[str, Any]) -> int:
        made = {key: kind(**{f.name: given[f.name] for f in fields(kind)}) for key, kind in groups.items()}
        values: Any = {key: made[key] if key in made else given[key] for key in signature.parameters}
        bound = inspect.BoundArguments(signature, values)
        return function(*bound.args, **bound.kwargs)

    parser.set_defaults(function=run)


def _add_option(parser: Parser, key: str, hint: Any, default: Any, named: bool = True) -> None:
    kind, option = hint.__origin__, hint.__metadata__[0]
    kind = get_args(kind)[0] if NoneType in get_args(kind) else kind
    required = default in (inspect.Parameter.empty, MISSING)
    settings: dict[str, Any] = {"help": option.help}
    if kind is bool:
        settings["action"] = "store_true"
    else:
        several = option.several or (get_origin(kind) is tuple and option.convert is None)
        kind = get_args(kind)[0] if get_origin(kind) is tuple else kind
        convert = option.convert or (whole() if kind is int else str)
        settings |= {"type": convert, "metavar": option.metavar or ("N" if kind is int else None)}
        if get_origin(kind) is Literal:
            settings |= {"choices": get_args(kind), "metavar": None}
        if several:
            settings |= {"nargs": "+", "action": _Several, "const": option.several}
        elif option.convert in (words, seeds):
            settings |= {"action": _Several}
    if not required:
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
        settings["help"] += f" ({shown})" if shown not in (None, False, "") else ""
        settings["default"] = default
    if named:
        names = option.names or (f"--{key.replace('_', '-')}",)
        parser.add_argument(*names, dest=key, required=required, **settings)
    else:
        parser.add_argument(key, **settings if required else {**settings, "nargs": "?"})


class _Several(argparse.Action):
    """Stores words as a tuple, also those of an option that is given again; each may stand once, unless it says otherwise."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option: Any = None) -> None:
        before = getattr(namespace, self.dest)
        values = [*(() if before is self.default else before), *values]
        try:
            found = tuple(values) if self.const else once(values, " ".join(map(str, values)))
        except argparse.ArgumentTypeError as error:
            raise argparse.ArgumentError(self, str(error)) from None
        setattr(namespace, self.dest, found)
