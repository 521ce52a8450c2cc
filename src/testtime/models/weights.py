"""Weights from safetensors and npz files into a model, with errors that say what differs; never a pickle."""

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from testtime.errors import WeightsError
from testtime.models.preprocessed import Preprocessed

PICKLED = {".pt", ".pth", ".th", ".tar", ".ckpt", ".bin", ".pkl", ".t7"}
PREFIXES = ("module.", "model.")
SHOWN = 5


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors or .npz file by name.

    Args:
        path: the file.

    Raises:
        WeightsError: if the file is missing, damaged, or of a kind that would need a pickle to be executed.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if not path.is_file():
        raise WeightsError(f"{path}: no such file; give the path of a .safetensors or .npz file of weights")
    if kind in PICKLED:
        raise WeightsError(
            f"{path}: testtime reads no pickled checkpoint, because reading one can run code; convert it once"
            f" with: python -m testtime.models.convert {path} {path.with_suffix('.safetensors')}"
        )
    try:
        if kind == ".safetensors":
            return load_file(path)
        if kind == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return {name: torch.from_numpy(arrays[name].copy()) for name in arrays.files}
    except (SafetensorError, zipfile.BadZipFile, ValueError, TypeError, OSError, EOFError) as error:
        raise WeightsError(f"{path}: damaged or not a {kind} file ({error}); fetch it again") from error
    raise WeightsError(f"{path}: unknown kind {kind!r}; expected .safetensors or .npz")


def strip_prefixes(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state without the ``module.`` or ``model.`` that all of its keys start with.

    Args:
        state: tensors by name.

    >>> list(strip_prefixes({"module.model.fc.bias": torch.zeros(1)}))
    ['fc.bias']
    """
    state = dict(state)
    for prefix in PREFIXES * 2:
        if state and all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def load_weights(model: nn.Module, path: str | Path) -> nn.Module:
    """Copy the weights of a file into the model and return the model, in eval mode.

    Args:
        model: a network, or one in `Preprocessed`, whose inner network then receives the weights.
        path: a .safetensors or .npz file. Key prefixes ``module.`` and ``model.`` are removed; buffers
            ``mu`` and ``sigma`` (RobustBench) become the normalisation of a `Preprocessed` model; the
            counters ``num_batches_tracked`` may be absent.

    Raises:
        WeightsError: if the file cannot be read, a key is missing or unexpected, a shape differs, or the
            file holds a normalisation and the model has none.
    """
    state = read_weights(path)
    inner = model.model if isinstance(model, Preprocessed) else model
    own = inner.state_dict()
    mean, std = (_take(state, name) for name in ("mu", "sigma"))
    state = strip_prefixes(state)
    _check(path, state, own, type(inner).__name__)
    if mean is not None and std is not None:
        _adopt(path, model, mean, std)
    with torch.no_grad():
        for key, value in state.items():
            own[key].copy_(value.reshape(own[key].shape))
    return model.eval()


def _take(state: dict[str, Tensor], name: str) -> Tensor | None:
    """Remove and return the buffer of this name, whatever its prefix."""
    key = next((key for key in state if key.split(".")[-1] == name), None)
    return None if key is None else state.pop(key)


def _adopt(path: str | Path, model: nn.Module, mean: Tensor, std: Tensor) -> None:
    """Make the file's normalisation the model's."""
    if isinstance(model, Preprocessed) and mean.numel() == model.mean.numel() == std.numel():
        model.mean.copy_(mean.view_as(model.mean))
        model.std.copy_(std.view_as(model.std))
        return
    raise WeightsError(
        f"{path}: holds a normalisation (mu {mean.flatten().tolist()}, sigma {std.flatten().tolist()})"
        " that the model has no place for; wrap it first: normalised(model, mean, std)"
    )


def _check(path: str | Path, state: Mapping[str, Tensor], own: Mapping[str, Tensor], kind: str) -> None:
    """Compare keys and shapes, and say the first differences."""
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    shapes = [
        f"{key} {tuple(value.shape)}, expected {tuple(own[key].shape)}"
        for key, value in state.items()
        if key in own and _differ(value, own[key])
    ]
    found = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    lines = [f"{len(keys)} {what}: {_first(keys)}" for what, keys in found.items() if keys]
    if lines:
        raise WeightsError(
            f"{path}: does not fit {kind}; {'; '.join(lines)}. Choose the architecture, depth, width and"
            " number of classes that the file was trained with"
        )


def _differ(value: Tensor, own: Tensor) -> bool:
    """Whether shapes differ; a scalar may come as an array of one."""
    return value.shape != own.shape and not value.numel() == own.numel() == 1


def _first(keys: list[str]) -> str:
    return ", ".join(keys[:SHOWN]) + (", ..." if len(keys) > SHOWN else "")
