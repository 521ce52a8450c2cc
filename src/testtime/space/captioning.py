r"""Captioning: an encoder and a new causal decoder that writes a caption of an image word by word.

.. math:: L = -\frac{1}{\sum_c T_c} \sum_c \sum_{t=1}^{T_c} \log p_\theta(w_t \mid w_{<t}, x)

A word attends to the words before it and to all features of the encoder. Images are not cropped, because a caption describes
the whole frame; in a mirrored image "left" and "right" are exchanged.

Departures: the paper's captions come from a vision-language model; ours are the sentences that :mod:`testtime.scenes` generates
from its records. The paper's decoder is not described; this one has the blocks of 4M's.

Reference: Singh, Garjani et al., TST-MM, table 13: base rate 1e-5 at batch 2048, 1400 epochs, warmup of 600.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from testtime.data.dense import DenseSet, sized
from testtime.metrics.captions import CIDErD, SceneGraphF
from testtime.parts.randomness import epochs, generator
from testtime.scenes.sceneset import SceneSet
from testtime.space.model import DecoderBlock, line_embedding
from testtime.space.segmenter import Encoder
from testtime.space.transfer import RECIPES as SEGMENTATION
from testtime.space.transfer import TransferRecipe, fit

__all__ = [
    "RECIPES",
    "CaptionVocabulary",
    "Captioner",
    "captions_of",
    "evaluate_captioner",
    "mirrored",
    "train_captioner",
]

PAD, BEGIN, END, UNKNOWN = range(4)
SPECIAL = ("<pad>", "<begin>", "<end>", "<unk>")

RECIPES: Mapping[str, TransferRecipe] = {
    "tiny": replace(SEGMENTATION["tiny"], scale=(1.0, 1.0)),
    "paper": TransferRecipe(epochs=1400, warmup=600, batch=2048, lr=8e-5, layer_decay=1.0, scale=(1.0, 1.0)),
}
"""Recipes by name. The paper's learning rate is its base rate 1e-5 times 2048 / 256; it does not mention layer decay."""


