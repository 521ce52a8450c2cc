"""What the machine has: devices, processor, load, and whether bfloat16 is fast on it."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, get_args

import torch

__all__ = [
    "Precision",
    "PrecisionChoice",
    "autocast",
    "fast_bfloat16",
    "machine_load",
    "need_device",
    "processor_name",
    "resolve_precision",
]

Precision = Literal["float32", "bfloat16"]
PrecisionChoice = Literal["auto", "float32", "bfloat16"]

SLOW_BFLOAT16 = (
    "bfloat16 is emulated on this processor ({name}), which can take 7 to 14 times as long as float32; "
    "--precision auto takes float32 here"
)


def need_device(name: str) -> str:
    """Return the name of a device that can be used.

    Args:
        name: "cpu", "cuda", "cuda:1" or another type of device that this torch knows.

    Raises:
        ValueError: there is no such device; the message lists those that there are.

    >>> need_device("cpu")
    'cpu'
    """
    there = _devices()
    try:
        device = torch.device(name)
    except (RuntimeError, ValueError):
        device = None
    if device is None or str(device) not in there:
        raise ValueError(f"no device {name!r} here; there is {', '.join(there)}")
    return name


def _devices() -> list[str]:
    there = ["cpu"]
    if torch.cuda.is_available():
        there += ["cuda", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        there += ["mps", "mps:0"]
    return there


def resolve_precision(
    choice: PrecisionChoice,
    device: str = "cpu",
    started: Precision | None = None,
    warn: Callable[[str], None] = print,
) -> Precision:
    """Return the precision that a run uses.

    Args:
        choice: "auto" takes bfloat16 where :func:`fast_bfloat16` is true, and float32 elsewhere.
        device: device of the networks.
        started: precision of an earlier part of the same run, which "auto" keeps; None for a new run.
        warn: function that receives the warning that bfloat16 is slow here.

    Raises:
        ValueError: the choice is none of "auto", "float32" and "bfloat16".

    >>> resolve_precision("auto", started="float32")
    'float32'
    """
    if choice not in get_args(PrecisionChoice):
        raise ValueError(f"precision is one of {', '.join(get_args(PrecisionChoice))}, got {choice!r}")
    if choice == "auto":
        return started or ("bfloat16" if fast_bfloat16(device) else "float32")
    if choice == "bfloat16" and not fast_bfloat16(device):
        warn(SLOW_BFLOAT16.format(name=processor_name()))
    return choice


def autocast(device: str, precision: Precision) -> torch.autocast:
    """Return the context in which networks run in a precision; losses and optimizers stay in float32.

    Args:
        device: device of the networks.
        precision: precision of their forwards and backwards.

    >>> with autocast("cpu", "bfloat16"):
    ...     print(torch.nn.Linear(2, 1)(torch.zeros(1, 2)).dtype)
    torch.bfloat16
    """
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bfloat16")


def fast_bfloat16(device: str = "cpu") -> bool:
    """Return whether the device computes in bfloat16 itself.

    A CPU does with AVX512-BF16 or AMX-BF16 (x86) or the BF16 instructions (ARM); elsewhere each operation is emulated.

    Args:
        device: "cpu", or a device of torch.
    """
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return kind == "cpu" and bool({"avx512_bf16", "amx_bf16", "bf16"} & _features())


def _features() -> set[str]:
    """The features of the CPU: torch's list where it has one, and that of the Linux kernel."""
    report: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    found = {name for name, value in report.items() if value is True}
    for line in _cpuinfo():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return found | set(value.split())
    return found


def processor_name() -> str:
    """Return the model of the processor, or its architecture where the system does not tell the model."""
    for line in _cpuinfo():
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "Model"):
            return value.strip()
    return platform.processor() or platform.machine()


def machine_load() -> float | None:
    """Return how many processes wanted a processor over the last minute; None where the system does not count them."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(errors="replace").splitlines() if path.is_file() else []
