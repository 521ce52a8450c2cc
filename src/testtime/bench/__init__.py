"""Protocols, the prequential run, results on disk, and the report.

>>> from testtime.bench import PROTOCOLS
>>> PROTOCOLS["paper-table-1"].published["PAF+KIP"]["SVHN"]
(87.49, 97.66, 92.3)
"""

from testtime.bench.grid import run_grid
from testtime.bench.prequential import Record, prequential
from testtime.bench.protocol import Column, Protocol, Row
from testtime.bench.protocols import PROTOCOLS, protocol
from testtime.bench.report import read_run, write_report

__all__ = [
    "PROTOCOLS",
    "Column",
    "Protocol",
    "Record",
    "Row",
    "prequential",
    "protocol",
    "read_run",
    "run_grid",
    "write_report",
]
