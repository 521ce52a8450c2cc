"""Small data sets in the published layouts of Taskonomy, NYUD-v2, PASCAL-Context and Replica."""

from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

SIZE = 32
SPLITS = {"train": ("alba", "brook"), "val": ("cove",), "test": ("dale",)}


def png(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def room(seed: int, height: int = SIZE, width: int = SIZE) -> dict[str, np.ndarray]:
    """An inclined floor below a wall, with a box on it: image, place (0 wall, 1 floor, 2 box), depth, normals, edges."""
    rng = np.random.default_rng(seed)
    place = np.zeros((height, width), int)
    place[height // 2 :] = 1
    left = int(rng.integers(2, width // 2))
    place[height // 3 : height // 3 * 2, left : left + width // 3] = 2
    v = (np.arange(height) + 0.5) / height - 0.5
    floor = np.where(v > 0, 1.0 / np.maximum(v, 0.2), 5.0)[:, None].repeat(width, 1)
    depth = np.select([place == 1, place == 2], [floor, np.full_like(floor, 2.0)], 5.0)
    normals = np.array([[0.0, 0.0, 1.0], [0.0, 0.96, 0.28], [0.0, 0.0, 1.0]])[place]
    edges = np.zeros(place.shape, bool)
    edges[:, :-1] |= place[:, 1:] != place[:, :-1]
    image = np.array([[200, 180, 160], [90, 80, 70], [40, 60, 200]])[place] + rng.integers(
        0, 40, (height, width, 1)
    )
    return {
        "image": image.clip(0, 255).astype(np.uint8),
        "place": place,
        "depth": depth,
        "normals": normals,
        "edge": edges,
    }


def coded(normals: np.ndarray) -> np.ndarray:
    return np.rint((normals + 1) / 2 * 255).astype(np.uint8)


def write_omnidata(root: Path, component: str, spaces: tuple[str, ...], views: int = 4) -> Path:
    """Taskonomy or Replica by domain: normals with y down, depth of 16 bits in 1/512 m, edges of 16 bits."""
    for s, space in enumerate(spaces):
        for view in range(views):
            one = room(10 * s + view)
            files = {
                "rgb": one["image"],
                "depth_zbuffer": (512 * one["depth"]).astype(np.uint16),
                "normal": coded(one["normals"] * [1, -1, 1]),
                "edge_occlusion": np.where(one["edge"], 600, 0).astype(np.uint16),
            }
            if component == "taskonomy":  # stored ids less 1: 2 is chair, 3 is couch; 0 is not certain
                files["segment_semantic"] = np.array([0, 3, 4])[one["place"]].astype(np.uint8)
            for domain, array in files.items():
                folder = root / domain / component / space
                png(
                    folder / f"point_{view}_view_0_domain_{domain.replace('_semantic', 'semantic')}.png",
                    array,
                )
    return root


def write_taskonomy(root: Path) -> Path:
    write_omnidata(root, "taskonomy", tuple(name for names in SPLITS.values() for name in names))
    lines = ["id,train,val,test"]
    for split, names in SPLITS.items():
        lines += [",".join([name, *(str(int(split == one)) for one in SPLITS)]) for name in names]
    table = root / "splits_taskonomy" / "train_val_test_tiny.csv"
    table.parent.mkdir()
    table.write_text("\r".join([*lines, "elsewhere,1,0,0"]))  # a building that was not fetched
    return root


def write_nyud(root: Path, count: int = 5) -> Path:
    """The release of ATRC, InvPT and S4T: 48 x 64 pixels, ids 1 to 40, sofa 6 and chair 5."""
    names = [f"{i:04d}" for i in range(count)]
    (root / "gt_sets").mkdir(parents=True)
    for split in ("train", "val"):
        (root / "gt_sets" / f"{split}.txt").write_text("\n".join(names) + "\n")
    for folder in ("depth",):
        (root / folder).mkdir()
    for i, name in enumerate(names):
        one = room(100 + i, 48, 64)
        tilt = 0.3 + 0.1 * i
        v, u = (np.mgrid[:48, :64] + 0.5) / 48 - 0.5
        normal = np.array([tilt, 0.4, 0.8]) / np.linalg.norm([tilt, 0.4, 0.8])
        depth = 2 * normal[2] / (normal[2] - normal[0] * u + normal[1] * v)  # a plane, which gives the axes
        png(root / "images" / f"{name}.png", one["image"])
        png(root / "segmentation" / f"{name}.png", np.array([0, 5, 6])[one["place"]].astype(np.uint8))
        png(root / "normals" / f"{name}.png", coded(np.broadcast_to(normal, (48, 64, 3))))
        png(root / "edge" / f"{name}.png", (255 * one["edge"]).astype(np.uint8))
        np.save(root / "depth" / f"{name}.npy", depth.astype(np.float32))
    return root


def write_pascal(root: Path, count: int = 5) -> Path:
    """Images of two sizes; ids of VOC: chair 9, sofa 18."""
    names = [f"2008_{i:06d}" for i in range(count)]
    for split in ("train", "val"):
        listing = root / "ImageSets" / "Context" / f"{split}.txt"
        listing.parent.mkdir(parents=True, exist_ok=True)
        listing.write_text("\n".join(names) + "\n")
    (root / "JPEGImages").mkdir()
    (root / "pascal-context" / "trainval").mkdir(parents=True)
    for i, name in enumerate(names):
        one = room(200 + i, *((30, 40) if i % 2 else (40, 30)))
        Image.fromarray(one["image"]).save(root / "JPEGImages" / f"{name}.jpg")
        png(root / "semseg" / "VOC12" / f"{name}.png", np.array([0, 9, 18])[one["place"]].astype(np.uint8))
        png(root / "normals_distill" / f"{name}.png", coded(one["normals"]))
        savemat(
            root / "pascal-context" / "trainval" / f"{name}.mat", {"LabelMap": one["place"].astype(np.uint16)}
        )
    return root


def write_all(root: Path) -> Path:
    """All four sets in one folder of data sets."""
    write_taskonomy(root / "taskonomy")
    write_nyud(root / "NYUD_MT")
    write_pascal(root / "PASCAL_MT")
    write_omnidata(root / "replica", "replica", ("room_0", "office_1"))
    return root
