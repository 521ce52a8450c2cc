r"""Conversion of 4M's published weights to :class:`~testtime.space.model.FourM`.

========================================================  ======================================  =========================
theirs                                                    ours                                    note
========================================================  ======================================  =========================
``encoder_embeddings.<rgb>.proj.weight``                  ``pixels.weight``                       rows, columns, channels
``encoder_embeddings.<modality>.token_emb.weight``        ``tokens.<stream>.weight``
``encoder_embeddings.<modality>.mod_emb``                 ``modality.<stream>``                   (1, 1, dim)
``decoder_embeddings.<modality>.mod_emb``                 the same                                has to be equal
``decoder_embeddings.<modality>.to_logits.weight``        ``answers.<stream>.weight``
``decoder_embeddings.<modality>.token_emb.weight``        sequences: the same; grids: unused      sequences: has to be equal
``<encoder or decoder>_embeddings.<modality>.pos_emb``    fixed, not loaded                       has to be the model's
``encoder.<i>.<...>``, ``encoder_norm.weight``            ``blocks.<i>.<...>``, ``norm.weight``
``decoder.<i>.<...>``, ``decoder_norm.weight``            the same
``decoder_proj_context.weight``, ``.bias``                ``context.weight``, ``.bias``
``mask_token``                                            ``mask_token``                          (1, 1, dim)
``<norm>.bias``                                           none                                    has to be 0
========================================================  ======================================  =========================

Released checkpoints hold the table of answers twice, as ``to_logits`` and as the decoder's ``token_emb``: training ties them,
release does not. Of a grid the decoder never reads ``token_emb`` (a mask token replaces it), so that ``to_logits`` is all that
is needed; of a sequence it reads both, and two that differ are refused, since the model has one table.

Names and forms are those of https://github.com/apple/ml-4m (code Apache-2.0, of which nothing is copied). The weights come
under a licence of their own, which that repository calls the Sample Code license: read it before you use them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import final

import torch
from torch import Tensor

from testtime.errors import WeightsError
from testtime.space.masking import Stream
from testtime.space.model import FourM

__all__ = ["load_4m"]

SHOWN = 8


def load_4m(
    model: FourM, state: Mapping[str, Tensor], streams: Mapping[str, str], leave_out: bool = False
) -> FourM:
    """Load weights that 4M published into a model.

    The published models of sizes B (without normalised queries and keys) and of 224 x 224 pixels fit
    ``FourM(streams, "B")``; the vocabularies are those of their tokenizers: 16,384 for ``tok_rgb@224``, 8,192 for
    ``tok_depth@224``, ``tok_normal@224`` and ``tok_clip@224``, 4,096 for ``tok_semseg@224``, 30,000 for ``caption``, ``det``.

    Args:
        model: model, changed in place if all tensors fit.
        state: tensors of the file (``safetensors.torch.load_file``).
        streams: 4M's name of each of the model's streams: {"rgb": "rgb@224", "tok_depth": "tok_depth@224"}.
        leave_out: whether modalities of the file without a stream are ignored; otherwise they are an error.

    Returns:
        the model.

    Raises:
        WeightsError: a stream has no name of 4M, or a tensor is missing, unknown, of another shape, or differs from the
            model's; the message lists them, and the model is unchanged.

    >>> from testtime.space.masking import Stream
    >>> model = FourM([Stream("rgb", "pixels", 4)], "tiny", (32, 32), 16)
    >>> load_4m(model, {}, {})
    Traceback (most recent call last):
    ...
    testtime.errors.WeightsError: the streams of the model are rgb; expected 4M's name of each, got names of none
    """
    names = {s.name for s in model.streams}
    if streams.keys() != names:
        raise WeightsError(
            f"the streams of the model are {', '.join(sorted(names))}; expected 4M's name of each, got names of "
            f"{', '.join(sorted(streams)) or 'none'}"
        )
    conversion = _Conversion(model, state)
    for number, stream in enumerate(model.streams):
        conversion.take_stream(number, stream, streams[stream.name])
    conversion.take_trunk()
    wrong = conversion.wrong
    left = [key for key in conversion.rest if not (leave_out and _of_another(key, streams.values()))]
    wrong += [f"{key} is unknown" for key in sorted(left)]
    if wrong:
        hint = "" if leave_out else "; leave_out=True ignores modalities without a stream"
        more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise WeightsError(
            f"the weights do not fit the model in {len(wrong)} tensors: {'; '.join(wrong[:SHOWN])}{more}{hint}"
        )
    model.load_state_dict(conversion.found)
    return model


@final
class _Conversion:
    """Tensors of a file of 4M by the model's names.

    Attributes:
        rest: tensors of the file that have not been taken.
        found: tensors by the model's names.
        wrong: descriptions of the tensors that do not fit.
    """

    def __init__(self, model: FourM, state: Mapping[str, Tensor]) -> None:
        self.model, self.own, self.rest = model, model.state_dict(), dict(state)
        self.found: dict[str, Tensor] = {}
        self.wrong: list[str] = []

    def take_stream(self, number: int, stream: Stream, name: str) -> None:
        """Take the embeddings of a modality, whose name in the file is ``name``."""
        own, at = self.own, stream.name
        position = self.model.position[self.model.stream_of == number]
        encoder, decoder = f"encoder_embeddings.{name}", f"decoder_embeddings.{name}"
        if stream.kind == "pixels":
            self._put("pixels.weight", f"{encoder}.proj.weight", lambda w: _by_channel(w, self.model.patch))
        else:
            self._put(f"tokens.{at}.weight", f"{encoder}.token_emb.weight")
            self._put(f"answers.{at}.weight", f"{decoder}.to_logits.weight")
            if stream.kind == "sequence":
                self._compare(f"answers.{at}.weight", f"{decoder}.token_emb.weight")
            else:
                self._take(f"{decoder}.token_emb.weight", own[f"answers.{at}.weight"].shape)
        self._put(f"modality.{at}", f"{encoder}.mod_emb", lead=2)
        if stream.kind != "pixels":
            self._compare(f"modality.{at}", f"{decoder}.mod_emb", lead=2)
        for side in (encoder,) if stream.kind == "pixels" else (encoder, decoder):
            key = f"{side}.pos_emb"
            self.wrong += _placed(self.rest.pop(key, None), key, position, stream.kind)

    def take_trunk(self) -> None:
        """Take the tensors that belong to no modality."""
        for ours in self.own:
            if (theirs := _theirs(ours)) is None:
                continue
            self._put(ours, theirs, lead=2 if ours == "mask_token" else 0)
            bias = theirs.removesuffix("weight") + "bias"
            if "norm" in ours and bias in self.rest:
                if self.rest[bias].count_nonzero():
                    self.wrong.append(f"{bias} is not 0, and the model's norms have none")
                del self.rest[bias]

    def _take(self, theirs: str, shape: Collection[int]) -> Tensor | None:
        value = self.rest.pop(theirs, None)
        if value is None:
            self.wrong.append(f"{theirs} is missing")
        elif tuple(value.shape) != tuple(shape):
            self.wrong.append(f"{theirs} is of {tuple(value.shape)}, the model needs {tuple(shape)}")
            return None
        return value

    def _put(
        self, ours: str, theirs: str, change: Callable[[Tensor], Tensor] | None = None, lead: int = 0
    ) -> None:
        """Take a tensor, which has ``lead`` more leading dimensions of size 1 than the model's."""
        shape = self.own[ours].shape
        value = self._take(theirs, (*[1] * lead, *shape))
        if value is not None:
            self.found[ours] = value.reshape(shape) if change is None else change(value.reshape(shape))

    def _compare(self, ours: str, theirs: str, lead: int = 0) -> None:
        """Check that a tensor of the file equals one that was taken."""
        shape = self.own[ours].shape
        value = self._take(theirs, (*[1] * lead, *shape))
        if (
            value is not None
            and ours in self.found
            and not torch.equal(value.reshape(shape), self.found[ours])
        ):
            self.wrong.append(
                f"{theirs} differs from the tensor for {ours}; the model has one tensor for both"
            )


