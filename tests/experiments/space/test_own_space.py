"""A walk of one's own from a folder of pictures, 7-Scenes, ScanNet++ and Replica to its table, and what is refused."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image
from space_speck import SPECK, Speck

from testtime.cli import main
from testtime.experiments import Request, find_experiment, read_run
from testtime.experiments.experiment import closure
from testtime.experiments.space.presets import PRESETS

pytest.importorskip("embreex", reason="pip install -e '.[scenes]'")
pytest.importorskip("vector_quantize_pytorch", reason="pip install -e '.[space]'")
COUNT, HIGH, WIDE = 12, 48, 64


def saved(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def picture(i, size=(HIGH, WIDE)):
    return np.random.default_rng(i).integers(0, 256, (*size, 3), np.uint8)


def depth(i, size=(HIGH, WIDE), unit=1000):
    ramp = np.linspace(1, 3, size[1]) + 0.1 * i
    return np.broadcast_to(ramp * unit, size).astype(np.uint16)


def seven_scenes(root):
    for i in range(COUNT):
        at = root / "seq-01" / f"frame-{i:06d}"
        saved(at.with_suffix(".color.png"), picture(i))
        saved(at.with_suffix(".depth.png"), depth(i))
        at.with_suffix(".pose.txt").write_text("1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1")


def scannetpp(root):
    phone = root / "data" / "0a5c013435" / "iphone"
    for i in range(COUNT):
        saved(phone / "rgb" / f"frame_{i:06d}.jpg", picture(i, (192, 256)))
        saved(phone / "depth" / f"frame_{i:06d}.png", depth(i, (192, 256)))
        ids = np.repeat(np.arange(2, dtype=np.uint8), 96)[:, None].repeat(256, 1)
        if i in (2, 7):
            saved(root / "labels" / "0a5c013435" / f"frame_{i:06d}.png", ids)
    (root / "labels" / "classes.txt").write_text("wall\noffice chair\n")
    (phone / "colmap").mkdir()
    (phone / "colmap" / "cameras.txt").write_text("1 PINHOLE 256 192 200 200 128 96\n")
    images = "".join(f"{i + 1} 1 0 0 0 {i} 2 3 1 frame_{i:06d}.jpg\n\n" for i in range(COUNT))
    (phone / "colmap" / "images.txt").write_text(images)


def replica(root):
    pose = {"camera_location": [0, 0, 1.5], "camera_rotation_final_quaternion": [1, 0, 0, 0]}
    pose |= {"field_of_view_rads": 1.0, "resolution": 32, "point_uuid": 0, "camera_uuid": "c"}
    for i in range(COUNT):
        for domain in ("rgb", "depth_zbuffer", "normal", "point_info"):
            name = "fixatedpose" if domain == "point_info" else domain
            at = root / domain / "replica" / "room_0" / f"point_0_view_{i}_domain_{name}"
            if domain == "point_info":
                at.parent.mkdir(parents=True, exist_ok=True)
                at.with_suffix(".json").write_text(json.dumps({**pose, "view_id": i}))
            elif domain == "depth_zbuffer":
                saved(at.with_suffix(".png"), depth(i, (32, 32), 512))
            else:
                flat = np.full((32, 32, 3), (127, 127, 255), np.uint8)
                saved(at.with_suffix(".png"), flat if domain == "normal" else picture(i, (32, 32)))


def pictures(root):
    for i in range(COUNT):
        saved(root / "rgb" / f"{i}.png", picture(i))
    (root / "labels").mkdir()
    (root / "labels" / "classes.txt").write_text("floor\ncouch\n")
    for i in (0, 5):
        saved(root / "labels" / f"{i}.png", np.eye(HIGH, WIDE, dtype=np.uint8))


BOTH = ["mIoU", "relative depth error"]
LAYOUTS = {
    "7scenes": (seven_scenes, BOTH[1:], ["rgb", "depth", "normals", "edge"]),
    "scannetpp": (scannetpp, BOTH, ["rgb", "depth", "normals", "edge"]),
    "replica": (replica, BOTH[1:], ["rgb", "depth", "normals", "edge"]),
    "pictures": (pictures, BOTH[:1], ["rgb", "edge"]),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_planned(layout, tmp_path):
    write, columns, sensors = LAYOUTS[layout]
    write(tmp_path)
    experiment = find_experiment("space-own")
    settings = {"encoders": ["timm:vit"]}
    plan = experiment.plan(Request("space-own", (0,), data=str(tmp_path), settings=settings))
    assert [cell.column for cell in plan.cells if cell.row == "timm:vit"] == columns
    assert list(dict.fromkeys(cell.column for cell in plan.cells)) == columns[::-1][: len(columns)]
    sensed = next(cell.about for cell in plan.cells if cell.row == "TST-MM (sensory)")
    assert list(sensed["modalities"]) == sensors
    walks = [unit for unit in closure(plan.units) if unit.kind.endswith(":walk")]
    assert [unit.places for unit in walks] == [{"walk": str(tmp_path)}]
    assert plan.used == {"space": next(iter(plan.used.values()))}
    pretraining = next(u for u in closure(plan.units) if u.name == "pre-training of TST-MAE, seed 0")
    assert set(pretraining.needs["shards"].needs) >= {"frames", "tokenizer rgb"}
    assert not any(need.startswith("frames") for need in pretraining.needs["outside"].needs)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("store")


@pytest.mark.parametrize("layout", ["7scenes", "pictures"])
def test_a_walk_ends_with_its_table(layout, store, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(PRESETS, "speck", SPECK)
    write, columns, _ = LAYOUTS[layout]
    write(tmp_path / "room")
    command = ["run", "space-own", "--data", str(tmp_path / "room"), "--store", str(store)]
    command += ["--out", str(tmp_path / "run"), "--set", "preset=speck"]
    assert main(command) == 0
    assert find_experiment("space-own").title in capsys.readouterr().out
    run = read_run(tmp_path / "run")
    found = {(r.row, r.column): r.result[r.about["measure"]] for r in run.records()}
    rows = ["Scratch, RGB", "TST-MAE", "TST-MM (sensory)", "TST-MM (all)"]
    constant = [("a constant depth", columns[0])] if layout == "7scenes" else []
    assert list(found) == [*constant, *((row, column) for row in rows for column in columns)]
    assert np.isfinite(list(found.values())).all()
    assert len({*found.values()}) > 2
    text = (tmp_path / "run" / "report.html").read_text()
    assert run.about["used"]["space"] in text
    assert text.count("data:image/png;base64,") == 2  # on light and on dark ground
    drawn = Image.open(io.BytesIO(base64.b64decode(run.other("pictures")["light"])))
    assert drawn.width == 6 + (2 + len(rows)) * (150 + 6)  # picture, label, and every row
    before = {path: path.read_bytes() for path in (tmp_path / "run" / "results").iterdir()}
    if layout == "pictures":
        saved(
            tmp_path / "room" / "rgb" / "1.png", picture(77)
        )  # another walk in the same place is another result
        plan = find_experiment("space-own").plan(Request("space-own", (0,), data=str(tmp_path / "room")))
        assert not {cell.unit.address for cell in plan.cells} & {c["unit"] for c in run.about["cells"]}
    else:
        assert main(command) == 0
        assert {path: path.read_bytes() for path in (tmp_path / "run" / "results").iterdir()} == before


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["scannetpp", "replica"])
def test_public_layouts_end_with_their_table(layout, store, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(PRESETS, "speck", SPECK)
    write, columns, _ = LAYOUTS[layout]
    write(tmp_path / "room")
    command = ["run", "space-own", "--data", str(tmp_path / "room"), "--store", str(store)]
    assert main([*command, "--out", str(tmp_path / "run"), "--set", "preset=speck"]) == 0
    records = read_run(tmp_path / "run").records()
    assert {record.column for record in records} == {*columns}
    assert np.isfinite([record.result[record.about["measure"]] for record in records]).all()


def test_a_folder_of_data_sets_holds_a_real_room(tmp_path):
    seven_scenes(tmp_path / "7scenes")
    plan = find_experiment("space-own").plan(Request("space-own", (0,), data=str(tmp_path)))
    assert plan.used == {"space": "7scenes-7scenes"}


def test_what_is_no_walk_is_refused_before_any_work(tmp_path, capsys):
    (tmp_path / "room" / "photos").mkdir(parents=True)
    out = ["--out", str(tmp_path / "run")]
    assert main(["run", "space-own", "--data", str(tmp_path / "room"), *out]) == 2
    error = capsys.readouterr().err
    assert "expected a video, a folder of pictures, or the layout of scenes" in error
    assert "scannetpp-iphone (data/*/iphone/rgb)" in error
    assert "found photos" in error
    assert main(["run", "space-own", "--data", str(tmp_path / "none"), *out]) == 2
    assert "none: no such folder" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_frames_that_changed_since_the_run_began_are_refused(tmp_path):
    seven_scenes(tmp_path / "room")
    plan = find_experiment("space-own").plan(Request("space-own", (0,), data=str(tmp_path / "room")))
    (unit,) = (u for u in closure(plan.units) if u.kind.endswith(":walk"))
    saved(tmp_path / "room" / "seq-01" / "frame-000000.color.png", picture(99))
    with pytest.raises(AssertionError, match="expected the frames that the run began with, found others"):
        Speck(tmp_path / "store").made(unit)
