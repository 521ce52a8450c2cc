"""Which part of a model's output is adapted, and outputs that no method can work with."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import testtime
from testtime.errors import AdapterWarning
from testtime.intake.outputs import Logits
from testtime.laws.worlds import WORLDS
from testtime.methods import EATA, PAFKIP, CoTTA, RoTTA, Source, Tent
from testtime.parts import entropy
from testtime.prediction import Prediction


class Net(nn.Module):
    """Features (N, 8), logits (N, 4), and whatever ``form`` makes of them and of the features (N, 8, H, W)."""

    def __init__(self, form: Callable[[Tensor, Tensor, Tensor], Any]) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
            self.head, self.dense = nn.Linear(8, 4), nn.Conv2d(8, 5, 1)
        self.form = form

    def forward(self, x: Tensor) -> Any:
        z = self.body(x)
        return self.form(z.mean((2, 3)), self.head(z.mean((2, 3))), self.dense(z))


@dataclass
class Output:
    logits: Tensor
    features: Tensor


@dataclass
class Scores:
    near: Tensor
    far: Tensor


X = torch.rand(6, 3, 5, 7, generator=torch.Generator().manual_seed(1))
EXPECTED = Tent(Net(lambda f, z, d: z))(X)

TAKEN = {
    "logits": lambda f, z, d: {"logits": z},
    "logits beside others": lambda f, z, d: {"features": f, "logits": z, "loss": z.mean()},
    "a dataclass": lambda f, z, d: Output(z, f),
    "a tuple of one": lambda f, z, d: (z,),
    "one candidate": lambda f, z, d: (z, z.mean(), None),
}


@pytest.mark.parametrize("name", TAKEN)
def test_what_can_be_nothing_else_is_taken(name: str) -> None:
    assert Tent(Net(TAKEN[name]))(X).equal(EXPECTED)


CHOSEN = {
    "index": (lambda f, z, d: (f, z), 1),
    "negative index": (lambda f, z, d: (f, z), -1),
    "key": (lambda f, z, d: {"out": z, "aux": f}, "out"),
    "attribute": (lambda f, z, d: Scores(f, z), "far"),
    "function": (lambda f, z, d: [f, {"deep": z}], lambda y: y[1]["deep"]),
}


@pytest.mark.parametrize("name", CHOSEN)
def test_outputs_chooses(name: str) -> None:
    form, outputs = CHOSEN[name]
    assert Tent(Net(form), outputs=outputs)(X).equal(EXPECTED)
    assert testtime.adapt(Net(form), "tent", outputs=outputs)(X).equal(EXPECTED)
    assert PAFKIP(Net(form), 4, outputs=outputs)(X).shape == (6, 4)


@pytest.mark.parametrize(
    ("form", "choices"),
    [
        (lambda f, z, d: (f, z), r"outputs=0 \(6, 8\), outputs=1 \(6, 4\)"),
        (lambda f, z, d: {"out": d, "aux": d}, r"outputs='out' \(6, 5, 5, 7\), outputs='aux' \(6, 5, 5, 7\)"),
        (lambda f, z, d: Scores(f, z), r"outputs='near' \(6, 8\), outputs='far' \(6, 4\)"),
        (
            lambda f, z, d: {"features": f, "out": {"logits": z}},
            r"'features' \(6, 8\); outputs=lambda y: y\['out'\]\['logits'\]",
        ),
        (lambda f, z, d: (f, Output(z, f)), r"outputs=0 \(6, 8\); outputs=lambda y: y\[1\].logits"),
        (lambda f, z, d: Scores(f, {"logits": z}), r"'near' \(6, 8\); outputs=lambda y: y.far\['logits'\]"),
        (lambda f, z, d: {"out": {"logits": z}}, r"say which: outputs=lambda y: y\['out'\]\['logits'\]"),
        (lambda f, z, d: [[z]], "a function of the output"),
        (lambda f, z, d: None, "a function of the output"),
    ],
)
def test_what_is_ambiguous_is_refused_with_the_choices(form: Any, choices: str) -> None:
    with pytest.raises(ValueError, match=choices):
        Tent(Net(form))(X)


@pytest.mark.parametrize(
    ("outputs", "kind", "message"),
    [
        ("logit", ValueError, r"no part outputs='logit'; it has 0 \(6, 8\), 1 \(6, 4\)"),
        (7, ValueError, "no part outputs=7"),
        (-5, ValueError, "no part outputs=-5"),
        (lambda y: 3, TypeError, "returned int, expected a tensor"),
        (
            lambda y: y[2],
            ValueError,
            r"a function that raised IndexError: .*output \(tuple\), which has 0 \(6, 8\), 1 \(6, 4\)",
        ),
        (lambda y: y["logits"], ValueError, "a function that raised TypeError"),
    ],
)
def test_a_wrong_choice_is_refused(outputs: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        Tent(Net(lambda f, z, d: (f, z)), outputs=outputs)(X)


def test_wrong_keywords_are_refused() -> None:
    for wrong in (1.5, True):
        with pytest.raises(TypeError, match="a name, an index or a function"):
            Tent(Net(lambda f, z, d: z), outputs=wrong)
    with pytest.raises(ValueError, match="lowest and the highest"):
        Tent(Net(lambda f, z, d: z), input_range=(1, 0))


UNFIT = {
    "one logit": (lambda f, z, d: z[:, :1], "two classes at least"),
    "no class axis": (lambda f, z, d: z[:, 0], r"shape \(6,\) for 6 samples; Tent expects logits \(N, C\)"),
    "three axes": (lambda f, z, d: d.flatten(2), r"shape \(6, 5, 35\)"),
    "another batch": (lambda f, z, d: z[:3], "for 6 samples"),
    "integers": (lambda f, z, d: z.argmax(1, keepdim=True).expand(6, 4), "floating-point"),
    "probabilities": (lambda f, z, d: z.softmax(1), "probabilities"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_outputs_that_are_no_logits_are_refused_before_anything_is_learned(name: str) -> None:
    form, message = UNFIT[name]
    adapter = Tent(Net(form))
    before = testtime.state_hash(adapter)
    with pytest.raises((TypeError, ValueError), match=message):
        adapter(X)
    assert testtime.state_hash(adapter) == before


@pytest.mark.parametrize("classes", [100, 3])
def test_the_number_of_classes_is_checked_at_the_first_batch(classes: int) -> None:
    for make in (EATA, PAFKIP, RoTTA):
        adapter = make(Net(lambda f, z, d: z), classes)
        with pytest.raises(ValueError, match=f"logits of 4 classes, .*classes={classes}; pass classes=4"):
            adapter.predict(X)


@pytest.mark.parametrize(
    ("classes", "kind"),
    [("5", TypeError), (0, ValueError), (1, ValueError), (True, TypeError), (2.0, TypeError)],
)
def test_the_number_of_classes_is_a_number(classes: Any, kind: type[Exception]) -> None:
    for make in (EATA, PAFKIP, RoTTA):
        with pytest.raises(kind, match="classes is the number of classes"):
            make(Net(lambda f, z, d: z), classes)
        with pytest.raises(kind, match="classes is the number of classes"):
            make(Net(lambda f, z, d: z), classes=classes)


def test_dense_logits_have_a_score_for_each_pixel() -> None:
    model = Net(lambda f, z, d: d)
    source, adapter = Source(model), Tent(model)
    for y in (source(X), adapter(X)):
        assert y.score.shape == (6, 5, 7)
        torch.testing.assert_close(y.score, -y.logits.exp().sum(1).log())
        assert y.valid.shape == (6,)
    bad = X.clone()
    bad[2, 0, 0, 0] = torch.nan
    y = adapter(bad)
    assert y.score.isnan().flatten(1).all(1).tolist() == [False, False, True, False, False, False]


def test_entropy_of_dense_logits_is_that_of_each_pixel() -> None:
    adapter = Tent(Net(lambda f, z, d: d))
    z = adapter.model(X)
    p = z.detach().softmax(1).double().numpy()
    torch.testing.assert_close(entropy(z).detach(), torch.from_numpy(-(p * np.log(p)).sum(1)).float())


@pytest.mark.parametrize("make", [lambda m: PAFKIP(m, 5), lambda m: RoTTA(m, 5)])
def test_methods_that_cannot_do_pixels_say_so(make: Any) -> None:
    with pytest.raises(ValueError, match=r"works on logits \(N, C\)"):
        make(Net(lambda f, z, d: d))(X)


def test_a_model_that_declares_tasks_is_refused_at_construction() -> None:
    with pytest.raises(
        ValueError, match="CoTTA works on the logits of one task, and this model declares several"
    ):
        CoTTA(WORLDS["dense"].network())


def test_a_copy_of_an_answer_is_a_value() -> None:
    y = PAFKIP(Net(lambda f, z, d: z), 4)(X)
    z = copy.deepcopy([y, y])
    assert z[0] is z[1]
    assert isinstance(z[0], Prediction)
    assert z[0].logits.equal(y.logits)
    assert z[0].score.equal(y.score)
    assert z[0].valid.equal(y.valid)
    assert z[0].updated == y.updated
    assert {k: v.tolist() for k, v in z[0].selected.items()} == {k: v.tolist() for k, v in y.selected.items()}
    y[0] = 7
    assert not z[0].logits.equal(y.logits)


def test_outputs_by_task_stay_a_dictionary_where_tasks_are_declared() -> None:
    class Dense(nn.Module):
        tasks: ClassVar = {"depth": None, "edge": None}

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"depth": x, "edge": x}

    y = Logits(Dense())(X)
    assert type(y) is dict
    assert list(y) == ["depth", "edge"]


def test_a_named_tuple_with_logits_is_taken() -> None:
    class Named(NamedTuple):
        features: Tensor
        logits: Tensor

    assert Tent(Net(lambda f, z, d: Named(f, z)))(X).equal(EXPECTED)


def test_the_wrapper_alone_checks_nothing() -> None:
    assert Logits(nn.Identity())(torch.rand(3)).shape == (3,)


class Centred(nn.Module):
    """Subtracts the mean in place, as written in many preprocessing steps."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.net, self.in_place = Net(lambda f, z, d: z), in_place

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.net(x.sub_(0.5) if self.in_place else x - 0.5)
        return y


