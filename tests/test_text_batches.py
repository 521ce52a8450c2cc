"""Token ids and dictionaries of tensors: what is taken, what is refused and with which words."""

from __future__ import annotations

import collections
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import testtime
from testtime import state_hash
from testtime.errors import AdapterWarning
from testtime.intake.named import NamedTensors, packed, unpacked
from testtime.laws.worlds import FACTS, SentenceClassifier
from testtime.methods import (
    EATA,
    MEMO,
    NOTE,
    PAFKIP,
    RMT,
    T3A,
    TIPI,
    VDP,
    AdaNPC,
    CoTTA,
    DeYO,
    RoTTA,
    SoTTA,
    Source,
    Tent,
)
from testtime.selection import monitor
from testtime.wrap import Episodic, Guarded, PriorCorrected, Repeat, ResetEvery, TimeConstrained, Window


def text_model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return SentenceClassifier(nn.BatchNorm1d, FACTS).eval()


def batch(n: int = 8, seed: int = 0) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    mask = (torch.arange(6) < torch.randint(2, 7, (n, 1), generator=rng)).long()
    ids = torch.randint(40, (n, 6), generator=rng)
    return {"input_ids": ids, "attention_mask": mask, "facts": torch.randn(n, FACTS, generator=rng)}


def changed(**entries: Any) -> dict[str, Any]:
    return {**batch(), **entries}


