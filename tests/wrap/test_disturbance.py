"""What a guard changes in samples: what keeps the class, what is refused, and the drifts of a calibration."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from testtime.intake.named import NamedTensors
from testtime.selection import disturbance
from testtime.wrap.disturbance import Disturbance, drifts, source_samples

NET = nn.Linear(3, 2)


def sentences(n: int = 64, words: int = 10) -> NamedTensors:
    """Ids that say in which place they stand, with 3 to 10 words that count."""
    rng = torch.Generator().manual_seed(0)
    ids = 100 * torch.arange(words) + torch.randint(1, 100, (n, words), generator=rng)
    mask = (torch.arange(words) < torch.randint(3, words + 1, (n, 1), generator=rng)).long()
    return NamedTensors({"input_ids": ids * mask, "attention_mask": mask})


def test_entries_of_a_dictionary_change_as_tensors_do() -> None:
    change = Disturbance(NET)
    pixels, ages = torch.rand(4, 3, 8, 8), torch.rand(4)
    x = NamedTensors({"pixel_values": pixels, "age": ages, "pixel_mask": torch.ones(4, 8, 8)})
    y = change(x)
    assert y.keys() == x.keys()
    assert y["pixel_values"].equal(disturbance(NET)(pixels))
    assert y["pixel_values"].equal(change(pixels))
    assert y["pixel_mask"].equal(x["pixel_mask"])
    off = (y["age"] - ages) / ages.std()
    assert 0.005 < float(off.abs().mean()) < 0.1
    assert change(x)["age"].equal(y["age"])


@pytest.mark.parametrize(
    ("x", "found"),
    [
        (torch.ones(2, 3, dtype=torch.int64), r"got integers in a batch \(2, 3\)"),
        (sentences(2), r"got integers 'input_ids' in a batch \{'input_ids': \(2, 10\)"),
        (
            NamedTensors({"facts": torch.rand(2, 3), **sentences(2).entries}),
            "got integers 'input_ids' in a batch",
        ),
        (NamedTensors({"length": torch.ones(2, dtype=torch.int64)}), "got none in a batch"),
        (NamedTensors({"score_mask": torch.zeros(2, 3)}), "got none in a batch"),
    ],
)
def test_what_cannot_be_disturbed_is_refused(x: Tensor | NamedTensors, found: str) -> None:
    with pytest.raises(ValueError, match=f"disturbs floating-point tensors alone, {found}.*give Guarded"):
        Disturbance(NET).check(x)
    Disturbance(NET, lambda x: x).check(x)


def test_what_has_numbers_alone_is_taken() -> None:
    mask = torch.ones(2, 4, dtype=torch.int64)
    for x in (
        torch.rand(2, 3),
        NamedTensors({"input_values": torch.rand(2, 4), "attention_mask": mask, "length": mask[:, 0]}),
    ):
        Disturbance(NET).check(x)


def test_a_function_of_ones_own_gets_a_copy_and_returns_as_many_samples() -> None:
    def first(x: NamedTensors) -> dict[str, Tensor]:
        x["input_ids"][:, 0] = 7
        return dict(x.entries)

    x, untouched = sentences(), sentences()
    y = Disturbance(NET, first)(x)
    assert y["input_ids"][:, 0].eq(7).all()
    assert y["input_ids"][:, 1:].equal(x["input_ids"][:, 1:])
    assert x["input_ids"].equal(untouched["input_ids"])
    with pytest.raises(ValueError, match=r"returned \(2, 3\) for a batch \(4, 3\); expected as many samples"):
        Disturbance(NET, lambda x: x[:2])(torch.rand(4, 3))


def test_drifts_of_words_replace_a_share_of_those_that_count() -> None:
    x = sentences(256)
    ids, shown = x["input_ids"], x["attention_mask"].bool()
    found = list(drifts(x, None, 0))
    assert found[0] is x
    shares = []
    for drifted in found[1:]:
        new = drifted["input_ids"]
        assert drifted["attention_mask"] is x["attention_mask"]
        assert new[~shown].eq(0).all()
        assert (new // 100)[shown].equal(torch.arange(10).expand_as(ids)[shown])  # each in its place
        shares.append(float((new != ids)[:, :3].float().mean()))  # places that count in all samples
    assert shares == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5], abs=0.05)
    alone = list(drifts(ids[:, :3], (0.0, 1.0), 0))
    assert [float((new != ids[:, :3]).float().mean()) for new in alone[1:]] == pytest.approx(
        [0.1, 0.2, 0.3, 0.4, 0.5], abs=0.05
    )


def test_drifts_of_a_dictionary_are_those_of_its_tensors_and_then_of_its_words() -> None:
    pixels, ages, words = torch.rand(4, 3, 8, 8), torch.rand(4, 1), sentences(4).entries
    x = NamedTensors({"pixel_values": pixels, "age": ages, **words})
    found = list(drifts(x, (0.0, 1.0), 3))
    images, numbers = list(drifts(pixels, (0.0, 1.0), 3)), list(drifts(ages, None, 3))
    texts = list(drifts(NamedTensors(words), None, 3))
    assert (len(images), len(numbers), len(texts), len(found)) == (18, 12, 6, 18 + 5)
    for i, one in enumerate(found):
        assert one["pixel_values"].equal(images[i] if i < 18 else pixels)
        assert one["age"].equal(numbers[i] if i < 12 else ages)
        assert one["input_ids"].equal(words["input_ids"] if i < 18 else texts[i - 17]["input_ids"])


def test_batches_are_joined_if_their_samples_have_one_form() -> None:
    a, b = sentences(2), sentences(3)
    both = source_samples([a, b])
    assert both["input_ids"].equal(torch.cat([a["input_ids"], b["input_ids"]]))
    assert source_samples([torch.ones(1, 2), torch.zeros(2, 2)]).tolist() == [[1, 1], [0, 0], [0, 0]]
    for other, form in ((sentences(2, 9), r"attention_mask \(10,\), int64"), (a["input_ids"], r"\(10,\)")):
        with pytest.raises(ValueError, match=rf"several forms: .*{form}.*pad token ids to one length"):
            source_samples([a, other])


def _returned(found: Any, _: Any) -> Any:
    return found


def test_what_a_users_function_returns_is_checked() -> None:
    words = NamedTensors(
        {"input_ids": torch.ones(4, 3, dtype=torch.int64), "attention_mask": torch.ones(4, 3)}
    )
    ids, mask = words["input_ids"], words["attention_mask"]
    for found, error, message in (
        (None, TypeError, "a function that returns the changed batch; .*got NoneType"),
        ({}, ValueError, "a function that returns the changed batch; .*got an empty one"),
        (words[:3], ValueError, "expected as many samples, in the same order"),
        (ids, ValueError, "returned torch.int64 for a batch of input_ids torch.int64, attention_mask"),
        ({"input_ids": ids}, ValueError, "returned input_ids torch.int64 for .* the same entries and types"),
        ({"input_ids": ids.float(), "attention_mask": mask}, ValueError, "returned input_ids torch.float32"),
        ({"input_ids": ids, "attention_mask": mask / 0}, ValueError, "values that are not finite"),
    ):
        with pytest.raises(error, match=message):
            Disturbance(NET, partial(_returned, found))(words)
    with pytest.raises(TypeError, match="disturb= is a function .*got 3"):
        Disturbance(NET, 3)  # type: ignore[arg-type]


def test_a_users_function_may_change_its_argument_and_the_order_of_the_names() -> None:
    words = NamedTensors(
        {"input_ids": torch.ones(4, 3, dtype=torch.int64), "attention_mask": torch.ones(4, 3)}
    )

    def masked(x: NamedTensors) -> dict[str, Tensor]:
        x["input_ids"][:, 1] = 0
        return {"attention_mask": x["attention_mask"], "input_ids": x["input_ids"]}

    other = Disturbance(NET, masked)(words)
    assert other["input_ids"].tolist() == [[1, 0, 1]] * 4
    assert words["input_ids"].eq(1).all()
