"""The engine: runs the units of an experiment that are not done, in their order, on a back-end, into the folder of a run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from testtime.experiments.backends import Backend, Here
from testtime.experiments.claims import holder
from testtime.experiments.experiment import Experiment, Unit, closure
from testtime.experiments.provenance import provenance
from testtime.experiments.request import Request
from testtime.experiments.run import RunFolder, finished
from testtime.experiments.store import Outcome, Store
from testtime.files import read_json
from testtime.progress import Meter

__all__ = ["Summary", "run_experiment"]

ATTEMPTS = 3  # at a unit whose process is killed
POLL = 1.0  # seconds between two checks of units that other processes work on
KILLED = "its process was killed {} times, probably for memory; take fewer --jobs or a smaller --limit"
OUTDATED = "made with another version of the code, kept as it is; --again makes it again: {}"


@dataclass
class Summary:
    """What a command did.

    Attributes:
        folder: folder of the run.
        done: names of the units that were done or found in the store.
        failed: errors by name of the unit.
        not_run: for each unit that was not run, the name of the failed unit that it needs.
        outdated: names of the units whose result was made with another version of the code.
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
        backend: where units are executed; None is this process.
        command: command line, for the provenance.
        say: function that takes lines for a person.
        again: whether results of another version of the code are made again.

    Returns:
        what was done and what failed; a failed unit does not end the run.

    Raises:
        ValueError: the experiment has no such row or setting, or the folder holds another run; nothing is written.
        DataError: data or weights are not there; nothing is written.
    """
    from testtime.processor import need_device, resolve_precision

    run = RunFolder(Path(folder))
    before = run.request()
    experiment.check_settings(request)
    precision = resolve_precision(
        request.precision,  # type: ignore[arg-type]
        need_device(request.device),
        before.precision if before else None,  # type: ignore[arg-type]
        say,
    )
    request = request.started(experiment.seeds, precision)
    whole = request.joined(before) if before else request
    request = replace(request, token=whole.token)
    plan = experiment.plan(whole)
    units = plan.units if request == whole else experiment.plan(request).units
    run.write(experiment, whole, plan, provenance(command, request.device, precision))
    place = Store(Path(store) if store is not None else run.path.absolute().parent / "store")
    with backend or Here() as where:
        schedule = _Schedule(run, place, where, again, say)
        schedule.add(units)
        schedule.work(experiment.name)
    return schedule.summary


class _Schedule:
    """Units that wait, run, or are worked on by other processes."""

    def __init__(
        self, run: RunFolder, store: Store, backend: Backend, again: bool, say: Callable[[str], None]
    ) -> None:
        self.run, self.store, self.backend, self.again, self.say = run, store, backend, again, say
        self.waiting: dict[str, Unit] = {}
        self.running: dict[str, Unit] = {}
        self.elsewhere: dict[str, tuple[Unit, str]] = {}
        self.ready: set[str] = set()  # addresses whose artefacts are in the store
        self.attempts: dict[str, int] = {}
        self.lost: dict[str, str] = {}  # name of the failed unit by address of what needs it, and of itself
        self.polled = 0.0
        self.summary = Summary(run.path)

    def add(self, units: Sequence[Unit]) -> None:
        """Take up the units without a result, and what these need and the store lacks."""
        kept = finished(self.run, list(closure(units)))
        wanted = {unit.address for unit in units if not self._current(unit, kept.get(unit.address))}
        for unit in reversed(list(closure(units))):  # what is needed comes after what needs it
            content = self.store.result(unit.address)
            if content is not None and self._current(unit, content):
                self.ready.add(unit.address)
                if not self._current(unit, kept.get(unit.address)):
                    self._adopt(unit, content)
            elif unit.address in wanted:
                self.waiting[unit.address] = unit
                wanted.update(need.address for need in unit.needs.values())
        self.waiting = dict(reversed(self.waiting.items()))
        there = len(units) - sum(unit.address in self.waiting for unit in units)
        if there:
            self.say(f"{there} of {len(units)} units are finished already")
        for unit in closure(units):
            content = kept.get(unit.address)
            if (
                content is not None
                and content["unit"]["code"] != unit.versions
                and unit.address not in self.waiting
            ):
                self.summary.outdated.append(unit.name)
        if self.summary.outdated:
            self.say(OUTDATED.format(", ".join(self.summary.outdated)))

    def _current(self, unit: Unit, content: Mapping[str, Any] | None) -> bool:
        return content is not None and not (self.again and content["unit"]["code"] != unit.versions)

    def work(self, title: str) -> None:
        """Run until nothing waits."""
        total = sum(unit.weight for unit in self.waiting.values())
        weights = {unit.address: unit.weight for unit in self.waiting.values()}
        with Meter(title, total) as meter:
            while self.waiting or self.running or self.elsewhere:
                self._submit()
                self._show(meter, weights)
                if not self.running:
                    time.sleep(POLL / 2)
                for address, outcome in self.backend.finished(POLL):
                    self._end(self.running.pop(address), outcome)
                self._poll()
            self._show(meter, weights)

    def _show(self, meter: Meter, weights: Mapping[str, float]) -> None:
        open_ = {*self.waiting, *self.running, *self.elsewhere}
        done = sum(weight for address, weight in weights.items() if address not in open_)
        shares = sum(weights[a] * self.store.share(a) for a in (*self.running, *self.elsewhere))
        names = ", ".join(unit.name for unit in self.running.values())
        if isinstance(self.backend, Here):
            self.backend.report = lambda share: meter.update(
                done + share * sum(weights[a] for a in self.running), names
            )
        meter.update(done + shares, names)

    def _submit(self) -> None:
        """Start what is ready, as far as there is room; a unit that runs alone waits until nothing else runs."""
        ready = [u for u in self.waiting.values() if all(n.address in self.ready for n in u.needs.values())]
        for unit in sorted(ready, key=lambda unit: not unit.alone):
            full = len(self.running) >= self.backend.slots or any(u.alone for u in self.running.values())
            if full or (unit.alone and self.running):
                return
            self.running[unit.address] = self.waiting.pop(unit.address)
            self.backend.submit(unit.address, unit.described(), str(self.store.root), self.again)

    def _end(self, unit: Unit, outcome: Outcome) -> None:
        if outcome["state"] == "done":
            content = self.store.result(unit.address)
            assert content is not None
            self._adopt(unit, content)
        elif outcome["state"] == "elsewhere":
            self.elsewhere[unit.address] = (unit, outcome["token"])
        elif outcome["state"] == "failed":
            self._fail(unit, outcome["error"], outcome["traceback"])
        else:
            self.attempts[unit.address] = self.attempts.get(unit.address, 0) + 1
            if self.attempts[unit.address] < ATTEMPTS:
                self.waiting[unit.address] = unit
            else:
                self._fail(unit, KILLED.format(ATTEMPTS), "")

    def _adopt(self, unit: Unit, content: Mapping[str, Any]) -> None:
        self.run.adopt(unit, content)
        self.ready.add(unit.address)
        self.summary.done.append(unit.name)
        if content["unit"]["code"] != unit.versions:
            self.summary.outdated.append(unit.name)

    def _fail(self, unit: Unit, error: str, trace: str) -> None:
        path = self.run.fail(unit, error, trace)
        self.summary.failed[unit.name] = error
        self.say(f"failed: {unit.name}: {error} (see {path})")
        self.lost[unit.address] = unit.name
        for other in list(
            self.waiting.values()
        ):  # in their order, so that what needs a blocked one is blocked too
            for need in other.needs.values():
                if need.address in self.lost:
                    del self.waiting[other.address]
                    self.lost[other.address] = self.lost[need.address]
                    self.summary.not_run[other.name] = self.lost[need.address]
                    self.say(f"not run: {other.name}, which needs {self.lost[need.address]}")
                    break

    def _poll(self) -> None:
        """Look after the units that other processes work on."""
        if not self.elsewhere or time.monotonic() - self.polled < POLL:
            return
        self.polled = time.monotonic()
        for address, (unit, token) in list(self.elsewhere.items()):
            content = self.store.result(address)
            claim = holder(self.store.folder(address))
            if content is not None and self._current(unit, content):
                del self.elsewhere[address]
                self._adopt(unit, content)
            elif claim is not None and not claim.dead():
                self.elsewhere[address] = (unit, claim.token)
            else:
                del self.elsewhere[address]
                path = self.store.folder(address) / "error.json"
                error = read_json(path, "delete it") if path.is_file() else {}
                if token and error.get("token") == token:
                    self._fail(unit, error["error"], error["traceback"])
                else:
                    self.waiting[address] = unit
