"""A person's own walk through a place: a video, or a folder of pictures, with depth beside them if there is.

A folder holds pictures (in itself, or in ``rgb/``, ``images/`` or ``color/``), and may hold ``depth/`` with a file of the same
stem for each of them, 16-bit PNG in millimetres (0 and 65535: not measured) or float ``.npy`` in metres, and
``intrinsics.json`` with fx, fy, cx, cy in pixels (and width, height, if they are not of the pictures' own size).

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
import torch.nn.functional as F
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
    "normals_of",
    "sharp",
    "sharpness",
]

__getattr__ = renamed(__name__, {"take_apart": "extract_frames"})

VIDEOS = (".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v")
"""Suffixes of the videos that are read."""
PLACES = (".", "rgb", "images", "color")
ORIENTATION = 0x0112
"""The tag of Exif that says how a picture is to be turned."""

TURNS: Mapping[int, Callable[[Tensor], Tensor]] = {
    5: lambda x: x.transpose(-1, -2),
    6: lambda x: x.rot90(-1, (-2, -1)),
    7: lambda x: x.rot90(2, (-2, -1)).transpose(-1, -2),
    8: lambda x: x.rot90(1, (-2, -1)),
}
"""By the value of the tag, from pixels as stored to upright ones, where that exchanges height and width."""

REACH = 3
"""Frames before and after, which a frame's sharpness is compared with."""


@final
class Walkthrough(DenseSet):
    """The frames of a folder, decoded when asked for, with "depth" if there is.

    Args:
        folder: of the pictures; see above. They come in the order of a person: frame_2 before frame_10.
        depth: another folder of depth; None takes ``depth/`` if it is there, False none.
        intrinsics: fx, fy, cx, cy in pixels of the upright pictures as stored (of a video's frames before they were made
            smaller), or a file of them; None reads ``intrinsics.json`` if it is there.
        fov: degrees that the longer side of a picture spans, where no intrinsics are known.
        longest: pixels of a frame's longer side at most; larger ones are averaged.
        blur: a frame is left out whose sharpness is below this share of its neighbours' median; 0 keeps all.
        name: of the set; the folder's by default.

    Raises:
        DataError: there are no pictures, a picture has no depth although others have, or the intrinsics are no such numbers.
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
        need_pillow()
        self.folder = need_folder([Path(folder)], "the pictures of a walk")
        self.name, self.longest, self.fov = name or self.folder.resolve().name, longest, fov
        self._pictures = by_key(_pictures(self.folder), lambda path: path.stem)
        # A frame and its camera are asked for one after the other.
        self._seen = lru_cache(maxsize=4)(lambda key: _picture(self._pictures[key], longest))
        self.keys = list(self._pictures)
        if blur:
            self.keys = [self.keys[i] for i in sharp(self._sharpness(), blur)]
        self._depth = self._depth_files(depth)
        self.tasks: tuple[str, ...] = ("depth",) if self._depth else ()
        self._lens = _lens(self.folder, intrinsics)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Sample:
        """Decode one frame: upright, and no larger than ``longest``; depth is the nearest pixel's.

        Raises:
            DataError: a file is damaged, or the depth is of another shape than the picture.
            IndexError: there is no such frame.
        """
        key = self._key(index)
        image, _, turn = self._seen(key)
        labels = {}
        if self._depth:
            depth = _metres(self._depth[key])
            if turn in TURNS and not _alike(depth, image) and _alike(depth.transpose(-1, -2), image):
                depth = TURNS[turn](depth)
            if not _alike(depth, image):
                raise DataError(
                    f"{self._depth[key]}: expected depth as wide for its height as the picture "
                    f"({image.shape[-1]} x {image.shape[-2]}), found {depth.shape[-1]} x {depth.shape[-2]}; "
                    "crop or turn one as the other"
                )
            labels["depth"] = _nearest(depth, image)
        return Sample(image, labels, key)

    def subset(self, indices: Iterable[int]) -> Walkthrough:
        """These frames, in this order, with their cameras.

        Raises:
            IndexError: an index is out of range.
        """
        keys = [self._key(i) for i in indices]
        chosen = Walkthrough.__new__(Walkthrough)
        chosen.__dict__.update(self.__dict__)
        chosen.keys = keys
        return chosen

    def camera(self, index: int) -> Camera:
        """The pinhole of one frame, at the frame's size. Where it stood is not known: the pose is the identity.

        Raises:
            DataError: no intrinsics are known, or they are of a picture of another shape.
            IndexError: there is no such frame.
        """
        key = self._key(index)
        if self._lens is None and self.fov is None:
            raise DataError(
                f"{self.folder}: no intrinsics are known; give fx, fy, cx, cy (intrinsics.json), or the degrees that "
                "the longer side of a picture spans"
            )
        image, stored, _ = self._seen(key)
        height, width = image.shape[-2:]
        if self._lens is None:
            focal = max(height, width) / 2 / math.tan(math.radians(self.fov or 0.0) / 2)
            return Camera(width, height, focal, focal, width / 2, height / 2, np.eye(4))
        fx, fy, cx, cy, of = self._lens
        high, wide = of or stored
        if abs(wide / high * stored[0] / stored[1] - 1) > 0.02 or not (0 < cx < wide and 0 < cy < high):
            raise DataError(
                f"{key}: expected intrinsics of an upright picture of {stored[1]} x {stored[0]}, found those of "
                f"{wide} x {high} with its middle at ({cx:g}, {cy:g}); give width and height of the pictures they are of"
            )
        return Camera(wide, high, fx, fy, cx, cy, np.eye(4)).sized((height, width))

    def _key(self, index: int) -> str:
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.name}: no frame {index}, there are {len(self)}")
        return self.keys[index]

    def _sharpness(self) -> list[float]:
        """Of every frame: as the video's extraction found it, or looked at now."""
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
    """Whether a path is a video, or a folder with pictures in one of the places that :class:`Walkthrough` looks at."""
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
        if not stream.isOpened():
            raise DataError(
                f"{video}: expected a video, found a file that OpenCV cannot open; convert it to mp4"
            )
        size_of = stream.get(cv2.CAP_PROP_FRAME_WIDTH) * stream.get(cv2.CAP_PROP_FRAME_HEIGHT)
        if size_of > MAX_PIXELS:
            raise DataError(
                f"{video}: expected frames of at most {MAX_PIXELS} pixels, found {size_of:.0f}; scale it down"
            )
        rate = stream.get(cv2.CAP_PROP_FPS)
        if every is None and not 0 < rate < 1000:
            raise ValueError(f"{video} does not say how many frames a second has; give every=, such as 15")
        folder.mkdir(parents=True, exist_ok=True)
        write_json(note, {"asked": asked}, indent=None)
        count = max(0, int(stream.get(cv2.CAP_PROP_FRAME_COUNT)))
        share = 1 / every if every is not None else min(1.0, fps / rate)
        found: dict[str, float] = {}
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
    finally:
        stream.release()
    if not found:
        raise DataError(f"{video}: expected frames, found none that OpenCV can decode; convert it to mp4")
    if number + 1 < 0.9 * count:
        warnings.warn(
            f"{video}: only {number + 1} of {count} frames could be read; is it damaged?", stacklevel=2
        )
    facts = {"asked": asked, "size": size, "seen": number + 1, "said": count, "frames": found}
    write_json(note, facts, indent=None)
    return folder


