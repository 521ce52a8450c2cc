"""Session directories of every format that was released are still resumed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from small_session import images, network

from testtime.files import read_tensors
from testtime.serve import Session, verify_session
from testtime.serve.snapshots import FORMAT

FIXTURES = Path(__file__).parent / "fixtures"
FORMATS = sorted(FIXTURES.glob("session-*"))


def test_every_format_has_a_fixture() -> None:
    assert [folder.name for folder in FORMATS] == [f"session-{n}" for n in range(1, FORMAT + 1)]


@pytest.mark.parametrize("folder", FORMATS, ids=lambda folder: folder.name)
def test_a_session_of_a_format_goes_on(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    model = network()
    model.load_state_dict(read_tensors(folder / "model.safetensors")[0])
    assert verify_session(tmp_path).faults == ()
    with Session.resume(model, tmp_path) as session:
        for name, expected in json.loads((folder / "expected.json").read_text()).items():
            status = session.status(name)
            found = {key: getattr(status, key) for key in expected}
            assert found == expected
        answer = session.submit(images(3), "camera")
        assert answer.learned
        assert bool(torch.isfinite(answer.logits).all())
        assert session.rollback("camera", 1) is not None
