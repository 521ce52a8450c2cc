"""Images, snapshots, rollback, pause and deletion of streams."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("fastapi", reason="pip install -e '.[serve]'")
from server_world import images, png, serving

from testtime.data.imageset import Crop
from testtime.serve.server import ServedModel
from testtime.serve.server.images import decode_images

PNG = {"Content-Type": "image/png"}


def test_an_image_is_answered_as_its_tensor(tmp_path: Path) -> None:
    file = png(3)
    x = decode_images([file], 3, (6, 6), 10**6)
    with serving(tmp_path) as call:
        want = call.infer(x, stream="tensor").json()
        got = call.post("/streams/file/images", content=file, headers=PNG).json()
        assert got["predictions"][0]["logits"] == want["outputs"][0]["data"]
        assert got["predictions"][0]["predicted"] == want["outputs"][1]["data"][0]
        assert (got["stream"], got["offset"], got["model"]) == ("file", 0, "small")
        assert got["state"] == want["parameters"]["state"]


def test_several_images_are_one_batch(tmp_path: Path) -> None:
    files = [png(i) for i in range(4)]
    texts = [base64.b64encode(file).decode() for file in files]
    with serving(tmp_path) as call:
        want = call.infer(decode_images(files, 3, (6, 6), 10**6), stream="tensor").json()
        got = call.post("/streams/files/images", json={"images": texts}).json()
        assert [v for one in got["predictions"] for v in one["logits"]] == want["outputs"][0]["data"]
        assert call.session.status("files").offset == 4


def test_pixels_are_exact_and_scaled_as_the_model_wants() -> None:
    from PIL import Image

    pixels = decode_images([png(0, 6)], 3, (6, 6), 100)
    plain = torch.from_numpy(np.array(Image.open(io.BytesIO(png(0, 6)))))
    assert torch.equal(pixels[0], plain.permute(2, 0, 1).float() / 255)
    assert decode_images([png(0, 12)], 3, (6, 6), 200).shape == (1, 3, 6, 6)
    assert decode_images([png(0, 12)], 1, None, 200).shape == (1, 1, 12, 12)
    assert decode_images([png(0, 300, "JPEG")], 3, Crop(224, 256), 10**6).shape == (1, 3, 224, 224)
    assert ServedModel(torch.nn.Identity(), "a", 2, 224).size == Crop(224, 256)
    assert ServedModel(torch.nn.Identity(), "a", 2, 32).size == (32, 32)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "LA"])
def test_other_modes_are_converted(mode: str) -> None:
    assert decode_images([png(0, 6, "PNG", mode)], 3, (6, 6), 100).shape == (1, 3, 6, 6)


def test_snapshots_rollback_and_status(tmp_path: Path) -> None:
    with serving(tmp_path) as call:
        first = call.infer(images(0)).json()["parameters"]["state"]
        made = call.post("/streams/default/snapshots")
        assert made.status_code == 201
        assert (made.json()["number"], made.json()["offset"], made.json()["state"]) == (1, 4, first)
        moved = call.infer(images(1)).json()["parameters"]["state"]
        assert moved != first
        back = call.post("/streams/default/rollback", json={"to": 1}).json()
        assert back["snapshot"]["number"] == 1
        status = call.get("/streams/default").json()
        assert (status["state"], status["offset"], status["counts"]["requests"]) == (first, 8, 2)
        shipped = call.post("/streams/default/rollback", json={"to": None}).json()
        assert shipped["snapshot"] is None
        assert call.get("/streams/default").json()["state"] not in (first, moved)
        numbers = [one["number"] for one in call.get("/streams/default/snapshots").json()["snapshots"]]
        assert numbers == [1, 2, 3]
        missing = call.post("/streams/default/rollback", json={"to": 99})
        assert missing.status_code == 404
        assert "choose among 1, 2, 3" in missing.json()["advice"]


def test_a_damaged_snapshot_is_refused(tmp_path: Path) -> None:
    with serving(tmp_path) as call:
        call.infer(images(0))
        call.post("/streams/default/snapshots")
        state = call.get("/streams/default").json()["state"]
        (path,) = tmp_path.glob("streams/default/*.safetensors")
        path.write_bytes(path.read_bytes()[:-1] + b"x")
        refused = call.post("/streams/default/rollback", json={"to": 1})
        assert (refused.status_code, refused.json()["code"]) == (409, "damaged")
        assert call.get("/streams/default").json()["state"] == state


def test_pause_and_resume(tmp_path: Path) -> None:
    with serving(tmp_path) as call:
        state = call.infer(images(0)).json()["parameters"]["state"]
        assert call.post("/streams/default/pause").json()["paused"] is True
        asleep = call.infer(images(1)).json()["parameters"]
        assert (asleep["skipped"], asleep["state"]) == ("paused", state)
        assert call.post("/streams/default/resume").json()["paused"] is False
        assert call.infer(images(2)).json()["parameters"]["learned"] is True


def test_delete_forgets_state_and_snapshots(tmp_path: Path) -> None:
    with serving(tmp_path) as call:
        call.infer(images(0), stream="a")
        call.post("/streams/a/snapshots")
        assert call("DELETE", "/streams/a").status_code == 204
        assert call.get("/streams").json() == {"streams": [], "found": 0, "total": 0}
        assert not list(tmp_path.glob("streams/a/*"))
        assert 'stream="a"' not in call.get("/metrics").text
        assert call.get("/streams/a").json()["code"] == "no-stream"
        assert call("DELETE", "/streams/a").status_code == 404


def test_many_streams_are_listed_in_parts(tmp_path: Path) -> None:
    names = [f"{place}-{i}" for place in ("door", "hall") for i in range(6)]
    with serving(tmp_path) as call:
        for i, name in enumerate(names):
            call.infer(images(i), stream=name)
        read, after = list[str](), ""
        while part := call.get("/streams", params={"limit": 5, "after": after}).json()["streams"]:
            assert len(part) <= 5
            read, after = read + part, part[-1]
        assert read == names
        found = call.get("/streams", params={"contains": "hall", "limit": 2}).json()
        assert found == {"streams": ["hall-0", "hall-1"], "found": 6, "total": 12}
        assert call.get("/streams", params={"contains": "roof"}).json()["found"] == 0
        assert call.get("/streams", params={"limit": 0}).status_code == 400


def test_a_question_about_one_stream_does_not_list_all(tmp_path: Path) -> None:
    with serving(tmp_path) as call:
        call.infer(images(0), stream="a")
        call.post("/streams/a/snapshots")

        def streams() -> tuple[str, ...]:
            raise AssertionError("all streams were listed")

        call.session.streams = streams  # type: ignore[method-assign]
        for path in ("/streams/a", "/streams/a/snapshots", "/streams/a/history"):
            assert call.get(path).status_code == (404 if path.endswith("history") else 200)
        assert call.get("/streams/b").json()["code"] == "no-stream"
        assert call.post("/streams/a/pause").status_code == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", ""),
        ("GET", "/snapshots"),
        ("POST", "/snapshots"),
        ("POST", "/pause"),
        ("POST", "/resume"),
        ("DELETE", ""),
    ],
)
def test_calls_of_an_unknown_stream_begin_none(method: str, path: str, tmp_path: Path) -> None:
    with serving(tmp_path) as call:
        response = call(method, f"/streams/nobody{path}")
        assert (response.status_code, response.json()["code"]) == (404, "no-stream")
        assert call.session.streams() == ()


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(tmp_path) as call:
        call.infer(images(0))

        def full(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(call.session, "snapshot", full)
            refused = call.post("/streams/default/snapshots")
        assert (refused.status_code, refused.json()["code"]) == (507, "disk")
        assert call.infer(images(1)).status_code == 200
