"""``testtime space``: making a space ready for pre-training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from testtime.cli import options
from testtime.cli.options import Commands, Device, Option, Seed, existing, new_folder, number, whole
from testtime.errors import need_packages

__all__ = ["COMMANDS", "Source", "Tokens", "ingest"]
Sensor = Literal["depth", "normals", "edge"]


@dataclass(frozen=True)
class Source:
    """How frames are read; all but the first two options are for walk-throughs and videos."""

    layout: Annotated[str | None, Option("of the source, where it is not found")] = None
    spaces: Annotated[tuple[str, ...] | None, Option("some of the source's", metavar="NAME")] = None
    depth: Annotated[str | None, Option("depth, if it lies elsewhere", existing, "DIR")] = None
    intrinsics: Annotated[str | None, Option("fx, fy, cx, cy as JSON", existing, "FILE")] = None
    fov: Annotated[
        float | None, Option("of the longer side, in place of intrinsics", number(), "DEGREES")
    ] = None
    fps: Annotated[float, Option("frames taken from a second", number())] = 2.0
    every: Annotated[int | None, Option("every N-th frame, in place of --fps")] = None
    blur: Annotated[float, Option("share of sharpness below which frames are left out", number(1))] = 0.5
    longest: Annotated[int, Option("pixels of a frame's longer side")] = 512


@dataclass(frozen=True)
class Tokens:
    """How crops are taken and turned into tokens."""

    size: Annotated[int, Option("pixels of a crop's side")] = 64
    patch: Annotated[int, Option("pixels of a token's side")] = 8
    crops: Annotated[int, Option("crops of each frame")] = 4
    tokenizer: Annotated[Literal["fsq", "vq"], Option("kind of tokenizer")] = "fsq"
    levels: Annotated[tuple[int, ...], Option("of fsq", whole(2), several=True)] = (8, 5, 5, 5)
    codebook: Annotated[int, Option("entries of vq")] = 512
    steps: Annotated[int, Option("training steps of each tokenizer")] = 400


def ingest(
    path: Annotated[str, Option("scenes, a public layout, a folder of pictures, or a video", metavar="PATH")],
    *,
    out: Annotated[str, Option("folder of tokenizers, shards, report and sheet", new_folder, "DIR")],
    source: Source,
    tokens: Tokens,
    sensors: Annotated[tuple[Sensor, ...] | None, Option("some of those that are there")] = None,
    limit: Annotated[int | None, Option("frames at most, evenly spread")] = None,
    rows: Annotated[int, Option("frames on the sheet")] = 4,
    seed: Seed = 0,
    device: Device = "cpu",
) -> int:
    """Make tokens, shards and a contact sheet of a place; the same command goes on where it was left."""
    from testtime.space import ingest as space
    from testtime.space.sources import read_space

    need_packages(PIL="images", cv2="scenes", vector_quantize_pytorch="space")
    t, asked = tokens, space.IngestOptions(rows=rows, limit=limit)
    more: dict[str, Any] = {"sensors": sensors, "options": asked, "seed": seed, "device": device}
    if t.size % t.patch:
        raise ValueError(f"--size {t.size} is not a multiple of --patch {t.patch}; choose another --size")
    data = read_space(path, frames=Path(out) / "frames", **vars(source))
    recipe = space.TokenizerRecipe(t.tokenizer, t.levels, t.codebook, steps=t.steps)
    more |= {"recipe": recipe, "log": options.print_progress}
    found = space.ingest(data, out, t.size, t.patch, t.crops, **more)
    print(space.summary(found), Path(out) / "sheet.png", sep="\n")
    return 0


COMMANDS: Commands = {"ingest": ingest}
