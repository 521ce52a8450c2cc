"""Walk-throughs of a space: a video, or a folder of pictures, optionally with depth.

A folder holds pictures (in itself, or in ``rgb/``, ``images/`` or ``color/``), and may hold ``depth/`` with a file of the same
stem for each of them, 16-bit PNG in millimetres (0 and 65535: not measured) or float ``.npy`` in metres, and
``intrinsics.json`` with fx, fy, cx, cy in pixels (and width, height, if they refer to another size than the pictures').

The frames of a video are extracted once into such a folder: ``frame_<number>.jpg``, and ``video.json`` with the arguments and
the sharpness of each frame. Frames are written atomically, and a killed extraction resumes.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from testtime.data.bounded import numpy_array, read_json
from testtime.data.cameras import Camera
from testtime.data.decoding import MAX_PIXELS, image_bytes, opened
from testtime.data.dense import DenseSet, Sample
from testtime.data.files import need_file, need_folder
from testtime.data.listing import SUFFIXES, by_key, files, images
from testtime.data.pixels import float_metres, levels, metres
from testtime.errors import DataError, missing_extra, need_pillow
from testtime.files import write_bytes, write_json
from testtime.moved import renamed
from testtime.progress import progress

__all__ = [
    "VIDEOS",
    "Walkthrough",
    "extract_frames",
    "is_walkthrough",
    "sharp",
    "sharpness",
]

__getattr__ = renamed(
    __name__, {"take_apart": "extract_frames", "normals_of": "testtime.space.normals:normals_of"}
)

VIDEOS = (".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v")
"""Suffixes of the videos that are read."""
PLACES = (".", "rgb", "images", "color")
ORIENTATION = 0x0112
"""Exif tag of the orientation of a picture."""

TURNS: Mapping[int, Callable[[Tensor], Tensor]] = {
    5: lambda x: x.transpose(-1, -2),
    6: lambda x: x.rot90(-1, (-2, -1)),
    7: lambda x: x.rot90(2, (-2, -1)).transpose(-1, -2),
    8: lambda x: x.rot90(1, (-2, -1)),
}
"""Functions from stored to upright pixels, by the value of the tag, where that exchanges height and width."""

REACH = 3
"""Number of frames before and after, with which a frame's sharpness is compared."""


