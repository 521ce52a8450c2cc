"""The folder of the state is removed, replaced or damaged while it is served."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="pip install -e '.[serve]'")
from server_world import TENT, images, served, serving

from testtime.serve import Session
from testtime.serve.server import open_session


@pytest.mark.parametrize("replaced", [False, True])
def test_a_removed_folder_stops_learning_and_not_the_answers(replaced: bool, tmp_path: Path) -> None:
    folder = tmp_path / "state"
    with serving(folder) as call:
        assert call.infer(images(0)).json()["parameters"]["learned"]
        number = call.post("/streams/default/snapshots").json()["number"]
        shutil.rmtree(folder)
        if replaced:
            folder.mkdir()
        call.infer(images(1))  # the record of this one is the first that is not written
        facts = call.infer(images(2)).json()["parameters"]
        assert (facts["learned"], facts["skipped"]) == (False, "audit")
        assert call.post("/streams/default/snapshots").status_code == 507
        assert call.post("/streams/default/rollback", json={"to": number}).status_code == 507
        refused = call("PUT", "/configuration", json={"method": "source", "guarded": False})
        assert (refused.status_code, refused.json()["advice"]) == (507, "restore the folder of the state")
        assert folder.exists() == replaced
        assert not call.service.closed
    assert not call.service.closed  # without a last snapshot


def test_a_stream_that_cannot_be_saved_does_not_keep_others_from_it(tmp_path: Path) -> None:
    with serving(tmp_path) as call:
        for name in ("a", "b", "c"):
            call.infer(images(0), stream=name)
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "streams").mkdir(exist_ok=True)
        (tmp_path / "streams" / "a").symlink_to(tmp_path / "elsewhere")
    assert not call.service.closed
    with Session.resume(served().network, tmp_path) as session:
        assert [session.status(name).offset for name in ("b", "c")] == [4, 4]


def test_a_second_server_of_a_folder_is_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from testtime.cli import main

    session, _ = open_session(served(), TENT, tmp_path)
    with session:
        command = ["serve", "--model", "digits-cnn", "--method", "tent", "--no-guard", "--port", "0"]
        assert main([*command, "--state", str(tmp_path)]) == 2
    printed = capsys.readouterr().err
    assert "is in use by another session" in printed
    assert len(printed.splitlines()) == 1
