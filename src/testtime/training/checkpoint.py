"""Checkpoints of a training: one safetensors file with weights and optimizer state by name, written atomically.

A file carries a description of its training (recipe, seed, data), so that no other training continues from it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from testtime.errors import WeightsError
from testtime.files import check_shape, damaged, parse_json, read_tensors, sweep, write_tensors

__all__ = ["belongs", "described_in", "digest", "load", "require", "save"]

AGAIN = "delete it and run the same command again"
SHOWN = 4  # entries of a description that a message names
RENAMED = {"born": "initial_weights"}  # entries of descriptions that earlier versions wrote
ABSENT = object()


def save(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    step: int,
    described: Mapping[str, Any],
) -> None:
    """Write a model, and the state of its optimizer if there is one.

    Args:
        path: the file.
        model: model whose parameters and persistent buffers are written.
        optimizer: optimizer of parameters of the model; None writes the weights alone.
        step: number of steps that were done.
        described: description of the training in values of JSON.
    """
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    if optimizer is not None:
        names = {id(p): name for name, p in model.named_parameters()}
        for parameter, state in optimizer.state.items():
            for key, value in state.items():
                tensors[f"optimizer.{names[id(parameter)]}.{key}"] = torch.as_tensor(value)
    # Copies, because safetensors refuses tensors that share memory.
    found = {k: v.detach().cpu().clone().contiguous() for k, v in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent)
    write_tensors(path, found, {"step": str(step), "described": json.dumps(described)})


def load(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None = None, optional: str = ""
) -> int:
    """Load a file's tensors into a model, name by name.

    Args:
        path: the file.
        model: model that takes the tensors.
        optimizer: optimizer that takes its state; None loads the weights alone.
        optional: prefix of the names of tensors that file or model may lack; the model then keeps its own.

    Returns:
        number of steps that were done.

    Raises:
        WeightsError: the file is of a model with other names or shapes; nothing was changed.
        DataError: the file is damaged; nothing was changed.
    """
    found, metadata = read_tensors(path, AGAIN)
    with damaged(path, AGAIN):
        step = int(metadata["step"])
    own = model.state_dict()
    saved = {k.removeprefix("model."): v for k, v in found.items() if k.startswith("model.")}
    differ = sorted(
        k for k in own.keys() ^ saved.keys() if not (optional and k.startswith(optional))
    ) + sorted(k for k in own.keys() & saved.keys() if own[k].shape != saved[k].shape)
    if differ:
        raise WeightsError(
            f"{path} is of another model: {len(differ)} tensors differ, first {', '.join(differ[:3])}; build the model with "
            "the same arguments"
        )
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(saved.get(name, value))
    if optimizer is not None:
        for name, parameter in model.named_parameters():
            prefix = f"optimizer.{name}."
            state = {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)}
            if state:
                optimizer.state[parameter] = {
                    k: v if k == "step" else v.to(parameter.device, parameter.dtype) for k, v in state.items()
                }
    return step


def described_in(path: Path) -> dict[str, Any]:
    """Return the description in a file; an empty one if another program wrote the file.

    Args:
        path: the file.

    Raises:
        DataError: the file is damaged.
    """
    with damaged(path, AGAIN, (SafetensorError,)):
        with safe_open(path, framework="pt") as file:
            found: dict[str, Any] = parse_json((file.metadata() or {}).get("described", "{}"), finite=False)
        check_shape(found, dict)
    return {RENAMED.get(key, key): value for key, value in found.items()}


def belongs(path: Path, described: Mapping[str, Any]) -> bool:
    """Return whether a file is of the training that is described.

    Args:
        path: the file.
        described: description of the training.
    """
    return bool(described_in(path) == json.loads(json.dumps(described)))


def require(path: Path, described: Mapping[str, Any]) -> None:
    """Refuse a file of another training.

    Args:
        path: the file.
        described: description of the training.

    Raises:
        WeightsError: the file's description differs; the message names the entries and what to do.
        DataError: the file is damaged.
    """
    was, now = dict(_flat(described_in(path))), dict(_flat(json.loads(json.dumps(described))))
    differ = [
        f"{key} is {_short(was.get(key, ABSENT))} there and {_short(now.get(key, ABSENT))} here"
        for key in now | was
        if was.get(key, ABSENT) != now.get(key, ABSENT)
    ]
    if differ:
        more = f"; and {len(differ) - SHOWN} more" if len(differ) > SHOWN else ""
        raise WeightsError(
            f"{path} belongs to another training: {'; '.join(differ[:SHOWN])}{more}. Give the arguments of that training to "
            "continue it, choose another folder, or delete it"
        )


def digest(model: nn.Module) -> str:
    """Return a digest of a model's parameters and persistent buffers, which identifies its initial weights.

    Args:
        model: the model.
    """
    found = hashlib.blake2b(digest_size=16)
    for name, value in sorted(model.state_dict().items()):
        flat = value.detach().cpu().contiguous().reshape(-1)
        found.update(f"{name}:{value.dtype}:{tuple(value.shape)}".encode())
        found.update(flat.view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the entries of nested dictionaries and lists by dotted name."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _flat(item, f"{name}.{key}" if name else key)
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for i, item in enumerate(value):
            yield from _flat(item, f"{name}[{i}]")
    else:
        yield name, value


def _short(value: Any) -> str:
    if value is ABSENT:
        return "absent"
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
