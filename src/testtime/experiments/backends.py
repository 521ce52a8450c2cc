"""Back-ends: where units are executed. This process, processes of this machine, or Ray."""

from __future__ import annotations

import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from testtime.errors import missing_extra
from testtime.experiments.store import Outcome, execute
from testtime.workers import start_worker, worker_pool

__all__ = ["Backend", "Here", "Processes", "Ray"]

LOST: Outcome = {"state": "lost"}
SLOW = ("cv2", "timm")  # packages that are imported where they are needed, in a second or so


class Backend(ABC):
    """Executes units. It is a context, at whose end nothing runs on."""

    together = False
    """Whether a process that is killed takes the units of others with it."""

    @property
    @abstractmethod
    def slots(self) -> int:
        """How many units run at once."""

    @abstractmethod
    def submit(self, described: Mapping[str, Any], root: str, again: bool) -> None:
        """Start a unit, see :func:`testtime.experiments.store.execute`."""

    @abstractmethod
    def finished(self, timeout: float) -> list[tuple[str, Outcome]]:
        """Wait until a unit ends, at most for some seconds, and return the addresses and outcomes of those that ended."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        return None


class Here(Backend):
    """This process, one unit after the other, with torch's own number of threads."""

    slots = 1
    report: Callable[[float], None] | None = None

    def submit(self, described: Mapping[str, Any], root: str, again: bool) -> None:
        self._call = described, root, again

    def finished(self, timeout: float) -> list[tuple[str, Outcome]]:
        return [(self._call[0]["address"], execute(*self._call, self.report))]


class Processes(Backend):
    """Processes of this machine, one torch thread each. A pool whose process was killed is made again.

    Args:
        jobs: number of processes.
    """

    together = True

    def __init__(self, jobs: int) -> None:
        self._jobs, self._stack = jobs, ExitStack()
        self._pool: ProcessPoolExecutor | None = None
        self._running: dict[Future[Outcome], str] = {}

    @property
    def slots(self) -> int:
        return self._jobs

    def submit(self, described: Mapping[str, Any], root: str, again: bool) -> None:
        if self._pool is None:
            modules = _shared_modules(described["kind"])
            pool = worker_pool(self._jobs, _start, (list(sys.path),), modules)
            self._pool = self._stack.enter_context(pool)
        try:
            future = self._pool.submit(execute, described, root, again)
        except (
            BrokenProcessPool,
            EOFError,
            ConnectionError,
        ) as error:  # also where the process that starts them is gone
            future = Future()
            future.set_exception(BrokenProcessPool(str(error)))
        self._running[future] = described["address"]

    def finished(self, timeout: float) -> list[tuple[str, Outcome]]:
        done, others = wait(self._running, timeout=timeout, return_when=FIRST_COMPLETED)
        if any(isinstance(future.exception(), BrokenProcessPool) for future in done):
            self._stack.close()  # it waits until all its units have ended, with a result or without
            self._pool, done, others = None, done | others, set()
        found = [(self._running[future], _outcome(future)) for future in done]
        self._running = {future: self._running[future] for future in others}
        return found

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)
        self._pool = None


class Ray(Backend):
    """Workers of Ray, one CPU and one torch thread each. All hosts see store and data under the same paths.

    Args:
        address: address of a running cluster, or "auto"; "local" starts one on this machine.
        jobs: number of CPUs of a cluster that is started; None takes all.
    """

    def __init__(self, address: str = "local", jobs: int | None = None) -> None:
        try:
            import ray
        except ImportError as error:
            raise missing_extra("ray", "ray") from error
        self._ray, self._address, self._jobs = ray, address, jobs
        self._running: dict[Any, str] = {}
        self._started = False

    def __enter__(self) -> Self:
        if not self._ray.is_initialized():
            self._started = True
            # The workers import from the same places as this process, where this package and the units' modules are.
            paths = dict.fromkeys(str(Path(path).absolute()) for path in sys.path)
            local = {"include_dashboard": False, "num_cpus": self._jobs} if self._address == "local" else {}
            self._ray.init(
                self._address,
                log_to_driver=False,
                logging_level="ERROR",
                runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}},
                **local,
            )
        self._call = self._ray.remote(num_cpus=1, max_retries=0)(_in_ray)
        return self

    @property
    def slots(self) -> int:
        return max(1, int(self._ray.cluster_resources().get("CPU", 1)))

    def submit(self, described: Mapping[str, Any], root: str, again: bool) -> None:
        # Ray hides the GPUs from a task that asks for none.
        cuda = str(described["parameters"].get("device", "cpu")).startswith("cuda")
        call = self._call.options(num_gpus=1) if cuda else self._call
        self._running[call.remote(dict(described), root, again)] = described["address"]

    def finished(self, timeout: float) -> list[tuple[str, Outcome]]:
        if not self._running:
            return []
        done, _ = self._ray.wait(list(self._running), timeout=timeout)
        return [(self._running.pop(reference), self._outcome(reference)) for reference in done]

    def _outcome(self, reference: Any) -> Outcome:
        try:
            outcome: Outcome = self._ray.get(reference)
            return outcome
        except self._ray.exceptions.RayTaskError as error:
            return {"state": "failed", "error": str(error.cause), "traceback": str(error)}
        except self._ray.exceptions.RayError:  # the worker or its node was killed
            return LOST

    def __exit__(self, *error: Any) -> None:
        for reference in self._running:
            self._ray.cancel(reference, force=True)
        self._running.clear()
        if self._started:
            self._ray.shutdown()


def _shared_modules(kind: str) -> list[str]:
    """Modules that are loaded once for all workers: those that this process has needed, and that of a unit.

    The code of others is left to the worker, which reports its errors.
    """
    module = kind.partition(":")[0]
    found = [name for name in sys.modules if name.startswith("testtime.") or name in SLOW]
    return ["torch", "testtime.experiments.store", *found, *[module] * module.startswith("testtime.")]


def _start(path: list[str]) -> None:
    """Start a worker process."""
    start_worker()
    sys.path[:] = path
    _one_thread()


def _outcome(future: Future[Outcome]) -> Outcome:
    if not future.done() or future.cancelled():  # a pool that breaks forgets what it is given at that moment
        return LOST
    error = future.exception()
    if isinstance(error, BrokenProcessPool):
        return LOST
    if error is not None:
        return {"state": "failed", "error": f"{type(error).__name__}: {error}", "traceback": ""}
    return future.result()


def _in_ray(described: dict[str, Any], root: str, again: bool) -> Outcome:
    _one_thread()
    return execute(described, root, again)


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)
