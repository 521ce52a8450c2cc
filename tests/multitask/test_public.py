"""Parts of public sets: one size with unknown margins, edges from classes and from depth, parts of CamVid and of a walk."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from testtime.data import IGNORE, DenseSet, Sample
from testtime.data.camvid import CAMVID11
from testtime.errors import DataError
from testtime.multitask.houses import Noisy
from testtime.multitask.public import SETS, Fitted, Part, class_edges, depth_edges, tasks_with


class Wide(DenseSet):
    name, tasks, classes = "wide", ("semseg", "depth"), ("a", "b")

    def __len__(self):
        return 2

    def __getitem__(self, index):
        ids = torch.zeros(10, 20, dtype=torch.int64)
        ids[:, 10:] = 1
        return Sample(
            torch.full((3, 10, 20), 0.5), {"semseg": ids, "depth": torch.full((1, 10, 20), 2.0)}, f"{index}"
        )


def test_samples_keep_their_aspect_and_margins_are_unknown():
    fitted = Fitted(Wide(), (16, 16), SETS["camvid"], ("semseg", "edge"))
    assert fitted.tasks == ("semseg", "edge")
    sample = fitted[0]
    assert set(sample.labels) == {"semseg", "edge"}
    inner = slice(4, 12)  # 20 x 10 becomes 16 x 8
    assert torch.allclose(sample.image[:, inner], torch.tensor(0.5), atol=1e-6)
    assert sample.image[:, :4].abs().sum() == sample.image[:, 12:].abs().sum() == 0
    assert (sample.labels["semseg"][:4] == IGNORE).all()
    assert sample.labels["semseg"][inner].unique().tolist() == [0, 1]
    edge = sample.labels["edge"]
    assert edge[:, :4].isnan().all()
    assert edge[0, inner].nansum(0).nonzero().flatten().tolist() == [7]
    assert fitted[0] is fitted[0]  # kept
    assert fitted.digest() == Fitted(Wide(), (16, 16), SETS["camvid"], ("semseg", "edge")).digest()
    assert fitted.digest() != Fitted(Wide(), (16, 16), SETS["camvid"], ("edge",)).digest()


def test_edges_recomputed_pixel_by_pixel():
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 2, (6, 7))
    ids[2, 3] = IGNORE
    depth = rng.uniform(1, 1.3, (6, 7)).astype(np.float32)
    depth[1, 1] = np.nan
    classes, steps = np.zeros((6, 7)), np.zeros((6, 7))
    for r in range(6):
        for c in range(7):
            after = [(r, c + 1)] * (c < 6) + [(r + 1, c)] * (r < 5)
            classes[r, c] = any(ids[at] != ids[r, c] for at in after)
            if IGNORE in [ids[r, c], *(ids[at] for at in after)]:
                classes[r, c] = np.nan
            around = [(r, c - 1)] * (c > 0) + [(r - 1, c)] * (r > 0) + after
            steps[r, c] = any(depth[at] > 1.1 * depth[r, c] for at in around)
    steps[np.isnan(depth)] = np.nan
    found = class_edges({"semseg": torch.from_numpy(ids)})["edge"][0].numpy()
    assert np.array_equal(found, classes, equal_nan=True)
    found = depth_edges({"depth": torch.from_numpy(depth)[None]})["edge"][0].numpy()
    assert np.array_equal(found, steps, equal_nan=True)


def write_camvid(root: Path) -> Path:
    for i, drive in enumerate(["0001TP_1", "0001TP_2", "0006R0_1", "0016E5_1", "Seq05VD_1"]):
        for split, images in (("train", i != 1), ("val", i == 1), ("test", i == 1)):
            for folder in (split, f"{split}annot"):
                (root / "CamVid" / folder).mkdir(parents=True, exist_ok=True)
            if images:
                Image.fromarray(np.full((6, 8, 3), 40 * i, np.uint8)).save(
                    root / "CamVid" / split / f"{drive}.png"
                )
                ids = np.repeat(np.arange(8)[None], 6, 0).astype(np.uint8)
                Image.fromarray(ids).save(root / "CamVid" / f"{split}annot" / f"{drive}.png")
    return root


def test_drives_of_camvid_and_noise(tmp_path):
    root = write_camvid(tmp_path)
    day = Part("camvid", [6, 8], split="train", classes="camvid", drives=["0006R0", "0016E5"]).read(root)
    assert [one.name for one in day] == ["train/0006R0_1", "train/0016E5_1"]
    assert day.tasks == ("semseg", "edge")
    assert day.classes == CAMVID11
    dusk = Part("camvid", [6, 8], classes="camvid", drives=["0001TP"], images=1, noise=0.3)
    assert isinstance(dusk.read(root), Noisy)
    assert len(dusk.read(root)) == 1
    with pytest.raises(DataError, match="samples whose names start with 0099 .* found none of 4"):
        Part("camvid", [6, 8], split="train", drives=["0099"]).read(root)


def write_walk(scene: Path, frames: int = 4) -> None:
    """Frames before a wall that is inclined about the vertical axis, 16 x 24 pixels."""
    (scene / "seq-01").mkdir(parents=True)
    focal = 20.0
    (scene / "camera-intrinsics.txt").write_text(f"{focal} 0 12\n0 {focal} 8\n0 0 1\n")
    u = (np.arange(24) + 0.5 - 12) / focal
    depth = np.repeat((2 / (1 + 0.5 * u))[None], 16, 0)  # 1/Z is linear in u: normal ~ (-0.25, 0, 0.5)
    for i in range(frames):
        at = scene / "seq-01" / f"frame-{i:06d}"
        Image.fromarray(np.full((16, 24, 3), 50 * i, np.uint8)).save(f"{at}.color.png")
        Image.fromarray(np.rint(1000 * depth).astype(np.uint16)).save(f"{at}.depth.png")
        Path(f"{at}.pose.txt").write_text("1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n")


def test_a_walk_has_normals_of_its_depth_and_shares(tmp_path):
    write_walk(tmp_path / "7scenes" / "office")
    part = Part("7scenes", [8, 12], tasks=["depth", "normals", "edge"], span=[0.5, 1.0])
    found = part.read(tmp_path)
    assert [one.name for one in found] == ["seq-01/frame-000002", "seq-01/frame-000003"]
    labels = found[0].labels
    assert labels["depth"].shape == (1, 8, 12)
    expected = np.array([-0.25, 0, 0.5]) / np.linalg.norm([-0.25, 0, 0.5])
    middle = labels["normals"][:, 2:6, 2:10].flatten(1).mean(1).numpy()
    assert middle == pytest.approx(expected, abs=0.02)
    assert labels["edge"].nansum() == 0
    write_walk(tmp_path / "7scenes" / "chess")
    with pytest.raises(
        DataError, match="expected one scene, found chess, office; choose with --set scene=NAME"
    ):
        Part("7scenes", [8, 13]).read(tmp_path)
    assert len(Part("7scenes", [8, 13], scene="chess").read(tmp_path)) == 4


def test_names_are_checked():
    with pytest.raises(ValueError, match="no public set 'nyu'"):
        Part("nyu", [8, 8])
    with pytest.raises(ValueError, match="no transfer 'taskonomy-camvid'"):
        Part("nyud", [8, 8], classes="taskonomy-camvid")
    assert tasks_with("camvid")["semseg"].classes == CAMVID11
