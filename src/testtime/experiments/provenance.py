"""Provenance: what a run or a unit was made with, in one format for all experiments."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from testtime import __version__

__all__ = ["SCHEMA", "now", "provenance"]

SCHEMA = 1
"""Version of the format of ``run.json`` and of the files of results."""
PACKAGES = ("torch", "numpy", "safetensors", "timm", "transformers")


def provenance(command: Sequence[str], device: str, precision: str) -> dict[str, Any]:
    """Return versions, processor, precision, threads and command of this process, in values of JSON.

    Args:
        command: command line; empty for none.
        device: device of the networks.
        precision: precision of their forwards.
    """
    import torch

    from testtime.processor import machine_load, processor_name

    machine = {"system": platform.system(), "architecture": platform.machine(), "processor": processor_name()}
    cuda = torch.device(device).type == "cuda"
    return {
        "started": now(),
        "command": list(command),
        "versions": dict(_versions()),
        "machine": {**machine, "cores": os.cpu_count(), "load": machine_load()},
        "device": torch.cuda.get_device_name(device) if cuda else device,
        "precision": precision,
        "threads": torch.get_num_threads(),
    }


@cache
def _versions() -> dict[str, str]:
    """The versions of the packages that are installed; they are read once."""
    found = {"testtime": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def now() -> str:
    """Return the time in UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
