"""The methods of the field: one paper, one file, one final class."""

from testtime.methods.cotta import CoTTA
from testtime.methods.paf_kip import PAFKIP
from testtime.methods.rotta import RoTTA
from testtime.methods.sotta import SoTTA
from testtime.methods.source import Source
from testtime.methods.stamp import STAMP
from testtime.methods.tent import Tent

__all__ = ["PAFKIP", "STAMP", "CoTTA", "RoTTA", "SoTTA", "Source", "Tent"]
