"""Convert a pickled checkpoint to safetensors, once.

    python -m testtime.models.convert in.pth out.safetensors

This tool is the only place of the project that opens a .pth file, and no other module imports it: models are
loaded from safetensors or npz alone. It reads with ``torch.load(weights_only=True)``, which restores tensors
and plain containers and runs no code of the file. What else lies beside the weights (numpy numbers, an
``argparse.Namespace``, a configuration) is replaced by an empty object of this module; its class is neither
imported nor looked up.

Where a checkpoint has plain weights and their moving average (EMA), the plain ones are taken; ``--key`` takes
others::

    python -m testtime.models.convert in.pth out.safetensors --key state_dict_ema
"""

import argparse
import pickletools
import subprocess
import sys
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from testtime.errors import WeightsError
from testtime.files import write_tensors

PLAIN = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "params", "weights")
EMA = (
    "ema",
    "model_ema",
    "ema_model",
    "state_dict_ema",
    "ema_state_dict",
    "model_ema_state_dict",
    "params_ema",
)
"""Keys, or first parts of names, under which checkpoints keep weights, and their moving average."""
PICKLES = 5
"""Pickles at the beginning of a file that is no archive: a magic number, the version, sizes, objects, storages."""


def tensors_of(checkpoint: object, key: str | None = None) -> dict[str, Tensor]:
    """Return the tensors by name of a state dict, or of a dict that holds one.

    Args:
        checkpoint: object that was saved.
        key: name under which the weights lie in it, or first part of their names, such as "ema"; dots go deeper.
            None takes the plain weights, wherever they lie under a usual name, and a moving average only if there
            are no others.

    Raises:
        WeightsError: if no state dict is found.

    >>> list(tensors_of({"epoch": 3, "state_dict": {"fc.bias": torch.zeros(2)}, "ema": {"fc.bias": torch.ones(2)}}))
    ['fc.bias']
    >>> tensors_of({"module.fc.bias": torch.zeros(2), "ema.fc.bias": torch.ones(2)}, "ema")
    {'fc.bias': tensor([1., 1.])}
    """
    if key is not None:
        return _under(checkpoint, key)
    if isinstance(checkpoint, Mapping):
        for name in PLAIN:
            if isinstance(checkpoint.get(name), Mapping):
                return tensors_of(checkpoint[name])
        tensors = _tensors(checkpoint)
        plain = {name: value for name, value in tensors.items() if name.split(".")[0] not in EMA}
        if plain:
            return plain
        averages = averages_of(checkpoint)
        if averages:
            return _under(checkpoint, averages[0])
    raise WeightsError(
        f"no state dict in the checkpoint, which is {_described(checkpoint)}; looked at the top and under "
        f"{', '.join(PLAIN + EMA)}; name its place with --key"
    )


def averages_of(checkpoint: object) -> list[str]:
    """Return under which keys a checkpoint has moving averages of the weights (EMA).

    >>> averages_of({"model": {}, "model_ema": {"fc.bias": torch.ones(2)}})
    ['model_ema']
    """
    if not isinstance(checkpoint, Mapping):
        return []
    nested = [name for name in EMA if isinstance(checkpoint.get(name), Mapping)]
    firsts = {name.split(".")[0] for name in _tensors(checkpoint)}
    return [*nested, *(name for name in EMA if name in firsts and name not in nested)]


