"""Source batches with labels and without, and what is refused."""

import pytest
import torch

from testtime.source.branches import labelled_images_of, labels_or_predictions

X, Y = torch.rand(4, 3, 2, 2), torch.tensor([0, 2, 1, 0])


def test_labels_follow_the_images() -> None:
    images, labels = labelled_images_of(iter([(X, Y.to(torch.int32)), [X[:1], Y[1:2]]]))
    assert [len(x) for x in images] == [4, 1]
    assert labels is not None
    assert labels.tolist() == [0, 2, 1, 0, 2]
    assert labels.dtype == torch.int64
    images, labels = labelled_images_of(torch.rand(2, 4, 3, 2, 2))
    assert [len(x) for x in images] == [4, 4]
    assert labels is None


def test_labels_are_copies() -> None:
    y = Y.clone()
    _, labels = labelled_images_of([(X, y)])
    y.zero_()
    assert labels is not None
    assert labels.equal(Y)


@pytest.mark.parametrize(
    ("batches", "error", "message"),
    [
        ([], ValueError, "got none"),
        ([(X, Y), X], TypeError, "with every source batch or with none"),
        ([(X, Y.float())], TypeError, "tensor of integers, got torch.float32"),
        ([(X, Y > 0)], TypeError, "tensor of integers, got torch.bool"),
        ([(X, [0, 2, 1, 0])], TypeError, "tensor of integers, got list"),
        ([(X, Y[:3])], ValueError, r"each of the 4 source images, got labels of shape \(3,\)"),
        ([(X, torch.eye(4).long())], ValueError, r"got labels of shape \(4, 4\)"),
        ([(X, Y, Y)], TypeError, "got tuple; give the images alone"),
        (["abc"], TypeError, "got str"),
    ],
)
def test_refuses(batches: list[object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        labelled_images_of(batches)  # type: ignore[arg-type]


def test_labels_or_predictions() -> None:
    logits = torch.tensor([[0.0, 1.0], [2.0, 1.0]])
    assert labels_or_predictions(None, logits).tolist() == [1, 0]
    assert labels_or_predictions(torch.tensor([1, 1]), logits).tolist() == [1, 1]
    for wrong in (-1, 2):
        with pytest.raises(ValueError, match="from 0 to 1, .* leave out images of other classes"):
            labels_or_predictions(torch.tensor([0, wrong]), logits)