IDS = batch()["input_ids"]
REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "empty dictionary": ({}, ValueError, "an empty one"),
    "strings": (changed(text=["a"] * 8), TypeError, r"'text' of type list; return_tensors=\"pt\""),
    "no tensor in it": ({"input_ids": IDS.tolist()}, TypeError, "'input_ids' of type list"),
    "None": (changed(facts=None), TypeError, "'facts' of type NoneType; .*leave out what is None"),
    "ragged": (changed(facts=torch.zeros(5, FACTS)), ValueError, r"one first dimension, .*'facts': 5"),
    "nested": (changed(input_ids=torch.nested.nested_tensor([IDS[0], IDS[1, :2]])), TypeError, "pad it"),
    "a single value": (
        changed(facts=torch.tensor(1.0)),
        ValueError,
        "'facts' of the batch is a single value",
    ),
    "no words": (changed(input_ids=IDS[:, :0]), ValueError, "'input_ids' of the batch holds samples without"),
    "uint8 images": ({"pixel_values": torch.zeros(2, 3, 4, 4, dtype=torch.uint8)}, TypeError, "x / 255"),
    "complex": (changed(facts=torch.zeros(8, FACTS, dtype=torch.complex64)), TypeError, "complex64"),
    "meta": (changed(facts=torch.zeros(8, FACTS, device="meta")), ValueError, "'facts' .* meta tensor"),
    "labels": (
        changed(labels=torch.zeros(8).long()),
        ValueError,
        "'labels'; an adapter learns without labels",
    ),
    "a key that is no name": ({0: IDS}, TypeError, "named by strings, got the key 0"),
    "an unknown entry": (changed(token_type_ids=IDS), ValueError, "forward takes input_ids, .*leave out"),
    "a missing entry": (
        {"facts": torch.zeros(8, FACTS)},
        ValueError,
        "missing a required argument: 'input_ids'",
    ),
    "ids out of range": (
        changed(input_ids=IDS + 30),
        ValueError,
        r"have 40 rows, .*input_ids from 3\d to 6\d",
    ),
    "negative ids": (changed(input_ids=IDS - 5), ValueError, "ids go from 0 to .*input_ids from -5"),
    "float ids": (changed(input_ids=IDS.float()), ValueError, r"convert them: input_ids.long\(\)"),
    "wrong rank": (
        changed(input_ids=IDS[:, 0]),
        ValueError,
        "Expected the tensors of a batch as the model was",
    ),
    "another type": (changed(facts=torch.zeros(8, FACTS).double()), ValueError, r"facts.to\(torch.float32\)"),
    "a short mask": (
        changed(attention_mask=torch.ones(8, 5).long()),
        ValueError,
        r"'attention_mask' with a value for each word of 'input_ids' \(8, 6\), got \(8, 5\); take both from one call",
    ),
    "a mask of one column": (changed(attention_mask=torch.ones(8, 1).long()), ValueError, r"got \(8, 1\)"),
    "a long mask of embeddings": (
        {"inputs_embeds": torch.randn(8, 6, 16), "attention_mask": torch.ones(8, 7).bool()},
        ValueError,
        r"each word of 'inputs_embeds' \(8, 6, 16\), got \(8, 7\)",
    ),
    "a short mask of a decoder": (
        changed(decoder_input_ids=IDS, decoder_attention_mask=IDS[:, :2]),
        ValueError,
        "'decoder_attention_mask' with a value for each word of 'decoder_input_ids'",
    ),
    "a sentence alone": (IDS[0], ValueError, r"x\[None\]"),
    "ids of int8": (IDS.to(torch.int8), TypeError, "token ids are int64"),
    "ids of rank 3": (IDS[None], TypeError, "token ids are int64"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("call", ["forward", "predict"])
def test_what_is_no_batch_is_refused_with_what_to_do(name: str, call: str) -> None:
    x, kind, message = REFUSED[name]
    adapter = Tent(text_model())
    adapter(batch())
    before = state_hash(adapter)
    with pytest.raises(kind, match=message):
        getattr(adapter, call)(x)
    assert state_hash(adapter) == before
    assert adapter(batch()).valid.all()


class Whole(nn.Module):
    """Takes the dictionary itself, and spoils it."""

    def __init__(self) -> None:
        super().__init__()
        self.text = text_model()

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        ids = inputs.pop("input_ids")
        ids[ids == 0] = 1
        return self.text(ids, **inputs)


def test_a_dictionary_is_given_by_keyword_or_whole_and_stays_as_it_was() -> None:
    x, untouched = batch(), batch()
    x["input_ids"][0, 0] = untouched["input_ids"][0, 0] = 0
    one, other = Tent(text_model()), Tent(Whole())
    y, z = one({**x, "input_ids": x["input_ids"].clamp(min=1)}), other(x)
    assert y.equal(z.logits)
    assert x.keys() == untouched.keys()
    assert all(x[name].equal(untouched[name]) for name in x)
    assert one(collections.UserDict(x)).shape == (8, 5)  # as transformers.BatchEncoding


def test_ids_alone_are_a_batch() -> None:
    plain = SentenceClassifier(nn.LayerNorm).eval()
    assert Tent(plain)(IDS).equal(Tent(plain)({"input_ids": IDS}).logits)
    assert Tent(plain)(IDS.int()).equal(Tent(plain)(IDS).logits)


@pytest.mark.parametrize("kind", [torch.int64, torch.int32, torch.bool])
def test_a_text_without_words_costs_its_sample_alone(kind: torch.dtype) -> None:
    one, other = Tent(text_model()), Tent(text_model())
    for seed in range(3):
        x = batch(seed=seed)
        x["attention_mask"] = x["attention_mask"].to(kind)
        kept = torch.arange(8) != 3
        y = other({name: value[kept] for name, value in x.items()})
        x["attention_mask"][3] = 0
        z = one(x)
        assert z.logits[kept].equal(y.logits)
        assert z.logits[3].isnan().all()
        assert z.valid.tolist() == kept.tolist()
    assert state_hash(one) == state_hash(other)


def test_a_batch_without_words_is_refused_at_first_and_not_predicted_later() -> None:
    adapter = Tent(text_model())
    empty = changed(attention_mask=torch.zeros(8, 6).long())
    for call in (adapter, adapter.predict):
        with pytest.raises(
            ValueError, match=r"attention_mask of every sample is 0 everywhere.*pass the mask of"
        ):
            call(empty)
    wrapped = Episodic(Tent(text_model()))  # an empty batch is no batch without words
    assert wrapped({name: value[:0] for name, value in empty.items()}).shape == (0, 5)
    adapter(batch())
    before = state_hash(adapter)
    with pytest.warns(AdapterWarning, match="attention_mask of every sample is 0 everywhere"):
        y = adapter(empty)
    assert not y.valid.any()
    assert state_hash(adapter) == before
    with pytest.raises(ValueError, match="an attention_mask of zeros"):
        AdaNPC(text_model()).prepare([empty])


def test_masks_of_other_kinds_are_the_models_own() -> None:
    class Added(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.text = SentenceClassifier(nn.LayerNorm)

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            return self.text(input_ids) + attention_mask.flatten(1).sum(1, keepdim=True)

    adapter = Tent(Added().eval())
    for mask in (torch.zeros(8, 6), torch.zeros(8, 1, 6, 6).long()):
        assert adapter({"input_ids": IDS, "attention_mask": mask}).valid.all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_bad_number_costs_its_sample_alone(value: float) -> None:
    one, other = Tent(text_model()), Tent(text_model())
    for seed in range(3):
        x, bad = batch(seed=seed), batch(9, seed=seed)
        bad = {name: torch.cat([x[name], bad[name][-1:]]) for name in x}
        bad["facts"][-1, 1] = value
        y, z = one(bad), other(x)
        assert y.valid.tolist() == [True] * 8 + [False]
        assert y[:-1].equal(z.logits)
        assert y[-1].isnan().all()
    assert state_hash(one) == state_hash(other)
    nothing = batch()
    nothing["facts"][:] = value
    with pytest.warns(testtime.errors.AdapterWarning, match="every sample holds NaN or infinity in one"):
        assert not one(nothing).valid.any()
    assert one({name: v[:0] for name, v in batch().items()}).shape == (0, 5)


def test_the_range_of_a_dictionary_is_that_of_its_images() -> None:
    class Images(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.head = nn.BatchNorm2d(3), nn.Linear(3, 4)

        def forward(self, pixel_values: Tensor, boxes: Tensor) -> Tensor:
            return self.head(self.norm(pixel_values).mean((2, 3)) + boxes.mean(1, keepdim=True))

    adapter = Tent(Images().eval())
    with pytest.raises(ValueError, match="forward takes pixel_values, boxes .*pass a dictionary"):
        adapter(torch.rand(4, 3, 5, 5))
    x = {"pixel_values": torch.rand(4, 3, 5, 5), "boxes": torch.full((4, 2), 400.0)}
    assert adapter(x).valid.all()
    assert adapter.input_range == (0.0, 1.0)
    x["pixel_values"][2, 0, 0, 0] = 255.0
    assert adapter(x).valid.tolist() == [True, True, False, True]


OF_IMAGES: dict[str, Callable[[nn.Module], Any]] = {
    "MEMO": MEMO,
    "CoTTA": CoTTA,
    "DeYO": partial(DeYO, classes=5),
    "PAFKIP": partial(PAFKIP, classes=5),
    "RoTTA": partial(RoTTA, classes=5),
    "TIPI": TIPI,
    "VDP": VDP,
}
OF_TENSORS = {**OF_IMAGES, "NOTE": partial(NOTE, classes=5), "SoTTA": partial(SoTTA, classes=5, skip=())}


@pytest.mark.parametrize("name", OF_TENSORS)
def test_methods_that_need_images_refuse_by_name(name: str) -> None:
    adapter = OF_TENSORS[name](text_model())
    with pytest.raises(ValueError, match=rf"^{name} takes batches that are one tensor .*such as Tent, EATA"):
        adapter(batch())
    with pytest.raises(
        ValueError, match=r"\(8, 3, 4, 4\)\}; pass the images alone: batch\['pixel_values'\]; "
    ):
        adapter({"pixel_values": torch.rand(8, 3, 4, 4)})
    if name in OF_IMAGES:
        with pytest.raises(ValueError, match=rf"^{name} (changes images|takes floating-point inputs)"):
            adapter(IDS)


def test_a_source_of_dictionaries_is_screened_too() -> None:
    with pytest.raises(ValueError, match="RMT takes batches that are one tensor"):
        RMT(text_model()).prepare([batch()])
    eata = EATA(text_model(), 5, margin=2.0)
    eata.prepare(batch(seed=i) for i in range(3))
    assert eata(batch()).updated
    with pytest.raises(ValueError, match=r"takes pairs \(inputs, labels\) of tensors"):
        eata.prepare([changed(labels=torch.zeros(8).long())])
    with pytest.raises(TypeError, match=r"pass a loader or a list: \[x\]"):
        eata.prepare(batch())


def test_a_window_holds_whole_samples(tmp_path: Path) -> None:
    x = batch(6)
    adapter, bare = Window(Tent(text_model()), size=4, every=9), Tent(text_model())
    birth = state_hash(adapter)
    for k in range(5):
        y = adapter({name: value[k : k + 1] for name, value in x.items()})
        first = max(0, k - 3)
        company = {name: value[first : k + 1] for name, value in x.items()}
        assert y.logits.equal(bare.predict(company).logits[-1:])
    testtime.save(adapter, tmp_path)
    again = testtime.load(tmp_path, text_model())
    last = {name: value[5:] for name, value in x.items()}
    assert again.predict(last).logits.equal(adapter.predict(last).logits)
    assert again.predict(last).logits.equal(bare.predict({n: v[2:] for n, v in x.items()}).logits[-1:])
    before = state_hash(adapter)
    for other in (
        {n: v for n, v in x.items() if n != "attention_mask"},
        {**x, "facts": x["facts"].double()},
        IDS,
    ):
        with pytest.raises(
            ValueError, match=r"the window holds samples of shape attention_mask \(6,\), int64; facts"
        ):
            adapter.predict(other)
    assert state_hash(adapter) == before
    adapter.reset()
    assert state_hash(adapter) == birth
    tokens = Window(Tent(SentenceClassifier(nn.LayerNorm)), size=4)
    tokens(IDS)
    with pytest.raises(ValueError, match=r"holds samples of shape \(6,\), got input_ids \(6,\), int64"):
        tokens({"input_ids": IDS})


def test_packed_samples_are_the_same_in_every_type() -> None:
    x = NamedTensors(
        {
            "z": torch.randn(3, 2, 5).transpose(1, 2),
            "flag": torch.tensor([True, False, True]),
            "half": torch.randn(3, 1, 3).bfloat16(),
            "ids": torch.arange(6).int().view(3, 2),
            "wide": torch.randn(3).double(),
        }
    )
    rows = packed(x)
    assert rows.shape == (3, 10 * 4 + 1 + 3 * 2 + 2 * 4 + 8)
    for part in (slice(None), slice(1, 2), slice(0, 0)):
        back = unpacked(rows[part], x)
        assert back.keys() == x.keys()
        for name in x.entries:
            assert back[name].equal(x[name][part]), name
            assert back[name].dtype == x[name].dtype


def test_wrappers_work_or_refuse_by_name() -> None:
    x, plain = batch(), text_model()
    alone = Tent(plain)(x)
    assert Episodic(Tent(plain))(x).equal(alone.logits)
    assert ResetEvery(Tent(plain), 2)(x).equal(alone.logits)
    assert Repeat(Tent(plain), 2)(x).updated
    assert PriorCorrected(Tent(plain))(x).shape == (8, 5)
    assert TimeConstrained(Tent(plain), Source(plain))(x).equal(alone.logits)
    assert Window(Tent(plain), 8)(x).equal(alone.logits)
    assert Window(Tent(SentenceClassifier(nn.LayerNorm)), 4)(IDS).shape == (8, 5)
    for guarded, given in ((Guarded(Tent(plain)), x), (Guarded(Tent(SentenceClassifier(nn.LayerNorm))), IDS)):
        for call in (guarded, guarded.predict, lambda y, g=guarded: g.prepare([y])):
            with pytest.raises(
                ValueError, match=r"alone, got integers.* give Guarded\(adapter, disturb=...\) a function"
            ):
                call(given)
    assert Guarded(Tent(plain), disturb=lambda y: y)(x).shape == (8, 5)


def test_a_memory_of_sentences_keeps_one_length() -> None:
    note = NOTE(SentenceClassifier(nn.LayerNorm).eval(), 5, capacity=8, frequency=8)
    note(IDS)
    with pytest.raises(ValueError, match=r"holds images of \(6,\), and this batch has \(4,\)"):
        note(IDS[:, :4])


def test_it_is_saved_and_loaded(tmp_path: Any) -> None:
    model = text_model()
    adapter = T3A(model, supports=2)
    adapter(batch())
    testtime.save(adapter, tmp_path)
    assert testtime.load(tmp_path, model).predict(batch(seed=1)).equal(adapter.predict(batch(seed=1)).logits)


def test_candidates_are_compared_under_a_disturbance_of_the_users_own() -> None:
    def masked(x: NamedTensors) -> dict[str, Tensor]:
        return {**x.entries, "input_ids": x["input_ids"].roll(1, dims=1)}

    stream, model = [batch(seed=i) for i in range(2)], text_model()
    found = list(monitor(Tent(model), stream, Source(model), disturb=masked))
    assert [d.images for d in found] == [8, 8]
    with pytest.raises(ValueError, match="pass disturb= a function"):
        next(iter(monitor(Tent(model), stream, Source(model))))


@dataclass
class Output:
    hidden: Tensor
    scores: Tensor


class Answers(nn.Module):
    def __init__(self, form: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.text, self.form = text_model(), form

    def forward(self, input_ids: Tensor, **others: Tensor) -> Any:
        return self.form(self.text(input_ids, **others))


def test_outputs_are_chosen_as_for_images() -> None:
    expected = Tent(text_model())(batch())
    forms: dict[str, tuple[Callable[[Tensor], Any], Any]] = {
        "dataclass": (lambda z: Output(z.new_zeros(8, 6, 16), z), "scores"),
        "tuple": (lambda z: (z.new_zeros(8, 6, 16), z), 1),
        "dictionary": (lambda z: {"logits": z, "loss": z.mean()}, None),
    }
    for form, outputs in forms.values():
        assert Tent(Answers(form), outputs=outputs)(batch()).equal(expected.logits)
    with pytest.raises(ValueError, match=r"outputs='hidden' \(8, 6, 16\), outputs='scores' \(8, 5\)"):
        Tent(Answers(forms["dataclass"][0]))(batch())


def test_named_tensors_are_indexed_as_a_tensor_is() -> None:
    x = NamedTensors(batch())
    keep = torch.tensor([True, False] * 4)
    assert x[keep]["facts"].equal(batch()["facts"][::2])
    assert [len(part) for part in x.split(3)] == [3, 3, 2]
    assert x.to(torch.float64)["input_ids"].dtype == torch.int64
    assert x.to("cpu", torch.float64).dtype == torch.float64
    with pytest.raises(TypeError, match="iterated by"):
        iter(x)
