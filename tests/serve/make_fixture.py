"""Write a session directory of the present format to ``fixtures/session-N``: ``python tests/serve/make_fixture.py``.

Run once for every format, when it is released; the directories stay, so that later versions are tested with them.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from small_session import images, network, tent

from testtime.files import write_tensors
from testtime.serve import Session, SessionOptions
from testtime.serve.snapshots import FORMAT

FOLDER = Path(__file__).parent / "fixtures" / f"session-{FORMAT}"


def main() -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    options = SessionOptions(snapshot_every=2, asynchronous=False, now=lambda: 1.0)
    with Session(tent(), FOLDER, options=options) as session:
        for i in range(3):
            session.submit(images(i), "camera")
        session.submit(images(9), "Other")
        session.pause("Other")
        expected = {
            name: {
                "offset": session.status(name).offset,
                "step": session.status(name).step,
                "state": session.status(name).state,
                "paused": session.status(name).paused,
            }
            for name in session.streams()
        }
    (FOLDER / "lock").unlink()
    write_tensors(FOLDER / "model.safetensors", network().state_dict())
    (FOLDER / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