@pytest.mark.parametrize("make", [Tent, Source, CoTTA, lambda m: PAFKIP(m, classes=4)])
def test_a_model_that_writes_into_its_input_gets_a_copy(make: Callable[..., Any]) -> None:
    x = X.clone()
    adapter, expected = make(Centred(True)), make(Centred(False))
    for _ in range(2):
        assert adapter(x).equal(expected(x))
    assert adapter.predict(x).equal(expected.predict(x))
    assert x.equal(X)


@pytest.mark.parametrize(
    ("form", "message"),
    [(lambda z: z.log_softmax(1), "log-probabilities"), (lambda z: (3 * z).sigmoid(), "those of a sigmoid")],
)
def test_outputs_of_a_last_activation_are_warned_of_once(form: Any, message: str) -> None:
    tent = Tent(Net(lambda f, z, d: form(z)))
    with pytest.warns(AdapterWarning, match=message):
        tent(X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tent(X)


def test_sparse_logits_are_refused() -> None:
    with pytest.raises(TypeError, match="layout torch.sparse_coo; return a dense tensor"):
        Source(Net(lambda f, z, d: z.to_sparse()))(X)


def test_logits_of_a_subclass_of_tensor_are_taken() -> None:
    class Own(Tensor):
        pass

    assert Tent(Net(lambda f, z, d: z.as_subclass(Own)))(X).equal(EXPECTED)
