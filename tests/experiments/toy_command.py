"""A command that runs the experiment on numbers, for the tests that kill it: FOLDER SLEEP BACKEND."""

from __future__ import annotations

import sys

from toy_family import Toy

from testtime.experiments import Backend, Here, Processes, Ray, Request, run_experiment
from testtime.workers import Terminated, terminable


def main() -> int:
    folder, sleep, kind = sys.argv[1:]
    request = Request("toy", precision="float32", settings={"sleep": float(sleep), "steps": 3})
    backends = {"here": Here, "processes": lambda: Processes(2), "ray": lambda: Ray("local", 2)}
    backend: Backend = backends[kind]()
    try:
        with terminable():
            return run_experiment(Toy(), request, folder, backend=backend).exit_code
    except KeyboardInterrupt as stop:
        return 143 if isinstance(stop, Terminated) else 130


if __name__ == "__main__":
    sys.exit(main())
