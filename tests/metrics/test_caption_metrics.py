"""CIDEr-D against an independent computation and values by hand; scene graphs of template captions."""

import math

import numpy as np
import pytest

from testtime.metrics.captions import CIDErD, SceneGraphF, scene_graph, words

ANSWERS = ["a cat sits on the mat", "a dog dog dog runs", "two birds", "the mat is red and the cat is not"]
REFERENCES = [
    ["A cat on the mat.", "the cat sits on a red mat", "a cat sits on the mat"],
    ["a dog runs", "the dog runs on grass"],
    ["two birds in a tree", "birds"],
    ["the mat is red", "a red mat"],
]


def grams(w, n):
    return [" ".join(w[i : i + n]) for i in range(len(w) - n + 1)]


def independent(answers, references, sigma=6.0):
    """Dense vectors over the whole vocabulary, one n at a time."""
    scores = np.zeros(len(answers))
    tokens = [a.lower().replace(".", "").split() for a in answers]
    truths = [[r.lower().replace(".", "").split() for r in several] for several in references]
    for n in range(1, 5):
        every = sorted({g for w in tokens + [t for s in truths for t in s] for g in grams(w, n)})
        df = np.array([sum(any(g in grams(t, n) for t in s) for s in truths) for g in every])
        idf = np.log(len(truths)) - np.log(np.maximum(df, 1))
        for i, (a, several) in enumerate(zip(tokens, truths, strict=True)):
            for t in several:
                u, v = (np.array([grams(w, n).count(g) for g in every]) * idf for w in (a, t))
                size = np.linalg.norm(u) * np.linalg.norm(v)
                cosine = (np.minimum(u, v) * v).sum() / size if size else 0.0
                penalty = math.exp(-((len(a) - len(t)) ** 2) / (2 * sigma**2))
                scores[i] += 10 / 4 * cosine * penalty / len(several)
    return scores


def test_cider_d_is_that_of_the_definition():
    meter = CIDErD()
    meter.update(ANSWERS[:2], REFERENCES[:2])
    meter.update(ANSWERS[2:], REFERENCES[2:])
    expected = independent(ANSWERS, REFERENCES)
    np.testing.assert_allclose(meter.by_image, expected, atol=1e-12)
    assert meter.value() == pytest.approx(expected.mean())
    assert (expected > 0.1).all()
    wide = CIDErD(sigma=2.0)
    wide.update(ANSWERS, REFERENCES)
    np.testing.assert_allclose(wide.by_image, independent(ANSWERS, REFERENCES, 2.0), atol=1e-12)


def test_cider_d_by_hand():
    meter = CIDErD()
    meter.update(["x y z w", "p q"], [["x y z w"], ["p q"]])
    # Every n-gram is of one image: a perfect caption has 10, one of two words no 3- and 4-grams and half of it.
    assert meter.by_image.tolist() == pytest.approx([10.0, 5.0])
    # Saying a word thrice is clipped: min(3, 1) * 1 / (3 * 1) for n = 1, two words too long; no 2-gram is shared.
    meter = CIDErD()
    meter.update(["x x x", "q"], [["x"], ["p"]])
    assert meter.by_image.tolist() == pytest.approx([10 / 4 / 3 * math.exp(-4 / 72), 0.0])
    # What every image's references say has no weight.
    meter = CIDErD()
    meter.update(["a", "a b"], [["a"], ["a b"]])
    assert meter.by_image.tolist() == pytest.approx([0.0, 5.0])
    assert math.isnan(CIDErD().value())


def test_words_have_no_case_and_no_punctuation():
    assert words("It's a well-made TV, isn't it?") == ["it's", "a", "well-made", "tv", "isn't", "it"]


CAPTION = (
    "A living room with a rug, two doors, a TV and 13 books. Beyond it, a kitchen with an oven. Beyond it, a bathroom. "
    "Two books are on the table. A TV and a vase are on a shelf. The chair is in front of the TV. "
    "The sofa is to the left of the rug."
)


def test_a_scene_graph_by_hand():
    assert scene_graph(CAPTION) == {
        *[(name,) for name in ("living room", "rug", "door", "tv", "book", "kitchen", "oven", "bathroom")],
        ("door", "two"),
        ("book", "13"),
        *[(name, "in", "living room") for name in ("rug", "door", "tv", "book")],
        ("oven", "in", "kitchen"),
        ("book", "on", "table"),
        ("tv", "on", "shelf"),
        ("vase", "on", "shelf"),
        ("tv", "behind", "chair"),
        ("sofa", "left of", "rug"),
    }
    assert scene_graph("") == frozenset()
    assert scene_graph("mug mug the . with a . <unk> two") == frozenset()


def test_opposite_relations_give_the_same_tuples():
    assert scene_graph("The a is behind the b.") == scene_graph("The b is in front of the a.")
    assert scene_graph("The a is to the left of the b.") == scene_graph("The b is to the right of the a.")
    assert scene_graph("The a is behind the b.") != scene_graph("The a is in front of the b.")


def test_the_f_score_is_that_of_the_tuples():
    meter = SceneGraphF()
    meter.update(
        ["A den with two mugs.", "A den with a mug.", "nothing known", ""],
        [["A den with a mug.", "A den with a lamp."], ["A den with a mug."], ["A den."], ["no form"]],
    )
    # predicted: den, mug, mug in den, mug two; true: den, mug, mug in den, lamp, lamp in den; three shared.
    assert meter.by_image.tolist() == pytest.approx([100 * 2 * 3 / 9, 100.0, 0.0, 100.0])
    assert meter.value() == pytest.approx(np.mean([200 / 3, 100, 0, 100]))


def test_every_sentence_of_rendered_captions_is_parsed():
    from testtime.scenes.captions import Thing, describe

    table = Thing(1, "table", 20, 50, 900, 2.5, "kitchen")
    shelf = Thing(5, "shelf", 52, 60, 100, 4.0, "kitchen")
    mugs = [Thing(i, "mug", 30, 34, 20, 2.4, "kitchen", on=1) for i in (2, 3)]
    oven, far = Thing(4, "oven", 0, 12, 400, 3.1, "kitchen"), Thing(6, "tv", 40, 44, 30, 6.0, "bedroom")
    graph = scene_graph(describe([table, *mugs, shelf, oven, far], "kitchen"))
    assert {(n, "in", "kitchen") for n in ("table", "mug", "oven", "shelf")} | {
        ("tv", "in", "bedroom")
    } <= graph
    assert {("mug", "on", "table"), ("oven", "left of", "table"), ("oven", "left of", "shelf")} <= graph
    assert ("mug", "two") in graph


@pytest.mark.parametrize("meter", [CIDErD(), SceneGraphF()])
def test_lists_have_to_belong_together(meter):
    with pytest.raises(ValueError, match="got a string"):
        meter.update(["a"], ["a"])
    with pytest.raises(ValueError, match="each of 2 captions"):
        meter.update(["a", "b"], [["a"]])
    with pytest.raises(ValueError, match="at least one reference"):
        meter.update(["a"], [[]])
