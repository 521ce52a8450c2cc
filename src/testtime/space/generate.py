"""Prediction of one modality from others by a pre-trained model: all tokens at once, in one forward pass.

According to 4M's documentation one step is enough where the picture is given. Sequences are not supported.
"""

from __future__ import annotations

import torch
from torch import Tensor

from testtime.space.model import Batch, FourM

__all__ = ["predicted", "span"]


def span(model: FourM, stream: str) -> range:
    """Return the positions of a stream among those of all streams.

    Args:
        model: the model.
        stream: name of the stream.

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
    """Predict the most probable id of every position of a stream of kind "grid".

    Args:
        model: pre-trained model.
        stream: name of the stream that is predicted.
        pixels: pictures (N, 3, H, W) in [0, 1].
        shown: indices (N, k) of the visible patches; None makes all visible.
        given: name of a stream and its ids (N, length), which replace the picture as input.

    Returns:
        ids (N, positions) int64.

    Raises:
        ValueError: the model has no such stream, or the stream is a sequence or the picture itself.
    """
    kinds = {s.name: s.kind for s in model.streams}
    asked_of = span(model, stream)
    if kinds[stream] != "grid":
        raise ValueError(
            f"{stream} is of kind {kinds[stream]!r}; only streams of kind 'grid' can be predicted"
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
