"""Captions: no word sees a later one, the loss and the search recomputed, exact resume, mirrors."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from testtime.data import DenseSet, Sample
from testtime.metrics.captions import CIDErD
from testtime.space.captioning import (
    RECIPES,
    Captioner,
    CaptionVocabulary,
    captions_of,
    evaluate_captioner,
    mirrored,
    train_captioner,
)
from testtime.space.modalities import SENSORY
from testtime.space.segmenter import PatchEncoder
from testtime.space.transfer import TransferRecipe

LEFT, RIGHT = "The lamp is to the left of the sofa.", "The lamp is to the right of the sofa."
DARK = "A room."


class Lamps(DenseSet):
    """Something bright left, right or nowhere."""

    name, tasks = "lamps", ()

    def __init__(self, count=9):
        self.count, self.reads = count, []

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        self.reads.append(index)
        image = 0.1 * torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(index))
        if index % 3:
            image[:, 2:6, slice(0, 4) if index % 3 == 1 else slice(4, 8)] += 0.8
        return Sample(image, {}, str(index))

    @property
    def captions(self):
        return [(DARK, LEFT, RIGHT)[i % 3] for i in range(self.count)]


def captioner(seed=0, captions=(LEFT, RIGHT, DARK), max_len=12, dim=12):
    torch.manual_seed(seed)
    encoder = PatchEncoder([SENSORY["rgb"]], (8, 8), 4, dim=12, depth=1, heads=3)
    return Captioner(encoder, CaptionVocabulary.of(captions), dim, depth=1, heads=3, max_len=max_len).eval()


RECIPE = TransferRecipe(epochs=10, warmup=1, batch=3, lr=3e-3, scale=(1.0, 1.0), every=7)


def test_a_later_word_has_no_influence_and_an_earlier_one_has():
    model = captioner().double()
    x = torch.rand(1, 3, 8, 8, dtype=torch.float64)
    ids = torch.tensor([[1, 4, 5, 6, 7, 8]])
    logits = model(x, ids)
    for at in range(6):
        other = ids.clone()
        other[0, at] = 9
        changed = (model(x, other) - logits).abs().amax((0, 2)) > 1e-9
        assert changed.tolist() == [False] * at + [True] * (6 - at)
    assert (model(x.flip(-1), ids) - logits).abs().amax(-1).min() > 1e-9  # the picture matters to every word


def test_the_loss_is_the_mean_over_words_without_padding():
    model = captioner().double()
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    long, short = (model.vocabulary.encode(c) for c in (LEFT, DARK))
    ids = torch.tensor([long, short + [0] * (len(long) - len(short))])
    losses = []
    for row, caption in enumerate((long, short)):
        logits = model(x[row : row + 1], torch.tensor([caption[:-1]])).detach().numpy()[0]
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        losses += [-log_p[t, word] for t, word in enumerate(caption[1:])]
    assert len(losses) == len(long) + len(short) - 2
    assert model.loss(x, ids).item() == pytest.approx(np.mean(losses), rel=1e-6)  # computed in float32


def test_many_beams_find_the_most_probable_of_all_captions():
    model = captioner(captions=["a b"], max_len=5).double()  # four words at most, of unknown, a, b, and end
    with torch.no_grad():
        model.table.weight *= 60
    x = torch.rand(3, 3, 8, 8, dtype=torch.float64)
    allowed = [2, 3, 4, 5]

    def worth(n, words):
        with torch.no_grad():
            logits = model(x[n : n + 1], torch.tensor([[1, *words[:-1]]]))[0][:, allowed].numpy()
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        return sum(log_p[t, allowed.index(word)] for t, word in enumerate(words))

    every = [
        [*words, *end]
        for length in range(5)
        for words in itertools.product([3, 4, 5], repeat=length)
        for end in ([[2]] if length < 4 else [[]])
    ]
    for n in range(3):
        expected = model.vocabulary.decode(max(every, key=lambda words, n=n: worth(n, words)))
        assert model.write(x[n : n + 1], beams=400) == [expected]
    assert model.write(x, beams=400) == [model.write(x[n : n + 1], beams=400)[0] for n in range(3)]
    for n in range(3):  # greedy: the best word each time
        words = [1]
        while len(words) < 5 and words[-1] != 2:
            with torch.no_grad():
                logits = model(x[n : n + 1], torch.tensor([words]))[0, -1]
            words.append(max(allowed, key=lambda word, logits=logits: logits[word].item()))
        assert model.write(x[n : n + 1]) == [model.vocabulary.decode(words)]


def test_it_learns_to_say_what_is_where(tmp_path):
    data, captions = Lamps(), ["a room.", "left lamp.", "right lamp."] * 3
    model, state = captioner(captions=captions, dim=24), torch.get_rng_state()
    recipe = TransferRecipe(epochs=120, batch=9, lr=1e-2, layer_decay=1.0, drop_path=0, scale=(1.0, 1.0))
    train_captioner(model, data, captions, recipe, tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    images = torch.stack([s.image for s in data])
    assert model.write(images) == model.write(images, beams=3) == captions
    assert model.write(images.flip(-1)) == [mirrored(c) for c in captions]


def test_evaluation_compares_each_picture_with_its_caption():
    data, model = Lamps(), captioner()
    told = iter(data.captions)
    model.write = lambda images, beams: [next(told).lower() for _ in images]
    assert evaluate_captioner(model, data, data.captions, batch=4)["scene graph F"] == 100.0
    model.write = lambda images, beams: ["a room with a lamp."] * len(images)
    report = evaluate_captioner(model, data, data.captions)
    # Of (room), (lamp) and (lamp in room), a third of the captions states the first; the others state a relation.
    assert report["scene graph F"] == pytest.approx(200 * 1 / 4 / 3)
    meter = CIDErD()
    meter.update(["a room with a lamp"] * 9, [[c] for c in data.captions])
    assert report["CIDEr-D"] == meter.value() > 0


def test_after_a_kill_it_goes_on_as_if_it_had_not_stopped(tmp_path):
    class Killed(Lamps):
        def __getitem__(self, index):
            if len(self.reads) >= 3 * 17:
                raise KeyboardInterrupt
            return super().__getitem__(index)

    captions = Lamps().captions
    whole = train_captioner(captioner(), Lamps(), captions, RECIPE, tmp_path / "whole", seed=2)
    with pytest.raises(KeyboardInterrupt):
        train_captioner(captioner(), Killed(), captions, RECIPE, tmp_path / "broken", seed=2)
    data = Lamps()
    resumed = train_captioner(captioner(), data, captions, RECIPE, tmp_path / "broken", seed=2)
    assert len(data.reads) == 3 * (30 - 14)
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    with pytest.raises(ValueError, match="another training: seed is 2 there and 3 here"):
        train_captioner(captioner(), Lamps(), captions, RECIPE, tmp_path / "broken", seed=3)


def test_a_picture_and_its_caption_are_mirrored_together(tmp_path):
    model, kept = captioner(), []
    model.encoder.register_forward_pre_hook(lambda _m, x: kept.append(x[0].clone()))
    said = []
    loss = model.loss
    model.loss = lambda images, ids: said.append(ids) or loss(images, ids)
    train_captioner(model, Lamps(), Lamps().captions, RECIPE, tmp_path)
    lefts = 0
    for images, ids in zip(kept, said, strict=True):
        for image, words in zip(images, ids.tolist(), strict=True):
            caption = model.vocabulary.decode(words)
            sides = image[:, :, :4].mean() - image[:, :, 4:].mean()
            where = "left" if sides > 0.2 else "right" if sides < -0.2 else "room"
            assert where in caption
            lefts += where == "left"
    assert 0 < lefts < 60


def test_a_vocabulary_has_the_frequent_words_first():
    vocabulary = CaptionVocabulary.of(["b b, a.", "A c."], least=1)
    assert vocabulary.words == ("<pad>", "<begin>", "<end>", "<unk>", ".", "a", "b", ",", "c")
    assert vocabulary.encode("C d a.") == [1, 8, 3, 5, 4, 2]
    assert vocabulary.decode([1, 6, 7, 5, 4, 2, 8]) == "b, a."
    assert CaptionVocabulary.of(["b b a"], least=2).words[4:] == ("b",)
    with pytest.raises(ValueError, match="every word once"):
        CaptionVocabulary(["a", "a"])


def test_captions_of_scenes_are_those_of_their_records():
    from testtime.scenes.disk import render_space

    scenes = render_space(seed=1, frames=3, size=(16, 16), backend="numpy", tasks=("semseg",))
    assert captions_of(scenes) == [scenes.view(i).caption for i in range(3)]
    assert captions_of(scenes.subset([2])) == [scenes.view(2).caption]
    vocabulary = CaptionVocabulary.of(captions_of(scenes))
    for caption in captions_of(scenes):
        assert vocabulary.decode(vocabulary.encode(caption)) == caption.lower()


def test_errors_come_before_work_is_lost(tmp_path):
    data = Lamps()
    with pytest.raises(ValueError, match="9 images, but there are 8 captions"):
        train_captioner(captioner(), data, data.captions[:8], RECIPE, tmp_path)
    with pytest.raises(ValueError, match="scale"):
        train_captioner(captioner(), data, data.captions, TransferRecipe(), tmp_path)
    with pytest.raises(ValueError, match="more max_len"):
        train_captioner(captioner(max_len=5), data, data.captions, RECIPE, tmp_path)
    with pytest.raises(ValueError, match="6 words"):
        captioner(max_len=5)(torch.rand(1, 3, 8, 8), torch.ones(1, 6, dtype=torch.long))
    assert RECIPES["paper"].lr == pytest.approx(1e-5 * 2048 / 256)
    assert isinstance(captioner(), nn.Module)
