"""T3AL: its parts against numpy, a step against finite differences, a new start for every video, and what it refuses."""

import numpy as np
import pytest
import torch
from torch import nn

from testtime import sgd
from testtime.vision_language.t3al import (
    T3AL,
    agreements,
    bce_loss,
    byol_loss,
    extremes,
    moving_mean,
    segments_of,
    uniform_segments,
)

DRAW = torch.Generator().manual_seed(0)
TEXTS = torch.randn(3, 5, generator=DRAW)
VIDEO = torch.randn(12, 5, generator=DRAW) + TEXTS[1]


def unit(z):
    return z / np.linalg.norm(z, axis=-1, keepdims=True)


def test_a_moving_mean_has_fewer_frames_at_the_ends():
    v = np.random.default_rng(0).normal(size=9)
    expected = [v[max(0, i - 2) : i + 3].mean() for i in range(9)]
    np.testing.assert_allclose(moving_mean(torch.tensor(v), 5).numpy(), expected)


def test_extremes_are_the_first_and_last_of_the_order_and_never_overlap():
    v = np.random.default_rng(1).normal(size=7)
    order = np.argsort(-v)
    high, low = extremes(torch.tensor(v), 2)
    assert high.tolist() == order[:2].tolist()
    assert low.tolist() == order[-2:].tolist()
    high, low = extremes(torch.tensor(v), 6)
    assert not set(high.tolist()) & set(low.tolist())


def numpy_losses(frames, text, positive, negative, sharpness):
    """Cross-entropy, and BYOL whose targets are constants of the point where they were computed."""
    s = frames @ text
    z = sharpness * (s - s.mean())
    p = 1 / (1 + np.exp(-z))
    return -np.log(p[positive]).mean() - np.log(1 - p[negative]).mean()


def test_losses():
    rng = np.random.default_rng(2)
    frames, text = unit(rng.normal(size=(8, 4))), unit(rng.normal(size=4))
    positive, negative = np.array([0, 3]), np.array([5, 6])
    t = torch.tensor(frames), torch.tensor(text)
    found = bce_loss(t[0] @ t[1], torch.tensor(positive), torch.tensor(negative), 3.0)
    assert float(found) == pytest.approx(numpy_losses(frames, text, positive, negative, 3.0))
    mean = unit(frames[positive].mean(0))
    expected = 2 - (frames[positive] @ unit(text + mean)).mean() - text @ mean
    assert float(byol_loss(*t, torch.tensor(positive))) == pytest.approx(expected)


@pytest.mark.parametrize("loss", ["bce", "byol", "both"])
def test_a_step_follows_the_gradient_with_fixed_targets(loss):
    """The maps after one step of SGD are those of finite differences in numpy, the targets of the losses held fixed."""
    rate = 0.1
    adapter = T3AL(
        nn.Identity(), TEXTS, sgd(rate, momentum=0.0), steps=1, loss=loss, share=0.25, sharpness=4.0
    )
    adapter(VIDEO)
    frames, texts = unit(VIDEO.numpy().astype(float)), unit(TEXTS.numpy().astype(float))
    label = (texts @ frames.mean(0)).argmax()
    assert label == 1
    s = frames @ texts[label]
    order = np.argsort(-s)
    positive, negative = order[:3], order[-3:]
    centre, mean = s.mean(), unit(frames[positive].mean(0))
    towards = unit(texts[label] + mean)

    def value(p, q):
        mapped, text = unit(frames @ p.T), unit(texts[label] @ q.T)
        z = 4.0 * (mapped @ text - centre)
        bce = np.log1p(np.exp(-z[positive])).mean() + np.log1p(np.exp(z[negative])).mean()
        byol = 2 - (mapped[positive] @ towards).mean() - text @ mean
        return {"bce": bce, "byol": byol, "both": bce + byol}[loss]

    maps = [np.eye(5), np.eye(5)]
    gradients = [np.zeros((5, 5)), np.zeros((5, 5))]
    for which, index in ((w, i) for w in range(2) for i in np.ndindex(5, 5)):
        ends = []
        for h in (1e-6, -1e-6):
            maps[which][index] += h
            ends.append(value(*maps))
            maps[which][index] -= h
        gradients[which][index] = (ends[0] - ends[1]) / 2e-6
    state = adapter.state_dict()
    for name, gradient in zip(("frames", "texts"), gradients, strict=True):
        after = next(v for k, v in state.items() if k.startswith("model.") and k.endswith(f".{name}"))
        np.testing.assert_allclose(after.numpy(), np.eye(5) - rate * gradient, atol=1e-5)