@final
class Walkthrough(DenseSet):
    """Frames of a folder, decoded on access, with "depth" if there is any.

    Args:
        folder: folder of the pictures, see above; they are sorted naturally: frame_2 before frame_10.
        depth: folder of the depth; None uses ``depth/`` if it exists, False none.
        intrinsics: fx, fy, cx, cy in pixels of the upright pictures as stored (of a video's frames before downscaling), or a
            JSON file of them; None reads ``intrinsics.json`` if it exists.
        fov: field of view of the longer side in degrees, if no intrinsics are known.
        longest: largest length of a frame's longer side, in pixels; larger frames are downscaled.
        blur: smallest sharpness of a frame relative to its neighbours' median; 0 keeps all frames.
        name: name of the data set; the folder's by default.

    Raises:
        DataError: there are no pictures, only some pictures have depth, or the intrinsics are invalid.
        ImportError: Pillow is not installed.
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        folder: str | Path,
        depth: str | Path | bool | None = None,
        intrinsics: Sequence[float] | str | Path | None = None,
        fov: float | None = None,
        longest: int = 512,
        blur: float = 0.0,
        name: str | None = None,
    ) -> None:
        if longest < 8 or not 0 <= blur < 1 or not (fov is None or 0 < fov < 180):
            raise ValueError(
                f"expected longest >= 8, 0 <= blur < 1 and 0 < fov < 180, got {longest}, {blur} and {fov}"
            )
        if fov is not None and intrinsics is not None:
            raise ValueError("expected intrinsics or fov, got both; leave one out")
        need_pillow()
        self.folder = need_folder([Path(folder)], "the pictures of a walk")
        self.name, self.longest, self.fov = name or self.folder.resolve().name, longest, fov
        self._pictures = by_key(_pictures(self.folder), lambda path: path.stem)
        # A frame and its camera are usually read in succession.
        self._decoded = lru_cache(maxsize=4)(lambda key: _picture(self._pictures[key], longest))
        self.keys = list(self._pictures)
        if blur:
            self.keys = [self.keys[i] for i in sharp(self._sharpness(), blur)]
        self._depth = self._depth_files(depth)
        self.tasks: tuple[str, ...] = ("depth",) if self._depth else ()
        self._lens = _lens(self.folder, intrinsics) if fov is None else None

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Sample:
        """Decode one frame: upright, and no larger than ``longest``; depth is resized with nearest neighbours.

        Args:
            index: index of the frame.

        Raises:
            DataError: a file is damaged, or the depth has another aspect ratio than the picture.
            IndexError: there is no such frame.
        """
        key = self._key(index)
        image, _, turn = self._decoded(key)
        labels = {}
        if self._depth:
            depth = _metres(self._depth[key])
            if (
                turn in TURNS
                and not _same_aspect(depth, image)
                and _same_aspect(depth.transpose(-1, -2), image)
            ):
                depth = TURNS[turn](depth)
            if not _same_aspect(depth, image):
                raise DataError(
                    f"{self._depth[key]}: expected depth with the aspect ratio of the picture "
                    f"({image.shape[-1]} x {image.shape[-2]}), found {depth.shape[-1]} x {depth.shape[-2]}; "
                    "crop or rotate one like the other"
                )
            labels["depth"] = _nearest(depth, image)
        return Sample(image, labels, key)

    def subset(self, indices: Iterable[int]) -> Walkthrough:
        """Return the frames at ``indices``, in this order, with their cameras.

        Args:
            indices: indices of the frames.

        Raises:
            IndexError: an index is out of range.
        """
        keys = [self._key(i) for i in indices]
        chosen = Walkthrough.__new__(Walkthrough)
        chosen.__dict__.update(self.__dict__)
        chosen.keys = keys
        return chosen

    def camera(self, index: int) -> Camera:
        """Return the pinhole camera of one frame, at the frame's size; the pose is unknown and set to the identity.

        Args:
            index: index of the frame.

        Raises:
            DataError: no intrinsics are known, or they are of a picture with another aspect ratio.
            IndexError: there is no such frame.
        """
        key = self._key(index)
        if self._lens is None and self.fov is None:
            raise DataError(
                f"{self.folder}: no intrinsics are known; give fx, fy, cx, cy (intrinsics.json), or fov, the field of view of "
                "the longer side in degrees"
            )
        image, stored, _ = self._decoded(key)
        height, width = image.shape[-2:]
        if self._lens is None:
            focal = max(height, width) / 2 / math.tan(math.radians(self.fov or 0.0) / 2)
            return Camera(width, height, focal, focal, width / 2, height / 2, np.eye(4))
        fx, fy, cx, cy, of = self._lens
        high, wide = of or stored
        if abs(wide / high * stored[0] / stored[1] - 1) > 0.02 or not (0 < cx < wide and 0 < cy < high):
            raise DataError(
                f"{key}: expected intrinsics of an upright picture of {stored[1]} x {stored[0]}, found those of "
                f"{wide} x {high} with the centre at ({cx:g}, {cy:g}); give width and height of their pictures"
            )
        return Camera(wide, high, fx, fy, cx, cy, np.eye(4)).sized((height, width))

    def _key(self, index: int) -> str:
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.name}: no frame {index}, there are {len(self)}")
        return self.keys[index]

    def _sharpness(self) -> list[float]:
        """Return the sharpness of every frame, from ``video.json`` or computed now."""
        note = self.folder / "video.json"
        known = read_json(note, "the frames of a video").get("frames", {}) if note.is_file() else {}
        if isinstance(known, dict) and all(isinstance(known.get(key), int | float) for key in self.keys):
            return [float(known[key]) for key in self.keys]
        found = progress(self.keys, len(self.keys), f"sharpness {self.name}")
        return [sharpness(_picture(self._pictures[key], self.longest)[0]) for key in found]

    def _depth_files(self, asked: str | Path | bool | None) -> dict[str, Path]:
        if asked is False:
            return {}
        folder = self.folder / "depth" if asked is None or asked is True else Path(asked)
        if asked is None and not folder.is_dir():
            return {}
        need_folder([folder], "the depth of the pictures")
        there = {p.stem: p for suffix in (".png", ".npy") for p in files(folder, [suffix])}
        absent = [key for key in self.keys if key not in there]
        if absent:
            raise DataError(
                f"{folder}: expected {absent[0]}.png (16 bits, millimetres) or {absent[0]}.npy (metres) for the picture "
                f"{self._pictures[absent[0]].name}, found none ({len(absent)} of {len(self.keys)} pictures lack depth); "
                "name depth as its picture, or leave depth out"
            )
        return {key: there[key] for key in self.keys}


def is_walkthrough(path: str | Path) -> bool:
    """Return whether a path is a video, or a folder of pictures for :class:`Walkthrough`.

    Args:
        path: path of a file or folder.
    """
    path = Path(path)
    if path.is_file():
        return path.suffix.lower() in VIDEOS
    return path.is_dir() and any(True for _ in _in_order(path))


def extract_frames(
    video: str | Path,
    folder: str | Path,
    fps: float = 2.0,
    every: int | None = None,
    longest: int = 512,
) -> Path:
    """Extract frames of a video into a folder, once; a :class:`Walkthrough` reads them.

    Args:
        video: path of a video that OpenCV reads; its orientation is applied.
        folder: folder of ``frame_<number in the video>.jpg`` and ``video.json``.
        fps: number of frames for each second of the video.
        every: interval of the frames, instead of ``fps``.
        longest: largest length of a frame's longer side, in pixels.

    Returns:
        Path of the folder.

    Raises:
        DataError: there is no such video, it cannot be read, or the folder contains other frames.
        ImportError: OpenCV is not installed.
        ValueError: an argument is out of range, or the video has no frame rate and ``every`` is not given.
    """
    try:
        import cv2
    except ImportError as error:
        raise missing_extra("opencv-python-headless", "scenes") from error
    if fps <= 0 or longest < 8 or (every is not None and every < 1):
        raise ValueError(
            f"expected fps above 0, longest >= 8 and every >= 1, got {fps}, {longest} and {every}"
        )
    video, folder = need_file(Path(video), "a video"), Path(folder)
    asked = {
        "video": video.name,
        "bytes": video.stat().st_size,
        "fps": None if every else fps,
        "every": every,
        "longest": longest,
    }
    note = folder / "video.json"
    if note.is_file():
        there = read_json(note, "the frames of a video")
        if there.get("asked") != asked:
            raise DataError(
                f"{folder}: expected frames of {asked}, found those of {there.get('asked')}; give another folder, or delete it"
            )
        if "frames" in there:
            return folder
    stream = cv2.VideoCapture(str(video))
    try:
        rate, count = _checked(stream, video, every)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(note, {"asked": asked}, indent=None)
        share = 1 / every if every is not None else min(1.0, fps / rate)
        found, size, read = _extracted(stream, video, folder, share, count, longest)
    finally:
        stream.release()
    if not found:
        raise DataError(f"{video}: expected frames, found none that OpenCV can decode; convert it to mp4")
    if read < 0.9 * count:
        warnings.warn(f"{video}: only {read} of {count} frames could be read; is it damaged?", stacklevel=2)
    facts = {"asked": asked, "size": size, "seen": read, "said": count, "frames": found}
    write_json(note, facts, indent=None)
    return folder


def sharpness(image: Tensor) -> float:
    """Compute the variance of the Laplacian of the grey picture, in 8-bit levels (Pech-Pacheco et al., ICPR 2000).

    Args:
        image: picture (3, H, W) in [0, 1].

    >>> sharpness(torch.full((3, 8, 8), 0.3))
    0.0
    """
    grey = (255 * image * image.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0).double()
    inner = grey[1:-1, 1:-1]
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * inner
    return round(float(laplacian.var(correction=0)), 6)


def sharp(scores: Sequence[float], blur: float, reach: int = REACH) -> list[int]:
    """Return the indices of the frames whose sharpness is at least ``blur`` times the median of their neighbours.

    The threshold is relative, because every frame of a white wall has few edges.

    Args:
        scores: sharpness of every frame.
        blur: smallest relative sharpness.
        reach: number of neighbours before and after.

    >>> sharp([9, 8, 2, 9, 8], 0.5), sharp([0.9, 0.8, 0.2, 0.9, 0.8], 0.5)
    ([0, 1, 3, 4], [0, 1, 3, 4])
    """
    kept = []
    for i, score in enumerate(scores):
        around = [*scores[max(0, i - reach) : i], *scores[i + 1 : i + 1 + reach]]
        if not around or score >= blur * float(np.median(around)):
            kept.append(i)
    return kept


def _checked(stream: Any, video: Path, every: int | None) -> tuple[float, int]:
    """Check an OpenCV stream; return its frames per second and its number of frames (0: not known)."""
    import cv2

    if not stream.isOpened():
        raise DataError(f"{video}: expected a video, found a file that OpenCV cannot open; convert it to mp4")
    pixels = stream.get(cv2.CAP_PROP_FRAME_WIDTH) * stream.get(cv2.CAP_PROP_FRAME_HEIGHT)
    if pixels > MAX_PIXELS:
        raise DataError(
            f"{video}: expected frames of at most {MAX_PIXELS} pixels, found {pixels:.0f}; scale it down"
        )
    rate = stream.get(cv2.CAP_PROP_FPS)
    if every is None and not 0 < rate < 1000:
        raise ValueError(f"{video} has no known number of frames per second; give every=, such as 15")
    return rate, max(0, int(stream.get(cv2.CAP_PROP_FRAME_COUNT)))


def _extracted(
    stream: Any, video: Path, folder: Path, share: float, count: int, longest: int
) -> tuple[dict[str, float], tuple[int, int] | None, int]:
    """Write the frames of a stream; return their sharpness by stem, the stored (height, width), and the frames read."""
    found: dict[str, float] = {}
    size, number = None, -1
    for number in progress(_grabbed(stream), count, f"frames {video.name}"):
        # Of every 1/share frames the first; exact for whole numbers.
        if number and math.floor(number * share + 1e-9) == math.floor((number - 1) * share + 1e-9):
            continue
        path = folder / f"frame_{number:06d}.jpg"
        if number == 0 or not path.is_file():
            whole, pixels = stream.retrieve()
            if not whole:
                break
            size = pixels.shape[:2]
            _write(path, _jpeg(pixels[..., ::-1], longest))
        found[path.stem] = sharpness(_picture(path, longest)[0])
    return found, size, number + 1


def _grabbed(stream: Any) -> Iterator[int]:
    number = 0
    while stream.grab():
        yield number
        number += 1


def _in_order(folder: Path) -> Iterator[Path]:
    """Iterate over the pictures of the first of the folders that has some, in natural order."""
    for place in PLACES:
        inner = folder / place
        found = images(inner) if inner.is_dir() else []
        if found:
            yield from found
            return


def _pictures(folder: Path) -> list[Path]:
    found = list(_in_order(folder))
    if not found:
        others = sorted({p.suffix for p in files(folder)} - {""})
        raise DataError(
            f"{folder}: expected pictures ({', '.join(sorted(SUFFIXES))}) in it or in {', '.join(PLACES[1:])}, found "
            f"{'files of ' + ', '.join(others) if others else 'none'}; export them as JPEG"
        )
    return found


def _picture(path: Path, longest: int) -> tuple[Tensor, tuple[int, int], int]:
    """Return the upright picture (3, H, W) in [0, 1], its stored (height, width) when upright, and its Exif orientation."""
    Resampling = need_pillow().Resampling
    from PIL import ImageOps

    with opened(image_bytes(path), path) as image:
        if image.mode[0] in "IF":
            raise DataError(
                f"{path}: expected 8 bits a channel, found mode {image.mode}; is it depth? Put it in depth/"
            )
        turn = int(image.getexif().get(ORIENTATION, 1))
        width, height = image.size
        shrink = min(1.0, longest / max(width, height))
        if shrink < 1:
            image.draft("RGB", (math.ceil(width * shrink), math.ceil(height * shrink)))
        upright = ImageOps.exif_transpose(image).convert("RGB")
    if turn in TURNS:
        width, height = height, width
    size = max(1, round(width * shrink)), max(1, round(height * shrink))
    if upright.size != size:
        upright = upright.resize(size, Resampling.BILINEAR)
    pixels = torch.from_numpy(np.asarray(upright).copy()).permute(2, 0, 1)
    return pixels.contiguous().float() / 255, (height, width), turn


def _metres(path: Path) -> Tensor:
    """Read depth (1, H, W) in metres."""
    if path.suffix == ".npy":
        return float_metres(numpy_array(path, "depth in metres"), path)
    return metres(levels(path, bits=16), 1e-3, (0, 65535))


def _lens(
    folder: Path, given: Sequence[float] | str | Path | None
) -> tuple[float, float, float, float, tuple[int, int] | None] | None:
    """Return fx, fy, cx, cy, and (height, width) of their picture if it is known."""
    where, of = "intrinsics", None
    note, beside = folder / "video.json", folder / "intrinsics.json"
    if note.is_file() and "size" in (facts := read_json(note, "the frames of a video")):
        of = _size(note, facts["size"])
    if given is None:
        if not beside.is_file():
            return None
        given = beside
    if isinstance(given, str | Path):
        table, where = read_json(Path(given), "the intrinsics"), str(given)
        given = [table.get(key) for key in ("fx", "fy", "cx", "cy")]
        if "width" in table and "height" in table:
            of = _size(Path(where), [table["height"], table["width"]])
    numbers = [float(v) if isinstance(v, int | float) and abs(v) < 1e9 else math.nan for v in given]
    if len(numbers) != 4 or not all(math.isfinite(v) and v > 0 for v in numbers):
        raise DataError(f"{where}: expected fx, fy, cx, cy in pixels, all above 0, found {list(given)}")
    fx, fy, cx, cy = numbers
    return fx, fy, cx, cy, of


def _size(path: Path, found: Any) -> tuple[int, int]:
    """Return height and width from a file's value."""
    match found:
        case [int(height), int(width)] if 0 < height < 1e6 and 0 < width < 1e6:
            return height, width
    raise DataError(f"{path}: expected a height and a width in pixels, found {str(found)[:80]}")


