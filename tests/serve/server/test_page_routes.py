"""The page without a browser: it holds no data, its policy fits its own script, and its data need a token."""

import base64
import hashlib
import re
from pathlib import Path

import pytest
import torch

pytest.importorskip("fastapi", reason="pip install -e '.[serve]'")
from server_world import MANAGE, TOKENS, USE, images, serving

from testtime.serve.page import ROUTER


def test_the_page_runs_its_own_script_and_nothing_else(tmp_path: Path) -> None:
    with serving(tmp_path, tokens=TOKENS, routers=(ROUTER,)) as call:
        answer = call.get("/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for name in ("script", "style"):
        (text,) = re.findall(f"<{name}>(.*?)</{name}>", answer.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}'" in policy
    assert not re.findall(r"""(?:src|href)="(?!data:)|url\(|@import|innerHTML\s*=[^=]| style=""", answer.text)
    assert set(re.findall(r"https?://[^\"' ]+", answer.text)) == {"http://www.w3.org/2000/svg"}


def test_the_history_lists_requests_after_an_offset(tmp_path: Path) -> None:
    with serving(tmp_path, routers=(ROUTER,)) as call:
        for seed in range(3):
            call.infer(images(seed), stream="hall")
        flat = torch.full((1, 3, 6, 6), 0.5)
        call.infer(torch.cat([images(9), flat]), stream="hall")
        found = call.get("/streams/hall/history").json()
        later = call.get("/streams/hall/history", params={"after": 4}).json()
        missing = call.get("/streams/other/history")
        wrong = call.get("/streams/hall/history", params={"after": "x"})
    assert (found["stream"], found["model"]) == ("hall", "small")
    assert [one["offset"] for one in found["records"]] == [0, 4, 8, 12]
    assert [one["offset"] for one in later["records"]] == [8, 12]
    assert all(one["moved"] > 0 and one["distance"] > 0 for one in found["records"])
    assert found["records"][-1]["quarantined"] == 1
    (held,) = found["held"]
    assert (held["offset"], held["reason"], held["refused"], held["image"]) == (16, "constant", False, None)
    assert (missing.status_code, wrong.status_code) == (404, 400)


def test_data_need_a_token_and_the_page_does_not(tmp_path: Path) -> None:
    with serving(tmp_path, tokens=TOKENS, routers=(ROUTER,)) as call:
        assert call.get("/").status_code == 200
        paths = ("/streams", "/streams/hall/history", "/shadow")
        assert [call.get(path).status_code for path in paths] == [401, 401, 401]
        for token in (USE, MANAGE):
            headers = {"Authorization": f"Bearer {token}"}
            assert [call.get(path, headers=headers).status_code for path in paths] == [200, 404, 200]
