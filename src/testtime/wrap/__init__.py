"""Wrappers, adapter -> adapter: when to forget, with whom a single image is predicted, and how often classes are."""

from testtime.wrap.data_parallel import DataParallel
from testtime.wrap.forgetting import Episodic, ResetEvery
from testtime.wrap.guard_options import GuardEvent, GuardOptions
from testtime.wrap.guarded import Guarded
from testtime.wrap.pacing import Repeat, TimeConstrained
from testtime.wrap.priors import LabelShift, PriorCorrected
from testtime.wrap.window import Window
from testtime.wrap.wrapper import Wrapper

__all__ = [
    "DataParallel",
    "Episodic",
    "GuardEvent",
    "GuardOptions",
    "Guarded",
    "LabelShift",
    "PriorCorrected",
    "Repeat",
    "ResetEvery",
    "TimeConstrained",
    "Window",
    "Wrapper",
]
