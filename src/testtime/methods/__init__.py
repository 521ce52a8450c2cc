"""The methods of the field: one paper, one file, one final class."""

from testtime.methods.paf_kip import PAFKIP
from testtime.methods.source import Source
from testtime.methods.tent import Tent

__all__ = ["PAFKIP", "Source", "Tent"]
