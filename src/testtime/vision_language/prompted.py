"""What methods that adapt to one image share: a classifier with a soft prompt, views as embeddings, steps for each image.

Each image of a batch has a prompt of its own, which starts from the template and is dropped after the answer. The gradients of
several images are taken together, as those of the sum of their losses, of which each depends on one prompt alone; the optimizer
then takes the step of one image after the other, each from its own state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import final

import torch
from torch import Tensor, nn

from testtime.adapter import Adapter
from testtime.intake.views import views_of
from testtime.parts import entropy
from testtime.parts.randomness import generator
from testtime.vision_language.views import ViewMaker, resized_crops
from testtime.vision_language.zero_shot import ZeroShot, zero_shot_of

__all__ = ["Prompted", "each_prompt", "embedded_views", "logits_of", "restored", "soft_prompts"]

PROMPTS = 512  # prompts that are encoded at once with a graph


@final
class Prompted(nn.Module):
    """A zero-shot classifier with a soft prompt, the parameter ``context`` (M, E), in place of the words before the name.

    As long as the prompt has its initial value, the texts are not encoded again.

    Args:
        model: module that holds a :class:`ZeroShot` of one template with words before the name.

    Raises:
        ValueError: it holds none, or its template has no such words.
    """

    initial: Tensor

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        start = zero_shot_of(model).context()
        self.network, self.context = model, nn.Parameter(start.clone())
        self.register_buffer("initial", start, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, K) under the present prompt."""
        model = zero_shot_of(self.network)
        features = model.pair(x)
        if torch.equal(self.context, self.initial):
            return model.head(features)
        return model.pair.logits(features, model.texts(self.context))


def embedded_views(
    model: nn.Module,
    x: Tensor,
    views: int,
    seed: int,
    make: ViewMaker | None = None,
    area: tuple[float, float] = (0.08, 1.0),
) -> Tensor:
    """Return the embeddings (N, B, D) of the images and of views of them, without a graph; the first is the image itself.

    The draws depend on the seed alone, so that an image has the same views wherever and whenever it comes.

    Args:
        model: module that holds a :class:`ZeroShot`.
        x: images (N, C, H, W).
        views: B, number of views with the image itself.
        seed: random seed.
        make: function that makes the others; random resized crops unless given.
        area: least and greatest share of the image's area that a random crop has.
    """
    pair = zero_shot_of(model).pair
    with torch.no_grad():
        return torch.stack([pair(view) for view in views_with(model, x, views, seed, make, area)], dim=1)


def views_with(
    model: nn.Module, x: Tensor, views: int, seed: int, make: ViewMaker | None, area: tuple[float, float]
) -> Iterator[Tensor]:
    """The images, and views of them that keep the class as the model declares it.

    Raises:
        ValueError: ``make`` yields another number of views, or what are no views of the images.
    """
    yield x
    if views > 1:
        rng = generator(seed, 0, "views")
        declared = views_of(model)
        mirror = declared is None or declared.mirror
        if make is None:
            yield from resized_crops(x, views - 1, rng, area, mirror)
            return
        made = make(x, views - 1, rng)
        found = list(islice(made, views)) if isinstance(made, Iterable) else [made]
        wrong = [v for v in found if not _is_view(v, x)]
        if wrong or len(found) != views - 1:
            got = [
                f"{tuple(v.shape)}, {v.dtype}" if isinstance(v, Tensor) else type(v).__name__
                for v in wrong[:1]
            ]
            raise ValueError(
                f"augment yields {views - 1} batches of views ({len(x)}, {x.shape[1]}, H, W), {x.dtype}, got "
                f"{f'one of {got[0]}' if wrong else len(found)}"
            )
        yield from found


def logits_of(model: ZeroShot, features: Tensor, contexts: Tensor | None = None) -> Tensor:
    """Return the logits (N, B, K) of embeddings (N, B, D) under the prompts (N, M, E) of their images, or the template."""
    return model.head(features) if contexts is None else model.pair.logits(features, model.texts(contexts))


def entropies(logits: Tensor) -> Tensor:
    """The entropies (N, B) of logits (N, B, K)."""
    return entropy(logits.flatten(0, 1)).view(logits.shape[:2])


def restored(adapter: Adapter, state: dict[str, Tensor]) -> None:
    """Give an adapter's parameters and optimizer the values of a state; its clock and the statistics of its layers go on."""
    own = adapter.moving().keys() - {"clock"}
    adapter._restore({name: value for name, value in state.items() if name in own})


def each_prompt(adapter: Adapter, images: int, steps: int, loss: Callable[[Tensor, slice], Tensor]) -> Tensor:
    """Tune a prompt for each image, from the initial one, and leave the adapter as it was.

    An image whose gradient is not finite keeps its prompt, so that it does not cost its neighbours theirs.

    Args:
        adapter: adapter whose only adapted parameter is the context of a :class:`Prompted`.
        images: N, number of images.
        steps: number of steps of the optimizer.
        loss: function of the prompts (n, M, E) of some images and which these are, that returns their losses (n,).

    Returns:
        the prompts (N, M, E), without a graph.
    """
    prompted = adapter.model.get_submodule("network")
    model, initial = zero_shot_of(prompted), adapter._initial_state()
    context = prompted.get_parameter("context")
    contexts = context.detach().expand(images, *context.shape).clone()
    states = [initial] * images
    at_once = max(1, PROMPTS // len(model.names))
    for _ in range(steps):
        parts = []
        for first in range(0, images, at_once):
            rows = slice(first, min(first + at_once, images))
            with torch.enable_grad():
                leaf = contexts[rows].clone().requires_grad_()
                parts.append(torch.autograd.grad(loss(leaf, rows).sum(), leaf)[0])
        for i, gradient in enumerate(torch.cat(parts)):
            if not bool(gradient.isfinite().all()):
                continue
            restored(adapter, states[i])
            adapter.update([gradient])
            states[i] = {name: value.detach().clone() for name, value in adapter.moving().items()}
            contexts[i] = context.detach()
    restored(adapter, initial)
    return contexts


def soft_prompts(model: ZeroShot, features: Tensor, contexts: Tensor) -> Tensor:
    """Return the logits (N, K) of embeddings (N, D), each under the prompt (M, E) of its image, a few images at a time."""
    at_once = max(1, PROMPTS // len(model.names))
    pairs = zip(features.split(at_once), contexts.split(at_once), strict=True)
    with torch.no_grad():
        return torch.cat([logits_of(model, f[:, None], c)[:, 0] for f, c in pairs])


def _is_view(view: object, x: Tensor) -> bool:
    """Whether something is a batch of views of images, of any height and width."""
    if not isinstance(view, Tensor) or view.dim() != 4 or view.dtype != x.dtype:
        return False
    return view.shape[:2] == x.shape[:2]