def sharpness(image: Tensor) -> float:
    """The variance of the Laplacian of the grey picture (3, H, W), in 8-bit levels (Pech-Pacheco et al., ICPR 2000).

    >>> sharpness(torch.full((3, 8, 8), 0.3))
    0.0
    """
    grey = (255 * image * image.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0).double()
    inner = grey[1:-1, 1:-1]
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * inner
    return round(float(laplacian.var(correction=0)), 6)


def sharp(scores: Sequence[float], blur: float, reach: int = REACH) -> list[int]:
    """The frames that are not blurred: those with at least a share of the median sharpness of their neighbours.

    Neighbours, and no fixed threshold: before a white wall every frame has few edges.

    >>> sharp([9, 8, 2, 9, 8], 0.5), sharp([0.9, 0.8, 0.2, 0.9, 0.8], 0.5)
    ([0, 1, 3, 4], [0, 1, 3, 4])
    """
    kept = []
    for i, score in enumerate(scores):
        around = [*scores[max(0, i - reach) : i], *scores[i + 1 : i + 1 + reach]]
        if not around or score >= blur * float(np.median(around)):
            kept.append(i)
    return kept


def normals_of(depth: Tensor, intrinsics: Any, radius: int = 1, straight: float = 0.02) -> Tensor:
    r"""Normals (3, H, W) of the surface that a pinhole's depth shows: x right, y up, z to the viewer.

    Of a plane, one over the depth is linear in the pixel, whatever the angle:

    .. math:: \frac1Z = A x + B y + C, \quad x = \frac{u - c_x}{f_x},\; y = \frac{v - c_y}{f_y}
              \quad\Rightarrow\quad n \propto (-A,\, B,\, C)

    so that least squares over a square window give the normal, exactly for planes. Of the nine windows that hold a pixel in
    their middle, at a side or in a corner, the straightest is taken (the middle one where none is twice as straight): normals
    neither cross the border between two objects nor are rounded off where walls meet.

    Args:
        depth: (1, H, W), metres along the optical axis; NaN, and what is not positive, is not known.
        intrinsics: (3, 3) in pixels; a pixel's centre lies at its column and row plus a half.
        radius: of the windows, (2 radius + 1)^2 pixels; more for a noisy sensor.
        straight: a window is no surface if the fit misses by more than this share of its depth (root mean square).

    Returns:
        unit vectors, NaN where depth is not known or none of the windows is a surface: at a discontinuity.

    Raises:
        ValueError: depth or intrinsics are of another form.
    """
    k = torch.as_tensor(np.asarray(intrinsics, dtype=np.float64))
    if depth.dim() != 3 or depth.shape[0] != 1 or k.shape != (3, 3) or radius < 1:
        raise ValueError(
            f"expected depth (1, H, W), intrinsics (3, 3) and a radius of at least 1, got {tuple(depth.shape)}, "
            f"{tuple(k.shape)} and {radius}"
        )
    height, width = depth.shape[-2:]
    known = depth.double().where(depth > 0, torch.nan)
    inverse = F.pad(1 / known[None], [radius] * 4, value=torch.nan)
    side = 2 * radius + 1
    step = torch.arange(-radius, radius + 1, dtype=torch.float64)
    flat, slope = torch.full((side,), 1 / side, dtype=torch.float64), step / (step * step).sum()
    spread = float((step * step).mean())

    def along(plane: Tensor, kernel: Tensor, rows: bool) -> Tensor:
        return F.conv2d(plane, kernel.view((1, 1, -1, 1) if rows else (1, 1, 1, -1)))

    # Along rows and columns one after the other; NaN of one pixel makes all its windows NaN.
    level = along(inverse, flat, False)
    mean, down = along(level, flat, True)[0, 0], along(level, slope, True)[0, 0]
    across = along(along(inverse, slope, False), flat, True)[0, 0]
    square = along(along(inverse.square(), flat, False), flat, True)[0, 0]
    missed = (square - mean.square() - (across.square() + down.square()) * spread).clamp(min=0)
    missed = missed.sqrt() / mean
    rows, columns = (torch.arange(n, dtype=torch.float64) + 0.5 for n in (height, width))
    a, b = across * k[0, 0], down * k[1, 1]
    c = mean - a * (columns - k[0, 2]) / k[0, 0] - b * (rows[:, None] - k[1, 2]) / k[1, 1]
    fits = torch.stack([-a, b, c, missed])
    around = F.pad(fits, [radius] * 4, value=torch.nan)
    best = torch.full((4, height, width), torch.inf, dtype=torch.float64)
    score = torch.full((height, width), torch.inf, dtype=torch.float64)
    for y in (radius, 0, 2 * radius):
        for x in (radius, 0, 2 * radius):
            one = around[:, y : y + height, x : x + width]
            # Differences below a millionth are rounding's.
            cost = (one[3] + 1e-6) * (1 if y == x == radius else 2)
            better = cost.nan_to_num(torch.inf) < score
            best, score = torch.where(better, one, best), torch.where(better, cost, score)
    normals = best[:3] / best[:3].norm(dim=0, keepdim=True)
    surface = (best[3] <= straight) & known[0].isfinite()
    return normals.where(surface, torch.nan).to(depth.dtype)


