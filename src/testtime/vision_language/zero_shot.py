r"""Zero-shot classification: the class whose text is most similar to the image.

.. math:: z_c(x) = s \, \frac{f(x)^\top g(t_c)}{\lVert f(x) \rVert \, \lVert g(t_c) \rVert}

with image encoder f, text encoder g, scale s, and the text :math:`t_c` of class c, its name in a template. With several
templates, the class has the mean of their embeddings of norm 1, itself scaled to norm 1.

Reference: Radford et al., Learning Transferable Visual Models From Natural Language Supervision, ICML 2021.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from testtime.vision_language.pair import ImageText

__all__ = ["ENSEMBLE", "ZeroShot", "zero_shot_of"]

ENSEMBLE = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)
"""The seven templates that the authors of CLIP recommend for ImageNet."""


@final
class ZeroShot(nn.Module):
    """A classifier made of class names: logits (N, K), so that every method for classifiers takes it.

    The texts are embedded once, into the weights of a linear ``head`` without a bias on the image embedding of norm 1: methods
    that look for a linear head find it, and the text encoder is not run again.

    Args:
        pair: image and text encoder.
        names: names of the K classes.
        template: text with ``{}`` in place of the name, or several whose embeddings are averaged.

    Raises:
        TypeError: ``pair`` is no :class:`ImageText`, or a name or a template is no text.
        ValueError: fewer than two names, an empty one, one that stands twice, names that the tokenizer does not tell apart, a
            template without exactly one ``{}``, or encoders of different widths.

    >>> from testtime.laws.worlds import WORLDS
    >>> pair = WORLDS["image-text"].make().pair
    >>> ZeroShot(pair, ["red", "green", "blue"], "a {} thing")(torch.rand(2, 3, 8, 8)).shape
    torch.Size([2, 3])
    """

    ids: Tensor

    def __init__(
        self, pair: ImageText, names: Sequence[str], template: str | Sequence[str] = "a photo of a {}."
    ) -> None:
        super().__init__()
        if not isinstance(pair, ImageText):
            raise TypeError(
                f"expected a pair of encoders, testtime.vision_language.ImageText(images, texts), got {type(pair).__name__}"
            )
        self.pair, self.names, self.templates = pair, _names(names), _templates(template)
        self.register_buffer("ids", pair.tokenize(self.prompts(self.templates[0])), persistent=False)
        self._check_tokens()
        means = torch.stack([pair.encode_texts(self.prompts(t)) for t in self.templates]).mean(0)
        self._context = self._shared_tokens()
        self.head = nn.Linear(means.shape[1], len(self.names), bias=False)
        self.head.weight = nn.Parameter(pair.scale * F.normalize(means, dim=1))

    def _check_tokens(self) -> None:
        """Refuse names of which the text encoder gets the same tokens: one of them would never be predicted.

        Raises:
            ValueError: two prompts have the same token ids.
        """
        seen: dict[tuple[int, ...], str] = {}
        for name, ids in zip(self.names, self.ids.tolist(), strict=True):
            if (other := seen.setdefault(tuple(ids), name)) != name:
                raise ValueError(
                    f"the tokenizer makes the same tokens of the classes {other!r} and {name!r}, so that they cannot be told "
                    "apart: words that it does not know, or prompts that it cuts; choose other or shorter names"
                )

    def _shared_tokens(self) -> int:
        """Number of tokens before the name that all prompts have, those at the start of every text left out."""
        start = int(self.pair.texts.start)  # type: ignore[arg-type]
        before = self.pair.tokenize([self.templates[0].split("{}")[0].strip()])[0]
        most = min(len(before), self.ids.shape[1])
        same = (self.ids[:, start:most] == before[start:most]).all(0).tolist()
        return same.index(False) if False in same else 0

    def prompts(self, template: str) -> list[str]:
        """Return the texts of the classes."""
        return [template.replace("{}", name) for name in self.names]

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, K) of images (N, 3, H, W)."""
        features = self.pair(x)
        if features.shape[1] != self.head.in_features:
            raise ValueError(
                f"the image encoder returned embeddings of width {features.shape[1]}, and the texts have "
                f"{self.head.in_features}; expected encoders that embed in one space"
            )
        return self.head(features)

    @property
    def context_slice(self) -> slice:
        """Places of the tokens before the name, which all classes share: what prompt tuning learns.

        Raises:
            ValueError: there are several templates, or no token before the name.
        """
        if len(self.templates) > 1:
            raise ValueError(
                f"a soft prompt starts from one template, and this classifier has {len(self.templates)}; build "
                'ZeroShot(pair, names, "a photo of a {}.")'
            )
        if not self._context:
            raise ValueError(
                f"the template {self.templates[0]!r} has no token before the name that all prompts share; a soft prompt starts "
                'from such tokens: "a photo of a {}."'
            )
        start = int(self.pair.texts.start)  # type: ignore[arg-type]
        return slice(start, start + self._context)

    def context(self) -> Tensor:
        """Return the embeddings (M, E) of the tokens before the name."""
        with torch.no_grad():
            return self.pair.embed(self.ids[:1])[0, self.context_slice].clone()

    def texts(self, contexts: Tensor) -> Tensor:
        """Return the text embeddings (..., K, D) of all classes under soft prompts, of norm 1.

        Args:
            contexts: (..., M, E), in place of the tokens before the name; gradients flow through them.
        """
        where = self.context_slice
        tokens = self.pair.embed(self.ids).to(contexts.dtype)
        shape = (*contexts.shape[:-2], len(self.ids))
        tokens = tokens.expand(*shape, *tokens.shape[1:])
        soft = contexts.unsqueeze(-3).expand(*shape, *contexts.shape[-2:])
        joined = torch.cat([tokens[..., : where.start, :], soft, tokens[..., where.stop :, :]], dim=-2)
        return self.pair.encode_tokens(joined, self.ids)


def zero_shot_of(model: nn.Module) -> ZeroShot:
    """Return the zero-shot classifier in a tree of modules.

    Raises:
        ValueError: there is none.
    """
    for module in model.modules() if isinstance(model, nn.Module) else ():
        if isinstance(module, ZeroShot):
            return module
    raise ValueError(
        f"expected a zero-shot classifier, got {type(model).__name__}; build one from class names: "
        "testtime.vision_language.ZeroShot(pair, names)"
    )


def _names(names: Sequence[str]) -> tuple[str, ...]:
    listed = not isinstance(names, str | Mapping) and hasattr(
        names, "__getitem__"
    )  # a set has no order of classes
    if not listed or not all(isinstance(name, str) for name in names):
        raise TypeError(f'names is a list of texts, such as ["dog", "horse"], got {names!r}')
    if len(names) < 2 or not all(name.strip() for name in names):
        raise ValueError(f"expected two class names or more, none of them empty, got {list(names)}")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(
            f"expected different class names, got {twice[0]!r} twice or more; leave one out, or name the classes apart"
        )
    return tuple(names)


def _templates(template: str | Sequence[str]) -> tuple[str, ...]:
    found = (
        (template,)
        if isinstance(template, str)
        else tuple(template)
        if isinstance(template, Sequence)
        else ()
    )
    if not found or not all(isinstance(text, str) for text in found):
        raise TypeError(f'template is a text such as "a photo of a {{}}.", or several, got {template!r}')
    for text in found:
        if text.count("{}") != 1:
            raise ValueError(
                f'a template has {{}} in place of the name once, "a photo of a {{}}.", got {text!r}'
            )
    return found
