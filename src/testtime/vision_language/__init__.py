"""Image and text: zero-shot classifiers made of class names, and methods that adapt a prompt or an encoder to one image."""

from typing import TYPE_CHECKING

from testtime.lazy import lazily

if TYPE_CHECKING:
    from testtime.vision_language.conse import ConSE, conse_pair
    from testtime.vision_language.pair import ImageText, TextEncoder
    from testtime.vision_language.zero_shot import ENSEMBLE, ZeroShot, zero_shot_of

__all__ = ["ENSEMBLE", "ConSE", "ImageText", "TextEncoder", "ZeroShot", "conse_pair", "zero_shot_of"]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "conse": "ConSE conse_pair",
        "pair": "ImageText TextEncoder",
        "zero_shot": "ENSEMBLE ZeroShot zero_shot_of",
    },
)