def _same_aspect(depth: Tensor, image: Tensor) -> bool:
    """Return whether both have the same aspect ratio, up to rounding to whole pixels."""
    (h, w), (height, width) = depth.shape[-2:], image.shape[-2:]
    return abs(w * height - h * width) <= 0.5 * (h + w + height + width)


def _nearest(depth: Tensor, image: Tensor) -> Tensor:
    rows, columns = (
        ((torch.arange(new) + 0.5) * old / new).long()
        for new, old in zip(image.shape[-2:], depth.shape[-2:], strict=True)
    )
    return depth[:, rows[:, None], columns]


def _jpeg(pixels: Any, longest: int) -> bytes:
    """Encode a frame (H, W, 3) uint8 as JPEG, downscaled to ``longest``, without chroma subsampling."""
    image, file = need_pillow().fromarray(np.ascontiguousarray(pixels)), io.BytesIO()
    shrink = min(1.0, longest / max(image.size))
    if shrink < 1:
        size = tuple(max(1, round(n * shrink)) for n in image.size)
        image = image.resize(size, need_pillow().Resampling.BILINEAR)
    image.save(file, "JPEG", quality=95, subsampling=0)
    return file.getvalue()


def _write(path: Path, data: bytes) -> None:
    write_bytes(path, data, durable=False)