def test_a_video_is_answered_as_if_it_were_the_first():
    other = torch.randn(9, 5, generator=DRAW)
    one, two = T3AL(nn.Identity(), TEXTS), T3AL(nn.Identity(), TEXTS)
    two(other)
    first, second = one(VIDEO), two(VIDEO)
    for name in ("similarity", "class", "inside"):
        assert torch.equal(first[name], second[name])
    assert not torch.equal(first["similarity"], T3AL(nn.Identity(), TEXTS, steps=0)(VIDEO)["similarity"])


def test_adaptation_parts_positives_from_negatives():
    video = TEXTS[1] + 0.1 * VIDEO  # frames that differ little
    before = T3AL(nn.Identity(), TEXTS, steps=0, width=1)(video)["similarity"]
    optimizer = sgd(0.05, momentum=0.0)
    after = T3AL(nn.Identity(), TEXTS, optimizer, steps=20, loss="bce", width=1)(video)["similarity"]
    high, low = extremes(before, 3)
    assert after[high].mean() - after[low].mean() > 2 * (before[high].mean() - before[low].mean())


def test_inside_is_above_the_mean_and_gives_the_segments():
    y = T3AL(nn.Identity(), TEXTS, width=3)(VIDEO)
    s = y["similarity"].numpy()
    np.testing.assert_array_equal(y["inside"].numpy(), s > s.mean())
    found = segments_of(y["similarity"], "a", video=4)
    flags = np.zeros(12, bool)
    for segment in found:
        flags[int(segment.start) : int(segment.end)] = True
        assert segment.score == pytest.approx(s[int(segment.start) : int(segment.end)].mean(), abs=1e-6)
        assert (segment.label, segment.video) == ("a", 4)
    np.testing.assert_array_equal(flags, s > s.mean())
    assert len(segments_of(y["similarity"], "a", least=13)) == 0


class Captioned(nn.Module):
    """Frames that are their embeddings, and the texts "0", "1", ... with embeddings of their own."""

    words = torch.tensor([[2.0, 0, 0, 0, 0], [0, 1, 0, 0, 0], [1, 1, 0, 0, 0]])

    def forward(self, x):
        return x

    def encode_texts(self, texts):
        return self.words[[int(text) for text in texts]]


VISITS = torch.tensor([1.0, 0, 0, 1, 1, 0, 0, 1, 0, 0])  # three segments: 0, 3 to 4, and 7
SEEN = [
    0,
    1,
    1,
    0,
    2,
    1,
    1,
    1,
    1,
    1,
]  # the caption of each frame; those of the last visit are those of frames outside


def caption(frames):
    """The captions of frames: the third entry of a frame is its number."""
    return [str(SEEN[round(float(frame[2]) * 1000)]) for frame in frames]


def visits():
    frames = torch.zeros(10, 5)
    frames[:, 0], frames[:, 1] = VISITS, 1 - VISITS
    frames[:, 2] = torch.arange(10) / 1000
    return frames


def captioned(**about):
    return T3AL(Captioned(), torch.eye(5)[:1], steps=0, width=1, **about)


