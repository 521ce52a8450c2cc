"""Selection without labels: diagnostics of a batch, alarms, and the recommendation with its reasons."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from testtime.methods import LAME, Source, Tent
from testtime.metrics import aetta, consistency, dropout_disagreement
from testtime.models import Views
from testtime.parts import adam, generator
from testtime.selection import (
    Candidate,
    Diagnostics,
    appearance_features,
    appearance_groups,
    disturbance,
    judge,
    mirrored,
    monitor,
    moved,
    over_time,
    recommend,
    turned,
)
from testtime.wrap import ResetEvery

EVEN = (0, 1, 2, 3) * 5
DIAGNOSTICS = Diagnostics(EVEN, 4, 0.8, 0.7, 0.2, 0.95, 0.1, 10.0, True)


def same(seen: Mapping[str, Sequence[Diagnostics]]) -> np.ndarray:
    """Looks that tell no image from another."""
    return np.zeros((sum(s.images for s in next(iter(seen.values()))), 1))


def judged(seen: Mapping[str, Sequence[Diagnostics]]) -> tuple[Candidate, ...]:
    return judge(seen, same(seen))


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(24, 4),
    ).eval()


def stream(batches: int = 3, n: int = 16) -> list[Tensor]:
    return [torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(t)) for t in range(batches)]


def test_diagnostics_are_those_of_the_predictions() -> None:
    net, batches = network(), stream()
    diagnostics = list(monitor(Tent(net), batches, Source(net)))
    tent, source = Tent(net), Source(net)
    for t, (one, x) in enumerate(zip(diagnostics, batches, strict=True)):
        y = tent(x)
        assert one.predicted == tuple(y.argmax(1).tolist())
        assert np.array_equal(one.counts, np.bincount(one.predicted, minlength=4))
        assert one.agreement == pytest.approx(float((source(x).argmax(1) == y.argmax(1)).float().mean()))
        assert one.confidence == pytest.approx(float(y.softmax(1).amax(1).mean()))
        other = tent.predict(x.flip(3)).argmax(1)
        assert one.changed == pytest.approx(float((other != y.argmax(1)).float().mean()))
        assert one.updated
        (inner,) = tent.model.children()  # the network itself
        *body, head = inner.children()
        with torch.no_grad():
            expected = dropout_disagreement(nn.Sequential(*body)(x), head, generator(0, t, "dropout"))
        assert (one.disagreement, one.spread) == pytest.approx(expected)


def test_watching_changes_nothing_of_the_candidate() -> None:
    net, batches = network(), stream()
    watched, alone = Tent(net, adam(0.1)), Tent(net, adam(0.1))
    list(monitor(watched, batches, Source(net)))
    for x in batches:
        alone(x)
    for name, value in alone.state_dict().items():
        assert torch.equal(value, watched.state_dict()[name]), name


def test_a_wrapped_candidate_is_watched_inside() -> None:
    net = network()
    plain, wrapped = (
        list(monitor(a, stream(), Source(net))) for a in (Tent(net), ResetEvery(Tent(net), 100))
    )
    assert [s.disagreement for s in plain] == [s.disagreement for s in wrapped]


def test_without_a_linear_head_there_is_no_aetta() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    (diagnostics,) = monitor(Source(net), stream(1), Source(net), disturb=lambda x: x)
    assert math.isnan(diagnostics.disagreement)
    assert diagnostics.changed == 0
    (one,) = judged({"Source": [diagnostics]})
    assert math.isnan(one.aetta)
    assert one.accuracy == pytest.approx(consistency(0.0, diagnostics.counts))


def test_images_are_turned_about_their_middle() -> None:
    x = torch.rand(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(turned(x, 0.0), x, atol=1e-5)
    assert torch.allclose(turned(x, 180.0), x.flip(2, 3), atol=1e-4)
    assert mirrored(mirrored(x)).equal(x)
    # A point on the right goes up when it is turned anticlockwise: by 3 sin(30 degrees) = 1.5 pixels.
    dot = torch.zeros(1, 1, 9, 9)
    dot[0, 0, 4, 7] = 1
    found = turned(dot, 30.0)[0, 0]
    rows, columns = torch.meshgrid(torch.arange(9.0), torch.arange(9.0), indexing="ij")
    at = [float((found * grid).sum() / found.sum()) for grid in (rows, columns)]
    assert at == pytest.approx([4 - 1.5, 4 + 3 * math.cos(math.radians(30))], abs=0.2)


def test_images_are_disturbed_as_the_model_allows() -> None:
    net, x = network(), stream(1)[0]
    kept = {mirrored: {}, turned: {"mirror": False}, moved: {"mirror": False, "turn": False}}
    assert disturbance(net) is mirrored
    for change, forbidden in kept.items():
        net.views = Views(**forbidden)  # type: ignore[assignment]
        assert disturbance(Source(net)) is change
        (diagnostics,) = monitor(Source(net), [x], Source(net))
        with torch.no_grad():
            share = (net(change(x)).argmax(1) != net(x).argmax(1)).float().mean()
        assert diagnostics.changed == pytest.approx(float(share))
    wide = torch.arange(48.0).expand(1, 1, 1, 48)
    assert moved(wide)[0, 0, 0, :6].tolist() == [0, 0, 0, 0, 1, 2]
    net.views = Views(mirror=False, turn=False, shift=1 / 24)  # type: ignore[assignment]
    assert disturbance(net)(wide)[0, 0, 0, :6].tolist() == [0, 0, 0, 1, 2, 3]
    with pytest.raises(ValueError, match=r"8 pixels cannot be moved by 0.04.*monitor\(..., disturb=change\)"):
        list(monitor(Source(net), [x], Source(net)))


def test_images_that_are_refused_are_named() -> None:
    net, x = network(), torch.rand(4, 3, 8, 8)
    x[1] = float("nan")
    with pytest.raises(ValueError, match="batch 0 holds 1 images"):
        list(monitor(Source(net), [x], Source(net)))


def test_the_estimate_is_weighted_by_images() -> None:
    small = replace(DIAGNOSTICS, predicted=(0, 1, 2, 3), disagreement=0.6, changed=0.7)
    (one,) = judged({"a": [DIAGNOSTICS, small]})
    assert one.accuracy == pytest.approx(80)
    guesses = aetta([0.2, 0.6], [0.95, 0.95], 4)
    assert one.aetta == pytest.approx((20 * guesses[0] + 4 * guesses[1]) / 24)
    assert one.agreement == pytest.approx(80)
    assert one.alarms == ()


def test_one_class_for_all_that_look_alike_counts_against_a_candidate() -> None:
    at = np.array([0.0, 1.0] * 60)  # fog and noise, mixed in every batch
    looks = at[:, None]
    fooled = replace(DIAGNOSTICS, predicted=(2, 3) * 10, changed=0.0)  # fog is all 2 to it, noise all 3
    free = replace(DIAGNOSTICS, predicted=(0, 0, 1, 1) * 5)
    one, other = judge({"fooled": [fooled] * 6, "free": [free] * 6}, looks)
    assert one.accuracy == 0
    assert other.accuracy == pytest.approx(90)
    assert judged({"fooled": [fooled] * 6})[0].accuracy == 100
    groups = appearance_groups(looks, DIAGNOSTICS.classes)
    assert groups.tolist() in ([0, 1] * 60, [1, 0] * 60)
    assert judge({"fooled": [fooled] * 6, "free": [free] * 6}, groups) == (one, other)
    assert judge({"fooled": [fooled] * 6}, np.zeros(120))[0].accuracy == 100
    with pytest.raises(ValueError, match="features of the appearance of 120 images"):
        judge({"a": [DIAGNOSTICS] * 6}, looks[1:])


def test_what_is_drawn_is_the_estimate_of_stretches_of_ten_images_a_class() -> None:
    diagnostics = [
        DIAGNOSTICS,
        DIAGNOSTICS,
        DIAGNOSTICS,
        replace(DIAGNOSTICS, changed=0.3),
        replace(DIAGNOSTICS, predicted=(0, 1) * 10),
    ]
    looks = np.repeat([[0.0], [1.0]], 50, axis=0)
    tables = np.array([[13, 13, 12, 12], [17, 17, 8, 8]])  # of the first fifty images, and the last
    first, second = consistency(0.1, tables[0]), consistency(0.5 / 3, tables * [[0.2], [1.0]])
    assert over_time(diagnostics, looks) == ([40, 100], pytest.approx([first, second]))


def test_drifts_are_from_the_first_third_to_the_last() -> None:
    diagnostics = [replace(DIAGNOSTICS, confidence=0.5 + 0.1 * (t // 2)) for t in range(6)]
    diagnostics[4:] = [replace(s, predicted=(0, 1) * 20) for s in diagnostics[4:]]
    (one,) = judged({"a": [replace(s, predicted=2 * s.predicted) for s in diagnostics[:4]] + diagnostics[4:]})
    assert one.confidence_drift == pytest.approx(20)
    assert (one.diversity, one.diversity_drift) == pytest.approx((50, -50))


def test_a_collapse_is_seen_against_the_others_and_not_against_the_stream() -> None:
    narrow = [replace(DIAGNOSTICS, predicted=(0,) * 20)] * 3
    few = [replace(DIAGNOSTICS, predicted=(0,) * 19 + (1,))] * 3
    assert judged({"a": narrow, "b": narrow})[0].alarms == ()  # the stream holds one class
    one, other = judged({"a": narrow, "b": few})
    assert "collapse" in one.alarms[0]
    assert "(diversity 0 %, " in one.alarms[0]
    assert other.alarms == ()


def test_random_predictions_are_an_alarm() -> None:
    steady, drawn = judged({"a": [DIAGNOSTICS] * 3, "b": [replace(DIAGNOSTICS, changed=0.7)] * 3})
    assert steady.alarms == ()
    assert drawn.alarms == ("its predictions change for 70 % of the disturbed images, as random ones would",)


def test_the_best_sound_candidate_is_chosen_and_a_cheap_one_that_is_near_is_named() -> None:
    good = replace(DIAGNOSTICS, changed=0.05)
    near = replace(DIAGNOSTICS, changed=0.055, milliseconds=3.0)
    collapsed = replace(good, changed=0.0, predicted=(0,) * 20)
    seen = {"Source": [DIAGNOSTICS] * 3, "near": [near] * 3, "good": [good] * 3, "bad": [collapsed] * 3}
    advice = recommend(seen, same(seen))
    assert advice.name == "good"
    assert advice.reasons[1].startswith("near is estimated 0.")
    assert any(reason.startswith("Not bad: in part 1 of 3") for reason in advice.reasons)
    assert [c.name for c in advice.candidates] == ["good", "near", "Source", "bad"]


def test_a_stream_that_is_too_short_is_reported() -> None:
    short, long = {"a": [DIAGNOSTICS] * 3}, {"a": [DIAGNOSTICS] * 4}  # 60 and 80 images of 4 classes
    assert "60 images are too few" in recommend(short, same(short)).reasons[-1]
    assert "give 80 or more" in recommend(short, same(short)).reasons[-1]
    assert len(recommend(long, same(long)).reasons) == 1


def test_answers_that_narrow_while_those_of_others_do_not_are_an_alarm() -> None:
    narrow = [DIAGNOSTICS, DIAGNOSTICS, replace(DIAGNOSTICS, predicted=(0, 0, 1, 2) * 5)]
    ones = judged({"a": [DIAGNOSTICS] * 3, "b": [DIAGNOSTICS] * 3, "c": narrow})
    assert [bool(one.alarms) for one in ones] == [False, False, True]
    assert "its predictions narrow" in ones[2].alarms[0]
    assert all(
        not one.alarms for one in judged({"a": narrow, "b": narrow, "c": narrow})
    )  # the stream's doing


def test_a_method_that_destroys_itself_is_not_chosen() -> None:
    net = network(3)
    batches = stream(30)
    seen = {
        "Source": list(monitor(Source(net), batches, Source(net))),
        "hot": list(monitor(Tent(net, adam(1.0)), batches, Source(net))),
        "LAME": list(monitor(LAME(net), batches, Source(net))),
    }
    hot = next(c for c in judged(seen) if c.name == "hot")
    assert hot.alarms
    assert recommend(seen, appearance_features(torch.cat(batches))).name != "hot"


def test_candidates_of_other_streams_are_not_compared() -> None:
    with pytest.raises(ValueError, match="same batches"):
        judged({"a": [DIAGNOSTICS], "b": [DIAGNOSTICS, DIAGNOSTICS]})
    with pytest.raises(ValueError, match=r"run monitor\(\) on one first"):
        judged({"a": []})