@final
class CaptionVocabulary:
    """Words in lower case, full stop and comma by id; the first four ids are padding, begin, end and unknown.

    Args:
        words: words without the special ones.

    >>> vocabulary = CaptionVocabulary.of(["A mug.", "A TV and a mug."])
    >>> vocabulary.words
    ('<pad>', '<begin>', '<end>', '<unk>', 'a', '.', 'mug', 'and', 'tv')
    >>> vocabulary.decode(vocabulary.encode("A red mug."))
    'a <unk> mug.'
    """

    def __init__(self, words: Iterable[str]) -> None:
        self.words = (*SPECIAL, *words)
        self.ids = {word: i for i, word in enumerate(self.words)}
        if len(self.ids) != len(self.words):
            raise ValueError("a vocabulary names every word once, and none of the special ones")

    @classmethod
    def of(cls, captions: Iterable[str], least: int = 1) -> CaptionVocabulary:
        """Make a vocabulary of the words of captions, the most frequent first.

        Args:
            captions: the captions.
            least: smallest number of occurrences of a word.
        """
        counts = Counter(word for caption in captions for word in _split(caption))
        return cls(
            word for word, n in sorted(counts.items(), key=lambda item: (-item[1], item[0])) if n >= least
        )

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, caption: str) -> list[int]:
        """Return the ids of a caption, between begin and end."""
        return [BEGIN, *(self.ids.get(word, UNKNOWN) for word in _split(caption)), END]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text up to the first end."""
        words: list[str] = []
        for i in ids:
            if i == END:
                break
            if i not in (PAD, BEGIN):
                words.append(self.words[i])
        return re.sub(r" ([.,])", r"\1", " ".join(words))


@final
class Captioner(nn.Module):
    """Encoder and causal decoder.

    Args:
        encoder: see :class:`~testtime.space.segmenter.Encoder`; trained in place.
        vocabulary: vocabulary of the captions.
        dim: width of the decoder.
        depth: blocks of the decoder.
        heads: attention heads of the decoder.
        max_len: words of a caption at most, with begin and end.
    """

    def __init__(
        self,
        encoder: Encoder,
        vocabulary: CaptionVocabulary,
        dim: int = 512,
        depth: int = 6,
        heads: int = 8,
        max_len: int = 128,
    ) -> None:
        super().__init__()
        self.encoder, self.vocabulary, self.max_len = encoder, vocabulary, max_len
        self.table = nn.Embedding(len(vocabulary), dim)
        self.context = nn.Linear(encoder.dim, dim)
        self.blocks = nn.ModuleList(DecoderBlock(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6, bias=False)
        self.register_buffer("position", line_embedding(max_len, dim), persistent=False)
        nn.init.normal_(self.table.weight, std=0.02)

    position: Tensor

    def forward(self, images: Any, ids: Tensor) -> Tensor:
        """Logits (N, L, V) of the word after each of (N, L).

        Raises:
            ValueError: more words than ``max_len``.
        """
        return self._next(self.context(self.encoder(images)), ids)

    def loss(self, images: Any, ids: Tensor) -> Tensor:
        """Mean cross-entropy in nats of captions (N, L) with begin, end and padding; padding is not a target."""
        logits = self(images, ids[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), ignore_index=PAD)

    @torch.no_grad()
    def write(self, images: Any, beams: int = 1) -> list[str]:
        """A caption for each image: the most probable word each time, or the most probable caption that beams find.

        A beam's worth is the sum of the log-probabilities of its words, end included, not corrected for length. A caption
        that has not ended at ``max_len`` words stops there. The model is used in the mode it is in; padding and begin are never
        written.
        """
        context = self.context(self.encoder(images))
        return [self.vocabulary.decode(ids) for ids in self._search(context, beams)]

    def _next(self, context: Tensor, ids: Tensor) -> Tensor:
        length = ids.shape[1]
        if length > self.max_len:
            raise ValueError(
                f"{length} words, but the captioner was built for {self.max_len}; give it more max_len"
            )
        x = self.table(ids) + self.position[:length]
        before = torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()[None, None]
        everywhere = torch.ones(1, 1, 1, context.shape[1], dtype=torch.bool, device=ids.device)
        for block in self.blocks:
            x = block(x, context, before, everywhere)
        return self.norm(x) @ self.table.weight.T

    def _search(self, context: Tensor, beams: int) -> list[list[int]]:
        count, words = len(context), len(self.vocabulary)
        ids = context.new_full((count, 1, 1), BEGIN, dtype=torch.long)
        worth = context.new_zeros(count, 1)
        for _ in range(self.max_len - 1):
            ended = ids[:, :, -1] == END
            ended |= ids[:, :, -1] == PAD
            if bool(ended.all()):
                break
            width = ids.shape[1]
            wide = context.repeat_interleave(width, 0)
            log_p = self._next(wide, ids.flatten(0, 1))[:, -1].float()
            log_p[:, [PAD, BEGIN]] = -torch.inf
            log_p = log_p.log_softmax(-1).view(count, width, words)
            # What has ended goes on with padding, at no cost.
            log_p = log_p.masked_fill(ended[..., None], -torch.inf)
            log_p[..., PAD] = log_p[..., PAD].masked_fill(ended, 0.0)
            total = (worth[..., None] + log_p).flatten(1)
            worth, best = total.topk(min(beams, total.shape[1]), 1)
            parents = ids.gather(1, (best // words)[..., None].expand(-1, -1, ids.shape[2]))
            ids = torch.cat([parents, (best % words)[..., None]], 2)
        best = worth.argmax(1)
        return ids[torch.arange(count, device=ids.device), best].tolist()


def train_captioner(
    model: Captioner,
    data: DenseSet,
    captions: Sequence[str],
    recipe: TransferRecipe,
    folder: str | Path,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> Captioner:
    """Train on images and their captions; see :func:`testtime.space.transfer.fit` for the folder.

    Args:
        model: model that is trained in place.
        data: images, which are resized to the encoder's size.
        captions: caption of each image, in order (:func:`captions_of`).
        recipe: recipe of the training; with ``flip``, captions are :func:`mirrored` with their images.
        folder: folder of this run alone.
        seed: random seed of the order, the augmentations and the model.
        device: device of the training.

    Returns:
        the model, in evaluation mode.

    Raises:
        ValueError: another number of captions than images, a caption that is too long, a recipe that crops, or the folder
            belongs to another run.
        NonFiniteError: a loss, a gradient or a weight is not finite.
    """
    if len(captions) != len(data):
        raise ValueError(f"{data.name} has {len(data)} images, but there are {len(captions)} captions")
    if recipe.scale != (1.0, 1.0):
        raise ValueError(
            f"a caption describes the whole image: expected a recipe with scale (1, 1), got {recipe.scale}"
        )
    longest = max((len(model.vocabulary.encode(c)) for c in captions), default=0)
    if longest > model.max_len:
        raise ValueError(f"a caption has {longest} words with begin and end; give the captioner more max_len")

    def loss(step: int) -> Tensor:
        indices = epochs(len(data), recipe.batch, seed, step)
        chance = torch.rand(len(indices), generator=generator(seed, step, "batch"))
        turned = ((chance < 0.5) & recipe.flip).tolist()
        images = [sized(data[i], model.encoder.size).image for i in indices]
        images = [image.flip(-1) if turn else image for image, turn in zip(images, turned, strict=True)]
        texts = [
            mirrored(captions[i]) if turn else captions[i] for i, turn in zip(indices, turned, strict=True)
        ]
        ids = _padded([model.vocabulary.encode(caption) for caption in texts])
        return model.loss(torch.stack(images).to(device), ids.to(device))

    what = {"task": "captions", "data": data.name, "samples": len(data), "words": len(model.vocabulary)}
    fit(model, loss, recipe, len(data), folder, what, seed, device)
    return model


def evaluate_captioner(
    model: Captioner,
    data: DenseSet,
    captions: Sequence[str],
    batch: int = 32,
    beams: int = 1,
    device: str | torch.device = "cpu",
) -> dict[str, float]:
    """Compute CIDEr-D (to 10) and the F-score of the scene graph (percent) of generated captions, one reference an image.

    Args:
        model: the captioner.
        data: images.
        captions: reference caption of each image.
        batch: images per forward pass.
        beams: width of the beam search.
        device: device of the evaluation.

    Returns:
        ``{"CIDEr-D": value, "scene graph F": percent}``.
    """
    cider, graph = CIDErD(), SceneGraphF()
    training = model.training
    model.to(device).eval()
    for first in range(0, len(data), batch):
        indices = range(first, min(first + batch, len(data)))
        images = torch.stack([sized(data[i], model.encoder.size).image for i in indices]).to(device)
        answers, references = model.write(images, beams), [[captions[i]] for i in indices]
        cider.update(answers, references)
        graph.update(answers, references)
    model.train(training)
    return {"CIDEr-D": cider.value(), "scene graph F": graph.value()}


def captions_of(scenes: SceneSet) -> list[str]:
    """Return the captions in the scenes' records, in the order of the frames.

    Args:
        scenes: the scenes.
    """
    return [str(scenes.spaces[space].records[row]["caption"]) for space, row in scenes.places]


def mirrored(caption: str) -> str:
    """Return the caption of the mirrored image.

    Args:
        caption: caption of the image.

    >>> mirrored("The sofa is to the left of the TV. The lamp is to the right of the sofa.")
    'The sofa is to the right of the TV. The lamp is to the left of the sofa.'
    """
    swapped = {"left": "right", "right": "left"}
    return re.sub(r"\b(left|right)\b", lambda found: swapped[found[0]], caption)


def _split(caption: str) -> list[str]:
    return re.findall(r"[a-z0-9]+(?:['’-][a-z0-9]+)*|[.,]", caption.lower())


def _padded(ids: Sequence[Sequence[int]]) -> Tensor:
    longest = max(map(len, ids))
    return torch.tensor([[*i, *[PAD] * (longest - len(i))] for i in ids])
