"""Houses, renderer and file format together: a run of several processes is killed and resumed."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from testtime.cli import main
from testtime.scenes import CLASSES, Renderer, generate_house
from testtime.scenes.captions import caption
from testtime.scenes.disk import Recipe, make, read_scenes, render_space

pytest.importorskip("cv2", reason="pip install -e '.[scenes]'")
pytest.importorskip("embreex", reason="pip install -e '.[scenes]'")

SIZE = (16, 16)


def tree(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_killed_processes_resume_to_the_same_bytes(tmp_path):
    recipes = [Recipe(seed, "default", "noise", 6, SIZE) for seed in (3, 4, 5)]
    make(tmp_path / "whole", recipes)
    killed = tmp_path / "killed"
    command = ["make", "--spaces", "3", "--frames", "6", "--size", "16", "--seed", "3", "--shift", "noise"]
    process = subprocess.Popen(
        [sys.executable, "-m", "testtime", "scenes", *command, "--jobs", "2", "--out", str(killed)]
    )
    end = time.monotonic() + 120
    while not list(killed.glob("spaces/*/0*.json")) and process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    process.kill()
    process.wait()
    make(killed, recipes)
    assert tree(killed) == tree(tmp_path / "whole")
    read, there = read_scenes(killed), render_space(3, 6, SIZE, shift="noise")
    for modality in ("rgb", "depth", "normal", "instance"):
        np.testing.assert_array_equal(read.spaces[0].array(modality), there.spaces[0].array(modality))


def test_a_house_without_places_is_reported_without_a_traceback(tmp_path, capsys, monkeypatch):
    from testtime.scenes import house

    genuine = house._scatter
    monkeypatch.setattr(house, "_scatter", lambda *given: genuine(*given)[: -1 if len(given) > 4 else None])
    command = ["make", "--spaces", "1", "--frames", "1", "--size", "16", "--moved", "1", "--jobs", "1"]
    assert main(["scenes", *command, "--seed", "11", "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("testtime: moved: expected a new place for every small object of house 11")
    assert "take another number for moved, or another house" in error


def test_names_that_need_torch_are_imported_on_first_use():
    code = (
        "import sys, testtime.scenes as s; late = ('PIL', 'embreex', 'moderngl')\n"
        "assert not {'torch', *late} & set(sys.modules)\n"
        "from testtime.scenes import Recipe, SceneSet, make, read_scenes, render_space\n"
        "assert not set(late) & set(sys.modules)\n"
        "assert all(hasattr(s, name) for name in s.__all__)\n"
        "try: s.nowhere\n"
        "except AttributeError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "module 'testtime.scenes' has no attribute 'nowhere'", done.stderr


def test_labels_and_captions_of_a_real_house():
    scenes = render_space(7, 4, (32, 32))
    house = generate_house(7)
    renderer = Renderer(house, "embree")
    assert scenes.classes == CLASSES
    for i, camera in enumerate(house.cameras(4)):
        frame, sample, view = renderer.frame(camera, (32, 32)), scenes[i], scenes.view(i)
        np.testing.assert_array_equal(sample.labels["semseg"], frame.semantic)
        np.testing.assert_allclose(sample.labels["depth"][0], frame.depth, atol=0.00051)
        cosine = (sample.labels["normals"].numpy() * frame.normal.transpose(2, 0, 1)).sum(axis=0)
        assert np.degrees(np.arccos(np.clip(cosine, -1, 1))).max() < 0.5
        np.testing.assert_array_equal(view.instance, frame.instance)
        assert view.caption == caption(frame, house)
        numbers = {"a": 1, "an": 1, "two": 2, "three": 3, "four": 4, "five": 5}
        room = {"living": "living room", "bed": "bedroom", "bath": "bathroom"}.get(
            house.rooms[camera.room].kind, house.rooms[camera.room].kind
        )
        first = view.caption.split(".")[0]
        assert first.startswith(f"A {room}")
        mentioned = re.findall(r"\b(an?|two|three|four|five) (\w+)", first.removeprefix(f"A {room}"))
        visible = [
            CLASSES[b.label]
            for b in frame.boxes
            if b.visibility >= 0.15 and house.objects[b.instance - 1].room == camera.room
        ]
        assert sum(numbers[n] for n, _ in mentioned) == len(visible)
