import pytest
import torch
from torch import nn

from testtime.norm import EMAStatistics, advance, ema_statistics, norm_affine
from testtime.parts import Teacher


def student() -> tuple[nn.Module, list[nn.Parameter]]:
    model = ema_statistics(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)), 0.5)
    parameters = norm_affine(model)
    for p in parameters:  # as Adapter.adapt does: they stop sharing memory with the source
        p.data = p.data.clone()
        p.requires_grad_(True)
    return model, parameters


def test_average_by_hand() -> None:
    model, (weight, bias) = student()
    teacher = Teacher(model, [weight, bias], decay=0.9)
    expected = 1.0
    for step in range(3):
        with torch.no_grad():
            weight.fill_(2.0 + step)
        teacher.update()
        expected = 0.9 * expected + 0.1 * (2.0 + step)
        torch.testing.assert_close(teacher.average[0], torch.full((4,), expected), check_dtype=False)
    assert teacher.average[1].equal(torch.zeros(4))


def test_frozen_tensors_are_shared_and_the_average_is_its_own() -> None:
    model, parameters = student()
    teacher = Teacher(model, parameters)
    assert teacher.model.network[0].weight is model.network[0].weight
    for mine, its in zip(teacher.average, parameters, strict=True):
        assert mine.data_ptr() != its.data_ptr()
        assert not mine.requires_grad
        assert its.requires_grad


def test_using_it_carries_no_graph_and_advances_its_own_statistics() -> None:
    model, parameters = student()
    teacher = Teacher(model, parameters)
    x = torch.rand(5, 3, generator=torch.Generator().manual_seed(0))
    assert not teacher(x).requires_grad
    advance(teacher)
    mine, its = (next(m for m in t.modules() if isinstance(m, EMAStatistics)) for t in (teacher, model))
    assert its.mean.equal(torch.zeros(4))
    torch.testing.assert_close(mine.mean, 0.5 * model.network[0](x).mean(0))


def test_state_is_the_average_by_the_names_of_the_student() -> None:
    model, parameters = student()
    teacher = Teacher(model, parameters, decay=0.5)
    names = {id(p): n for n, p in model.named_parameters()}
    assert list(teacher.moving()) == [names[id(p)] for p in parameters]
    value = torch.full((4,), 7.0)
    teacher.restore(names[id(parameters[0])], value)
    value.zero_()
    assert teacher.average[0].tolist() == [7, 7, 7, 7]
    assert teacher.moving()[names[id(parameters[0])]].tolist() == [7, 7, 7, 7]


@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_the_ends_of_the_scale(decay: float) -> None:
    model, parameters = student()
    teacher = Teacher(model, parameters, decay)
    with torch.no_grad():
        parameters[0].fill_(3.0)
    teacher.update()
    assert teacher.average[0].tolist() == ([3.0] if decay == 0 else [1.0]) * 4


def test_decay_outside_the_unit_interval_is_refused() -> None:
    with pytest.raises(ValueError, match="decay is the weight of the past"):
        Teacher(*student(), decay=1.5)
