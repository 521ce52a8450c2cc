"""Convert a pickled checkpoint to safetensors, once.

    python -m testtime.models.convert in.pth out.safetensors

This tool is the only place of the project that opens a .pth file, and no other module imports it: models are
loaded from safetensors or npz alone. It reads with ``torch.load(weights_only=True)``, which admits tensors
and plain containers and runs no code of the file.
"""

import argparse
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors.torch import save_file
from torch import Tensor

from testtime.errors import WeightsError

NESTED = ("state_dict", "model_state_dict", "model", "net", "ema", "state_dict_ema")


def tensors_of(checkpoint: object) -> dict[str, Tensor]:
    """Return the tensors by name of a state dict, or of a dict that holds one under a usual key.

    Args:
        checkpoint: what was saved.

    Raises:
        WeightsError: if no state dict is found.

    >>> list(tensors_of({"epoch": 3, "state_dict": {"fc.bias": torch.zeros(2)}}))
    ['fc.bias']
    """
    if isinstance(checkpoint, Mapping):
        for key in NESTED:
            if isinstance(checkpoint.get(key), Mapping):
                return tensors_of(checkpoint[key])
        tensors = {str(key): value for key, value in checkpoint.items() if isinstance(value, Tensor)}
        if tensors:
            return tensors
    raise WeightsError(f"no state dict in the checkpoint; looked at the top and under {', '.join(NESTED)}")


def convert(source: str | Path, target: str | Path) -> None:
    """Convert a checkpoint in a process of its own, so that the caller's never opens the pickle.

    Args:
        source: a file written by ``torch.save``.
        target: the .safetensors file to write.

    Raises:
        WeightsError: if the conversion fails, with what it said.
    """
    command = [sys.executable, "-m", "testtime.models.convert", str(source), str(target)]
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
    options = parser.parse_args(arguments)
    try:
        loaded = torch.load(options.source, map_location="cpu", weights_only=True)
        tensors = {key: value.detach().clone().contiguous() for key, value in tensors_of(loaded).items()}
        save_file(tensors, options.target)
    except (OSError, RuntimeError, UnpicklingError, WeightsError) as error:
        print(f"{options.source}: {error}", file=sys.stderr)
        return 1
    print(f"{options.target}: {len(tensors)} tensors")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
