"""Spaces, rendered frames of houses, in files and in memory: rendering that resumes after interruptions, and reading.

A space consists of the frames of one house from many cameras. A root folder contains a folder for each modality with a
folder for each space with a file for each frame::

    rgb/<space>/<frame>.png         8 bits, sRGB
    depth/<space>/<frame>.png       16 bits, millimetres along the optical axis; 0: none
    normal/<space>/<frame>.png      8 bits, 127.5 (n + 1) rounded; x right, y up, z to the viewer; 127, 127, 127: none
    canny/<space>/<frame>.png       8 bits, 0 or 255: edges of the image
    occlusion/<space>/<frame>.png   8 bits, 0 or 255: edges of the geometry
    semantic/<space>/<frame>.png    8 bits, classes; 255: unknown
    instance/<space>/<frame>.png    16 bits, instances of the house
    spaces/<space>/space.json       the recipe, the renderer, the thresholds of Canny, the classes
    spaces/<space>/frames.jsonl     a line for each frame: its name, pose (4, 4) from camera to world (OpenGL: x right,
                                    y up, viewing direction -z; metres), intrinsics (3, 3) in pixels, room, ring, shift,
                                    boxes (instance, label, x0, y0, x1, y1, visibility), caption

``space.json`` is written first and ``frames.jsonl`` last: a space is complete when it has both. Until then the line of a frame
is in ``spaces/<space>/<frame>.json``, which is written after the frame's images; existing frames are not rendered again. Files
are written atomically, and a frame depends on its camera alone, so that processes can be killed and can work on the same
space: all write the same bytes.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np
from numpy.typing import NDArray

from testtime.data.decoding import decoded, image_bytes
from testtime.data.files import need_choice, need_file, need_folder
from testtime.data.listing import folders, inside
from testtime.data.pixels import levels
from testtime.errors import DataError, need_pillow
from testtime.files import damaged, read_json, read_lines, write_bytes
from testtime.progress import progress
from testtime.scenes.sceneset import MODALITIES, SOURCES, SceneSet, Space, stored
from testtime.scenes.tracer import BACKENDS, default_backend
from testtime.workers import worker_pool

if TYPE_CHECKING:
    from testtime.scenes import Frame, House, Renderer

__all__ = ["Recipe", "make", "read_scenes", "record", "render_space"]

AGAIN = "delete the space and make it again: testtime scenes make renders missing frames"
CHUNK = 8  # frames that a process renders between two reports of progress
PACKAGES = {"embree": "embreex", "gl": "moderngl"}  # packages of backends with other names


@final
@dataclass(frozen=True)
class Recipe:
    """The parameters of a space; equal recipes give equal spaces.

    Attributes:
        seed: random seed of the house.
        style: name of the prior of the furniture, one of ``testtime.scenes.STYLES``.
        shift: name of the domain shift, one of ``testtime.scenes.SHIFTS``, or None.
        frames: number of cameras.
        size: height and width of the images, in pixels.
        camera_seed: random seed of the cameras.
        moved: random seed of new positions of the small objects, with the same cameras; None for their original positions.
        backend: name of the renderer's backend, one of ``testtime.scenes.tracer.BACKENDS``; None is replaced by Embree, or by
            numpy if Embree is not installed.

    Raises:
        ValueError: a number is too small, or a name is unknown.

    >>> Recipe(seed=3, shift="fog").name
    'default_00003_fog'
    """

    seed: int = 0
    style: str = "default"
    shift: str | None = None
    frames: int = 40
    size: tuple[int, int] = (64, 64)
    camera_seed: int = 0
    moved: int | None = None
    backend: str | None = None

    def __post_init__(self) -> None:
        from testtime.scenes import SHIFTS, STYLES

        if self.backend is None:
            object.__setattr__(self, "backend", default_backend())
        need_choice(self.style, STYLES, "style")
        need_choice(str(self.backend), BACKENDS, "backend")
        if self.shift is not None:
            need_choice(self.shift, SHIFTS, "shift")
        seeds = (self.seed, self.camera_seed, self.moved or 0)
        if self.frames < 1 or min(self.size) < 8 or min(seeds) < 0:
            raise ValueError(
                "expected at least 1 frame of at least 8 x 8 pixels and seeds from 0, got "
                f"{self.frames} of {self.size[0]} x {self.size[1]}, seeds {', '.join(map(str, seeds))}"
            )

    @property
    def name(self) -> str:
        """Name of the space, from style, seed, positions of the small objects, and shift."""
        more = [
            *([] if self.moved is None else [f"moved{self.moved}"]),
            *([self.shift] if self.shift else []),
        ]
        return "_".join([self.style, f"{self.seed:05d}", *more])

    def facts(self) -> dict[str, Any]:
        """Return the content of ``space.json``.

        Raises:
            ImportError: the backend is "gl" and moderngl is not installed.
            OSError: the backend is "gl" and there is no OpenGL.
        """
        from testtime.scenes import CLASSES
        from testtime.scenes.render import CANNY

        package = PACKAGES.get(str(self.backend), str(self.backend))
        made_by = {"testtime": _version("testtime"), package: _version(package)}
        if self.backend == "gl":
            from testtime.scenes.gl import driver

            made_by["driver"] = driver()
        return {
            "name": self.name,
            "recipe": {**asdict(self), "size": list(self.size)},
            "made_by": made_by,
            "canny": list(CANNY),
            "classes": list(CLASSES),
        }


def record(frame: Frame, house: House, name: str) -> dict[str, Any]:
    """Return the line of a frame in ``frames.jsonl``."""
    from testtime.scenes.captions import caption

    boxes = [
        {
            "instance": int(b.instance),
            "label": int(b.label),
            **{side: int(getattr(b, side)) for side in ("x0", "y0", "x1", "y1")},
            "visibility": round(float(b.visibility), 4),
        }
        for b in frame.boxes
    ]
    return {
        "frame": name,
        "pose": np.asarray(frame.pose, dtype=np.float64).tolist(),
        "intrinsics": np.asarray(frame.intrinsics, dtype=np.float64).tolist(),
        "room": int(frame.room),
        "ring": int(frame.ring),
        "shift": frame.shift or None,
        "boxes": boxes,
        "caption": caption(frame, house),
    }


def render_space(
    seed: int = 0,
    frames: int = 40,
    size: tuple[int, int] = (64, 64),
    style: str = "default",
    shift: str | None = None,
    camera_seed: int = 0,
    moved: int | None = None,
    backend: str | None = None,
    tasks: Sequence[str] = tuple(SOURCES),
) -> SceneSet:
    """Render a space into memory: the samples that :func:`make` and :func:`read_scenes` would return, without files.

    Args:
        seed, frames, size, style, shift, camera_seed, moved, backend: arguments of :class:`Recipe`.
        tasks: tasks whose labels the samples have.
    """
    recipe = Recipe(seed, style, shift, frames, size, camera_seed, moved, backend)
    records, arrays = [], dict[str, list[NDArray[Any]]]({m: [] for m in MODALITIES})
    for i in range(frames):
        line, values = _render(recipe, i)
        records.append(line)
        for modality, value in values.items():
            arrays[modality].append(value)
    return SceneSet([Space(recipe.facts(), records, partial(_of, arrays))], tasks, recipe.name)


def _of(arrays: Mapping[str, Sequence[NDArray[Any]]], modality: str, index: int) -> NDArray[Any]:
    return arrays[modality][index]


def read_scenes(
    root: str | Path,
    spaces: Sequence[str] | None = None,
    tasks: Sequence[str] = tuple(SOURCES),
    keep: bool = True,
) -> SceneSet:
    """Read spaces written by :func:`make`.

    Args:
        root: root folder of the spaces.
        spaces: names of the spaces, in order; None reads all, sorted by name.
        tasks: tasks whose labels the samples have.
        keep: whether modalities stay in memory after they were read: 13 bytes per pixel for all modalities. Otherwise a
            frame is decoded on every access.

    Raises:
        DataError: there is no such space, a space is not complete, or its files are damaged.
        ImportError: Pillow is not installed.
    """
    folder = need_folder([Path(root) / "spaces"], "spaces that testtime scenes make wrote")
    there = [p.name for p in folders(folder)]
    wanted = there if spaces is None else list(spaces)
    if not wanted:
        raise DataError(
            f"{folder}: expected spaces, found none; make some: testtime scenes make --out {root}"
        )
    for name in wanted:
        if name not in there:
            shown = ", ".join(there[:5]) + (", ..." if len(there) > 5 else "")
            raise DataError(f"{root}: expected the space {name!r}, found {shown or 'none'}")
    return SceneSet([_read_space(Path(root), name, keep) for name in wanted], tasks, Path(root).name)


def _read_space(root: Path, name: str, keep: bool) -> Space:
    folder = root / "spaces" / name
    facts = read_json(need_file(folder / "space.json", "what a space was made from"), AGAIN)
    if not (folder / "frames.jsonl").is_file():
        raise DataError(
            f"{folder}: expected a complete space, found an incomplete one; "
            "run the same testtime scenes make again: it renders the missing frames"
        )
    path = folder / "frames.jsonl"
    records = read_lines(path, AGAIN)
    with damaged(folder, AGAIN):
        height, width = (int(n) for n in facts["recipe"]["size"])
        names = [str(line["frame"]) for line in records]
        for frame in names:
            _check_name(path, root / "rgb" / name, frame)
        return Space(facts, records, partial(_read, root, name, (height, width), names), keep)


def _check_name(path: Path, folder: Path, frame: str) -> None:
    """Refuse the name of a frame that refers to a path outside of its folder.

    Raises:
        DataError: the name does; the message names the list.
    """
    try:
        inside(folder, frame)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _read(root: Path, space: str, size: tuple[int, ...], names: Sequence[str], modality: str, i: int) -> Any:
    path = root / modality / space / f"{names[i]}.png"
    if modality in ("rgb", "normal"):
        array = decoded(image_bytes(path), 3, path, upright=False).transpose(1, 2, 0)
    else:
        kind = MODALITIES[modality]
        array = levels(path, bits=8 * kind.itemsize).astype(kind)
    if array.shape[:2] != size:
        raise DataError(
            f"{path}: expected the {size[0]} x {size[1]} pixels of {space}, found {array.shape[:2]}; "
            "it belongs to another space"
        )
    return array


def make(out: str | Path, recipes: Iterable[Recipe], jobs: int = 1) -> list[str]:
    """Render spaces into files, starting from existing frames.

    Args:
        out: root folder of the spaces.
        recipes: parameters of the spaces.
        jobs: number of processes.

    Returns:
        Names of the spaces, which are complete.

    Raises:
        DataError: a space of the same name was made from another recipe.
        ImportError: Pillow or the backend's package is not installed.
        OSError: the backend is "gl" and there is no OpenGL.
        ValueError: two recipes have the same name, or a house has no free place for an object that is to be moved.
    """
    root, recipes = Path(out), list(recipes)
    names = [r.name for r in recipes]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"two spaces would be called {twice[0]}; give them another seed, style or shift")
    need_pillow()
    todo = {r.name: (r, _missing(root, r)) for r in recipes if not _begin(root, r)}
    total, left = sum(r.frames for r in recipes), sum(len(frames) for _, frames in todo.values())
    # A process that renders a whole space builds its house once; fewer spaces than processes are divided into chunks.
    step = CHUNK if len(todo) < jobs else max(total, 1)
    chunks = [(r, rows[i : i + step]) for r, rows in todo.values() for i in range(0, len(rows), step)]
    waiting = {name: len(rows) for name, (_, rows) in todo.items()}
    for r, rows in todo.values():
        if not rows:  # killed between the last frame and frames.jsonl
            _finish(root, r)
    done = _work(root, chunks, jobs)
    for name, _ in progress(done, total, "rendering", total - left):
        waiting[name] -= 1
        if not waiting[name]:
            _finish(root, todo[name][0])
    return names


def _work(root: Path, chunks: Sequence[tuple[Recipe, Sequence[int]]], jobs: int) -> Iterator[tuple[str, int]]:
    """Render frames, and yield the space and the index of each."""
    if jobs <= 1 or len(chunks) <= 1:
        for recipe, rows in chunks:
            for i in rows:
                _write_frame(root, recipe, i)
                yield recipe.name, i
        return
    with worker_pool(min(jobs, len(chunks))) as pool:
        futures = {pool.submit(_write_frames, root, r, rows): (r, rows) for r, rows in chunks}
        for future in as_completed(futures):
            future.result()
            recipe, rows = futures[future]
            yield from ((recipe.name, i) for i in rows)


def _write_frames(root: Path, recipe: Recipe, rows: Sequence[int]) -> None:
    for i in rows:
        _write_frame(root, recipe, i)


def _write_frame(root: Path, recipe: Recipe, index: int) -> None:
    """Render a frame and write its images, and then its line, which marks it as complete."""
    line, values = _render(recipe, index)
    for modality, value in values.items():
        _write(root / modality / recipe.name / f"{line['frame']}.png", _png(value))
    _write(_part(root, recipe, index), _line(line))


def _render(recipe: Recipe, index: int) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    house, cameras, renderer = _stage(recipe)
    frame = renderer.frame(cameras[index], size=recipe.size, shift=recipe.shift)
    return record(frame, house, f"{index:05d}"), stored(frame)


@lru_cache(maxsize=1)
def _stage(recipe: Recipe) -> tuple[House, Sequence[Any], Renderer]:
    from testtime.scenes import Renderer, generate_house

    house = generate_house(seed=recipe.seed, style=recipe.style)
    cameras = house.cameras(count=recipe.frames, seed=recipe.camera_seed)
    house = house if recipe.moved is None else house.moved(recipe.moved)
    return house, cameras, Renderer(house, backend=recipe.backend)


def _begin(root: Path, recipe: Recipe) -> bool:
    """Return whether a space is complete; an incomplete space has to be of this recipe and of these versions."""
    folder, facts = root / "spaces" / recipe.name, recipe.facts()
    path, finished = folder / "space.json", (folder / "frames.jsonl").is_file()
    if not path.exists():
        _write(path, (json.dumps(facts, indent=1) + "\n").encode())
        return False
    there = read_json(path, AGAIN)
    for part in ("recipe",) if finished else facts:
        if there.get(part) != facts[part]:
            raise DataError(
                f"{folder}: expected a space made from {facts[part]}, found one from {there.get(part)}; "
                "give another --out, or delete it"
            )
    return finished


def _missing(root: Path, recipe: Recipe) -> list[int]:
    return [i for i in range(recipe.frames) if not _part(root, recipe, i).is_file()]


def _finish(root: Path, recipe: Recipe) -> None:
    """Concatenate the lines of the frames and remove their files."""
    parts = [_part(root, recipe, i) for i in range(recipe.frames)]
    path = root / "spaces" / recipe.name / "frames.jsonl"
    try:
        _write(path, b"".join(part.read_bytes() for part in parts))
    except FileNotFoundError:
        if not path.is_file():  # otherwise another process has completed it
            raise
    for left in (*parts, *root.glob(f"*/{recipe.name}/.*.part")):
        left.unlink(missing_ok=True)


def _part(root: Path, recipe: Recipe, index: int) -> Path:
    return root / "spaces" / recipe.name / f"{index:05d}.json"


def _line(line: Mapping[str, Any]) -> bytes:
    return (json.dumps(line, separators=(",", ":")) + "\n").encode()


def _write(path: Path, data: bytes) -> None:
    try:
        write_bytes(path, data, durable=False)
    except FileNotFoundError:
        if not path.is_file():  # otherwise another process has completed the space and removed the files
            raise


def _png(array: NDArray[Any]) -> bytes:
    image, file = need_pillow().fromarray(array), io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
