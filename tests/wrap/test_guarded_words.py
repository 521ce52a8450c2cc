"""Guarded takes dictionaries of tensors and token ids, with a disturbance of the user's where the class is in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import testtime
from testtime import adam, state_hash
from testtime.intake.named import NamedTensors
from testtime.laws.worlds import WORLDS, classified, reworded, tokenised
from testtime.methods import Source, Tent
from testtime.wrap import Guarded, GuardOptions
from testtime.wrap.evidence import Usual, batch_values, input_moments
from testtime.wrap.repeats import repeated


def network(world: str = "dictionary") -> nn.Module:
    return WORLDS[world].network()


def without_every_sixth(x: NamedTensors) -> dict[str, Tensor]:
    """Mask every sixth word."""
    kept = torch.arange(x["input_ids"].shape[1]) % 6 != 5
    return {**x.entries, "attention_mask": x["attention_mask"] * kept}


def numbers_alone(x: NamedTensors) -> dict[str, Tensor]:
    """Add noise to the numbers beside the words."""
    facts, rng = x["facts"], torch.Generator().manual_seed(0)
    return {**x.entries, "facts": facts + 0.05 * facts.std() * torch.randn(facts.shape, generator=rng)}


class OfPixels(nn.Module):
    """A network that takes its images by name."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.network(pixel_values)


@pytest.mark.parametrize("calibrated", [True, False])
def test_images_by_name_are_guarded_as_images(calibrated: bool) -> None:
    options = GuardOptions(check=0.25, exposure=0.1)
    plain = Guarded(Tent(network("batchnorm")), options=options)
    named = Guarded(Tent(OfPixels(network("batchnorm"))), options=options)
    rng = torch.Generator().manual_seed(0)
    if calibrated:
        source = [classified(64, rng)[0] for _ in range(3)]
        plain.prepare(source)
        named.prepare({"pixel_values": x} for x in source)
        assert named.competence.shares.equal(plain.competence.shares)
        assert float(named.competence.ratio) == float(plain.competence.ratio)
    kinds = []
    for i in range(30):
        x = (1.0 if i % 10 < 5 else 0.35) * classified(1 if i % 9 == 8 else 32, rng)[0]
        x = x.repeat(2, 1, 1, 1).sort(dim=0).values if i == 20 else x  # copies
        y, z = plain(x), named({"pixel_values": x})
        assert z.logits.equal(y.logits), i
        assert named.events == plain.events
        kinds += [event.kind for event in plain.events]
    assert "skip" in kinds
    assert set(kinds) > {"skip"}


@pytest.mark.parametrize("world", ["tokens", "dictionary"])
def test_words_without_a_disturbance_are_refused_before_anything_is_learned(world: str) -> None:
    x = WORLDS[world].stream(1)[0]
    x = x if isinstance(x, Tensor) else dict(x.entries)
    guarded = Guarded(Tent(network(world)))
    before = state_hash(guarded)
    for call in (guarded, guarded.predict, guarded.shipped_prediction, lambda x: guarded.prepare([x])):
        with pytest.raises(ValueError, match=r"alone, got integers.*such as one that masks a few tokens"):
            call(x)
    assert state_hash(guarded) == before
    assert not guarded.competence.known


def test_a_disturbance_of_another_length_is_refused_before_anything_is_learned() -> None:
    guarded = Guarded(Tent(network()), disturb=lambda x: x[:3])
    before = state_hash(guarded)
    with pytest.raises(ValueError, match=r"disturb= returned \{'input_ids': \(3, 12\).*as many samples"):
        guarded(dict(WORLDS["dictionary"].stream(1)[0].entries))
    assert state_hash(guarded) == before


@pytest.mark.parametrize("call", ["forward", "predict", "prepare"])
def test_ids_of_a_disturbance_that_the_model_does_not_have_are_named(call: str) -> None:
    guarded = Guarded(Tent(network("tokens")), disturb=lambda x: x + 1000)
    x, before = WORLDS["tokens"].stream(1)[0], state_hash(guarded)
    with pytest.raises(
        ValueError, match=r"^disturb= returned a batch that the model does not take.*from 1\d+ to 1"
    ):
        getattr(guarded, call)(WORLDS["tokens"].source(10) if call == "prepare" else x)
    assert state_hash(guarded) == before
    assert not guarded.competence.known


def test_source_sentences_of_several_lengths_are_refused() -> None:
    guarded = Guarded(Tent(network("tokens")), disturb=lambda x: x)
    ids = WORLDS["tokens"].source(2)
    with pytest.raises(ValueError, match=r"several forms: \(10,\) and \(12,\); .*padding=\"max_length\""):
        guarded.prepare([ids[0], ids[1][:, :10]])
    assert not guarded.competence.known
    for x in (ids[0], ids[1][:, :10], ids[1]):  # of a stream, batches may differ
        assert guarded(x).shape == (32, 5)


