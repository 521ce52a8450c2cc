"""The errors that testtime raises on purpose: each says what was found, what was expected and what to do."""

from collections.abc import Iterable
from difflib import get_close_matches
from importlib.util import find_spec
from typing import Any

# The names of packages that are not called as their modules.
PACKAGES = {
    "PIL": "Pillow",
    "cv2": "opencv-python-headless",
    "jinja2": "Jinja2",
    "lightning_fabric": "lightning-fabric",
    "sklearn": "scikit-learn",
    "vector_quantize_pytorch": "vector-quantize-pytorch",
    "vl_convert": "vl-convert-python",
}


class TesttimeError(Exception):
    """The base of every error that testtime raises on purpose."""

    __test__ = False  # the name starts with "Test": not a test class


class DataError(TesttimeError, ValueError):
    """A data file is missing, damaged, or not what its format promises."""


class WeightsError(TesttimeError, ValueError):
    """A file of weights is missing, damaged, of a kind that is not read, or of another architecture."""


class NonFiniteError(TesttimeError, ArithmeticError, ValueError):
    """A loss, a gradient or a weight became infinite or not a number during training.

    The message names what was trained, the step and what to do.
    """


class RankError(TesttimeError, RuntimeError):
    """A process that adapts together with others was lost, is late, or holds another state."""


class AdapterWarning(UserWarning):
    """An adapter runs, and its images, its model or its settings are probably not what was meant."""


def unknown_name(kind: str, name: str, names: Iterable[str]) -> ValueError:
    """Return the error for a name that does not exist, with the name that was probably meant.

    Args:
        kind: kind of thing that is named, for the message.
        name: the name that was given.
        names: the names that exist.

    >>> print(unknown_name("method", "tnet", ["tent", "eata"]))
    no method 'tnet' (did you mean 'tent'?); there are tent, eata
    """
    known = list(names)
    return ValueError(f"no {kind} {name!r}{did_you_mean(name, known)}; there are {', '.join(known)}")


def check_name(kind: str, name: str, names: Iterable[str]) -> None:
    """Refuse a name that does not exist, see :func:`unknown_name`.

    Raises:
        ValueError: it is not among the names.
    """
    known = list(names)
    if name not in known:
        raise unknown_name(kind, name, known)


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return " (did you mean 'tent'?)", or nothing if no name is similar.

    Args:
        name: the name that was given.
        names: the names that exist.
    """
    plain = {known.lower(): known for known in names}
    near = get_close_matches(name.lower(), plain, 1)
    return f" (did you mean {plain[near[0]]!r}?)" if near else ""


def in_short(value: Any) -> str:
    """A value in a message; one that would fill lines, such as a module with all its layers, by its class.

    >>> in_short(0.5), in_short([0] * 99)
    ('0.5', '<list>')
    """
    text = repr(value)
    kind = type(getattr(value, "network", value)).__name__  # what an adapter wraps a module in says nothing
    return text if len(text) <= 100 and "\n" not in text else f"<{kind}>"


def missing_extra(package: str, extra: str) -> ImportError:
    """Return the error that names the extra which brings an optional package.

    Args:
        package: the package that could not be imported.
        extra: the extra of testtime that installs it.

    >>> str(missing_extra("Pillow", "images"))
    "Pillow is not installed; it comes with testtime[images]: pip install -e '.[images]' in the folder of testtime's source"
    """
    return ImportError(f"{package} is not installed; it comes with {_install([extra])}")


def need_packages(**extras: str) -> None:
    """Raise one error that names every missing package with the extras that install them.

    Args:
        extras: names of modules, each with the extra of testtime that installs it.

    Raises:
        ImportError: one or more are not installed.

    >>> need_packages(json="images", no_such="scenes", nor_this="mat")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ImportError: no_such, nor_this are not installed; they come with testtime[scenes,mat]: pip install -e '.[scenes,mat]' ...
    """
    absent = [module for module in extras if not _installed(module)]
    if len(absent) == 1:
        raise missing_extra(PACKAGES.get(absent[0], absent[0]), extras[absent[0]])
    if absent:
        names = ", ".join(PACKAGES.get(module, module) for module in absent)
        wanted = list(dict.fromkeys(extras[module] for module in absent))
        raise ImportError(f"{names} are not installed; they come with {_install(wanted)}")


def need_pillow() -> Any:
    """Return the module ``PIL.Image``.

    Raises:
        ImportError: Pillow is not installed.
    """
    try:
        import PIL.Image
    except ImportError as error:
        raise missing_extra("Pillow", "images") from error
    return PIL.Image


def _install(extras: list[str]) -> str:
    names = ",".join(extras)
    return f"testtime[{names}]: pip install -e '.[{names}]' in the folder of testtime's source"


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ValueError:  # it was imported, and its import left no specification
        return True
