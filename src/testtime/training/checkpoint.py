"""Checkpoints of a training that goes on exactly where it was left: one safetensors file, every tensor by name.

The file says what it belongs to (``described``: recipe, seed, data); another training is not continued by mistake. A file is
written whole or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from testtime.errors import WeightsError
from testtime.files import check_shape, damaged, parse_json, read_tensors, sweep, write_tensors

__all__ = ["belongs", "described_in", "load", "save"]

AGAIN = "delete it and run the same command again"


def save(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    step: int,
    described: Mapping[str, Any],
) -> None:
    """Write the model, and the optimizer's state if there is one.

    Args:
        path: of the file.
        model: all its parameters and persistent buffers.
        optimizer: over parameters of the model; None for weights alone.
        step: how many steps were done.
        described: what the file belongs to, in values of JSON.
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
    """Put the file's tensors into place, name by name.

    Args:
        path: of the file.
        model: takes the tensors.
        optimizer: takes its state; None for the weights alone.
        optional: how the names of tensors begin that either side may lack; the model then keeps its own.

    Returns:
        the steps that were done.

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
    """What a file says that it belongs to; nothing, if it is not of this module.

    Raises:
        DataError: the file is damaged.
    """
    with damaged(path, AGAIN, (SafetensorError,)):
        with safe_open(path, framework="pt") as file:
            found: dict[str, Any] = parse_json((file.metadata() or {}).get("described", "{}"), finite=False)
        check_shape(found, dict)
    return found


def belongs(path: Path, described: Mapping[str, Any]) -> bool:
    """Whether the file belongs to what is described."""
    return bool(described_in(path) == json.loads(json.dumps(described)))