def stream(kind: str, batches: int = 60) -> list[tuple[NamedTensors, Tensor]]:
    """Sentences of one class for 12 batches each, of which up to a third of the words are of no class, or others' numbers."""
    rng = torch.Generator().manual_seed(0)
    found = []
    for i in range(batches):
        x, y = tokenised(512, rng)
        rows = torch.nonzero(y == i // 12)[:32, 0] if kind == "words" else slice(32)
        x, y = x[rows], y[rows]
        if kind == "words":
            ids = reworded(x["input_ids"], 1.0, rng) * x["attention_mask"]
            x = NamedTensors({**x.entries, "input_ids": ids})
        else:
            x = NamedTensors({**x.entries, "facts": 2 + 3 * x["facts"]})
        found.append((x, y))
    return found


def right(adapter: Any, batches: list[tuple[NamedTensors, Tensor]]) -> float:
    hits = [adapter(dict(x.entries)).argmax(1) == y for x, y in batches]
    return float(torch.cat(hits).float().mean())


def guarded(disturb: Any) -> Guarded:
    found = Guarded(Tent(network(), optimizer=adam(1e-3)), disturb=disturb)
    found.prepare(dict(x.entries) for x in WORLDS["dictionary"].source(10))
    return found


def test_noise_beside_the_words_says_nothing_of_the_words() -> None:
    batches = stream("words")
    shipped = right(Source(network()), batches)
    assert right(Tent(network(), optimizer=adam(1e-3)), batches) < shipped - 0.4
    blind = guarded(numbers_alone)
    assert float(blind.competence.ratio) == 10.0  # as high as it gets, and not enough
    assert (
        right(blind, batches) > shipped - 0.01
    )  # BN statistics are known to be wrong where classes come in turns
    blind.reset()
    blind.competence.disputes = torch.empty(0)
    assert right(blind, batches) < shipped - 0.04
    assert right(guarded(without_every_sixth), batches) > shipped - 0.01


def test_the_adapter_is_served_where_the_numbers_beside_the_words_drift() -> None:
    batches = stream("numbers", 30)
    shipped = right(Source(network()), batches)
    assert right(guarded(without_every_sixth), batches) > shipped + 0.02


def test_copies_of_a_text_teach_nothing() -> None:
    adapter = Guarded(Tent(network("tokens")), disturb=lambda x: x.roll(1, dims=1))
    ids = WORLDS["tokens"].stream(1)[0]
    before = state_hash(adapter.adapter)
    assert not adapter(ids[:1].expand(8, -1)).updated
    assert state_hash(adapter.adapter) == before
    assert [event.kind for event in adapter.events][-1] == "skip"
    assert repeated(ids[:1], adapter.last)[0] == 1.0
    assert repeated(ids[:1].flip(1), adapter.last)[0] == 0.0  # the same words in another order
    assert repeated(torch.cat([ids[:2], ids[1:3], ids[2:3]]), None)[0] == pytest.approx(2 / 5)


def test_it_is_saved_with_its_disturbance(tmp_path: Path) -> None:
    one = guarded(without_every_sixth)
    x, y = (dict(x.entries) for x, _ in stream("words", 2))
    one(x)
    testtime.save(one, tmp_path)
    with pytest.raises(ValueError, match="without_every_sixth"):
        testtime.load(tmp_path, network())
    other = testtime.load(tmp_path, network(), functions=[without_every_sixth])
    assert other(y).logits.equal(one(y).logits)
    assert state_hash(other) == state_hash(one)
    assert "disturb=without_every_sixth" in repr(other)


def test_what_is_known_of_the_shipped_model_by_sample() -> None:
    one = guarded(without_every_sixth)
    x = dict(stream("words", 1)[0][0].entries)
    x["attention_mask"] = x["attention_mask"].clone()
    x["attention_mask"][3] = 0
    good, classes, known = one.shipped_prediction(x)
    assert good.tolist() == [i != 3 for i in range(32)]
    assert classes[good].equal(Source(network()).predict(x).argmax(1)[good])
    assert float(known[3]) == 0.0
    assert 0.05 < float(known[good].min()) < float(known[good].max()) < 1.0


def test_values_of_a_batch_are_those_of_its_tensors_without_masks() -> None:
    x, logits = stream("words", 1)[0][0], torch.eye(5)
    found = batch_values(input_moments(x), logits)
    assert found.shape == (6,)
    assert found[2:4].tolist() == pytest.approx(
        [float(x["facts"][:, 0].mean()), float(x["facts"][:, 0].std(correction=0))], rel=1e-5
    )
    ids = x["input_ids"][:, ::7].float()
    assert found[4:].tolist() == pytest.approx([float(ids.mean()), float(ids.std(correction=0))], rel=1e-5)
    usual = Usual()
    for _ in range(6):
        usual.take(found)
    assert usual.surprise(found) == 0.0
    assert usual.surprise(found[:4]) == float("inf")  # a batch with other entries
    usual.take(found[:4])
    assert (int(usual.count), usual.mean.tolist()) == (1, found[:4].tolist())