def _grabbed(stream: Any) -> Iterator[int]:
    number = 0
    while stream.grab():
        yield number
        number += 1


def _in_order(folder: Path) -> Iterator[Path]:
    """The pictures of the first place that has some, numbers in names counted as numbers."""
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
    """The picture upright, (3, H, W) in [0, 1]; its height and width as stored but upright; and how it was turned."""
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
    """Depth (1, H, W) of one of the two kinds of file."""
    if path.suffix == ".npy":
        return float_metres(numpy_array(path, "depth in metres"), path)
    return metres(levels(path, bits=16), 1e-3, (0, 65535))


def _lens(
    folder: Path, given: Sequence[float] | str | Path | None
) -> tuple[float, float, float, float, tuple[int, int] | None] | None:
    """fx, fy, cx, cy, and (height, width) of the picture that they are of, if that is said."""
    where, of = "intrinsics", None
    note, beside = folder / "video.json", folder / "intrinsics.json"
    if note.is_file() and "size" in (told := read_json(note, "the frames of a video")):
        of = _size(note, told["size"])
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
    """Height and width that a file says."""
    match found:
        case [int(height), int(width)] if 0 < height < 1e6 and 0 < width < 1e6:
            return height, width
    raise DataError(f"{path}: expected a height and a width in pixels, found {str(found)[:80]}")


def _alike(depth: Tensor, image: Tensor) -> bool:
    """Whether both are as wide for their height, but for rounding to whole pixels."""
    (h, w), (height, width) = depth.shape[-2:], image.shape[-2:]
    return abs(w * height - h * width) <= 0.5 * (h + w + height + width)


def _nearest(depth: Tensor, image: Tensor) -> Tensor:
    rows, columns = (
        ((torch.arange(new) + 0.5) * old / new).long()
        for new, old in zip(image.shape[-2:], depth.shape[-2:], strict=True)
    )
    return depth[:, rows[:, None], columns]


def _jpeg(pixels: Any, longest: int) -> bytes:
    """A frame (H, W, 3) uint8 as JPEG, no larger than asked for, colours at full resolution."""
    image, file = need_pillow().fromarray(np.ascontiguousarray(pixels)), io.BytesIO()
    shrink = min(1.0, longest / max(image.size))
    if shrink < 1:
        size = tuple(max(1, round(n * shrink)) for n in image.size)
        image = image.resize(size, need_pillow().Resampling.BILINEAR)
    image.save(file, "JPEG", quality=95, subsampling=0)
    return file.getvalue()


def _write(path: Path, data: bytes) -> None:
    write_bytes(path, data, durable=False)
