"""Parts that methods are made of: pure functions, and classes that only remember."""

from typing import TYPE_CHECKING

from testtime.lazy import lazily

if TYPE_CHECKING:
    from testtime.parts.augment import identity, katana, random_crop_flip, shuffle_patches, simclr
    from testtime.parts.chains import augmix
    from testtime.parts.losses import entropy, marginal_entropy, soft_cross_entropy
    from testtime.parts.optimizers import adam, adamw, sgd
    from testtime.parts.randomness import generator
    from testtime.parts.sharpness import at_worst_point, sharpness_aware_gradients
    from testtime.parts.teacher import Teacher

__all__ = [
    "Teacher",
    "adam",
    "adamw",
    "at_worst_point",
    "augmix",
    "entropy",
    "generator",
    "identity",
    "katana",
    "marginal_entropy",
    "random_crop_flip",
    "sgd",
    "sharpness_aware_gradients",
    "shuffle_patches",
    "simclr",
    "soft_cross_entropy",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "augment": "identity katana random_crop_flip shuffle_patches simclr",
        "chains": "augmix",
        "losses": "entropy marginal_entropy soft_cross_entropy",
        "optimizers": "adam adamw sgd",
        "randomness": "generator",
        "sharpness": "at_worst_point sharpness_aware_gradients",
        "teacher": "Teacher",
    },
)
