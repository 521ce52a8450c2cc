"""Houses as data: the normalisation of the released code, and a first batch from one room."""

import numpy as np
import pytest
import torch

from testtime.data import DenseSet, Sample
from testtime.models.multitask import PyramidEncoder
from testtime.multitask.houses import Misnormalised, one_room_first


class Grey(DenseSet):
    name, tasks = "grey", ("depth",)

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return Sample(torch.tensor([0.1, 0.5, 0.9]).view(3, 1, 1), {"depth": torch.ones(1, 1, 1)})


def test_the_network_sees_what_the_other_normalisation_gives():
    encoder, x = PyramidEncoder(18, 4), Grey()[0].image
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    seen = (Misnormalised(Grey(), "to Taskonomy")[0].image - encoder.mean[0]) / encoder.std[0]
    assert seen.flatten().tolist() == pytest.approx((2 * x.flatten().numpy() - 1).tolist(), abs=1e-5)
    # A network trained on [-1, 1]: what it sees, 2 x' - 1, is ImageNet's normalisation of x.
    seen = 2 * Misnormalised(Grey(), "from Taskonomy")[0].image - 1
    expected = (x.flatten().numpy() - mean) / deviation
    assert seen.flatten().tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    assert Misnormalised(Grey(), "from Taskonomy")[0].labels["depth"].item() == 1
    with pytest.raises(ValueError, match="transfer 'to NYUD'"):
        Misnormalised(Grey(), "to NYUD")


def test_the_first_batch_is_from_the_first_room_that_has_enough_frames():
    rooms = [(0, 0), (0, 1), (1, 0), (0, 1), (1, 0), (0, 1)]
    assert one_room_first([0, 4, 1, 2, 3, 5], rooms, 2) == [4, 2, 0, 1, 3, 5]
    assert one_room_first([0, 4, 1, 2, 3, 5], rooms, 3) == [1, 3, 5, 0, 4, 2]
    with pytest.raises(ValueError, match="no room has 4 frames, at most 3"):
        one_room_first([0, 4, 1, 2, 3, 5], rooms, 4)
