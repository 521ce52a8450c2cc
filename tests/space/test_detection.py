"""Detection: targets, losses and search recomputed, boxes turn with their pictures, and what is learned is found."""

import numpy as np
import pytest
import torch

from testtime.data import DenseSet, Sample
from testtime.metrics.boxes import Boxes
from testtime.space.detection import (
    RECIPES,
    Detector,
    boxes_of,
    evaluate_detector,
    generalised_iou,
    targets,
    train_detector,
)
from testtime.space.modalities import SENSORY
from testtime.space.segmenter import PatchEncoder
from testtime.space.transfer import TransferRecipe


class Bricks(DenseSet):
    """A red or a green rectangle, somewhere on dark ground."""

    name, tasks = "bricks", ()

    def __init__(self, count=24):
        self.count, self.reads = count, 0

    def __len__(self):
        return self.count

    def box(self, index):
        x, y, w, h = np.random.default_rng(index).integers([0, 0, 5, 5], [9, 9, 8, 8]).tolist()
        return (x, y, x + w, y + h, index % 2)

    def __getitem__(self, index):
        self.reads += 1
        x0, y0, x1, y1, label = self.box(index)
        image = torch.full((3, 16, 16), 0.1)
        image[label, y0:y1, x0:x1] = 0.9
        return Sample(image, {}, str(index))

    @property
    def boxes(self):
        return [Boxes.of([self.box(i)]) for i in range(self.count)]


def detector(seed=0, width=12):
    torch.manual_seed(seed)
    encoder = PatchEncoder([SENSORY["rgb"]], (16, 16), 4, dim=24, depth=1, heads=3)
    return Detector(encoder, ("red", "green"), width=width, sub=2, depth=1)


RECIPE = TransferRecipe(epochs=3, batch=4, lr=3e-3, every=7, scale=(1.0, 1.0))


def test_generalised_iou_by_hand():
    a = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 2], [0, 0, 2, 2], [0, 0, 4, 4]])
    b = torch.tensor([[0.0, 0, 2, 2], [1, 0, 3, 2], [3, 0, 4, 2], [1, 1, 3, 3]])
    assert generalised_iou(a, b).tolist() == pytest.approx([1, 1 / 3, -2 / 8, 1 / 4])


def test_targets_by_hand():
    # On a map of 2 x 2 pixels: a box of 20 x 12 pixels around (14, 10), and a small one in it around (15, 11).
    boxes = Boxes.of([(14, 10, 16, 12, 1), (4, 4, 24, 16, 0)])
    heat, corners, weight = targets(boxes, 3, (8, 16), (2.0, 2.0))
    tall, wide = int(3 * 0.54), int(5 * 0.54)  # 1 and 2 positions around row 5, column 7
    assert (tall, wide) == (1, 2)
    expected = np.zeros((8, 16))
    for row in range(4, 7):
        for column in range(5, 10):
            expected[row, column] = np.exp(
                -((row - 5) ** 2) / 2 / (3 / 6) ** 2 - (column - 7) ** 2 / 2 / (5 / 6) ** 2
            )
    np.testing.assert_allclose(heat[0].numpy(), expected, atol=1e-6)
    assert heat[0, 5, 7] == 1
    assert heat[1].sum() == heat[1, 5, 7] == 1
    assert heat[2].sum() == 0
    shares = expected / expected.sum()
    shares[5, 7] = 1.0  # the smaller one has its centre to itself
    np.testing.assert_allclose(weight.numpy(), shares, atol=1e-6)
    assert corners[:, 5, 7].tolist() == [14, 10, 16, 12]
    assert corners[:, 5, 8].tolist() == [4, 4, 24, 16]
    edge = targets(Boxes.of([(15, 15, 16, 16, 0)]), 1, (4, 4), (4.0, 4.0))[0]
    assert edge[0, 3, 3] == edge.sum() == 1


def test_the_loss_is_that_of_the_formula():
    model = detector().double()
    x = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    several = [Boxes.of([(1, 2, 9, 8, 0), (8, 8, 16, 16, 1)]), Boxes.of([])]
    logits, boxes = (v.detach().double().numpy() for v in model(x))
    total, weighted, weights = 0.0, 0.0, 0.0
    for n in range(2):
        heat, true, weight = (v.double().numpy() for v in targets(several[n], 2, (8, 8), (2.0, 2.0)))
        q = 1 / (1 + np.exp(-logits[n]))
        hit = heat == 1
        total -= ((1 - q[hit]) ** 2 * np.log(q[hit])).sum()
        total -= ((1 - heat[~hit]) ** 4 * q[~hit] ** 2 * np.log(1 - q[~hit])).sum()
        for i, j in np.argwhere(weight > 0):
            a, b = boxes[n, :, i, j], true[:, i, j]
            inner = np.prod(np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0))
            union = np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - inner
            around = np.prod(np.maximum(a[2:], b[2:]) - np.minimum(a[:2], b[:2]))
            weighted += weight[i, j] * (1 - inner / union + (around - union) / around)
            weights += weight[i, j]
    assert model.loss(x, several).item() == pytest.approx(total / 2 + 5 * weighted / weights, rel=1e-5)
    nothing = model.loss(x, [Boxes.of([]), Boxes.of([])])
    nothing.backward()
    assert torch.isfinite(nothing)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_boxes_lie_around_their_positions_and_peaks_are_found():
    model = detector()
    model.head.forward = lambda tokens: raw
    raw = torch.full((1, 6, 8, 8), -9.0)
    raw[0, 0, 3, 4], raw[0, 0, 3, 5], raw[0, 1, 6, 1] = 2.0, 1.0, 0.0  # the second stands beside a higher one
    raw[0, 2:, 3, 4] = torch.tensor([0.0, 1.0, 2.0, 3.0])
    raw[0, 2:, 6, 1] = 4.0
    (found,) = model.find(torch.rand(1, 3, 16, 16), limit=2)
    assert found.labels.tolist() == [0, 1]
    assert found.scores.tolist() == pytest.approx([1 / (1 + np.exp(-2)), 0.5])
    left, top, right, bottom = 2 * np.log1p(np.exp([0, 1, 2, 3]))  # in eighths of 16 pixels
    assert found.corners[0].tolist() == pytest.approx([9 - left, 7 - top, 9 + right, 7 + bottom], rel=1e-5)
    far = 2 * np.log1p(np.exp(4))
    assert found.corners[1].tolist() == pytest.approx([0, 13 - far, 3 + far, 16], rel=1e-5)


