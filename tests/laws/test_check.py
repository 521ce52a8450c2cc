"""Excuses are strict, mistakes are told, and a failure says the law and by how much."""

import pytest
from torch import Tensor, nn

from testtime.adapter import Adapter
from testtime.laws import LAWS, WORLDS, Case, check_adapter, parametrize_with_laws
from testtime.laws.check import LONG
from testtime.methods import Source, Tent

HERE = ["batchnorm"]


def test_an_excused_law_that_holds_fails() -> None:
    with pytest.raises(AssertionError, match="label_blind holds in batchnorm, yet was excused"):
        check_adapter(Tent, {"label_blind": "no reason"}, HERE, ["label_blind"])


def test_an_excused_law_that_is_broken_passes() -> None:
    check_adapter(Source, {"alive": "adapts nothing"}, HERE, ["alive", "label_blind"])


def test_a_failure_says_the_law_the_world_and_the_deviation() -> None:
    class Cool(Tent):  # type: ignore[misc]
        def step(self, x: Tensor) -> Tensor:
            return super().step(x) + 0.25

    with pytest.raises(AssertionError) as failure:
        check_adapter(Cool, worlds=HERE, laws=["null_step", "label_blind"])
    message = str(failure.value)
    assert "null_step in batchnorm" in message
    assert "differs by 0.25 (allowed: 1e-06)" in message
    assert LAWS["null_step"].__doc__ in message
    assert "label_blind" not in message


def test_what_an_adapter_raises_breaks_the_law() -> None:
    def refuse(model: nn.Module) -> Adapter:
        raise TypeError("no such model")

    with pytest.raises(AssertionError, match="alive in batchnorm: it raised TypeError: no such model"):
        check_adapter(refuse, worlds=HERE, laws=["alive"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"excuses": {"lawful": "because"}}, "there is no law 'lawful'"),
        ({"laws": ["lawful"]}, "there is no law 'lawful'"),
        ({"worlds": ["mars"]}, "there is no world 'mars'"),
        ({"worlds": []}, "at least one world"),
        ({"excuses": {"alive": " "}}, "the excuse for alive gives no reason"),
    ],
)
def test_mistakes_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_adapter(Tent, **arguments)


def test_there_are_27_laws_of_one_sentence() -> None:
    assert len(LAWS) == 27
    for name, law in LAWS.items():
        assert (law.__doc__ or "").endswith("."), name
        assert "\n" not in (law.__doc__ or ""), name


def test_the_worlds_keep_their_networks_to_themselves() -> None:
    one, other = WORLDS["batchnorm"].network(), WORLDS["batchnorm"].network()
    next(one.parameters()).data.zero_()
    assert next(other.parameters()).abs().sum() > 0
    assert one.meter is not other.meter


def test_laws_in_turn_try_every_world_and_excused_laws_all() -> None:
    cases = [Case(name, Tent, {"alive": "a reason"}) for name in ("one", "two")]
    tried = {p.id: p.values[0].args[2] for p in parametrize_with_laws(cases, rotate=True).args[1]}
    assert len(tried) == 2 * len(LAWS)
    assert tried["one-alive"] == ("batchnorm", "groupnorm", "vit")
    assert {tuple(w) for name, w in tried.items() if "alive" not in name} == {
        ("batchnorm",),
        ("groupnorm",),
        ("vit",),
    }
    assert tried["one-label_blind"] != tried["two-label_blind"]
    whole = {p.id: p.values[0].args[2] for p in parametrize_with_laws(cases).args[1]}
    assert set(map(tuple, whole.values())) == {("batchnorm", "groupnorm", "vit")}


def test_long_laws_are_tried_on_every_third_case_each_on_others_and_in_every_world() -> None:
    cases = [Case(str(i), Tent, {"bounded": "a reason"} if i == 0 else {}) for i in range(9)]
    tried = {p.id: p.values[0].args[2] for p in parametrize_with_laws(cases, rotate=True, every=3).args[1]}
    on = {law: {case.name for case in cases if f"{case.name}-{law}" in tried} for law in LAWS}
    assert {law for law, names in on.items() if len(names) < 9} == LONG
    assert on["composes"] == {"2", "5", "8"}
    assert on["no_residue"] == {"1", "4", "7"}
    assert on["bounded"] == {"0", "1", "4", "7"}  # the first is excused
    assert {tuple(w) for name, w in tried.items() if name.endswith("composes")} == {
        ("batchnorm",),
        ("groupnorm",),
        ("vit",),
    }
