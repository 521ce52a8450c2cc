"""The examples of other libraries run, and stay short."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
PRINTED = {
    "text_loader.py": "4 batches, updated: True, logits (16, 3)",
    "huggingface_pipeline.py": "12 answers such as ['label', 'score'], 2 batches learned",
    "lightning_predict.py": "48 predictions, 3 batches learned",
}
NEEDS = {"huggingface_pipeline.py": "transformers", "lightning_predict.py": "pytorch_lightning"}


@pytest.mark.parametrize("name", PRINTED)
def test_runs_and_adapts(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name], reason="pip install -e '.[interop]'")
    assert len((EXAMPLES / name).read_text().splitlines()) <= 30
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    assert capsys.readouterr().out.splitlines()[-1] == PRINTED[name]
