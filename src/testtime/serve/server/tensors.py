"""Tensors of the Open Inference Protocol: as JSON, and as bytes behind the JSON (binary tensor extension)."""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from testtime.serve.server.problems import Refusal
from testtime.serve.server.schemas import InputTensor

__all__ = ["BYTES_HEADER", "Array", "input_tensor", "packed", "split"]

BYTES_HEADER = "Inference-Header-Content-Length"
TYPES: dict[str, tuple[torch.dtype, int]] = {
    "FP32": (torch.float32, 4),
    "FP64": (torch.float64, 8),
    "FP16": (torch.float16, 2),
    "BF16": (torch.bfloat16, 2),
}
SIGNS = "expected FP32 (or FP64; FP16 and BF16 as bytes)"
FLOATS = "convert images of 0 to 255 to FP32 by dividing by 255"
Array = NDArray[Any] | Sequence[str]
"""An output: numbers, or texts (BYTES)."""


def split(body: bytes, header: str | None) -> tuple[bytes, memoryview]:
    """Divide a body into its JSON and the bytes behind it.

    Args:
        body: body of the request.
        header: value of the header ``Inference-Header-Content-Length``; None: it is all JSON.

    Raises:
        Refusal: 400: the header is no number, or larger than the body.
    """
    if header is None:
        return body, memoryview(b"")
    if not header.isascii() or not header.isdecimal() or len(header) > 12 or int(header) > len(body):
        raise Refusal(
            400,
            "bad-length",
            f"{BYTES_HEADER} is {header[:40]!r}, expected the number of bytes of the JSON, at most {len(body)}",
            "count the bytes of the JSON, not its characters",
        )
    return body[: int(header)], memoryview(body)[int(header) :]


def input_tensor(
    inputs: Sequence[InputTensor], rest: memoryview, expected: Sequence[int], limit: int
) -> Tensor:
    """Return the one input of a request.

    Args:
        inputs: inputs of the request.
        rest: bytes behind the JSON.
        expected: shape of the input, -1 for a dimension of any size.
        limit: largest number of samples.

    Returns:
        float tensor of the shape.

    Raises:
        Refusal: 400 or 413: it is none of that; name, type, shape and the amount of data are compared before memory is
            allocated for it.
    """
    if len(inputs) != 1 or inputs[0].name != "input":
        names = ", ".join(repr(one.name[:40]) for one in inputs[:5])
        raise Refusal(
            400, "bad-inputs", f"the inputs are {names}, expected one with the name 'input'", "send one batch"
        )
    one = inputs[0]
    if one.datatype not in TYPES:
        raise Refusal(400, "bad-datatype", f"the type of the input is {one.datatype[:40]!r}, {SIGNS}", FLOATS)
    _check_shape(one.shape, expected, limit)
    count, (dtype, width) = math.prod(one.shape), TYPES[one.datatype]
    size = one.parameters.get("binary_data_size")
    if (size is None) == (one.data is None):
        raise Refusal(
            400,
            "bad-data",
            "expected either data or the parameter binary_data_size of the input",
            "send one of them",
        )
    if one.data is not None:
        if len(rest):
            raise Refusal(
                400,
                "bad-length",
                f"{len(rest)} bytes follow the JSON and no input has binary_data_size",
                "remove them",
            )
        if width == 2:
            raise Refusal(400, "bad-datatype", f"{one.datatype} has no form in JSON", "send FP32, or bytes")
        return torch.from_numpy(_numbers(one.data, one.shape, count, np.dtype(f"f{width}")))
    if type(size) is not int or size != count * width or size != len(rest):
        raise Refusal(
            400,
            "bad-length",
            f"binary_data_size is {str(size)[:40]} and {len(rest)} bytes follow the JSON, expected {count * width} for "
            f"{one.datatype} {list(one.shape)}",
            "set binary_data_size, Content-Length and Inference-Header-Content-Length together",
        )
    return torch.frombuffer(bytearray(rest), dtype=dtype).reshape(one.shape)


def _check_shape(shape: Sequence[int], expected: Sequence[int], limit: int) -> None:
    fits = len(shape) == len(expected) and all(e in (-1, n) for n, e in zip(shape, expected, strict=True))
    if not fits or min(shape, default=0) < 1:
        raise Refusal(
            400,
            "bad-shape",
            f"the shape of the input is {list(shape)}, expected {list(expected)} (-1: any size from 1)",
            "add the batch dimension of one image, and bring images to the size of the model",
        )
    if shape[0] > limit:
        raise Refusal(
            413,
            "batch-too-large",
            f"the batch has {shape[0]} samples, expected at most {limit}",
            "send smaller batches",
        )


def _numbers(data: list[Any], shape: Sequence[int], count: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """The numbers of flat or nested lists; every list has the length that the shape says."""
    flat: list[Any] = data
    if data and isinstance(data[0], list):
        for depth, length in enumerate(shape):
            if len(flat) != math.prod(shape[: depth + 1]):
                raise _wrong_amount(f"{len(flat)} lists or numbers at depth {depth + 1}", shape)
            if depth == len(shape) - 1:
                break
            inner = shape[depth + 1]
            if not all(isinstance(row, list) and len(row) == inner for row in flat):
                raise _wrong_amount(f"rows of other lengths than {inner} at depth {depth + 2}", shape)
            flat = list(itertools.chain.from_iterable(flat))
            del length
    if len(flat) != count:
        raise _wrong_amount(f"{len(flat)} numbers", shape)
    if not set(map(type, flat)) <= {int, float}:
        other = next(value for value in flat if type(value) not in (int, float))
        raise Refusal(
            400,
            "bad-data",
            f"the data hold a value of type {type(other).__name__}, expected numbers",
            "send numbers",
        )
    try:
        with np.errstate(over="ignore"):
            return np.array(flat, dtype=dtype).reshape(shape)
    except OverflowError:
        raise Refusal(
            400, "bad-data", "the data hold a number that no FP64 can", "send images in [0, 1]"
        ) from None


def _wrong_amount(found: str, shape: Sequence[int]) -> Refusal:
    return Refusal(
        400, "bad-data", f"the data hold {found}, expected those of the shape {list(shape)}", "compare them"
    )


DATATYPES = {"f4": "FP32", "f8": "FP64", "i8": "INT64"}


def packed(outputs: Mapping[str, Array], binary: Mapping[str, bool]) -> tuple[list[dict[str, Any]], bytes]:
    """Return outputs as the protocol has them, and the bytes that follow the JSON.

    Args:
        outputs: arrays or texts by name, one row for each sample.
        binary: whether an output is sent as bytes, by name.
    """
    described, tail = [], []
    for name, values in outputs.items():
        texts = not isinstance(values, np.ndarray)
        shape = [len(values)] if texts else list(values.shape)  # type: ignore[union-attr]
        datatype = "BYTES" if texts else DATATYPES[values.dtype.str[1:]]  # type: ignore[union-attr]
        one: dict[str, Any] = {"name": name, "shape": shape, "datatype": datatype}
        if binary[name]:
            raw = b"".join(map(_text, values)) if texts else np.ascontiguousarray(values).tobytes()
            one["parameters"] = {"binary_data_size": len(raw)}
            tail.append(raw)
        else:
            one["data"] = list(values) if texts else values.ravel().tolist()  # type: ignore[union-attr]
        described.append(one)
    return described, b"".join(tail)


def _text(value: str) -> bytes:
    encoded = value.encode()
    return struct.pack("<I", len(encoded)) + encoded
