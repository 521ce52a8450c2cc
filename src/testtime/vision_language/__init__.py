"""Image and text: zero-shot classifiers made of class names, and methods that adapt a prompt or an encoder to one image."""

from typing import TYPE_CHECKING

from testtime.lazy import lazily

if TYPE_CHECKING:
    from testtime.vision_language.anovl import AnoVL
    from testtime.vision_language.conse import ConSE, conse_pair
    from testtime.vision_language.gensam import GenSAM
    from testtime.vision_language.local_tokens import (
        ABNORMAL,
        NORMAL,
        distance_to_mean,
        state_prompts,
        value_attention,
    )
    from testtime.vision_language.pair import ImageText, TextEncoder
    from testtime.vision_language.point_segmenter import PointSegmenter, Promptable, load_point_segmenter
    from testtime.vision_language.probe import Probe, ridge
    from testtime.vision_language.t3al import T3AL, moving_mean, segments_of
    from testtime.vision_language.zero_shot import ENSEMBLE, ZeroShot, zero_shot_of

__all__ = ["ENSEMBLE", "ConSE", "ImageText", "TextEncoder", "ZeroShot", "conse_pair", "zero_shot_of"]
__all__ += ["ABNORMAL", "NORMAL", "T3AL", "AnoVL", "GenSAM", "PointSegmenter", "Probe", "Promptable"]
__all__ += [
    "distance_to_mean",
    "load_point_segmenter",
    "moving_mean",
    "ridge",
    "segments_of",
    "state_prompts",
]
__all__ += ["value_attention"]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "anovl": "AnoVL",
        "conse": "ConSE conse_pair",
        "gensam": "GenSAM",
        "local_tokens": "ABNORMAL NORMAL distance_to_mean state_prompts value_attention",
        "pair": "ImageText TextEncoder",
        "point_segmenter": "PointSegmenter Promptable load_point_segmenter",
        "probe": "Probe ridge",
        "t3al": "T3AL moving_mean segments_of",
        "zero_shot": "ENSEMBLE ZeroShot zero_shot_of",
    },
)