def _theirs(ours: str) -> str | None:
    """Return 4M's name of a tensor that belongs to no modality."""
    first, _, rest = ours.partition(".")
    table = {"blocks": "encoder", "norm": "encoder_norm", "context": "decoder_proj_context"}
    if first in ("pixels", "tokens", "answers", "modality"):
        return None
    return f"{table.get(first, first)}.{rest}" if rest else first


def _by_channel(weight: Tensor, patch: int) -> Tensor:
    """Reorder a patch embedding (dim, rows * columns * channels) to (dim, channels * rows * columns)."""
    return weight.unflatten(1, (patch, patch, 3)).permute(0, 3, 1, 2).flatten(1)


def _placed(value: Tensor | None, name: str, position: Tensor, kind: str) -> list[str]:
    """Compare the position embedding (1, positions, dim) with the model's; return the differences as messages."""
    if value is None:
        return []
    fits = value.dim() == 3 and value.shape[2] == position.shape[1]
    fits = fits and (
        value.shape[1] >= len(position) if kind == "sequence" else value.shape[1] == len(position)
    )
    if not fits:
        return [
            f"{name} is of {tuple(value.shape)}, the model needs (1, {', '.join(map(str, position.shape))})"
        ]
    if not torch.allclose(value[0, : len(position)].float(), position.to(value.device), atol=1e-3):
        return [f"{name} differs from the sine-cosine position embedding of the model"]
    return []


def _of_another(key: str, named: Collection[str]) -> bool:
    """Return whether a tensor belongs to a modality without a stream."""
    side, _, rest = key.partition(".")
    if side not in ("encoder_embeddings", "decoder_embeddings"):
        return False
    return rest.partition(".")[0] not in named
