"""The engine: does the units of an experiment that are not done, in their order, on a back-end, into the folder of a run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from testtime.claims import holder
from testtime.experiments.backends import Backend, Here
from testtime.experiments.experiment import Experiment, Unit, closure
from testtime.experiments.provenance import provenance
from testtime.experiments.request import Request
from testtime.experiments.run import RunFolder
from testtime.experiments.store import AGAIN, Outcome, Store
from testtime.files import read_json
from testtime.progress import Meter

__all__ = ["Summary", "run_experiment"]

ATTEMPTS = 3  # at a unit whose process is killed
POLL = 1.0  # seconds between two checks of units that other processes work on
KILLED = (
    f"its process was killed {ATTEMPTS} times, for memory (take fewer --jobs or images) or by its own code "
    "(try it without --jobs)"
)
OUTDATED = "made with another version of the code and kept; --again makes them again: {}"


@dataclass
class Summary:
    """What a command did in the folder of a run: units by name.

    Args:
        done: those that were done now, by this process or another one.
        failed: error of each failed unit.
        not_run: for each unit that was not run, the failed unit that it needs.
        outdated: those whose result was made with another version of the code.
    """

    folder: Path
    done: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    not_run: dict[str, str] = field(default_factory=dict)
    outdated: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0, or 1 if a unit failed."""
        return 1 if self.failed else 0


def run_experiment(
    experiment: Experiment,
    request: Request,
    folder: str | Path,
    store: str | Path | None = None,
    backend: Backend | None = None,
    command: Sequence[str] = (),
    say: Callable[[str], None] = print,
    again: bool = False,
) -> Summary:
    """Do every unit of a run that is not done. The same call continues a run that was interrupted.

    Args:
        experiment: experiment to run.
        request: rows, seeds and settings; a run of the same settings in the folder is extended.
        folder: folder of the run.
        store: folder of artefacts, shared with other runs; None is ``store`` beside the folder of the run.
        backend: back-end that executes the units; None is this process.
        command: command line, for the provenance.
        say: function that takes lines for a person.
        again: whether results of another version of the code are made again.

    Returns:
        what was done and what failed; a failed unit does not end the run.

    Raises:
        ValueError: the experiment has no such row, setting or precision, or the folder holds another run; nothing is written.
        DataError: data or weights are not there; nothing is written.
        ImportError: a package is not installed; nothing is written.
    """
    from testtime.processor import need_device, resolve_precision

    run = RunFolder(Path(folder))
    before = run.request()
    experiment.check_settings(request)
    experiment.check_machine(say)
    asked: Any = request.precision
    started: Any = before.precision if before else _only_precision(experiment, request)
    precision = resolve_precision(asked, need_device(request.device), started, say)
    request = request.started(experiment.seeds, precision)
    whole = request.joined(before) if before else request
    plan = experiment.plan(whole)  # what it refuses is refused before anything is written
    with run.claimed():
        there = run.request()
        if there != before:  # another process has begun or extended this run in the meantime
            whole = request.joined(there) if there else request
            plan = experiment.plan(whole)
        run.write(experiment, whole, plan, provenance(command, request.device, precision))
    request = replace(request, token=whole.token)
    units = plan.units if request == whole else experiment.plan(request).units
    place = Path(store) if store is not None else run.path.absolute().parent / "store"
    with backend or Here() as where:
        schedule = _Schedule(run, Store(place.absolute()), where, again, say)
        schedule.add(units)
        schedule.work(experiment.name)
    return schedule.summary


def _only_precision(experiment: Experiment, request: Request) -> str | None:
    """Return the precision of an experiment that has one alone; a ValueError refuses a precision that it does not have."""
    able = experiment.precisions(request)
    if request.precision not in ("auto", *able):
        raise ValueError(
            f"{experiment.name} computes in {' or '.join(able)}, not in {request.precision}; leave --precision out"
        )
    return able[0] if len(able) == 1 else None


