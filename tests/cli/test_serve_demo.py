"""``testtime serve --demo``: what it takes, and that it serves until Ctrl+C and leaves nothing behind."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import pytest

from testtime.cli.serve import Adaptation, Shadows, Showing


def test_the_demo_has_its_own_model_and_images():
    asked = Showing(demo=True).check(Adaptation(), None)
    assert (asked.model, asked.method) == ("digits-cnn", "tent")
    assert Showing(demo=True).check(Adaptation(method="eata"), None).method == "eata"
    for given in (Adaptation(model="resnet20"), Adaptation(source="images")):
        with pytest.raises(ValueError, match="the demo has its own model and images"):
            Showing(demo=True).check(given, None)


def test_a_server_needs_a_model_and_a_folder():
    with pytest.raises(ValueError, match="serve needs --model; testtime serve --demo"):
        Showing().check(Adaptation(), "state")
    with pytest.raises(ValueError, match="serve needs --state"):
        Showing().check(Adaptation(model="digits-cnn"), None)
    with pytest.raises(ValueError, match="--no-browser belongs to --demo"):
        Showing(no_browser=True).check(Adaptation(model="digits-cnn"), "state")


def test_the_method_that_serves_is_the_first_candidate():
    server = pytest.importorskip(
        "testtime.serve.server", reason="pip install -e '.[serve]'", exc_type=ImportError
    )
    used = server.Configuration("tent", {"a": 1}, guarded=False)
    found = Shadows(("eata", "tent")).configurations(used)
    assert list(found) == ["tent", "eata"]
    assert found["tent"] is used
    assert found["eata"] == server.Configuration("eata", {}, guarded=False)
    assert Shadows().configurations(used) == {}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_it_serves_a_camera_until_it_is_interrupted():
    for name in ("fastapi", "sklearn"):
        pytest.importorskip(name, reason="pip install -e '.[serve,demo]'")
    command = [sys.executable, "-m", "testtime", "serve", "--demo", "--no-browser", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as demo:
        assert demo.stdout is not None
        found = next(
            filter(None, (re.search(r"(http://\S+\d), state in (\S+)", line) for line in demo.stdout))
        )
        url, folder = found[1], Path(found[2])
        try:
            seen = 0
            while seen < 64:
                time.sleep(0.5)
                with urlopen(f"{url}/streams", timeout=60) as answer:
                    names = json.load(answer)["streams"]
                if names == ["camera"]:
                    with urlopen(f"{url}/streams/camera", timeout=60) as answer:
                        seen = json.load(answer)["offset"]
            with urlopen(f"{url}/", timeout=60) as answer:
                assert b"testtime serve" in answer.read()
            assert folder.is_dir()
        finally:
            demo.send_signal(signal.SIGINT)
        _, errors = demo.communicate(timeout=300)
    assert demo.returncode == 130
    assert errors == ""
    assert not folder.exists()
