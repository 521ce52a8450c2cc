"""The charts of a page that has every kind."""

import pytest
import sample

from testtime.report import Chart, Figure, Grid


@pytest.fixture(scope="session")
def charts() -> list[Chart]:
    """One of every kind."""
    pytest.importorskip("altair", reason="the charts need testtime[report]")
    found = []
    for section in sample.page().sections:
        for block in section.blocks:
            for one in block.blocks if isinstance(block, Grid) else [block]:
                if isinstance(one, Figure) and one.chart is not None:
                    found.append(one.chart)
    return found
