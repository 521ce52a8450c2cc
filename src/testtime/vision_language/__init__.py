"""Image and text: zero-shot classifiers made of class names, and methods that adapt a prompt or an encoder to one image.

An :class:`ImageText` is an image encoder and a text encoder in one space; :class:`ZeroShot` makes a classifier (N, K) of it and
of class names, so that every method for classifiers takes it. The methods for classes take a :class:`ZeroShot` alone.

- pairs: :func:`open_clip_pair`, :func:`transformers_pair`, :func:`conse_pair` (the stand-in without CLIP's weights), or
  :class:`ImageText` of two modules
- methods, each image with a prompt of its own that is dropped after its answer (law ``each_alone``): :class:`TPT`,
  :class:`DiffTPT`, :class:`RLCF`
- search of images by text: :class:`ImageGallery`, whose queries :class:`RLCF` adapts the text encoder to
- cheap controls without gradients: :class:`ZERO`, :class:`TDA`
- local tokens, frames and points: :class:`AnoVL` (anomalies), :class:`T3AL` (segments of a video), :class:`GenSAM` (masks of
  what words name, by any :class:`Promptable` segmenter); they take an :class:`ImageText`
"""

from typing import TYPE_CHECKING

from testtime.lazy import lazily

if TYPE_CHECKING:
    from testtime.vision_language.anovl import AnoVL
    from testtime.vision_language.clip import open_clip_pair, transformers_pair
    from testtime.vision_language.conse import ConSE, conse_pair
    from testtime.vision_language.difftpt import DiffTPT
    from testtime.vision_language.gallery import ImageGallery
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
    from testtime.vision_language.prompted import Prompted
    from testtime.vision_language.rlcf import RLCF
    from testtime.vision_language.t3al import T3AL, moving_mean, segments_of
    from testtime.vision_language.tda import TDA
    from testtime.vision_language.tpt import TPT
    from testtime.vision_language.views import ViewMaker, resized_crops
    from testtime.vision_language.zero import ZERO
    from testtime.vision_language.zero_shot import ENSEMBLE, ZeroShot, zero_shot_of

__all__ = ["ABNORMAL", "ENSEMBLE", "NORMAL", "RLCF", "T3AL", "TDA"]
__all__ += ["TPT", "ZERO", "AnoVL", "ConSE", "DiffTPT", "GenSAM"]
__all__ += ["ImageGallery", "ImageText", "PointSegmenter", "Probe", "Promptable", "Prompted", "TextEncoder"]
__all__ += ["ViewMaker", "ZeroShot", "conse_pair", "distance_to_mean", "load_point_segmenter", "moving_mean"]
__all__ += ["open_clip_pair", "resized_crops", "ridge", "segments_of", "state_prompts", "transformers_pair"]
__all__ += ["value_attention", "zero_shot_of"]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "anovl": "AnoVL",
        "clip": "open_clip_pair transformers_pair",
        "conse": "ConSE conse_pair",
        "difftpt": "DiffTPT",
        "gallery": "ImageGallery",
        "gensam": "GenSAM",
        "local_tokens": "ABNORMAL NORMAL distance_to_mean state_prompts value_attention",
        "pair": "ImageText TextEncoder",
        "point_segmenter": "PointSegmenter Promptable load_point_segmenter",
        "probe": "Probe ridge",
        "prompted": "Prompted",
        "rlcf": "RLCF",
        "t3al": "T3AL moving_mean segments_of",
        "tda": "TDA",
        "tpt": "TPT",
        "views": "ViewMaker resized_crops",
        "zero": "ZERO",
        "zero_shot": "ENSEMBLE ZeroShot zero_shot_of",
    },
)