@pytest.mark.slow
def test_it_learns_to_find_what_it_did_not_see(tmp_path):
    pytest.importorskip("pycocotools", reason="pip install -e '.[space]'")
    data, model, state = Bricks(48), detector(width=16), torch.get_rng_state()
    recipe = TransferRecipe(epochs=40, batch=8, lr=1e-2, layer_decay=1.0, drop_path=0, scale=(1.0, 1.0))
    train_detector(model, data, data.boxes, recipe, tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    other = Bricks(80)
    test = list(range(48, 80))
    report = evaluate_detector(model, other.subset(test), [other.boxes[i] for i in test])
    assert report["AP50"] > 60
    assert set(report["by class"]) == {"red", "green"}
    assert np.mean(list(report["by class"].values())) == pytest.approx(report["AP"])


def test_after_a_kill_it_goes_on_as_if_it_had_not_stopped(tmp_path):
    class Killed(Bricks):
        def __getitem__(self, index):
            if self.reads >= 4 * 9:
                raise KeyboardInterrupt
            return super().__getitem__(index)

    whole = train_detector(detector(), Bricks(), Bricks().boxes, RECIPE, tmp_path / "whole", seed=2)
    with pytest.raises(KeyboardInterrupt):
        train_detector(detector(), Killed(), Bricks().boxes, RECIPE, tmp_path / "broken", seed=2)
    data = Bricks()
    resumed = train_detector(detector(), data, Bricks().boxes, RECIPE, tmp_path / "broken", seed=2)
    assert data.reads == 4 * (18 - 7)
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_boxes_turn_and_grow_with_their_pictures(tmp_path):
    model, kept = detector(), []
    model.encoder.size, loss = (
        (32, 16),
        model.loss,
    )  # pictures are brought to this; what the encoder does is not asked
    model.loss = lambda images, several: kept.append((images, several)) or loss(images[:, :, ::2], several)
    train_detector(model, Bricks(), Bricks().boxes, RECIPE, tmp_path)
    columns = set()
    for images, several in kept:
        for image, boxes in zip(images, several, strict=True):
            bright = image.amax(0) > 0.5
            ys, xs = bright.any(1).nonzero().flatten(), bright.any(0).nonzero().flatten()
            x0, y0, x1, y1 = boxes.corners[0].tolist()
            assert (x0, x1) == (xs[0], xs[-1] + 1)
            assert (y0, y1) == (pytest.approx(int(ys[0]), abs=1), pytest.approx(int(ys[-1]) + 1, abs=1))
            columns.add((x0, x1))
    plain = {(b.corners[0, 0].item(), b.corners[0, 2].item()) for b in Bricks().boxes}
    assert columns - plain  # some are mirrored
    assert columns & plain


def test_boxes_of_scenes_are_those_of_their_records():
    from testtime.scenes.disk import render_space

    scenes = render_space(seed=1, frames=4, size=(16, 16), backend="numpy", tasks=("semseg",))
    names = sorted({scenes.classes[b["label"]] for i in range(4) for b in scenes.view(i).boxes})
    every = boxes_of(scenes, names, visible=0.0)
    assert [len(b) for b in every] == [len(scenes.view(i).boxes) for i in range(4)]
    first = scenes.view(0).boxes[0]
    assert every[0].corners[0].tolist() == [first[side] for side in ("x0", "y0", "x1", "y1")]
    assert names[every[0].labels[0]] == scenes.classes[first["label"]]
    grouped = boxes_of(scenes, ["thing"], {names[0]: "thing"}, visible=0.0)
    assert sum(map(len, grouped)) == sum(int((b.labels == 0).sum()) for b in every) > 0
    shown = [[b for b in scenes.view(i).boxes if b["visibility"] >= 0.5] for i in range(4)]
    assert [len(b) for b in boxes_of(scenes, names, visible=0.5)] == [len(s) for s in shown]


def test_errors_come_before_work_is_lost(tmp_path):
    data = Bricks()
    with pytest.raises(ValueError, match="24 images, but there are boxes of 23"):
        train_detector(detector(), data, data.boxes[:23], RECIPE, tmp_path)
    with pytest.raises(ValueError, match="scale"):
        train_detector(detector(), data, data.boxes, TransferRecipe(), tmp_path)
    with pytest.raises(ValueError, match="label 2 is none"):
        train_detector(detector(), data, [*data.boxes[:23], Boxes.of([(0, 0, 1, 1, 2)])], RECIPE, tmp_path)
    assert (RECIPES["paper"].layer_decay, RECIPES["paper"].weight_decay) == (0.7, 0.1)
