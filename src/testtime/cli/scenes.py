"""``testtime scenes``: furnished houses with exact labels."""

from __future__ import annotations

from typing import Annotated, Literal

from testtime.cli import options
from testtime.cli.options import Commands, Jobs, Option, new_file, new_folder, whole
from testtime.errors import need_packages

__all__ = ["COMMANDS", "make", "show"]
Tracer = Literal["embree", "numpy", "gl"]


def make(
    *,
    out: Annotated[str, Option("folder of the spaces", new_folder, "DIR")],
    spaces: Annotated[int, Option("houses")] = 30,
    frames: Annotated[int, Option("views of each house")] = 40,
    pixels: Annotated[tuple[int, int], Option("height and width", options.size, "N|HxW", ("--size",))] = (
        64,
        64,
    ),
    style: Annotated[str, Option("prior of furniture and layout")] = "default",
    shift: Annotated[str | None, Option("shift of domain; the labels stay exact")] = None,
    seed: Annotated[int, Option("first house; the next ones follow (0)", whole(0))] = 0,
    camera_seed: Annotated[int, Option("other views of the same houses (0)", whole(0))] = 0,
    jobs: Jobs = 2,
    moved: Annotated[int | None, Option("small objects elsewhere, the same cameras", whole(0))] = None,
    backend: Annotated[Tracer | None, Option("tracer (embree where installed)")] = None,
) -> int:
    """Render houses into files; the same command goes on where it was left."""
    from testtime.scenes import disk
    from testtime.scenes.tracer import warn_if_slow

    tracer = {"gl": {"moderngl": "render-gl"}, "embree": {"embreex": "scenes"}}.get(backend or "", {})
    need_packages(PIL="images", cv2="scenes", **tracer)
    if backend is None:
        warn_if_slow(options.print_progress)
    looks = (style, shift, frames, pixels, camera_seed, moved, backend)
    disk.make(out, [disk.Recipe(house, *looks) for house in range(seed, seed + spaces)], jobs)
    print(out)
    return 0


def show(
    root: Annotated[str, Option("folder of the spaces", metavar="DIR")],
    *,
    spaces: Annotated[tuple[str, ...] | None, Option("some of the spaces", options.words, "A,B")] = None,
    frames: Annotated[int, Option("rows")] = 4,
    width: Annotated[int, Option("pixels of a picture", whole(32))] = 160,
    out: Annotated[str | None, Option("the sheet (sheet.png in the folder)", new_file, "FILE")] = None,
) -> int:
    """Draw a contact sheet of all modalities."""
    from testtime.scenes.sheet import write_sheet

    need_packages(PIL="images")
    print(write_sheet(root, out, spaces, frames, width))
    return 0


COMMANDS: Commands = {"make": make, "show": show}
