"""CamVid: SegNet's folders, the void class, and the drive at dusk."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from testtime.data import CAMVID11, IGNORE, camvid
from testtime.data.camvid import COLOURS
from testtime.errors import DataError

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data"


def write(root: Path) -> Path:
    names = {"train": ["0001TP_006690", "0016E5_00390"], "val": ["0016E5_07959"], "test": ["Seq05VD_f00000"]}
    for split, stems in names.items():
        for i, stem in enumerate(stems):
            for folder in (root / split, root / f"{split}annot"):
                folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32), (100 + i,) * 3).save(root / split / f"{stem}.png")
            ids = (np.arange(32 * 32).reshape(32, 32) % 12).astype(np.uint8)
            Image.fromarray(ids).save(root / f"{split}annot" / f"{stem}.png")
    return root


def test_labels_splits_and_light(tmp_path):
    write(tmp_path / "CamVid")
    train = camvid(tmp_path)
    assert (train.name, train.tasks, train.classes) == ("camvid-train", ("semseg",), CAMVID11)
    ids = np.arange(32 * 32).reshape(32, 32) % 12
    assert np.array_equal(train[1].labels["semseg"], np.where(ids == 11, IGNORE, ids))
    assert train[1].image.mean().item() == pytest.approx(101 / 255)
    assert (len(camvid(tmp_path, "all")), len(camvid(tmp_path, "all", "day"))) == (4, 3)
    dusk = camvid(tmp_path / "CamVid", "all", "dusk")
    assert (dusk.name, dusk[0].name) == ("camvid-all-dusk", "train/0001TP_006690")


def test_missing_files_are_named(tmp_path):
    with pytest.raises(DataError, match="no such folder; expected CamVid's folder train"):
        camvid(tmp_path)
    write(tmp_path)
    with pytest.raises(DataError, match="images of CamVid val dusk, found none"):
        camvid(tmp_path, "val", "dusk")
    with pytest.raises(ValueError, match="light must be one of day, dusk"):
        camvid(tmp_path, light="night")
    (tmp_path / "trainannot" / "0016E5_00390.png").unlink()
    assert [set(s.labels) for s in camvid(tmp_path)] == [{"semseg"}, set()]
    (tmp_path / "valannot" / "0016E5_07959.png").unlink()
    with pytest.raises(DataError, match="none of the 1 samples of camvid-val has its annotation"):
        camvid(tmp_path, "val")
    Image.new("L", (32, 32), 12).save(tmp_path / "valannot" / "0016E5_07959.png")
    with pytest.raises(DataError, match="expected ids 0 to 10, found 12"):
        camvid(tmp_path, "val")[0]


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason=f"the real data ({SHARED}) is not here")
def test_the_real_frames():
    data = ROOT / ".data"
    if not (data / "CamVid").exists():
        subprocess.run([sys.executable, SHARED / "unpack.py", "--to", data, "camvid"], check=True)
    assert [len(camvid(data, split)) for split in ("train", "val", "test", "all")] == [367, 101, 233, 701]
    day, dusk = camvid(data, "all", "day"), camvid(data, "all", "dusk")
    assert (len(day), len(dusk)) == (577, 124)
    x, labels = dusk.batch(range(0, 124, 8))
    assert x.shape == (16, 3, 180, 240)
    ids = labels["semseg"]
    assert set(ids.unique().tolist()) <= {*range(11), IGNORE}
    road = (ids == CAMVID11.index("road")).float()
    sky = (ids == CAMVID11.index("sky")).float()
    assert road[:, 120:].mean() > 0.3 > 0.01 > road[:, :60].mean()  # below
    assert sky[:, :60].mean() > 0.1 > 0.01 > sky[:, 120:].mean()  # above
    assert x.mean() < day.batch(range(0, 577, 36))[0].mean()


def test_annotations_as_published(tmp_path):
    colours = {(128, 128, 128): 0, (192, 0, 128): 1, (64, 128, 192): 8, (192, 0, 192): 10, (0, 0, 0): IGNORE}
    image = np.array([list(colours)] * 2, np.uint8)
    for part in ("test", "test_labels"):
        (tmp_path / part).mkdir()
    Image.fromarray(image).save(tmp_path / "test" / "0001TP_006690.png")
    Image.fromarray(image).save(tmp_path / "test_labels" / "0001TP_006690_L.png")
    for clutter in ("._0001TP_006690.png", "Thumbs.db", ".DS_Store"):
        (tmp_path / "test" / clutter).write_bytes(b"x")
    (sample,) = camvid(tmp_path, "test")
    assert sample.name == "test/0001TP_006690"
    assert sample.labels["semseg"].tolist() == [list(colours.values())] * 2
    image[0, 0] = (1, 2, 3)
    Image.fromarray(image).save(tmp_path / "test_labels" / "0001TP_006690_L.png")
    with pytest.raises(
        DataError, match=r"_L\.png: expected class ids, or the colours .* found the colour \[1, 2, 3\]"
    ):
        camvid(tmp_path, "test")[0]


def test_the_32_colours_are_in_11_classes():
    colours = [c.strip() for name in CAMVID11 for c in COLOURS[name].split(",")]
    assert (len(colours), len(set(colours))) == (31, 31)  # and black, which is void


def test_two_images_of_one_name_are_refused(tmp_path: Path) -> None:
    write(tmp_path)
    Image.new("RGB", (32, 32)).save(tmp_path / "train" / "0001TP_006690.jpg")
    with pytest.raises(DataError, match="expected one picture of each name, found also 0001TP_006690.jpg"):
        camvid(tmp_path)
