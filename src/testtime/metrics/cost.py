"""Cost of a method: forward and backward passes of the network, time, memory, size of the state."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

__all__ = ["Cost", "median_milliseconds", "milliseconds", "peak_memory", "state_bytes"]


class Cost:
    """Context manager that counts the images in forward and backward passes of networks of one type.

    Passes of every copy of the network count (a teacher, a source model), whatever code calls it. The hook is global and is
    removed when the block ends.

    Args:
        network: source model, or its type.

    Attributes:
        forwards: number of images in forward passes; divided by the images of the stream, the forward passes per batch.
        backwards: number of images whose output received a gradient.

    >>> net = nn.Sequential(nn.Linear(2, 2))
    >>> with Cost(net) as cost:
    ...     net(torch.zeros(5, 2)).sum().backward()
    >>> cost.forwards, cost.backwards
    (5, 5)
    """

    def __init__(self, network: nn.Module | type[nn.Module]) -> None:
        self.type = network if isinstance(network, type) else type(network)
        self.forwards = 0
        self.backwards = 0

    def __enter__(self) -> Cost:
        self._hook = register_module_forward_hook(self._count)
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()

    def _count(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if type(module) is not self.type or not inputs or not isinstance(inputs[0], Tensor):
            return
        count = len(inputs[0])
        self.forwards += count
        answer = _first_tensor(output)
        if answer is not None and answer.requires_grad:
            answer.register_hook(lambda gradient: self._back(count))

    def _back(self, count: int) -> None:
        self.backwards += count


def milliseconds(call: Callable[[], object], device: torch.device | str = "cpu") -> tuple[float, Any]:
    """Return the duration of a call in milliseconds, including the work it started on the device, and its result.

    Args:
        call: function without arguments.
        device: device to synchronise with.
    """
    _wait(device)
    start = time.perf_counter()
    result = call()
    _wait(device)
    return 1000 * (time.perf_counter() - start), result


def median_milliseconds(
    call: Callable[[], object], device: torch.device | str = "cpu", seconds: float = 0.5
) -> float:
    """Return the median duration of a call in milliseconds: three calls do not count, then at least five do.

    Args:
        call: function without arguments.
        device: device to synchronise with.
        seconds: duration of the measurement.
    """
    times: list[float] = []
    for _ in range(3):
        call()
    began = time.monotonic()
    while len(times) < 5 or time.monotonic() - began < seconds:
        times.append(milliseconds(call, device)[0])
    return median(times)


def peak_memory(device: torch.device | str = "cpu") -> int | None:
    """Return the peak of the memory used so far in bytes: of the device's tensors, or of the whole process on a CPU.

    Args:
        device: device of the tensors.

    Returns:
        None on a CPU under Windows, where Python's standard library does not measure it.
    """
    if torch.device(device).type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def state_bytes(state: dict[str, Tensor]) -> int:
    """Return the size of the tensors of a state dict in bytes.

    >>> state_bytes({"a": torch.zeros(3), "b": torch.zeros((), dtype=torch.int64)})
    20
    """
    return sum(value.numel() * value.element_size() for value in state.values())


def _wait(device: torch.device | str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def _first_tensor(output: Any) -> Tensor | None:
    if isinstance(output, Tensor):
        return output
    values = (
        output.values() if hasattr(output, "values") else output if isinstance(output, tuple | list) else ()
    )
    return next((value for value in values if isinstance(value, Tensor)), None)