def convert(source: str | Path, target: str | Path, key: str | None = None) -> None:
    """Convert a checkpoint in a process of its own, so that the caller's never opens the pickle.

    Args:
        source: a file written by ``torch.save``.
        target: the .safetensors file to write.
        key: name under which the weights lie; see :func:`tensors_of`.

    Raises:
        WeightsError: if the conversion fails, with its message.
    """
    command = [sys.executable, "-m", "testtime.models.convert", str(source), str(target)]
    command += [] if key is None else ["--key", key]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        raise WeightsError(f"{source}: not converted: {run.stderr.strip()}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status.

    Args:
        arguments: the source and the target; by default those of the process.
    """
    parser = argparse.ArgumentParser(
        prog="python -m testtime.models.convert", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("source", type=Path, help="a .pt, .pth, .th or .tar file written by torch.save")
    parser.add_argument("target", type=Path, help="the .safetensors file to write")
    parser.add_argument(
        "--key", help="where the weights lie in the checkpoint, such as ema or state_dict_ema"
    )
    options = parser.parse_args(arguments)
    try:
        loaded = _loaded(options.source)
        found = tensors_of(loaded, options.key)
        tensors = {name: _whole(name, value) for name, value in found.items()}
        write_tensors(options.target, tensors)
    except (OSError, WeightsError) as error:
        print(f"{options.source}: {error}", file=sys.stderr)
        return 1
    print(f"{options.target}: {len(tensors)} tensors")
    averages = averages_of(loaded) if options.key is None else []
    if averages and not {id(value) for value in found.values()} <= {
        id(v) for v in _under(loaded, averages[0]).values()
    }:
        print(
            f"the checkpoint also has a moving average (EMA) of the weights; take it with --key {averages[0]}"
        )
    return 0


def _tensors(table: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {str(name): value for name, value in table.items() if isinstance(value, Tensor)}


def _under(checkpoint: object, key: str) -> dict[str, Tensor]:
    """The tensors in the dict of this key, or whose names begin with it."""
    if isinstance(checkpoint, Mapping):
        held = checkpoint.get(key)
        first, _, rest = key.partition(".")
        if isinstance(held, Mapping):
            return tensors_of(held)
        if rest and isinstance(checkpoint.get(first), Mapping):
            return _under(checkpoint[first], rest)
        tensors = {
            name.removeprefix(f"{key}."): value
            for name, value in _tensors(checkpoint).items()
            if name.startswith(f"{key}.")
        }
        if tensors:
            return tensors
    raise WeightsError(
        f"no weights under the key {key!r} of the checkpoint, which is {_described(checkpoint)}"
    )


def _described(checkpoint: object) -> str:
    if isinstance(checkpoint, Mapping):
        names = [str(name) for name in checkpoint]
        return f"a dict of {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"
    if isinstance(checkpoint, _Ignored):
        return f"an object of the class {type(checkpoint).__module__}.{type(checkpoint).__name__}: save its state_dict()"
    return f"a {type(checkpoint).__name__}"


def _whole(name: str, value: Tensor) -> Tensor:
    """A tensor that can be written: on the processor, contiguous, and with memory of its own."""
    if value.layout is not torch.strided or value.is_quantized or value.device.type != "cpu":
        raise WeightsError(
            f"{name} is a tensor of another kind ({value.layout}, {value.dtype}, {value.device})"
        )
    if value.numel() * value.element_size() > max(value.untyped_storage().nbytes(), 2**20):
        raise WeightsError(f"{name} {tuple(value.shape)} is larger than what the file holds of it")
    return value.detach().clone().contiguous()


class _Ignored:
    """What takes the place of objects beside the weights; it ignores their content in the file."""

    def __new__(cls, *_: Any, **__: Any) -> "_Ignored":
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


class _Dict:
    """A plain dict in the place of a defaultdict, which torch fills as such."""

    def __new__(cls, *_: Any) -> Any:
        return {}


class _List:
    """A plain list in the place of a deque."""

    def __new__(cls, *_: Any) -> Any:
        return []


CONTAINERS: dict[tuple[str, str], type] = {
    ("collections", "defaultdict"): _Dict,
    ("collections", "deque"): _List,
}


def _loaded(path: Path) -> Any:
    """What a checkpoint holds; objects of classes that torch does not restore are of the class :class:`_Ignored`."""
    try:
        names = _names_in(path)
        with _standing_in(names):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (
        UnpicklingError,
        RuntimeError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        EOFError,
        MemoryError,
        OverflowError,
        RecursionError,
        zipfile.BadZipFile,
    ) as error:
        # The message of torch names its own way out, which is to run the code of the file.
        reason = str(error.__context__ or error).strip().partition("\n")[0].partition(". ")[0]
        reason = type(error).__name__ if not reason or "weights_only" in reason else reason
        raise WeightsError(
            "it is damaged, or its weights lie in objects that only their own code can restore "
            f"({reason}); load it where it was made, and save "
            "{name: tensor for name, tensor in model.state_dict().items()} with torch.save"
        ) from error


def _names_in(path: Path) -> set[tuple[str, str]]:
    """The module and name of each global that the pickles of a checkpoint mention; nothing is looked up."""
    found = set()
    with path.open("rb") as file:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
                for name in names:
                    with archive.open(name) as pickle:
                        found |= set(_globals(pickle.read()))
            return found
        file.seek(0)
        for _ in range(PICKLES):
            try:
                found |= set(_globals(file))
            except ValueError:  # the storages follow
                break
    return found


def _globals(pickle: Any) -> Iterator[tuple[str, str]]:
    for opcode, argument, _ in pickletools.genops(pickle):
        if opcode.name == "GLOBAL":
            module, _, name = str(argument).partition(" ")
            yield module, name
            if (module, name) in NAME_MAPPING:  # names of Python 2
                yield NAME_MAPPING[module, name]
            elif module in IMPORT_MAPPING:
                yield IMPORT_MAPPING[module], name


@contextmanager
def _standing_in(names: set[tuple[str, str]]) -> Iterator[None]:
    """Let torch put an empty object where a pickle mentions these names; those that torch knows stay torch's."""
    own: list[Any] = []
    for module, name in names:
        about = {"__module__": module, "__qualname__": name}
        own.append(type(name, (CONTAINERS.get((module, name), _Ignored),), about))
    before = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals(own)
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


if __name__ == "__main__":
    raise SystemExit(main())
