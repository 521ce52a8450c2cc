"""Predictions of a model of a space, and the pictures of them."""

import pytest
import torch

from testtime.space.generate import predicted, span
from testtime.space.masking import Stream
from testtime.space.model import FourM, Size


def test_prediction_is_the_argmax_of_every_place():
    streams = [
        Stream("rgb", "pixels", 4),
        Stream("tok_depth", "grid", 4, 5),
        Stream("boxes", "sequence", 6, 9),
    ]
    torch.manual_seed(0)
    model = FourM(streams, Size(1, 1, 12, 3), (16, 16), 8).eval()
    x = torch.rand(2, 3, 16, 16)
    ids = predicted(model, "tok_depth", x)
    again = predicted(model, "tok_depth", x, shown=torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0]]))
    assert torch.equal(ids, again)  # all patches shown, in whatever order
    given = predicted(model, "tok_depth", x, given=("tok_depth", torch.tensor([[0, 1, 2, 3], [4, 3, 2, 1]])))
    other = predicted(
        model, "tok_depth", 1 - x, given=("tok_depth", torch.tensor([[0, 1, 2, 3], [4, 3, 2, 1]]))
    )
    assert torch.equal(given, other)  # the picture is not looked at
    assert span(model, "tok_depth") == range(4, 8)
    with pytest.raises(ValueError, match="no stream 'tok_sound'; the model has rgb, tok_depth, boxes"):
        predicted(model, "tok_sound", x)
    with pytest.raises(ValueError, match="of kind 'sequence'"):
        predicted(model, "boxes", x)
