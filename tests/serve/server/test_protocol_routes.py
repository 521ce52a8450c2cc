"""The Open Inference Protocol answers as the adapter alone does, as JSON and as bytes."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch

pytest.importorskip("fastapi", reason="pip install -e '.[serve]'")
from server_world import INFER, TENT, binary, images, outputs, request, served, serving, tensor


def test_health_and_metadata(tmp_path: Path) -> None:
    with serving(tmp_path) as call:
        assert call.get("/v2/health/live").json() == {"live": True}
        assert call.get("/v2/health/ready").json() == {"ready": True}
        assert call.get("/v2/models/small/ready").json() == {"ready": True}
        assert call.get("/v2").json()["extensions"] == ["binary_tensor_data"]
        found = call.get("/v2/models/small").json()
        assert found["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 3, 6, 6]}]
        assert found["outputs"][0] == {"name": "logits", "datatype": "FP32", "shape": [-1, 3]}
        assert found["parameters"]["method"] == "tent"
        call.runner.run(call.service.close())
        assert call.get("/v2/health/ready").status_code == 503
        assert call.get("/v2/models/small/ready").status_code == 503
        assert call.get("/v2/health/live").status_code == 200


def test_answers_are_those_of_the_adapter(tmp_path: Path) -> None:
    alone = served().build(TENT)
    with serving(tmp_path) as call:
        for i in range(4):
            want, response = alone(images(i)), call.infer(images(i), stream="door")
            got, facts = outputs(response), response.json()["parameters"]
            assert torch.equal(torch.tensor(got["logits"]).reshape(4, 3), want.logits)
            assert got["predicted"] == want.argmax(1).tolist()
            assert torch.equal(torch.tensor(got["confidence"]), want.logits.softmax(1).amax(1))
            assert torch.equal(torch.tensor(got["score"]), want.score)
            assert got["refused"] == [""] * 4
            assert (facts["stream"], facts["offset"], facts["learned"]) == ("door", 4 * i, True)
        assert facts["state"] == call.session.status("door").state


def test_bytes_say_the_same_as_json(tmp_path: Path) -> None:
    x = images(0)
    with serving(tmp_path / "a") as call:
        want = outputs(call.infer(x))
    with serving(tmp_path / "b") as call:
        body, headers = binary(x)
        response = call.post(INFER, content=body, headers=headers)
    length = int(response.headers["inference-header-content-length"])
    described, tail = json.loads(response.content[:length]), response.content[length:]
    found = {}
    for one in described["outputs"]:
        size = one["parameters"]["binary_data_size"]
        found[one["name"]], tail = tail[:size], tail[size:]
    assert tail == b""
    assert list(struct.unpack("<12f", found["logits"])) == want["logits"]
    assert list(struct.unpack("<4q", found["predicted"])) == want["predicted"]
    assert found["refused"] == struct.pack("<4I", 0, 0, 0, 0)


@pytest.mark.parametrize("datatype", ["FP64", "FP16", "BF16"])
def test_other_types_are_converted(datatype: str, tmp_path: Path) -> None:
    dtype = {"FP64": torch.float64, "FP16": torch.float16, "BF16": torch.bfloat16}[datatype]
    x = images(0).to(dtype)
    raw = x.contiguous().view(torch.uint8).numpy().tobytes()
    described = {
        "inputs": [
            {
                "name": "input",
                "shape": [4, 3, 6, 6],
                "datatype": datatype,
                "parameters": {"binary_data_size": len(raw)},
            }
        ]
    }
    header = json.dumps(described).encode()
    want = served().build(TENT)(x.float())
    with serving(tmp_path) as call:
        response = call.post(
            INFER, content=header + raw, headers={"Inference-Header-Content-Length": str(len(header))}
        )
        assert outputs(response)["logits"] == want.logits.flatten().tolist()


def test_nested_data_and_chosen_outputs(tmp_path: Path) -> None:
    x = images(0)
    body = {
        "id": "7",
        "inputs": [tensor(x, data=x.tolist())],
        "outputs": [{"name": "score"}, {"name": "predicted"}],
    }
    with serving(tmp_path) as call:
        response = call.post(INFER, json=body)
        assert response.json()["id"] == "7"
        assert list(outputs(response)) == ["score", "predicted"]


def test_a_bad_sample_gets_an_answer_and_its_neighbours_theirs(tmp_path: Path) -> None:
    x = images(0)
    x[1, 0, 0, 0] = torch.nan
    x[2] = 0.5
    want = served().build(TENT)
    with serving(tmp_path) as call:
        body, headers = binary(x)
        headers["X-Stream"] = "yard"
        response = call.post(INFER, content=body.replace(b"true", b"null"), headers=headers)
        got = outputs(response)
        assert response.json()["parameters"]["stream"] == "yard"
        assert got["refused"] == ["", "not finite", "", ""]
        assert got["quarantined"] == ["", "", "constant", ""]
        assert got["predicted"][1] == -1
        assert got["logits"][3:6] == [None] * 3
        assert got["score"][1] is None
        neighbours = want(x[[0, 3]]).logits
        assert got["logits"][:3] + got["logits"][9:] == neighbours.flatten().tolist()


def test_learning_and_deadline_are_asked_for(tmp_path: Path) -> None:
    with serving(tmp_path) as call:
        before = call.infer(images(0)).json()["parameters"]
        asleep = call.infer(images(1), learn=False).json()["parameters"]
        assert (asleep["learned"], asleep["adapted"], asleep["skipped"]) == (False, False, "asked")
        assert asleep["state"] == before["state"]
        late = call.infer(images(2), deadline=1e-6).json()["parameters"]
        assert (late["skipped"], late["state"]) == ("deadline", before["state"])
        assert call.infer(images(3), deadline=60).json()["parameters"]["adapted"]


def test_the_deadline_of_the_options_holds_for_requests_without_one(tmp_path: Path) -> None:
    with serving(tmp_path, deadline=1e-6) as call:
        call.infer(images(0))
        assert call.infer(images(1)).json()["parameters"]["skipped"] == "deadline"


def test_streams_are_apart(tmp_path: Path) -> None:
    alone = served().build(TENT)
    with serving(tmp_path) as call:
        for i in range(3):
            call.infer(images(100 + i), stream="noise")
            got = outputs(call.infer(images(i), stream="quiet"))
            assert got["logits"] == alone(images(i)).logits.flatten().tolist()
        assert call.get("/streams").json() == {"streams": ["noise", "quiet"], "found": 2, "total": 2}


def test_requests_at_once_are_all_answered(tmp_path: Path) -> None:
    with serving(tmp_path) as call:
        calls = [("POST", INFER, {"json": request(images(i), stream=f"s{i % 3}")}) for i in range(24)]
        responses = call.gather(*calls, ("GET", "/v2/health/live", {}), ("GET", "/metrics", {}))
        assert {r.status_code for r in responses} == {200}
        assert [call.session.status(f"s{i}").offset for i in range(3)] == [32, 32, 32]


def test_a_large_body_is_parsed_beside_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    from testtime.serve.server import bodies, service

    seen = []

    def noted(body: bytes, *given: object) -> object:
        seen.append((len(body) > 2**16, threading.current_thread() is threading.main_thread()))
        return bodies.validated(body, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(service, "validated", noted)
    x = images(0, 100)
    want = served().build(TENT)(x)
    with serving(tmp_path) as call:
        assert outputs(call.infer(x, deadline=60, stream="a"))["logits"] == want.logits.flatten().tolist()
        call.infer(x[:1])
        bad = call.post(INFER, content=b"[" + b"1," * 2**16)
    assert seen == [(True, False), (False, True), (True, False)]
    assert (bad.status_code, bad.json()["code"]) == (400, "bad-json")
