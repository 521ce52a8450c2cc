import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from testtime.prediction import Prediction, TaskPredictions, energy

LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 0.5], [30.0, -30.0, 0.0]])


def prediction() -> Prediction:
    return Prediction(
        LOGITS.clone(),
        score=torch.tensor([0.1, 0.2, 0.3]),
        selected={"kept": torch.tensor([True, False, True])},
        updated=True,
    )


def test_why_a_step_failed_is_kept_by_copies_and_parts() -> None:
    rows = torch.tensor([True, False, True])
    many = TaskPredictions({"depth": torch.ones(2, 1)}, failed="loss")
    one = Prediction(LOGITS[:2], failed="loss")
    assert [y.failed for y in (one, one.at(rows[:2]), one.spread(rows), copy.deepcopy(one))] == ["loss"] * 4
    assert [y.failed for y in (many, many.at(rows[:2]), many.spread(rows))] == ["loss"] * 3
    assert prediction().failed == TaskPredictions({}, valid=rows).failed == ""


def test_energy_is_minus_logsumexp() -> None:
    z = LOGITS.double().numpy()
    np.testing.assert_allclose(energy(LOGITS).numpy(), -np.log(np.exp(z).sum(1)), rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_energy_of_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    assert energy(LOGITS.to(dtype)).dtype == torch.float32
    assert energy(LOGITS.to(dtype)).equal(energy(LOGITS.to(dtype).float()))


def test_is_a_plain_tensor_to_every_operation() -> None:
    y = prediction()
    assert isinstance(y, Tensor)
    for result in (y + 1, y[0], y.softmax(1), torch.cat([y, y]), y.argmax(1), y.to(torch.float64)):
        assert type(result) is Tensor
    assert type(y.logits) is Tensor
    assert y.logits.equal(LOGITS)
    assert y.argmax(1).tolist() == [0, 0, 0]


def test_defaults() -> None:
    y = Prediction(torch.tensor([[1.0, 2.0], [torch.nan, 0.0], [torch.inf, 0.0]]))
    assert y.valid.tolist() == [True, False, False]
    assert y.score[:1].equal(energy(torch.tensor([[1.0, 2.0]])))
    assert y.selected == {}
    assert y.updated is False


def test_infinities_that_cancel_are_not_valid() -> None:
    z = torch.tensor([[torch.inf, -torch.inf], [1.0, 2.0], [3e38, 3e38]])
    assert Prediction(z).valid.tolist() == [False, True, True]
    assert Prediction(z.double()[1:]).valid.tolist() == [True, True]


def test_an_energy_is_computed_once_and_is_a_plain_tensor() -> None:
    y = Prediction(LOGITS)
    with torch.inference_mode():
        score = y.score
    assert not score.is_inference()
    assert type(score) is Tensor
    assert y.score is score


def test_carries_no_graph() -> None:
    z = LOGITS.clone().requires_grad_(True)
    y = Prediction(z * 2, score=(z * 3).sum(1))
    assert not y.requires_grad
    assert y.grad_fn is None
    assert not y.score.requires_grad


@pytest.mark.parametrize("rows", [torch.tensor([2, 0]), torch.tensor([True, False, True])])
def test_at_takes_rows_of_everything(rows: Tensor) -> None:
    y = prediction().at(rows)
    assert y.logits.equal(LOGITS[rows])
    assert y.score.equal(torch.tensor([0.1, 0.2, 0.3])[rows])
    assert y.selected["kept"].tolist() == [True, True]
    assert y.valid.tolist() == [True, True]
    assert y.updated is True


def test_spread_leaves_room_for_the_refused() -> None:
    y = prediction().spread(torch.tensor([False, True, True, False, True]))
    assert y.logits[[1, 2, 4]].equal(LOGITS)
    assert y[[0, 3]].isnan().all()
    assert y.score.isnan().tolist() == [True, False, False, True, False]
    assert y.valid.tolist() == [False, True, True, False, True]
    assert y.selected["kept"].tolist() == [False, True, False, False, True]
    assert y.updated is True


def test_a_saved_answer_loads_without_running_a_pickle(tmp_path: Path) -> None:
    one, many = prediction(), TaskPredictions({"depth": torch.ones(2, 1)}, updated=True, failed="loss")
    torch.save([one, many], tmp_path / "answers.pt")
    y, tasks = torch.load(tmp_path / "answers.pt", weights_only=True)
    assert torch.equal(y, one)
    assert y.score.tolist() == one.score.tolist()
    assert y.selected["kept"].tolist() == [True, False, True]
    assert y.updated
    assert type(tasks) is TaskPredictions
    assert torch.equal(tasks["depth"], torch.ones(2, 1))
    assert (tasks.valid.tolist(), tasks.updated, tasks.failed) == ([True, True], True, "loss")
    assert copy.deepcopy(many).failed == "loss"
