"""Back-ends: where units are executed. This process, processes of this machine, or Ray."""

from __future__ import annotations

import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from testtime.errors import missing_extra
from testtime.experiments.store import Outcome, execute
from testtime.workers import start_worker, worker_pool

__all__ = ["Backend", "Here", "Processes", "Ray"]

PRELOADED = ("torch", "numpy", "testtime.experiments.store")


class Backend(ABC):
    """Executes units; a context that ends what still runs."""

    @property
    @abstractmethod
    def slots(self) -> int:
        """How many units run at once."""

    @abstractmethod
    def submit(self, address: str, described: Mapping[str, Any], root: str, again: bool) -> None:
        """Start a unit, see :func:`testtime.experiments.store.execute`."""

    @abstractmethod
    def finished(self, timeout: float) -> list[tuple[str, Outcome]]:
        """Wait until a unit ends, at most for some seconds, and return the addresses and outcomes of those that ended."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class Here(Backend):
    """This process, one unit after the other, with torch's own number of threads."""

    def __init__(self) -> None:
        self._waiting: dict[str, tuple[Mapping[str, Any], str, bool]] = {}
        self.report: Any = None

    @property
    def slots(self) -> int:
        return 1

    def submit(self, address: str, described: Mapping[str, Any], root: str, again: bool) -> None:
        self._waiting[address] = (described, root, again)

    def finished(self, timeout: float) -> list[tuple[str, Outcome]]:
        found = [(address, execute(*call, self.report)) for address, call in self._waiting.items()]
        self._waiting.clear()
        return found


class Processes(Backend):
    """Processes of this machine, one torch thread each.

    Args:
        jobs: number of processes.
    """

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self._running: dict[Future[Outcome], str] = {}
        self._stack = ExitStack()
        self._pool: Any = None

    @property
    def slots(self) -> int:
        return self.jobs

    def submit(self, address: str, described: Mapping[str, Any], root: str, again: bool) -> None:
        if self._pool is None:
            self._pool = self._stack.enter_context(
                worker_pool(self.jobs, _start, (list(sys.path),), preload=PRELOADED)
            )
        try:
            future = self._pool.submit(execute, described, root, again)
        except BrokenProcessPool:  # a process was killed while none of its units was waited for
            self._close()
            self.submit(address, described, root, again)
            return
        self._running[future] = address

    def finished(self, timeout: float) -> list[tuple[str, Outcome]]:
        done, _ = wait(self._running, timeout=timeout, return_when=FIRST_COMPLETED)
        found: list[tuple[str, Outcome]] = []
        for future in done:
            address = self._running.pop(future)
            try:
                found.append((address, future.result()))
            except BrokenProcessPool:
                found.append((address, {"state": "lost"}))
        if any(outcome["state"] == "lost" for _, outcome in found):
            self._close()
        return found

    def _close(self) -> None:
        self._stack.close()
        self._pool = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)


class Ray(Backend):
    """Workers of Ray, one CPU and one torch thread each; all hosts see the store under the same path.

    Args:
        address: address of a running cluster, or "auto"; "local" starts one on this machine.
        jobs: CPUs of a cluster that is started; None takes all of this machine.
    """

    def __init__(self, address: str = "local", jobs: int | None = None) -> None:
        try:
            import ray
        except ImportError as error:
            raise missing_extra("ray", "ray") from error
        self._ray, self._address, self._jobs = ray, address, jobs
        self._running: dict[Any, str] = {}
        self._own = False

    def __enter__(self) -> Self:
        if not self._ray.is_initialized():
            self._own = True
            # The driver's paths are those of the workers, so that they find this package and the units' modules.
            places = os.pathsep.join(dict.fromkeys(str(Path(p or ".").resolve()) for p in sys.path))
            started = {"num_cpus": self._jobs} if self._address == "local" and self._jobs else {}
            self._ray.init(
                address=self._address,
                include_dashboard=False if self._address == "local" else None,
                log_to_driver=False,
                logging_level="ERROR",
                runtime_env={"env_vars": {"PYTHONPATH": places, "OMP_NUM_THREADS": "1"}},
                **started,
            )
        self._call = self._ray.remote(num_cpus=1, max_retries=0)(_in_ray)
        return self

    @property
    def slots(self) -> int:
        return max(1, int(self._ray.cluster_resources().get("CPU", 1)))

    def submit(self, address: str, described: Mapping[str, Any], root: str, again: bool) -> None:
        self._running[self._call.remote(dict(described), str(Path(root).resolve()), again)] = address

    def finished(self, timeout: float) -> list[tuple[str, Outcome]]:
        if not self._running:
            return []
        done, _ = self._ray.wait(list(self._running), num_returns=1, timeout=timeout)
        found: list[tuple[str, Outcome]] = []
        for reference in done:
            address = self._running.pop(reference)
            try:
                found.append((address, self._ray.get(reference)))
            except self._ray.exceptions.RayTaskError as error:
                found.append(
                    (address, {"state": "failed", "error": str(error.cause), "traceback": str(error)})
                )
            except self._ray.exceptions.RayError:  # the worker or its node was killed
                found.append((address, {"state": "lost"}))
        return found

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for reference in self._running:
            self._ray.cancel(reference, force=True)
        if self._own:
            self._ray.shutdown()


def _start(path: list[str]) -> None:
    """Start a worker process."""
    start_worker()
    _one_thread()
    sys.path[:] = path


def _in_ray(described: dict[str, Any], root: str, again: bool) -> Outcome:
    _one_thread()
    return execute(described, root, again)


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)
