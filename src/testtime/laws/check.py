"""Trying an adapter against the laws, with excuses that must be true."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from testtime.laws import caller, composition, state, stepping
from testtime.laws.trial import Law, LawBroken, Make
from testtime.laws.worlds import WORLDS
from testtime.plugins import plugins

if TYPE_CHECKING:
    import pytest

__all__ = ["LAWS", "Case", "broken_laws", "check_adapter", "installed_cases", "parametrize_with_laws"]

LAWS: dict[str, Law] = {
    law.__name__: law
    for law in (
        caller.source_untouched,
        caller.tensors_owned,
        caller.ambient_untouched,
        caller.any_grad_context,
        caller.label_blind,
        stepping.same_form,
        stepping.alive,
        stepping.frozen_is_frozen,
        stepping.null_step,
        stepping.output_timing,
        stepping.deterministic,
        stepping.order_equivariant,
        stepping.any_batch,
        stepping.survives_nonfinite,
        stepping.no_residue,
        stepping.no_future,
        stepping.each_alone,
        stepping.bounded,
        stepping.one_tick,
        stepping.any_precision,
        state.reset_is_birth,
        state.save_is_enough,
        state.restore_is_total,
        state.snapshot_is_a_value,
        state.predict_is_pure,
        composition.composes,
        composition.declared,
    )
}
"""The laws by name, in the order in which they are tried."""
LONG = frozenset(
    law.__name__
    for law in (
        caller.any_grad_context,
        stepping.output_timing,
        stepping.any_batch,
        stepping.no_residue,
        stepping.bounded,
        stepping.any_precision,
        state.restore_is_total,
        composition.composes,
    )
)
"""The names of the laws that take half of the time of all."""
CLASSIFICATION = ("batchnorm", "groupnorm", "vit")


def broken_laws(
    make: Make, worlds: Sequence[str] = CLASSIFICATION, laws: Iterable[str] | None = None
) -> dict[str, str]:
    """The laws that do not hold, by name, each with the world, the measured deviation and its sentence.

    Args:
        make: builds the adapter on a model: the class itself, or a function of the model.
        worlds: names from ``testtime.laws.WORLDS``; those in which the method can live.
        laws: the names of those to try; all unless given.

    Raises:
        ValueError: there is no law or no world of that name.
    """
    names = list(LAWS) if laws is None else list(laws)
    _known("law", names, LAWS)
    _known("world", worlds, WORLDS)
    if not worlds:
        raise ValueError(f"an adapter lives in at least one world, of {', '.join(WORLDS)}")
    broken = {}
    for name in names:
        for world in worlds:
            try:
                LAWS[name](make, WORLDS[world])
            except Exception as error:  # noqa: BLE001 - whatever an adapter raises breaks the law that was tried
                measured = (
                    str(error)
                    if isinstance(error, LawBroken)
                    else f"it raised {type(error).__name__}: {error}"
                )
                broken[name] = f"{name} in {world}: {measured}\n    the law: {LAWS[name].__doc__}"
                break
    return broken


def check_adapter(
    make: Make,
    excuses: Mapping[str, str] | None = None,
    worlds: Sequence[str] = CLASSIFICATION,
    laws: Iterable[str] | None = None,
) -> None:
    """Try an adapter against the laws.

    Args:
        make: builds the adapter on a model: the class itself, or a function of the model.
        excuses: for a law that the method must break, the fact of its paper that is the reason.
        worlds: names from ``testtime.laws.WORLDS``; those in which the method can live.
        laws: the names of those to try; all unless given.

    Raises:
        AssertionError: a law does not hold, or holds although it was excused; the message says which, where
            and by how much.
        ValueError: there is no law or no world of that name, or an excuse gives no reason.
    """
    excuses = dict(excuses or {})
    _known("law", excuses, LAWS)
    for name, reason in excuses.items():
        if not reason.strip():
            raise ValueError(
                f"the excuse for {name} gives no reason; say which fact of the method breaks the law"
            )
    names = list(LAWS) if laws is None else list(laws)
    broken = broken_laws(make, worlds, names)
    complaints = [message for name, message in broken.items() if name not in excuses]
    complaints += [
        f"{name} holds in {', '.join(worlds)}, yet was excused ({reason}): delete the excuse"
        for name, reason in excuses.items()
        if name in names and name not in broken
    ]
    if complaints:
        raise AssertionError("\n".join(complaints))


@dataclass(frozen=True)
class Case:
    """An adapter to try: its name in the report, and what :func:`check_adapter` takes."""

    name: str
    make: Make
    excuses: Mapping[str, str] = field(default_factory=dict)
    worlds: Sequence[str] = CLASSIFICATION


def installed_cases() -> list[Case]:
    """Return a case for every method that other packages register under ``testtime.methods``.

    >>> @parametrize_with_laws(installed_cases())
    ... def test_obeys(check):
    ...     check()
    """
    return [Case(name, point.load()) for name, point in plugins("testtime.methods").items()]


def parametrize_with_laws(
    cases: Iterable[Case], rotate: bool = False, every: int = 1
) -> pytest.MarkDecorator:
    """A pytest decorator: one test per case and law, for a function that calls the ``check`` it is given.

    Args:
        cases: adapters to try.
        rotate: try each law in one of the case's worlds, in turn, instead of in all of them: a third of the time. Excused
            laws are tried in all, for an excuse may be true of one world alone.
        every: try the laws that take longest on every so-many-th case alone, each on others, and where they are excused.

    >>> from testtime.methods import Tent
    >>> @parametrize_with_laws([Case("Tent", Tent)])
    ... def test_obeys(check):
    ...     check()
    """
    import pytest

    checks = []
    for i, case in enumerate(cases):
        _known("law", case.excuses, LAWS)
        for j, name in enumerate(LAWS):
            turn, excused = i + j, name in case.excuses
            if name in LONG and not excused:
                turn, left_out = divmod(turn, every)
                if left_out:
                    continue
            one = rotate and not excused
            worlds = [case.worlds[turn % len(case.worlds)]] if one else case.worlds
            check = partial(check_adapter, case.make, case.excuses, worlds, [name])
            checks.append(pytest.param(check, id=f"{case.name}-{name}"))
    return pytest.mark.parametrize("check", checks)


def _known(kind: str, names: Iterable[str], known: Mapping[str, object]) -> None:
    unknown = sorted(set(names) - known.keys())
    if unknown:
        raise ValueError(
            f"there is no {kind} {', '.join(map(repr, unknown))}; the {kind}s are {', '.join(known)}"
        )
