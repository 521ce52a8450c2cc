r"""What a pre-trained model knows without a transfer: classes and depth, predicted as tokens from the picture and decoded.

Three figures separate what was never learned from what is lost in transfer: the model's decoded classes; the teacher's classes
after the tokenizer alone, which no prediction of tokens can pass; and the teacher itself. Depth is compared in the tokenizer's
scale, in which every image is standardised,

.. math:: e = \frac1{|K|} \sum_{p \in K} |\hat d_p - d_p|, \qquad K = \{p : d_p \text{ known}\}

Reference: Singh, Garjani et al., Multimodality as Supervision (TST-MM); the paper prints no such figures.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from testtime.data.dense import IGNORE, DenseSet
from testtime.metrics.dense import MeanIoU
from testtime.space.generate import predicted
from testtime.space.modalities import DEPTH
from testtime.space.model import FourM
from testtime.space.teachers import Teacher
from testtime.space.tokenizers import Tokenizer

__all__ = ["decoded"]


@torch.no_grad()
def decoded(
    model: FourM, tokenizers: Mapping[str, Tokenizer], teacher: Teacher, data: DenseSet, batch: int = 32
) -> dict[str, Any]:
    """Predict classes and depth of pictures, and measure them.

    Args:
        model: pre-trained model with the streams "tok_classes" and "tok_depth".
        tokenizers: tokenizers of "classes" and "depth".
        teacher: teacher whose classes were learned.
        data: frames with "semseg" and "depth".
        batch: number of frames per forward pass.

    Returns:
        "decoded mIoU" and "IoU" by class in percent, of the model's classes against the labels; "token mIoU", of the teacher's
        classes after the tokenizer; "agreement", mIoU of the model's classes against the teacher's; "depth error" of the
        model's depth and "token depth error" of the true depth after the tokenizer, mean absolute in standard deviations.

    Raises:
        ValueError: the model does not have these streams.
    """
    count, reader, ruler = len(data.classes), tokenizers["classes"], tokenizers["depth"]
    own, coded, alike = (MeanIoU(count) for _ in range(3))
    errors: dict[str, list[Tensor]] = {"depth error": [], "token depth error": []}
    for first in range(0, len(data), batch):
        rows = range(first, min(first + batch, len(data)))
        x, labels = data.batch(rows, model.image)
        taught = teacher.classes(x)
        named = reader.decode(predicted(model, "tok_classes", x))
        own.update(_votes(named, count), labels["semseg"])
        coded.update(_votes(reader.decode(reader.encode(taught)), count), labels["semseg"])
        alike.update(_votes(named, count), taught)
        truth, known = DEPTH.normalised(labels["depth"]), labels["depth"].isfinite()
        for name, ids in zip(
            errors, (predicted(model, "tok_depth", x), ruler.encode(labels["depth"])), strict=True
        ):
            errors[name].append((ruler.decode(ids) - truth).abs()[known])
    figures = {name: float(torch.cat(values).mean()) for name, values in errors.items()}
    by_class = dict(zip(data.classes, own.by_class.tolist(), strict=True))
    shares = {"decoded mIoU": own, "token mIoU": coded, "agreement": alike}
    return {**{name: meter.value() for name, meter in shares.items()}, "IoU": by_class, **figures}


def _votes(named: Tensor, count: int) -> Tensor:
    """Classes (N, H, W) as logits (N, C, H, W); where none is known, the first."""
    return F.one_hot(named.masked_fill(named == IGNORE, 0), count).movedim(-1, 1).float()