class _Schedule:
    """Units that wait, run, or are worked on by other processes."""

    def __init__(
        self, run: RunFolder, store: Store, backend: Backend, again: bool, say: Callable[[str], None]
    ) -> None:
        self.run, self.store, self.backend, self.again, self.say = run, store, backend, again, say
        self.waiting: dict[str, Unit] = {}
        self.running: dict[str, Unit] = {}
        self.elsewhere: dict[str, tuple[Unit, str]] = {}
        self.stored: set[str] = set()  # addresses whose artefacts are in the store
        self.failed: dict[str, str] = {}  # name of the failed unit, also by the addresses of what needs it
        self.attempts: dict[str, int] = {}
        self.weights: dict[str, float] = {}
        self.polled = 0.0
        self.summary = Summary(run.path)

    def add(self, units: Sequence[Unit]) -> None:
        """Take up the units without a result, and what these need and the store lacks."""
        wanted = {u.address for u in units if not self._current(u, self.run.result(u))}
        for unit in reversed(closure(units)):  # a unit comes before what it needs
            kept, stored = self.run.result(unit), self.store.result(unit.address)
            if self._current(unit, stored):
                self._adopt(unit, None if self._current(unit, kept) else stored)
            elif unit.address in wanted:
                self.waiting[unit.address] = unit
                wanted.update(need.address for need in unit.needs.values())
            if unit.address not in self.waiting and (found := kept or stored) and self._outdated(unit, found):
                self.summary.outdated.append(unit.name)
        self.waiting = dict(reversed(self.waiting.items()))
        self.weights = {address: unit.weight for address, unit in self.waiting.items()}
        finished = sum(unit.address not in self.waiting for unit in units)
        if finished:
            self.say(f"{finished} of {len(units)} units are finished already")
        if self.summary.outdated:
            self.say(OUTDATED.format(", ".join(self.summary.outdated)))

    def _outdated(self, unit: Unit, content: Mapping[str, Any]) -> bool:
        return bool(content["unit"]["code"] != unit.versions)

    def _current(self, unit: Unit, content: Mapping[str, Any] | None) -> bool:
        """Whether a result can stay."""
        return content is not None and not (self.again and self._outdated(unit, content))

    def work(self, title: str) -> None:
        """Go on until nothing waits."""
        with Meter(title, sum(self.weights.values())) as meter:
            while self.waiting or self.running or self.elsewhere:
                self._submit()
                self._show(meter)
                if self.running:
                    for address, outcome in self.backend.finished(POLL):
                        unit = self.running.pop(address)
                        self._submit()  # no worker waits until the files of this unit are written
                        self._end(unit, outcome)
                else:
                    time.sleep(POLL / 2)
                self._poll()
            self._show(meter)

    def _submit(self) -> None:
        """Start what is ready, as far as there is room; a unit that runs alone waits until nothing else runs."""
        ready = [u for u in self.waiting.values() if all(n.address in self.stored for n in u.needs.values())]
        for unit in sorted(ready, key=lambda unit: not self._alone(unit)):
            full = len(self.running) >= self.backend.slots or any(map(self._alone, self.running.values()))
            if full or (self._alone(unit) and self.running):
                return
            self.running[unit.address] = self.waiting.pop(unit.address)
            self.backend.submit(unit.described(), str(self.store.root), self.again)

    def _alone(self, unit: Unit) -> bool:
        """Whether it runs alone: as it declares, or as its process was killed, so that it takes no other with it again."""
        return unit.alone or (self.backend.together and unit.address in self.attempts)

    def _show(self, meter: Meter) -> None:
        busy = {**self.running, **{address: unit for address, (unit, _) in self.elsewhere.items()}}
        names = ", ".join(f"{u.name}{' (elsewhere)' * (a in self.elsewhere)}" for a, u in busy.items())
        ended = [weight for a, weight in self.weights.items() if a not in self.waiting and a not in busy]
        done, counts = sum(ended), f"{len(ended)}/{len(self.weights)} units"
        if isinstance(self.backend, Here):
            own = sum(self.weights[address] for address in self.running)
            self.backend.report = lambda share: meter.update(done + share * own, names, counts)
        share = sum(self.weights[address] * self.store.share(address) for address in busy)
        meter.update(done + share, names, counts)

    def _end(self, unit: Unit, outcome: Outcome) -> None:
        state = outcome["state"]
        if state == "done":
            self._adopt(unit, self.store.result(unit.address))
            self.summary.done.append(unit.name)
        elif state == "elsewhere":
            self.elsewhere[unit.address] = (unit, outcome["token"])
        elif state == "failed":
            self._fail(unit, outcome["error"], outcome["traceback"])
        else:
            self.attempts[unit.address] = self.attempts.get(unit.address, 0) + 1
            if self.attempts[unit.address] < ATTEMPTS:
                self.waiting[unit.address] = unit
            else:
                self._fail(unit, KILLED, "")

    def _adopt(self, unit: Unit, content: Mapping[str, Any] | None) -> None:
        self.stored.add(unit.address)
        if content is not None:
            self.run.adopt(unit, content)

    def _fail(self, unit: Unit, error: str, trace: str) -> None:
        path = self.run.fail(unit, error, trace)
        self.summary.failed[unit.name] = error
        self.failed[unit.address] = unit.name
        self.say(f"failed: {unit.name}: {error} (see {path})")
        # In their order, so that what needs a blocked unit is blocked after it.
        for other in list(self.waiting.values()):
            names = [self.failed[n.address] for n in other.needs.values() if n.address in self.failed]
            if names:
                del self.waiting[other.address]
                self.failed[other.address] = self.summary.not_run[other.name] = names[0]
                self.say(f"not run: {other.name}, which needs {names[0]}")

    def _poll(self) -> None:
        """Look after the units that other processes work on."""
        if not self.elsewhere or time.monotonic() - self.polled < POLL:
            return
        self.polled = time.monotonic()
        for address, (unit, token) in list(self.elsewhere.items()):
            folder = self.store.folder(address)
            claim = holder(folder)
            if claim is not None and not claim.dead():
                self.elsewhere[address] = (unit, claim.token)
                continue
            del self.elsewhere[address]
            path = folder / "error.json"
            error = read_json(path, AGAIN) if path.is_file() else {}
            if token and error.get("token") == token:
                self._fail(unit, error["error"], error["traceback"])
            else:  # it is done, or was given up; both are found out by another attempt
                self.waiting[address] = unit
