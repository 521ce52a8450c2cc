import pytest
import torch
from torch import nn

from testtime.models import Preprocessed, normalised


def test_channels_are_normalised_one_by_one() -> None:
    model = normalised(nn.Identity(), (0.5, 0.25, 0.0), (0.5, 0.25, 2.0))
    out = model(torch.ones(1, 3, 1, 1)).flatten()
    assert out.tolist() == [1.0, 3.0, 0.5]


def test_the_parameters_keep_their_keys_under_model() -> None:
    model = normalised(nn.Linear(3, 2), (0.5,), (0.5,))
    assert list(model.state_dict()) == ["model.weight", "model.bias"]
    assert list(model.model.state_dict()) == ["weight", "bias"]


def test_the_normalisation_follows_the_dtype() -> None:
    assert normalised(nn.Identity(), (0.5,), (0.5,)).double().mean.dtype == torch.float64


@pytest.mark.parametrize(("mean", "std"), [((0.5,), (0.5, 0.5)), ((0.5,), (0.0,))])
def test_a_wrong_normalisation_is_refused(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="one length and positive std"):
        Preprocessed(nn.Identity(), mean, std)


@pytest.mark.filterwarnings("error")
def test_mean_and_std_may_be_tensors() -> None:
    model = Preprocessed(nn.Identity(), torch.tensor([0.5, 0.25]), torch.tensor([0.5, 0.5]))
    assert model(torch.ones(1, 2, 1, 1)).flatten().tolist() == [1.0, 1.5]
