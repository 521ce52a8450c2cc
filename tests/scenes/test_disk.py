"""Spaces on disk: files equal the rendered frames, a killed run resumes to the same bytes, wrong files are refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from testtime.cli import main
from testtime.errors import DataError
from testtime.scenes import disk
from testtime.scenes.disk import Recipe, make, read_scenes, render_space

SMALL = Recipe(seed=4, frames=3, size=(10, 12), backend="embree")


def tree(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_the_files_are_in_the_documented_folders(fake, tmp_path):
    assert make(tmp_path, [SMALL]) == ["default_00004"]
    files = set(tree(tmp_path))
    images = ("rgb", "depth", "normal", "canny", "occlusion", "semantic", "instance")
    wanted = {f"{m}/default_00004/0000{i}.png" for m in images for i in range(3)}
    assert files == wanted | {"spaces/default_00004/space.json", "spaces/default_00004/frames.jsonl"}
    facts = json.loads((tmp_path / "spaces/default_00004/space.json").read_text())
    assert facts["classes"] == ["wall", "floor", "table", "mug", "tv"]
    assert facts["recipe"]["seed"] == 4
    assert facts["recipe"]["size"] == [10, 12]
    assert facts["recipe"]["backend"] == "embree"
    assert set(facts["made_by"]) == {"testtime", "embreex"}


def test_the_stored_numbers(fake, tmp_path):
    make(tmp_path, [SMALL])
    _, cameras, renderer = disk._stage(SMALL)
    frame = renderer.frame(cameras[1], (10, 12), None)

    def pixels(modality: str) -> np.ndarray:
        return np.asarray(Image.open(tmp_path / modality / "default_00004/00001.png"))

    assert pixels("depth").dtype == np.uint16
    np.testing.assert_array_equal(pixels("depth"), np.rint(frame.depth.astype(np.float64) * 1000))
    np.testing.assert_array_equal(pixels("rgb"), frame.rgb)
    np.testing.assert_array_equal(pixels("instance"), frame.instance)
    np.testing.assert_array_equal(pixels("semantic"), frame.semantic)
    np.testing.assert_array_equal(pixels("canny"), np.where(frame.canny, 255, 0))
    np.testing.assert_array_equal(pixels("occlusion"), np.where(frame.occlusion, 255, 0))
    np.testing.assert_array_equal(pixels("normal")[0], np.full((12, 3), 127))
    np.testing.assert_allclose(pixels("normal")[1:] / 127.5 - 1, frame.normal[1:], atol=0.5 / 127.5 + 1e-6)
    lines = (tmp_path / "spaces/default_00004/frames.jsonl").read_text().splitlines()
    line = json.loads(lines[1])
    assert line["frame"] == "00001"
    np.testing.assert_array_equal(line["pose"], cameras[1].pose)
    assert line["intrinsics"] == [[6, 0, 6], [0, 6, 5], [0, 0, 1]]
    assert (line["room"], line["ring"], line["shift"]) == (0, cameras[1].ring, None)
    assert line["boxes"][0] == {
        "instance": 1,
        "label": 2,
        "x0": 1,
        "y0": 2,
        "x1": 7,
        "y1": 8,
        "visibility": 0.8765,
    }
    assert line["caption"] == "A kitchen with a table and a mug. A mug is on the table."


def test_existing_frames_are_not_rendered_again(fake, tmp_path):
    make(tmp_path, [SMALL])
    whole = tree(tmp_path)
    make(tmp_path, [SMALL])
    assert fake.rendered == 3
    make(tmp_path, [SMALL, Recipe(seed=5, frames=3, size=(10, 12))])
    assert fake.rendered == 6
    assert {name: data for name, data in tree(tmp_path).items() if "00004/" in name} == whole


@pytest.mark.parametrize("writes", range(0, 29, 4))
def test_a_killed_run_resumes_to_the_same_bytes(fake, tmp_path, monkeypatch, writes):
    make(tmp_path / "whole", [SMALL])
    genuine, count = disk._write, 0

    def killed(path: Path, data: bytes) -> None:
        nonlocal count
        if count == writes:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_name(f".{path.name}.1.part").write_bytes(data[: len(data) // 2])
            raise KeyboardInterrupt
        count += 1
        genuine(path, data)

    monkeypatch.setattr(disk, "_write", killed)
    if writes < 26:
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path / "killed", [SMALL])
        assert not (tmp_path / "killed/spaces/default_00004/frames.jsonl").exists()
        before = fake.rendered
        monkeypatch.setattr(disk, "_write", genuine)
        make(tmp_path / "killed", [SMALL])
        assert fake.rendered - before == 3 - max(0, writes - 1) // 8
    else:
        make(tmp_path / "killed", [SMALL])  # 1 + 3 x 8 + 1 files in all
        assert count == 26
    assert tree(tmp_path / "killed") == tree(tmp_path / "whole")


def test_memory_and_disk_have_the_same_samples(fake, tmp_path):
    make(tmp_path, [SMALL])
    there = render_space(4, 3, (10, 12), backend="embree")
    for keep in (True, False):
        read = read_scenes(tmp_path, keep=keep)
        assert len(read) == len(there) == 3
        for i in range(3):
            for modality in disk.MODALITIES:
                a, b = read.stored(modality, i), there.stored(modality, i)
                assert a.dtype == b.dtype
                np.testing.assert_array_equal(a, b)
        assert read.spaces[0].records == there.spaces[0].records
        assert read.spaces[0].facts == there.spaces[0].facts


def test_spaces_are_chosen_by_name(fake, tmp_path):
    make(tmp_path, [SMALL, Recipe(seed=1, shift="fog", frames=2, size=(10, 12))])
    assert [s.name for s in read_scenes(tmp_path).spaces] == ["default_00001_fog", "default_00004"]
    assert len(read_scenes(tmp_path, ["default_00004"])) == 3
    assert read_scenes(tmp_path).view(0).shift == "fog"
    with pytest.raises(DataError, match="expected the space 'x', found default_00001_fog, default_00004"):
        read_scenes(tmp_path, ["x"])


def test_another_recipe_of_the_same_name_is_refused(fake, tmp_path):
    make(tmp_path, [SMALL])
    with pytest.raises(DataError, match="give another --out, or delete it"):
        make(tmp_path, [replace(SMALL, frames=4)])
    path = tmp_path / "spaces/default_00004/space.json"
    path.write_text(path.read_text().replace('"embreex": "', '"embreex": "0.'))
    make(tmp_path, [SMALL])  # it is finished: who made it does not matter
    (path.parent / "frames.jsonl").unlink()
    with pytest.raises(DataError, match="expected a space made from"):
        make(tmp_path, [SMALL])


def test_incomplete_and_damaged_spaces_are_refused(fake, tmp_path):
    make(tmp_path, [SMALL])
    shutil.copytree(tmp_path, tmp_path.parent / "b", dirs_exist_ok=True)
    root = tmp_path.parent / "b"
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(root / "semantic/default_00004/00000.png")
    with pytest.raises(DataError, match=r"expected the 10 x 12 pixels of default_00004, found \(4, 4\)"):
        read_scenes(root)[0]
    (root / "depth/default_00004/00001.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="damaged"):
        read_scenes(root, tasks=["depth"])[1]
    (root / "depth/default_00004/00001.png").unlink()
    with pytest.raises(DataError, match=r"00001\.png: no such file"):
        read_scenes(root, tasks=["depth"])[1]
    (root / "spaces/default_00004/frames.jsonl").write_text("{")
    with pytest.raises(DataError, match=r"frames\.jsonl is damaged .*make it again"):
        read_scenes(root)
    (root / "spaces/default_00004/frames.jsonl").unlink()
    with pytest.raises(DataError, match="found an incomplete one"):
        read_scenes(root)
    with pytest.raises(DataError, match="no such folder; expected spaces"):
        read_scenes(tmp_path / "nowhere")


def test_recipes(fake):
    assert Recipe(12, "other", "dark").name == "other_00012_dark"
    for wrong, message in (
        ({"style": "x"}, "style must be one of default, other"),
        ({"shift": "x"}, "shift must be one of fog, dark"),
        ({"backend": "x"}, "backend must be one of embree, numpy, gl"),
        ({"frames": 0}, "at least 1 frame"),
        ({"size": (4, 64)}, "8 x 8 pixels"),
        ({"seed": -1}, "seeds from 0"),
    ):
        with pytest.raises(ValueError, match=message):
            Recipe(**wrong)
    with pytest.raises(ValueError, match="two spaces would be called default_00000"):
        make("nowhere", [Recipe(), Recipe(frames=3)])


def test_make_from_the_command_line(fake, tmp_path, capsys):
    out = str(tmp_path / "houses")
    command = ["scenes", "make", "--out", out, "--spaces", "2", "--frames", "2", "--seed", "7", "--jobs", "1"]
    assert main([*command, "--size", "10x12", "--shift", "dark"]) == 0
    assert capsys.readouterr().out.strip() == out
    assert [s.name for s in read_scenes(out).spaces] == ["default_00007_dark", "default_00008_dark"]
    assert read_scenes(out).spaces[0].size == (10, 12)
    assert main([*command, "--size", "16", "--shift", "dark"]) == 2
    assert "give another --out" in capsys.readouterr().err
    assert main([*command, "--shift", "night"]) == 2
    assert "shift must be one of fog, dark; got 'night'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*command, "--size", "big"])
    assert "expected pixels as 64 or 48x64" in capsys.readouterr().err


def test_show_from_the_command_line(fake, tmp_path, capsys):
    make(tmp_path, [SMALL])
    assert main(["scenes", "show", str(tmp_path), "--frames", "2", "--width", "48"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "sheet.png")
    assert Image.open(tmp_path / "sheet.png").size[0] == 6 + 8 * (48 + 6)
    assert main(["scenes", "show", str(tmp_path / "nowhere")]) == 2
    assert "expected spaces that testtime scenes make wrote" in capsys.readouterr().err


@pytest.mark.parametrize("frame", ["../../../secret", "/etc/passwd", "a/../../b", ""])
def test_frames_that_leave_the_folder_are_refused(fake, tmp_path, frame):
    make(tmp_path, [SMALL])
    path = tmp_path / "spaces/default_00004/frames.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[1]["frame"] = frame
    path.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(DataError, match=r"frames\.jsonl: .*no file below this folder"):
        read_scenes(tmp_path)


def test_invalid_descriptions_and_poses_are_named(fake, tmp_path):
    make(tmp_path, [SMALL])
    folder = tmp_path / "spaces/default_00004"
    lines = [json.loads(line) for line in (folder / "frames.jsonl").read_text().splitlines()]
    lines[0]["pose"][0][0] = "x"
    del lines[1]["intrinsics"]
    (folder / "frames.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = read_scenes(tmp_path)
    for i in range(2):
        with pytest.raises(
            DataError, match=rf"default_00004/0000{i}: expected pose and intrinsics in frames\.jsonl"
        ):
            found.camera(i)
    facts = json.loads((folder / "space.json").read_text())
    for size in ([8], "x", None, [1, "y"]):
        facts["recipe"]["size"] = size
        (folder / "space.json").write_text(json.dumps(facts))
        with pytest.raises(DataError, match="default_00004 is damaged"):
            read_scenes(tmp_path)
    (folder / "space.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match=r"space\.json is damaged"):
        read_scenes(tmp_path)


def test_depth_of_8_bits_is_refused(fake, tmp_path):
    make(tmp_path, [SMALL])
    Image.fromarray(np.zeros((10, 12), np.uint8)).save(tmp_path / "depth/default_00004/00000.png")
    with pytest.raises(DataError, match=r"00000\.png: expected numbers of 16 bits"):
        read_scenes(tmp_path, tasks=["depth"])[0]
