"""What holds in every test."""

import signal

import pytest
import torch

torch.set_num_threads(1)  # the machine may be small, and the numbers are the same
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # inherited from a shell's background job
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Specify the charts of pages without drawing them, in tests of what stands beside them: drawing takes most of the time."""
    from testtime.report import drawing

    monkeypatch.setattr(drawing, "_svg", lambda wanted: ("<path></path>", float(wanted["width"]), 100.0))
