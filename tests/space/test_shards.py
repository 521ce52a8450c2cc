"""Shards: tokens that are the crops', files that come out the same, whole or not at all."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file
from toy_space import BOXES, PATCH, SIZE, VOCABULARY, WORDS, Levels, frames, shards, streams, tokenizers

from testtime.errors import DataError
from testtime.space import shards as module
from testtime.space.crops import cropped
from testtime.space.modalities import DEPTH, RGB
from testtime.space.shards import Shards, write_shards


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(module, "FRAMES", 4)


def contents(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def test_tokens_are_those_of_the_crops_that_are_stored(tmp_path):
    made = shards(tmp_path, 6)
    stored = [load_file(tmp_path / f"shard-0000{i}.safetensors") for i in (0, 1)]
    found = {k: torch.cat([s[k] for s in stored]) for k in stored[0]}
    assert {k: (v.dtype, tuple(v.shape)) for k, v in found.items()} == {
        "rgb": (torch.uint8, (6, 3, 3, 16, 16)),
        "window": (torch.float32, (6, 3, 5)),
        "tok_rgb": (torch.int32, (6, 3, 16)),
        "tok_depth": (torch.int32, (6, 3, 16)),
        "boxes": (torch.int32, (6, 3, WORDS)),
    }
    assert len({tuple(w) for w in found["window"].flatten(0, 1).tolist()}) > 10
    for i, frame in enumerate(frames(6)):
        assert found["window"][i, 0].tolist() == [0, 0, 1, 1, 0]
        for k in range(3):
            window = found["window"][i, k].tolist()
            picture = cropped(frame["rgb"], RGB, window, SIZE)
            assert torch.equal(found["rgb"][i, k], (picture * 255).round().to(torch.uint8))
            assert torch.equal(found["tok_rgb"][i, k].long(), Levels(RGB).encode(picture[None])[0])
            depth = cropped(frame["depth"], DEPTH, window, SIZE)
            assert torch.equal(found["tok_depth"][i, k].long(), Levels(DEPTH).encode(depth[None])[0])
            words = found["boxes"][i, k]
            expected = VOCABULARY.encode(cropped(frame["boxes"], BOXES[0], window, SIZE), WORDS)
            assert words[: len(expected)].tolist() == expected.tolist()
            assert (words[len(expected) :] == -1).all()
        # The picture's blocks lie on patches: its tokens and those of its negative add up.
        assert (found["tok_rgb"][i, 0] + found["tok_depth"][i, 0] == 7).all()
    for stream in made.streams[1:3]:
        assert found[stream.name].min() >= 0
        assert found[stream.name].max() < stream.vocabulary
    assert found["boxes"].max() < len(VOCABULARY)
    assert (made.streams, made.size, made.patch, made.crops, len(made)) == (streams(), SIZE, PATCH, 3, 6)
    assert made.vocabulary.classes == VOCABULARY.classes
    assert len(made.vocabulary) == len(VOCABULARY)


def test_the_same_call_makes_the_same_files_and_another_seed_others(tmp_path):
    shards(tmp_path / "a")
    shards(tmp_path / "b")
    shards(tmp_path / "c", seed=1)
    a, b, c = (contents(tmp_path / name) for name in "abc")
    assert list(a) == [f"shard-0000{i}.safetensors" for i in range(3)] + ["shards.json"]
    assert a == b
    assert all(a[name] != c[name] for name in a)


def test_the_batch_of_the_tokenizer_changes_nothing(tmp_path):
    shards(tmp_path / "a")
    shards(tmp_path / "b", batch=5)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_after_a_kill_the_same_call_goes_on_and_makes_nothing_twice(tmp_path):
    class Killed(list):
        def __getitem__(self, index):
            if index >= 6:
                raise KeyboardInterrupt
            return super().__getitem__(index)

    shards(tmp_path / "whole")
    folder = tmp_path / "broken"
    arguments = (tokenizers(), SIZE, PATCH, 3)
    with pytest.raises(KeyboardInterrupt):
        write_shards(folder, Killed(frames()), *arguments, boxes=BOXES)
    assert sorted(p.name for p in folder.iterdir()) == ["shard-00000.safetensors", "shards.json"]
    with pytest.raises(DataError, match="2 shards are missing; run the same command again"):
        Shards(folder)
    (folder / ".shard-00001.safetensors.0123.part").write_bytes(b"half of a file")
    os.utime(folder / ".shard-00001.safetensors.0123.part", (0, 0))
    before = (folder / "shard-00000.safetensors").stat().st_mtime_ns

    class Rest(list):
        def __getitem__(self, index):
            assert index >= 4, "the first shard is there"
            return super().__getitem__(index)

    write_shards(folder, Rest(frames()), *arguments, boxes=BOXES)
    assert (folder / "shard-00000.safetensors").stat().st_mtime_ns == before
    assert contents(folder) == contents(tmp_path / "whole")


def test_shards_of_something_else_are_refused_and_left_as_they_are(tmp_path):
    shards(tmp_path, made_from={"houses": [1, 2]})
    before = contents(tmp_path)
    others = [
        {"made_from": {"houses": [1, 3]}},
        {"made_from": {"houses": [1, 2]}, "seed": 1},
        {"made_from": {"houses": [1, 2]}, "count": 9},
        {"made_from": {"houses": [1, 2]}, "crops": 2},
        {"made_from": {"houses": [1, 2]}, "boxed": False},
    ]
    for other in others:
        with pytest.raises(DataError, match="other frames or tokenizers; choose another folder"):
            shards(tmp_path, **other)
    retrained = tokenizers()
    retrained["tok_depth"].scale.fill_(7.5)
    with pytest.raises(DataError, match="other frames or tokenizers"):
        write_shards(
            tmp_path,
            frames(),
            retrained,
            SIZE,
            PATCH,
            3,
            boxes=BOXES,
            made_from={"houses": [1, 2]},
        )
    assert contents(tmp_path) == before


def test_reading_keeps_the_order_over_files(tmp_path):
    made = shards(tmp_path, 10)
    stored = [load_file(tmp_path / f"shard-0000{i}.safetensors") for i in range(3)]
    indices, crops = [9, 0, 5, 9, 4, 3], [0, 1, 2, 0, 1, 2]
    found = made.read(indices, crops)
    assert list(found) == ["rgb", "tok_rgb", "tok_depth", "boxes"]
    for name, values in found.items():
        for value, i, k in zip(values, indices, crops, strict=True):
            assert torch.equal(value, stored[i // 4][name][i % 4, k]), name
    assert made.read([], []) == {}
    with pytest.raises(ValueError, match="a crop for each frame"):
        made.read([1, 2], [0])


def test_shards_that_are_made_again_are_read_again(tmp_path):
    first = shards(tmp_path, 4).read([0], [0])
    for path in tmp_path.iterdir():
        path.unlink()
    again = shards(tmp_path, 4, start=50).read([0], [0])
    assert not torch.equal(first["tok_rgb"], again["tok_rgb"])


def test_what_cannot_be_made_is_refused_before_anything_is(tmp_path):
    with pytest.raises(ValueError, match="no frames"):
        shards(tmp_path / "a", 0)
    with pytest.raises(ValueError, match=r"tokenizer of tok_rgb is for \(8, 8\), the crops are \(16, 16\)"):
        write_shards(tmp_path / "b", frames(), {"tok_rgb": Levels(RGB, size=(8, 8))}, SIZE, PATCH)
    assert list(tmp_path.iterdir()) == []
    lacking = [{"rgb": f["rgb"]} for f in frames()]
    with pytest.raises(DataError, match="frame 0 lacks depth, which tok_depth needs"):
        write_shards(tmp_path / "c", lacking, tokenizers(), SIZE, PATCH)
    with pytest.raises(DataError, match=r"shards\.json: no such file"):
        Shards(tmp_path / "nowhere")


def test_descriptions_and_shards_that_lie_are_refused(tmp_path):
    shards(tmp_path)
    path = tmp_path / "shards.json"
    facts = json.loads(path.read_text())
    for wrong in (
        {"size": [8]},
        {"frames": "x"},
        {"streams": [{"name": "a"}]},
        {"streams": [{"name": "a", "kind": "grid", "length": -1}]},
        {"boxes": {"classes": ["a"], "bins": -1, "sentinels": 2}},
    ):
        path.write_text(json.dumps({**facts, **wrong}))
        with pytest.raises(DataError, match=r"shards\.json is damaged"):
            Shards(tmp_path)
    path.write_text(json.dumps({**facts, "frames": 10**15}))
    with pytest.raises(DataError, match="shards are missing"):
        Shards(tmp_path)
    path.write_text("[" * 100_000)
    with pytest.raises(DataError, match=r"shards\.json is damaged"):
        Shards(tmp_path)
    path.write_text(json.dumps(facts))
    first = tmp_path / "shard-00000.safetensors"
    tensors = load_file(first)
    save_file({**tensors, "tok_depth": tensors["tok_depth"][:, :, :1].contiguous()}, first)
    with pytest.raises(
        DataError, match=r"shard-00000\.safetensors: expected tok_depth of \(4, 3, \d+\), found \(4, 3, 1\)"
    ):
        Shards(tmp_path).read([0], [0])
    first.write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"shard-00000\.safetensors is damaged"):
        Shards(tmp_path).read([0], [0])