def test_captions_reject_the_segment_that_agrees_with_no_other():
    """The mean captions and their cosines in numpy; the threshold lies between the agreements."""
    words = unit(Captioned.words.numpy().astype(float))
    d = np.stack([unit(words[[SEEN[i] for i in some]].mean(0)) for some in ([0], [3, 4], [7])])
    expected = [np.mean([d[m] @ d[n] for n in range(3) if n != m]) for m in range(3)]
    np.testing.assert_allclose(agreements(torch.tensor(d)).numpy(), expected)
    assert expected[2] < expected[0] < expected[1]
    kept = captioned(captioner=caption, agreement=(expected[0] + expected[2]) / 2)(visits())
    np.testing.assert_array_equal(kept["inside"].numpy(), [1, 0, 0, 1, 1, 0, 0, 0, 0, 0])
    all_of_them = captioned()(visits())
    np.testing.assert_array_equal(all_of_them["inside"].numpy(), VISITS.numpy())
    assert torch.equal(kept["similarity"], all_of_them["similarity"])
    found = segments_of(kept["similarity"], "a", inside=kept["inside"])
    assert [(one.start, one.end) for one in found] == [(0, 1), (3, 5)]
    none = captioned(captioner=caption, agreement=1.0)
    assert none(visits())["inside"].sum() == none.predict(visits())["inside"].sum() == 0


def test_a_single_segment_has_no_other_to_agree_with():
    y = captioned(captioner=caption, agreement=1.0)(visits()[:3])
    assert y["inside"].tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: captioned(captioner="coca"), "captioner is a function of frames"),
        (lambda: T3AL(nn.Identity(), TEXTS, captioner=caption), "Identity has no encode_texts"),
        (lambda: captioned(captioner=lambda x: ["0"])(visits()), "a text for each of the 2 frames"),
        (lambda: captioned(captioner=lambda x: "01")(visits()), "a text for each of the 1 frames"),
        (lambda: captioned(captioner=lambda x: x)(visits()), "frames, got Tensor"),
        (lambda: captioned(captioner=lambda x: [1] * len(x))(visits()), r"1 entries, \[1\]"),
        (lambda: captioned(agreement=1.5), "a cosine in"),
        (
            lambda: segments_of(torch.rand(5), "a", inside=torch.ones(4)),
            r"each of the 5 frames, \(T,\), got \(4,\)",
        ),
        (lambda: segments_of(torch.rand(5), "a", inside=[1.0] * 5), "got list"),
    ],
)
def test_captions_that_cannot_be_used_are_refused(make, words):
    with pytest.raises((TypeError, ValueError), match=words):
        make()


def test_one_frame_has_an_answer():
    y = T3AL(nn.Identity(), TEXTS)(VIDEO[:1])
    assert y["inside"].tolist() == [0.0]
    assert bool(torch.isfinite(y["similarity"]).all())


def test_a_frame_that_was_not_predicted_costs_its_own_place_alone():
    s = torch.tensor([0.1, 0.9, torch.nan, 0.8, 0.1, 0.1])
    assert [(one.start, one.end) for one in segments_of(s, "a")] == [(1, 2), (3, 4)]
    assert [(one.start, one.end) for one in segments_of(s, "a", width=3)] == [(0, 2), (3, 4)]
    assert segments_of(s * torch.nan, "a") == []
    assert segments_of(s[:0], "a") == []


def test_uniform_segments_cover_their_share():
    found = uniform_segments(40, 4, "a", share=0.6)
    assert sum(s.end - s.start for s in found) == pytest.approx(24)
    assert found[0].start == pytest.approx(40 - found[-1].end)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: T3AL(nn.Identity(), TEXTS[0]), "pair.encode_texts"),
        (lambda: T3AL(nn.Identity(), TEXTS, share=0.6), "share"),
        (lambda: T3AL(nn.Identity(), TEXTS, width=4), "odd"),
        (lambda: T3AL(nn.Identity(), TEXTS, loss="mse"), "'bce', 'byol', 'both'"),
        (lambda: T3AL(nn.Linear(5, 4), TEXTS)(VIDEO), "as wide as the texts"),
        (lambda: T3AL(nn.Identity(), TEXTS * torch.nan), "NaN or infinity"),
        (lambda: segments_of([0.1, 0.9], "a"), "similarity of each frame"),
        (lambda: segments_of(torch.zeros(3, 2), "a"), "similarity of each frame"),
        (lambda: moving_mean(torch.zeros(4), 2), "odd"),
    ],
)
def test_bad_input_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
