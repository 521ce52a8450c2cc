"""Shards: files of the crops and tokens of a space, which every pre-training reads.

A folder holds ``shards.json`` (streams, sizes, crops, origin of the frames) and ``shard-00000.safetensors``, ..., of 256 frames
each:

======================  ===========================  =========================================================================
tensor                  form                         content
======================  ===========================  =========================================================================
``rgb``                 (n, K, 3, H, W) uint8        crops of the picture
``<stream>``            (n, K, length) int32         tokens of a crop; -1 after the end of a sequence
``window``              (n, K, 5) float32            top, left, height, width (fractions of the frame), mirrored
======================  ===========================  =========================================================================

The first crop is the largest centred square; the others are random windows, mirrored with probability 1/2. All modalities of a
crop have the same window, so that their tokens are aligned.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from testtime.data.files import need_file
from testtime.errors import DataError
from testtime.files import damaged, read_json, sweep, write_json, write_tensors
from testtime.parts.randomness import generator
from testtime.progress import progress
from testtime.space.crops import cropped, windows
from testtime.space.masking import Stream
from testtime.space.modalities import RGB, Modality
from testtime.space.sequences import BoxVocabulary
from testtime.space.tokenizers import Tokenizer

__all__ = ["Shards", "write_shards"]

FRAMES = 256
Frame = Mapping[str, Any]
"""Frame of a space: "rgb" (3, H, W) in [0, 1], and other modalities by name; boxes are a list."""


def write_shards(
    folder: str | Path,
    frames: Sequence[Frame],
    tokenizers: Mapping[str, Tokenizer],
    size: tuple[int, int],
    patch: int,
    crops: int = 4,
    smallest: float = 0.4,
    boxes: tuple[Modality, BoxVocabulary, int] | None = None,
    seed: int = 0,
    made_from: Mapping[str, Any] | None = None,
    batch: int = 64,
) -> Shards:
    """Crop and tokenise the frames of a space; existing shards are kept.

    Args:
        folder: folder of the shards.
        frames: frames by index; see :data:`Frame`.
        tokenizers: tokenizers by stream ("tok_depth").
        size: (H, W) of the crops in pixels.
        patch: side of a patch of the picture in pixels.
        crops: K, number of crops of each frame.
        smallest: smallest fraction of the frame's area that a random window covers.
        boxes: modality and vocabulary of the boxes, and largest number of their tokens.
        seed: random seed of the windows.
        made_from: description of the frames, in values of JSON. Existing shards with another description, or of tokenizers with
            other weights, are an error.
        batch: number of crops that are tokenised at once.

    Raises:
        ValueError: there are no frames, or a tokenizer has another size.
        DataError: the folder contains shards of other frames or tokenizers, or a frame lacks a modality.
    """
    folder = Path(folder)
    if len(frames) == 0:
        raise ValueError("there are no frames to tokenise")
    if crops < 1 or batch < 1 or not 0 < smallest <= 1 or patch < 1 or size[0] % patch or size[1] % patch:
        raise ValueError(
            f"expected crops and batch of at least 1, smallest in (0, 1] and a size in multiples of patch, got {crops}, "
            f"{batch}, {smallest}, {tuple(size)} and {patch}"
        )
    for name, tokenizer in tokenizers.items():
        if tokenizer.modality.kind != "features" and tokenizer.size != tuple(size):
            raise ValueError(f"the tokenizer of {name} is for {tokenizer.size}, the crops are {tuple(size)}")
    places = (size[0] // patch) * (size[1] // patch)
    streams = [Stream("rgb", "pixels", places)]
    streams += [Stream(name, "grid", math.prod(t.grid), t.vocabulary) for name, t in tokenizers.items()]
    if boxes is not None:
        streams.append(Stream(boxes[0].name, "sequence", boxes[2], len(boxes[1])))
    about = {
        "streams": [asdict(s) for s in streams],
        "size": list(size),
        "patch": patch,
        "crops": crops,
        "smallest": smallest,
        "seed": seed,
        "frames": len(frames),
        "boxes": None if boxes is None else _words(boxes[1]),
        "tokenizers": {name: _digest(t) for name, t in tokenizers.items()},
        "made_from": dict(made_from or {}),
    }
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    path = folder / "shards.json"
    if not path.exists():
        write_json(path, about)
    elif read_json(path, f"delete {folder} and make the shards again") != json.loads(json.dumps(about)):
        raise DataError(
            f"{folder} holds shards of other frames or tokenizers; choose another folder, or delete it"
        )
    starts = [s for s in range(0, len(frames), FRAMES) if not _file(folder, s // FRAMES).exists()]
    for start in progress(starts, len(starts), f"tokens {folder.name}"):
        _write(folder, start, frames, tokenizers, size, crops, smallest, boxes, seed, batch)
    return Shards(folder)


def _write(
    folder: Path,
    start: int,
    frames: Sequence[Frame],
    tokenizers: Mapping[str, Tokenizer],
    size: tuple[int, int],
    crops: int,
    smallest: float,
    boxes: tuple[Modality, BoxVocabulary, int] | None,
    seed: int,
    batch: int,
) -> None:
    pictures, drawn = [], []
    values: dict[str, list[Tensor]] = {name: [] for name in tokenizers}
    words = []
    for index in range(start, min(start + FRAMES, len(frames))):
        frame = frames[index]
        around = windows(crops, smallest, generator(seed, index, "crops"), tuple(frame["rgb"].shape[-2:]))
        drawn.append(around)
        for window in around.tolist():
            pictures.append((cropped(frame["rgb"], RGB, window, size) * 255).round().to(torch.uint8))
            for name, tokenizer in tokenizers.items():
                modality = tokenizer.modality
                if modality.name not in frame:
                    raise DataError(f"frame {index} lacks {modality.name}, which {name} needs")
                values[name].append(cropped(frame[modality.name], modality, window, tokenizer.size))
            if boxes is not None:
                modality, vocabulary, length = boxes
                ids = vocabulary.encode(cropped(frame[modality.name], modality, window, size), length)
                words.append(F.pad(ids, (0, length - len(ids)), value=-1))
    n = len(drawn)
    tensors = {"rgb": torch.stack(pictures).unflatten(0, (n, crops)), "window": torch.stack(drawn)}
    for name, tokenizer in tokenizers.items():
        parts = [
            tokenizer.encode(torch.stack(values[name][i : i + batch])) for i in range(0, n * crops, batch)
        ]
        tensors[name] = torch.cat(parts).to(torch.int32).unflatten(0, (n, crops))
    if boxes is not None:
        tensors[boxes[0].name] = torch.stack(words).to(torch.int32).unflatten(0, (n, crops))
    write_tensors(_file(folder, start // FRAMES), tensors)


@final
class Shards:
    """Shards of a folder.

    Attributes:
        streams: streams of tokens and pixels.
        size, patch: (H, W) of the picture and side of a patch, in pixels.
        crops: K, number of crops of each frame.
        vocabulary: vocabulary of the boxes, or None.

    Raises:
        DataError: the folder has no shards, some are missing, or a file is damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        path = need_file(self.folder / "shards.json", "the description of the shards")
        again = f"delete {self.folder} and make the shards again"
        about = read_json(path, again)
        self.about: dict[str, Any] = about
        with damaged(path, again):
            self.streams = tuple(Stream(**s) for s in about["streams"])
            height, width = (int(n) for n in about["size"])
            self.size, self.patch, self.crops = (height, width), int(about["patch"]), int(about["crops"])
            self.vocabulary = None
            if about["boxes"]:
                facts = about["boxes"]
                self.vocabulary = BoxVocabulary(facts["classes"], facts["bins"], facts["sentinels"])
            count = int(about["frames"])
        there = sum(1 for _ in self.folder.glob("shard-*.safetensors"))
        needed = -(-count // FRAMES)
        if count < 1 or needed > there:
            raise DataError(
                f"{self.folder}: {max(1, needed) - there} shards are missing; run the same command again to resume"
            )
        missing = [i for i in range(-(-len(self) // FRAMES)) if not _file(self.folder, i).exists()]
        if missing:
            raise DataError(
                f"{self.folder}: {len(missing)} shards are missing; run the same command again to resume"
            )

    def __len__(self) -> int:
        """Number of frames."""
        return int(self.about["frames"])

    def read(self, indices: Sequence[int], crops: Sequence[int]) -> dict[str, Tensor]:
        """Read one crop of each of N frames: "rgb" (N, 3, H, W) uint8, and streams (N, length) int32; empty for no frames.

        Args:
            indices: indices of the frames.
            crops: index of the crop of each frame.
        """
        if len(indices) != len(crops):
            raise ValueError(f"expected a crop for each frame, got {len(crops)} for {len(indices)}")
        files, rows = np.divmod(np.asarray(indices, int), FRAMES)
        order = files.argsort(kind="stable")
        groups = np.split(order, np.flatnonzero(np.diff(files[order])) + 1)
        found: dict[str, Tensor] = {}
        for group in groups if len(indices) else []:
            path = _file(self.folder, int(files[group[0]]))
            shard = self._checked(path, int(files[group[0]]))
            at, k, to = (
                torch.from_numpy(v[group]) for v in (rows, np.asarray(crops, int), np.arange(len(rows)))
            )
            for stream in self.streams:
                picked = shard[stream.name][at, k]
                if stream.name not in found:
                    found[stream.name] = picked.new_empty(len(rows), *picked.shape[1:])
                found[stream.name][to] = picked
        return found

    def _checked(self, path: Path, number: int) -> dict[str, Tensor]:
        """Read a shard, and compare its shapes with ``shards.json``."""
        shard = _shard(str(path), path.stat().st_mtime_ns)
        count = min(FRAMES, len(self) - number * FRAMES)
        for stream in self.streams:
            form = (3, *self.size) if stream.kind == "pixels" else (stream.length,)
            found = shard.get(stream.name)
            if found is None or found.shape != (count, self.crops, *form):
                raise DataError(
                    f"{path}: expected {stream.name} of {(count, self.crops, *form)}, found "
                    f"{'none' if found is None else tuple(found.shape)}; delete it and make the shards again"
                )
        return shard


@lru_cache(maxsize=512)
def _shard(path: str, changed: int) -> dict[str, Tensor]:
    """Read the tensors of a file, mapped into memory; ``changed`` is its modification time, a part of the cache's key."""
    with damaged(path, "delete it and run the same command again", (SafetensorError,)):
        return load_file(path)


def _digest(tokenizer: Tokenizer) -> str:
    """Return a digest of a tokenizer's weights."""
    digest = hashlib.blake2b(digest_size=8)
    for name, value in sorted(tokenizer.state_dict().items()):
        digest.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _words(vocabulary: BoxVocabulary) -> dict[str, Any]:
    return {
        "classes": list(vocabulary.classes),
        "bins": vocabulary.bins,
        "sentinels": len(vocabulary.sentinels),
    }


def _file(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.safetensors"
