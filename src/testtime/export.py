"""Export of a frozen model to ONNX by torch's exporter, for runtimes without Python."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from testtime.adapter import Adapter
from testtime.files import make_folder
from testtime.gate import batch_of
from testtime.intake.named import NamedTensors

__all__ = ["export_onnx"]


def export_onnx(model: nn.Module, example: Tensor | Mapping[str, Tensor], file: str | Path) -> None:
    """Write a model as ONNX, for batches of any number of samples.

    Input names are those of a dictionary, or "x"; the output is "logits", or the outputs of a multi-task model by task. The
    other dimensions are those of the example: pad token ids to one length.

    Args:
        model: module from a batch to logits, such as ``adapter.freeze()``.
        example: batch of two samples at least, as the model takes it.
        file: path of the ONNX file; its folder is made where there is none.

    Raises:
        ImportError: onnx or onnxscript is not installed.
        TypeError: the model is an adapter, or the example is no batch.
        ValueError: the example has fewer than two samples.
        FileExistsError, IsADirectoryError: the file is a folder, or its folder a file.
    """
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"the export needs {' and '.join(missing)}; pip install 'testtime[export]'")
    if isinstance(model, Adapter):
        raise TypeError("an adapter learns, and ONNX holds what predicts alone; pass adapter.freeze()")
    batch = batch_of(example)
    if len(batch) < 2:
        raise ValueError(
            f"expected an example of two samples at least, got {len(batch)}; one would be taken for the only size of a batch"
        )
    named = isinstance(batch, NamedTensors)
    given: Any = dict(batch.entries) if isinstance(batch, NamedTensors) else batch
    if Path(file).is_dir():
        raise IsADirectoryError(
            f"{file} is a folder; expected the name of an ONNX file: {Path(file, 'model.onnx')}"
        )
    make_folder(Path(file).parent)  # before the export, which takes long
    any_number = {0: torch.export.Dim.DYNAMIC}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own internals
        y = model(given)
        torch.onnx.export(
            model,
            (given, {}),  # a last dictionary would be taken for keywords
            str(file),
            input_names=list(given) if named else ["x"],
            output_names=list(y) if isinstance(y, Mapping) else ["logits"],
            dynamic_shapes=(dict.fromkeys(given, any_number) if named else any_number,),
            dynamo=True,
            verbose=False,
        )
