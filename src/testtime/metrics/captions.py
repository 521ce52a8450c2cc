"""Metrics of captions: CIDEr-D, and an F-score of scene graphs for captions in the form of rendered scenes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from testtime.scenes.captions import NUMBERS

__all__ = ["CIDErD", "SceneGraphF", "scene_graph", "words"]

Floats = NDArray[np.float64]
Gram = tuple[str, ...]


def words(caption: str) -> list[str]:
    """Split a caption into words in lower case, without punctuation.

    >>> words("A TV is on the table. Two mugs, too!")
    ['a', 'tv', 'is', 'on', 'the', 'table', 'two', 'mugs', 'too']
    """
    return re.findall(r"[a-z0-9]+(?:['’-][a-z0-9]+)*", caption.lower())


class CIDErD:
    r"""CIDEr-D: consensus of a caption with the references of its image, weighted by tf-idf (Vedantam et al., CVPR 2015).

    .. math:: \frac{10}{4} \sum_{n=1}^{4} \frac1m \sum_{j=1}^m e^{-(l(c) - l(s_j))^2 / 2\sigma^2}
        \frac{\min(g_n(c), g_n(s_j)) \cdot g_n(s_j)}{\|g_n(c)\| \|g_n(s_j)\|}

    with g the counts of n-grams of words, each times the logarithm of N over the number of images, out of N, of which a
    reference has the n-gram; l counts words. The idf is that of all references added so far, so the value depends on the set
    of images: over one image it is 0. Words are not stemmed, as in the released code.

    Args:
        n: largest number of words of an n-gram.
        sigma: standard deviation of the length penalty, in words.

    >>> meter = CIDErD()
    >>> meter.update(["a red mug on a table", "a dog"], [["a red mug on a table"], ["two cats on a sofa"]])
    >>> meter.by_image.round(2).tolist()
    [10.0, 0.0]
    """

    def __init__(self, n: int = 4, sigma: float = 6.0) -> None:
        self.n, self.sigma = n, sigma
        self.answers: list[str] = []
        self.references: list[list[str]] = []

    def update(self, answers: Sequence[str], references: Sequence[Sequence[str]]) -> None:
        """Add images.

        Args:
            answers: predicted caption of each image.
            references: one or more references of each image.

        Raises:
            ValueError: the lists differ in length, or an image has no reference.
        """
        self.answers += _matched(answers, references)
        self.references += [list(r) for r in references]

    @property
    def by_image(self) -> Floats:
        """Score of each image, (N,), in [0, 10]."""
        references = [[self._counts(r) for r in several] for several in self.references]
        seen = Counter(gram for several in references for gram in {g for counts in several for g in counts})
        idf = {gram: float(np.log(len(references)) - np.log(count)) for gram, count in seen.items()}
        return np.array(
            [
                np.mean([self._similarity(self._counts(answer), r, idf, len(references)) for r in several])
                for answer, several in zip(self.answers, references, strict=True)
            ],
            dtype=np.float64,
        )

    def value(self) -> float:
        """Return the mean score in [0, 10], higher is better (tables often print it times 100); NaN without images."""
        return float(self.by_image.mean()) if self.answers else float("nan")

    def _counts(self, caption: str) -> Counter[Gram]:
        w = words(caption)
        return Counter(tuple(w[i : i + k]) for k in range(1, self.n + 1) for i in range(len(w) - k + 1))

    def _similarity(
        self, answer: Counter[Gram], truth: Counter[Gram], idf: dict[Gram, float], images: int
    ) -> float:
        # An n-gram that is in no reference gets the idf of one that is in the references of a single image.
        a = {g: count * idf.get(g, float(np.log(images))) for g, count in answer.items()}
        b = {g: count * idf[g] for g, count in truth.items()}
        dots, squares_a, squares_b, lengths = (np.zeros(self.n) for _ in range(4))
        for g, weight in a.items():
            squares_a[len(g) - 1] += weight**2
            dots[len(g) - 1] += min(weight, b.get(g, 0.0)) * b.get(g, 0.0)
        for g, weight in b.items():
            squares_b[len(g) - 1] += weight**2
        norms = np.sqrt(squares_a * squares_b)
        cosines = np.divide(dots, norms, out=lengths, where=norms > 0)
        apart = sum(c for g, c in answer.items() if len(g) == 1) - sum(
            c for g, c in truth.items() if len(g) == 1
        )
        return float(10 * cosines.mean() * np.exp(-(apart**2) / (2 * self.sigma**2)))


class SceneGraphF:
    """F-score of the statements of a caption against those of its references, in percent; the mean over images.

    The statements are the tuples of :func:`scene_graph`. A stand-in for SPICE (Anderson et al., ECCV 2016), whose parser needs
    Java: the score over tuples is the same, but they are parsed by rules from the sentences that :mod:`testtime.scenes`
    generates, without synonyms. Captions of another form have no statements.

    >>> meter = SceneGraphF()
    >>> meter.update(["A kitchen with two mugs."], [["A kitchen with a mug."]])
    >>> round(meter.value(), 1)
    85.7
    """

    def __init__(self) -> None:
        self.scores: list[float] = []

    def update(self, answers: Sequence[str], references: Sequence[Sequence[str]]) -> None:
        """Add images; see :meth:`CIDErD.update`."""
        for answer, several in zip(_matched(answers, references), references, strict=True):
            predicted, true = scene_graph(answer), frozenset().union(*map(scene_graph, several))
            total = len(predicted) + len(true)
            self.scores.append(200 * len(predicted & true) / total if total else 100.0)

    @property
    def by_image(self) -> Floats:
        """Score of each image in percent, (N,); 100 where neither caption has a statement."""
        return np.array(self.scores, dtype=np.float64)

    def value(self) -> float:
        """Return the mean score in percent, higher is better; NaN without images."""
        return float(self.by_image.mean()) if self.scores else float("nan")


ROOM = re.compile(r"(?:beyond it, )?an? (?P<room>.+?)(?: with (?P<things>.+))?")
LYING = re.compile(r"(?P<things>.+) (?:is|are) on (?:the|an?) (?P<under>.+)")
BESIDE = re.compile(
    r"the (?P<first>.+) is (?P<how>to the left of|to the right of|behind|in front of) the (?P<second>.+)"
)


def scene_graph(caption: str) -> frozenset[Gram]:
    """Parse a caption in the form of :func:`testtime.scenes.captions.describe` into tuples.

    A room or an object is (name,); its number, where above one, (name, "two"); relations are (object, "in", room),
    (object, "on", object), (object, "left of", object), (object, "behind", object). "Right of" and "in front of" become their
    inverses with the objects exchanged. Sentences of another form give no tuples.

    >>> sorted(scene_graph("A den with a TV and two mugs. The TV is to the right of the sofa."))
    [('den',), ('mug',), ('mug', 'in', 'den'), ('mug', 'two'), ('sofa', 'left of', 'tv'), ('tv',), ('tv', 'in', 'den')]
    """
    graph: set[Gram] = set()
    for sentence in re.split(r"\s*\.\s*", caption.lower().strip()):
        if found := BESIDE.fullmatch(sentence):
            first, how, second = found["first"], found["how"], found["second"]
            if how in ("to the right of", "in front of"):
                first, second = second, first
            graph.add((first, "behind" if how in ("behind", "in front of") else "left of", second))
        elif found := LYING.fullmatch(sentence):
            graph |= {(name, "on", found["under"]) for name, _ in _listed(found["things"])}
        elif found := ROOM.fullmatch(sentence):
            graph.add((found["room"],))
            for name, number in _listed(found["things"] or ""):
                graph |= {(name,), (name, "in", found["room"])}
                if number != "one":
                    graph.add((name, number))
    return frozenset(graph)


def _listed(text: str) -> Iterable[tuple[str, str]]:
    """Yield the names and numbers in a list such as "a table, two mugs and 13 boxes"."""
    for phrase in re.split(r"\s*,\s*|\s+and\s+", text):
        number, _, name = phrase.strip().partition(" ")
        if name and number in ("a", "an"):
            yield name, "one"
        elif name and (number in NUMBERS or number.isdigit()):
            yield (_singular(name), number)


def _singular(name: str) -> str:
    """Return the singular of a noun.

    >>> [_singular(n) for n in ("boxes", "vases", "shelves", "benches", "tvs", "bodies", "mugs")]
    ['box', 'vase', 'shelf', 'bench', 'tv', 'body', 'mug']
    """
    for plural, single in (
        ("ves", "f"),
        ("ies", "y"),
        ("xes", "x"),
        ("ches", "ch"),
        ("shes", "sh"),
        ("sses", "ss"),
    ):
        if name.endswith(plural):
            return name.removesuffix(plural) + single
    return name.removesuffix("s")


def _matched(answers: Sequence[str], references: Sequence[Sequence[str]]) -> list[str]:
    if isinstance(answers, str) or any(isinstance(several, str) for several in references):
        raise ValueError("expected a list of captions, and for each a list of references; got a string")
    if len(answers) != len(references):
        raise ValueError(f"expected references for each of {len(answers)} captions, got {len(references)}")
    if not all(len(several) for several in references):
        raise ValueError("every image needs at least one reference")
    return list(answers)
