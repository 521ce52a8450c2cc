"""GenSAM: heat, points and the choice among rounds against numpy, the loop against a loop by hand, and what it refuses."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from testtime.vision_language.gensam import GenSAM, heat_map, heat_points, nearest_to_mean

DRAW = torch.Generator().manual_seed(0)
WORDS = {"sofa": torch.randn(4, generator=DRAW), "wall": torch.randn(4, generator=DRAW)}
X = torch.rand(2, 3, 16, 16, generator=DRAW)


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4, generator=torch.Generator().manual_seed(2)))

    def patches(self, x):
        return F.avg_pool2d(x, 4).flatten(2).transpose(1, 2) @ self.weight

    def encode_texts(self, words):
        return torch.stack([WORDS[w] for w in words])

    def forward(self, x):
        return x.mean((2, 3)) @ self.weight


def alike(images, points, labels):
    """Likeness of colour to the mean colour at the points on the object, less that beside it."""
    size = images.shape[2]
    found = []
    for image, some, flags in zip(images, points, labels, strict=True):
        places = (some * size).long()
        colours = image[:, places[:, 1], places[:, 0]]
        on, off = (colours[:, flags == v].mean(1)[:, None, None] for v in (1, 0))
        found.append((image - off).square().sum(0) - (image - on).square().sum(0))
    return torch.stack(found)


def words(x):
    return [(["sofa"], ["wall"]), (["sofa", "wall"], [])][: len(x)]


def scaled(v):
    return (v - v.min()) / (v.max() - v.min())


def test_heat_is_foreground_less_background_each_in_its_own_range():
    tokens = np.random.default_rng(0).normal(size=(9, 4))
    fore, back = np.random.default_rng(1).normal(size=(2, 4)), np.random.default_rng(2).normal(size=(3, 4))
    plain = np.mean([scaled(tokens @ t) for t in fore], axis=0)
    without = np.maximum(plain - np.mean([scaled(tokens @ t) for t in back], axis=0), 0)
    t = [torch.tensor(v) for v in (tokens, fore, back)]
    np.testing.assert_allclose(heat_map(*t).numpy(), scaled(without))
    np.testing.assert_allclose(heat_map(t[0], t[1], t[2][:0]).numpy(), scaled(plain))


def test_points_are_the_centres_of_the_hottest_and_coldest_patches():
    heat = torch.rand(2, 16, generator=DRAW)
    points, labels = heat_points(heat, 2)
    assert labels.tolist() == [[1, 1, 0, 0]] * 2
    for n in range(2):
        order = np.argsort(-heat[n].numpy())
        chosen = [*order[:2], *order[-2:]]
        expected = [[(p % 4 + 0.5) / 4, (p // 4 + 0.5) / 4] for p in chosen]
        np.testing.assert_allclose(points[n].numpy(), expected)
    assert heat_points(heat, 99)[0].shape == (2, 16, 2)


def test_the_round_nearest_to_the_mean_is_taken():
    logits = np.random.default_rng(3).normal(size=(5, 3, 6, 7))
    mean = logits.mean(0) > 0
    expected = [min(range(5), key=lambda r: ((logits[r, n] > 0) ^ mean[n]).sum()) for n in range(3)]
    assert nearest_to_mean(torch.tensor(logits)).tolist() == expected


@pytest.mark.parametrize("reweigh", ["mask", "heat"])
def test_the_loop_is_that_of_the_docstring(reweigh):
    adapter = GenSAM(Pair(), alike, words, rounds=3, points=2, weight=0.4, reweigh=reweigh)
    found = adapter(X)["mask"]
    for n, (fore, back) in enumerate(words(X)):
        image, current, rounds, pair = X[n : n + 1], X[n : n + 1], [], Pair()
        texts = [pair.encode_texts(fore), pair.encode_texts(back) if back else torch.zeros(0, 4)]
        for _ in range(3):
            heat = heat_map(pair.patches(current)[0].detach(), *texts)
            rounds.append(alike(image, *heat_points(heat[None], 2)))
            by = 1 / (1 + torch.exp(-rounds[-1]))
            if reweigh == "heat":
                by = F.interpolate(heat.view(1, 1, 4, 4), (16, 16), mode="bilinear")[0]
            current = 0.4 * by * image + 0.6 * current
        mean = torch.stack(rounds).mean(0) > 0
        best = min(range(3), key=lambda r: int(((rounds[r] > 0) ^ mean).sum()))
        torch.testing.assert_close(found[n : n + 1], rounds[best])
    assert torch.equal(adapter.predict(X)["mask"], found)


def test_an_answer_depends_on_its_image_alone():
    together = GenSAM(Pair(), alike, words)(X)["mask"]
    torch.testing.assert_close(GenSAM(Pair(), alike, words)(X[:1])["mask"], together[:1])


@pytest.mark.parametrize("reweigh", ["mask", "heat"])
def test_a_segmenter_may_compute_in_float64(reweigh):
    found = GenSAM(Pair(), lambda *a: alike(*a).double(), words, reweigh=reweigh)(X)["mask"]
    assert found.dtype == torch.float64
    torch.testing.assert_close(found.float(), GenSAM(Pair(), alike, words, reweigh=reweigh)(X)["mask"])


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: GenSAM(nn.Linear(2, 2), alike, words), ValueError, "local tokens"),
        (lambda: GenSAM(Pair(), None, words), TypeError, "segmenter is a function"),
        (lambda: GenSAM(Pair(), alike, ["sofa"]), TypeError, "words is a function"),
        (lambda: GenSAM(Pair(), alike, words, weight=1.5), ValueError, "weight"),
        (lambda: GenSAM(Pair(), alike, words, rounds=0), ValueError, "rounds"),
        (lambda: GenSAM(Pair(), alike, lambda x: [([], [])] * 2)(X), ValueError, "at least one"),
        (lambda: GenSAM(Pair(), alike, lambda x: [("sofa", "bed")] * 2)(X), ValueError, "at least one"),
        (lambda: GenSAM(Pair(), alike, lambda x: [(["sofa"], None)] * 2)(X), ValueError, "at least one"),
        (lambda: GenSAM(Pair(), alike, lambda x: None)(X), ValueError, "a pair for each"),
        (lambda: GenSAM(Pair(), lambda x, *a: x[:, 0] > 0, words)(X), TypeError, "returned torch.bool"),
        (lambda: GenSAM(Pair(), alike, lambda x: [(["sofa"], [])])(X), ValueError, "each of the 2 images"),
        (lambda: GenSAM(Pair(), lambda *a: torch.zeros(2, 4, 4), words)(X), ValueError, "one mask of each"),
        (lambda: heat_points(torch.zeros(1, 10), 1), ValueError, "square grid"),
    ],
)
def test_bad_input_is_refused(make, error, text):
    with pytest.raises(error, match=text):
        make()
