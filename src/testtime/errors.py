"""The errors that testtime raises on purpose: each says what was found, what was expected and what to do."""

from typing import Any


class TesttimeError(Exception):
    """The base of every error that testtime raises on purpose."""

    __test__ = False  # the name starts with "Test": not a test class


class DataError(TesttimeError, ValueError):
    """A data file is missing, damaged, or not what its format promises."""


class WeightsError(TesttimeError, ValueError):
    """A file of weights is missing, damaged, of a kind that is not read, or of another architecture."""


class AdapterWarning(UserWarning):
    """An adapter runs, and its images, its model or its settings are probably not what was meant."""


def missing_extra(package: str, extra: str) -> ImportError:
    """Return the error that names the extra which brings an optional package.

    Args:
        package: the package that could not be imported.
        extra: the extra of testtime that installs it.

    >>> str(missing_extra("Pillow", "images"))
    "Pillow is not installed; install it with: pip install 'testtime[images]'"
    """
    return ImportError(f"{package} is not installed; install it with: pip install 'testtime[{extra}]'")


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
