"""Views that keep the class: augmentations without the changes that a model forbids, and a warning where none is declared."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import partial
from inspect import isfunction
from typing import Any, final

import torch
from torch import Tensor, nn

from testtime.errors import AdapterWarning
from testtime.intake.sharing import twin
from testtime.intake.views import Views, views_of
from testtime.norm.batch import BatchStatistics
from testtime.norm.layer import swap_policy
from testtime.parts.augment import SHIFT, Augmentation, katana, random_crop_flip, simclr
from testtime.parts.chains import augmix

__all__ = ["MirrorCheck", "changes_of", "contradicted", "preserving"]

CHANGES: dict[Augmentation, tuple[str, ...]] = {
    augmix: ("mirror", "turn", "colour"),
    katana: ("mirror", "turn", "colour"),
    random_crop_flip: ("mirror",),
    simclr: ("mirror", "colour"),
}
"""The changes of each augmentation of the library, each with a keyword of its name that leaves it out."""
SHIFTED: tuple[Augmentation, ...] = (augmix, katana, random_crop_flip)
"""The augmentations that shift an image by an eighth of its side at most, or by their keyword ``shift``."""


def changes_of(augment: object) -> tuple[str, ...]:
    """Which of the changes "mirror", "turn" and "colour" an augmentation of the library makes.

    Args:
        augment: an augmentation, or a ``functools.partial`` of one; nothing is known of any other object.

    >>> changes_of(simclr), changes_of(partial(simclr, mirror=False)), changes_of(abs)
    (('mirror', 'colour'), ('colour',), ())
    """
    function, given = _parts(augment)
    changes = CHANGES.get(function, ()) if isfunction(function) else ()
    return tuple(name for name in changes if given.get(name, True))


def _parts(augment: Any) -> tuple[Any, dict[str, Any]]:
    """A function and the keywords that it is called with."""
    return (augment.func, augment.keywords) if isinstance(augment, partial) else (augment, {})


def preserving(augment: Augmentation, model: nn.Module) -> Augmentation:
    """The augmentation without the changes, and with the shift, that keep a class as the model declares it.

    Args:
        augment: library augmentation, or a ``functools.partial`` of one; a keyword that was given stays as it is, and a
            function of the user's own is returned as it is.
        model: a model; where none of its modules declares :class:`~testtime.models.Views`, nothing is left out.

    >>> from testtime.models import load_model
    >>> preserving(simclr, load_model("digits-cnn")).keywords
    {'mirror': False}
    >>> preserving(simclr, nn.Linear(3, 2)) is simclr
    True
    """
    declared = views_of(model) or Views()
    function, given = _parts(augment)
    kept: dict[str, Any] = {name: False for name in changes_of(augment) if name in declared.forbidden}
    if function in SHIFTED and declared.shift < SHIFT:
        kept["shift"] = declared.shift
    kept = {name: value for name, value in kept.items() if name not in given}
    view: Callable[..., Tensor] = augment
    return partial(view, **kept) if kept else augment


CONFIDENT = 0.9
KEPT = 0.2  # share of contradictions, at most, where a mirrored image keeps its class
CHANGED = 0.45  # share of contradictions, at least, where it does not
ERROR = 1e-3  # probability of a warning at a share of KEPT, and of none at a share of CHANGED
LIMIT = 1000  # images after which no more are examined


@torch.no_grad()
def contradicted(model: nn.Module, x: Tensor) -> tuple[int, int] | None:
    """How many images are predicted with confidence both as they are and mirrored, and how many of them as two classes.

    BatchNorm layers use the statistics of the batch, which distinguish classes also on corrupted images.

    Args:
        model: returns logits (N, C); nothing of it changes.
        x: images (N, C, H, W).

    Returns:
        the number of images, and that of contradictions; None where the model returns anything but logits (N, C).
    """
    network = swap_policy(twin(model), BatchStatistics, again=True)
    answers = [network(view) for view in (x, x.flip(-1))]
    if not all(isinstance(y, Tensor) and y.dim() == 2 and y.shape[1] > 1 for y in answers):
        return None
    (p, here), (q, there) = (y.float().softmax(dim=1).max(dim=1) for y in answers)
    sure = (p > CONFIDENT) & (q > CONFIDENT)
    return int(sure.sum()), int((sure & (here != there)).sum())


@final
class MirrorCheck:
    r"""Warns once if views are mirrored, the model declares nothing, and its answers contradict each other under the mirror.

    A sequential probability ratio test of the share of contradictions, with one Bernoulli trial for each image of
    :func:`contradicted`: it decides between 0.2 and 0.45 as soon as the evidence

    .. math:: \sum_i \log \frac{P(\text{trial}_i; 0.45)}{P(\text{trial}_i; 0.2)}

    leaves :math:`\pm \log 999`. It takes two forwards of each batch until then, usually of the first hundred images, of the
    first thousand at most.

    Attributes:
        open: whether it has not decided yet.
        warned: whether it has warned.

    Reference: Wald, Sequential Tests of Statistical Hypotheses, 1945.
    """

    def __init__(self) -> None:
        self.open, self.warned = True, False
        self.seen = self.images = self.contradictions = 0

    def __call__(self, adapter: nn.Module, x: Tensor) -> None:
        """Look at a batch before the adapter learns from it.

        Args:
            adapter: holds its network as ``model`` and its augmentations as attributes.
            x: images (N, C, H, W).
        """
        if not self.open:
            return
        model = adapter.model
        assert isinstance(model, nn.Module)
        mirrors = any("mirror" in changes_of(value) for value in vars(adapter).values())
        if not mirrors or not isinstance(x, Tensor) or x.dim() != 4 or views_of(model) is not None:
            self.open = False
        if not self.open:
            return
        found = contradicted(model, x)
        if found is None:
            self.open = False  # logits for each pixel, whose mirror image is mirrored back
            return
        self.seen += len(x)
        self.images, self.contradictions = self.images + found[0], self.contradictions + found[1]
        evidence = self.contradictions * math.log(CHANGED / KEPT)
        evidence += (self.images - self.contradictions) * math.log((1 - CHANGED) / (1 - KEPT))
        enough = math.log(1 / ERROR - 1)
        self.open, self.warned = abs(evidence) < enough and self.seen < LIMIT, evidence >= enough
        if self.warned:
            warnings.warn(
                f"{type(adapter).__name__} learns from mirrored views, and of {self.images} images that the model is "
                f"confident about, mirroring changes the predicted class of {self.contradictions}. If a mirrored image is "
                "of another class (digits, text, signs), pass preserves=Views(mirror=False) of testtime.models; "
                "if it keeps its class, preserves=Views(). A model can declare it itself, as the attribute `views`",
                AdapterWarning,
                stacklevel=2,
            )
