"""What a pre-trained model expects of one modality, given others: all tokens at once, in one pass.

4M's documentation finds one step enough where the picture is given; a sequence is not predicted here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from testtime.space.model import Batch, FourM

__all__ = ["predicted", "span"]


def span(model: FourM, stream: str) -> range:
    """The places of a stream among all of the model's.

    Raises:
        ValueError: the model has no such stream.
    """
    begin = 0
    for one in model.streams:
        if one.name == stream:
            return range(begin, begin + one.length)
        begin += one.length
    raise ValueError(f"no stream {stream!r}; the model has {', '.join(s.name for s in model.streams)}")


@torch.no_grad()
def predicted(
    model: FourM,
    stream: str,
    pixels: Tensor,
    shown: Tensor | None = None,
    given: tuple[str, Tensor] | None = None,
) -> Tensor:
    """The likeliest id of every place of a stream on the grid.

    Args:
        model: pre-trained.
        stream: asked for.
        pixels: (N, 3, H, W) in [0, 1].
        shown: (N, k) numbers of the patches of the picture that are shown; None shows all, unless something else is given.
        given: a stream and its ids (N, length) that are shown instead of the picture.

    Returns:
        (N, places) int64.

    Raises:
        ValueError: the model has no such stream, or it is a sequence or the picture itself.
    """
    kinds = {s.name: s.kind for s in model.streams}
    asked_of = span(model, stream)
    if kinds[stream] != "grid":
        raise ValueError(
            f"{stream} is of kind {kinds[stream]!r}; only tokens on the grid are predicted at once"
        )
    n, device = len(pixels), pixels.device
    name = "rgb" if given is None else given[0]
    source = span(model, name)
    places = torch.tensor(source, device=device).expand(n, -1)
    ids = torch.zeros_like(places) if given is None else given[1].to(device)
    if shown is not None:
        places, ids = places.gather(1, shown), ids.gather(1, shown)
    asked = torch.tensor(asked_of, device=device).expand(n, -1)
    nothing = torch.zeros_like(asked)
    batch = Batch(pixels, places, ids, asked, nothing, nothing)
    return model.logits(model.decode(batch, model.encode(batch)), stream).argmax(-1)
