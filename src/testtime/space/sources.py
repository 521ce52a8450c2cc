"""Frames of a space from scenes, public data sets, pictures or a video, reduced to what sensors measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, final

from numpy import float64
from numpy.typing import NDArray
from torch import Tensor

from testtime.data.dense import DenseSet, Sample
from testtime.data.files import need_choice
from testtime.data.listing import folders
from testtime.data.seven_scenes import COLOUR_LENS
from testtime.errors import DataError
from testtime.space.normals import normals_of
from testtime.space.walkthrough import Walkthrough, extract_frames, is_walkthrough

__all__ = ["LAYOUTS", "SensorSet", "read_space"]

LAYOUTS = (
    "scenes",
    "walk-through",
    "replica",
    "taskonomy",
    "scannetpp-iphone",
    "scannetpp-dslr",
    "7scenes",
    "procthor",
)
"""Names of the layouts that are read."""


def read_space(
    source: str | Path,
    layout: str | None = None,
    spaces: Sequence[str] | None = None,
    frames: str | Path | None = None,
    depth: str | Path | bool | None = None,
    intrinsics: Sequence[float] | str | Path | None = None,
    fov: float | None = None,
    fps: float = 2.0,
    every: int | None = None,
    blur: float = 0.5,
    longest: int = 512,
) -> DenseSet:
    """Read the frames of a space.

    Args:
        source: root folder of scenes, of a public data set or of pictures, or path of a video.
        layout: layout, one of :data:`LAYOUTS`; None recognises it by the names of folders and files.
        spaces: names of the spaces (scenes, buildings, houses, sequences); None is all.
        frames: folder of the extracted frames of a video; None is ``<video>-frames`` in the video's folder.
        depth, intrinsics, fov, longest: options of pictures and videos, see
            :class:`~testtime.space.walkthrough.Walkthrough`. For a video, None uses ``<video>-depth`` and ``intrinsics.json``
            in the video's folder if they exist.
        fps, every: options of a video, see :func:`~testtime.space.walkthrough.extract_frames`.
        blur: smallest sharpness of a video's frame relative to its neighbours; 0 keeps all frames, and pictures are all kept.

    Raises:
        DataError: the path does not exist, or has none of the layouts.
        ValueError: there is no such layout, or an option is given that has no effect on it.
    """
    root = Path(source)
    if not root.exists():
        raise DataError(f"{root}: no such file or folder; expected the frames of a space")
    layout = _layout(root) if layout is None else need_choice(layout, LAYOUTS, "layout")
    of_video = {"fps": fps != 2.0, "every": every is not None, "blur": blur != 0.5}
    of_pictures = {"depth": depth is not None, "intrinsics": intrinsics is not None, "fov": fov is not None}
    if layout != "walk-through":
        _refuse({**of_video, **of_pictures, "longest": longest != 512}, f"the layout {layout}")
    else:
        _refuse({"spaces": spaces is not None, **({} if root.is_file() else of_video)}, "such pictures")
    if layout == "walk-through":
        if root.is_file():
            folder = extract_frames(
                root, frames or root.with_name(f"{root.stem}-frames"), fps, every, longest
            )
            beside = root.with_name(f"{root.stem}-depth")
            found = beside if depth is None and beside.is_dir() else depth
            lens = root.with_name("intrinsics.json")
            lens_of = lens if intrinsics is None and fov is None and lens.is_file() else intrinsics
            return Walkthrough(folder, found, lens_of, fov, longest, blur, root.stem)
        return Walkthrough(root, depth, intrinsics, fov, longest)
    if layout == "scenes":
        from testtime.scenes.disk import read_scenes

        return read_scenes(root, spaces, ("depth", "normals"), keep=False)
    from testtime import data

    if layout in ("replica", "taskonomy"):
        one = data.replica(root, scenes=spaces) if layout == "replica" else None
        one = one or data.taskonomy(root, buildings=spaces, partial_labels=True)
        tasks = [task for task in ("depth", "normals") if task in one.tasks]
        if layout == "replica":
            return data.replica(root, tasks, spaces, partial_labels=False)
        return data.taskonomy(root, tasks, buildings=spaces)
    if layout == "7scenes":
        walks = None if spaces is None else [int(s) for s in spaces]
        return data.seven_scenes(root, sequences=walks, colour_lens=COLOUR_LENS)
    if layout == "procthor":
        return data.procthor(root, spaces)
    device = layout.partition("-")[2]
    names = spaces or [p.name for p in folders(root / "data") if (p / device).is_dir()]
    reader = data.scannetpp_iphone if device == "iphone" else data.scannetpp_dslr
    return reader(root, names)


def _refuse(given: Mapping[str, bool], what: str) -> None:
    """Refuse options that have no effect on what is read, where they are given."""
    if idle := [name for name, there in given.items() if there]:
        raise ValueError(f"{', '.join(idle)} would have no effect on {what}; leave out what is not used")


def _layout(root: Path) -> str:
    marks = {
        "scenes": "spaces/*/space.json",
        "replica": "rgb/replica",
        "taskonomy": "rgb/taskonomy",
        "scannetpp-iphone": "data/*/iphone/rgb",
        "scannetpp-dslr": "data/*/dslr",
        "7scenes": "seq-*/frame-*.color.*",
        "procthor": "classes.json",
    }
    for layout, mark in marks.items():
        if root.is_dir() and any(True for _ in root.glob(mark)):
            return layout
    if is_walkthrough(root):
        return "walk-through"
    there = sorted(path.name for path in root.iterdir()) if root.is_dir() else ["a file"]
    known = ", ".join(f"{layout} ({mark})" for layout, mark in marks.items())
    raise DataError(
        f"{root}: expected a video, a folder of pictures, or the layout of {known}; found "
        f"{', '.join(there[:5]) or 'nothing'}{', ...' if len(there) > 5 else ''}; where files have other names, give "
        f"layout= (in a run --set layout=, of ingest --layout; one of {', '.join(LAYOUTS)})"
    )


@final
class SensorSet(DenseSet):
    """Modalities of sensors of a data set, with normals computed from depth if there are none, and edges of the picture.

    Args:
        data: images, with "depth" and "normals" if there are any. Normals are computed with the pinhole intrinsics of
            ``data.camera(index)``; frames without intrinsics use those of the first frame that has them.
        radius: radius in pixels of the windows for normals; None is 1/64 of the shorter side.

    Attributes:
        normals: origin of the normals, "sensed" or "of depth", or the reason why there are none.
    """

    def __init__(self, data: DenseSet, radius: int | None = None) -> None:
        if len(data) == 0:
            raise DataError(f"{data.name}: expected frames, found none")
        self.data, self.radius, self.name = data, radius, data.name
        self._lens, self.normals = None, "there is no depth"
        tasks = [task for task in ("depth", "normals") if task in data.tasks]
        if "normals" in tasks:
            self.normals = "sensed"
        elif "depth" in tasks:
            self._lens, self.normals = _first_lens(data)
        if self._lens is not None:
            tasks.append("normals")
        self.tasks = (*tasks, "edge")

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Sample:
        sample = self.data[index]
        labels = {
            task: sample.labels[task] for task in self.tasks if task in sample.labels and task != "edge"
        }
        if self._lens is not None and "depth" in labels:
            depth = labels["depth"]
            labels["normals"] = normals_of(depth, self._k(index, depth, self._lens), self._radius(depth))
        return Sample(sample.image, labels, sample.name)

    def normals_from_depth(self, index: int) -> Tensor | None:
        """Compute normals from a frame's depth, even if a sensor measured them; None without depth or intrinsics.

        Args:
            index: index of the frame.
        """
        depth = self.data[index].labels.get("depth")
        lens = self._lens or _first_lens(self.data)[0]
        if depth is None or lens is None:
            return None
        return normals_of(depth, self._k(index, depth, lens), self._radius(depth))

    def _k(self, index: int, depth: Tensor, lens: Any) -> NDArray[float64]:
        with suppress(DataError):  # else the first frame with intrinsics
            lens = self.data.camera(index)  # type: ignore[attr-defined]
        k: NDArray[float64] = lens.sized(tuple(depth.shape[-2:])).k
        return k

    def _radius(self, depth: Tensor) -> int:
        return max(1, min(depth.shape[-2:]) // 64) if self.radius is None else self.radius


def _first_lens(data: DenseSet) -> tuple[Any, str]:
    """Return the first known camera and "of depth", or None and the reason."""
    reason = "no intrinsics are known"
    for index in range(len(data) if hasattr(data, "camera") else 0):
        try:
            camera = data.camera(index)  # type: ignore[attr-defined]
        except DataError as error:
            reason = str(error)
            continue
        if camera.model == "OPENCV_FISHEYE":
            return None, "the camera is a fisheye; undistort the frames first"
        return camera, "of depth"
    return None, reason
