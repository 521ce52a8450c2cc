"""HTML pages and charts: typed objects in, a page that needs nothing else out. The package knows no experiment.

A page is a tree of frozen dataclasses. Every string in it is escaped; elements inside a text come from :func:`strong`,
:func:`sub`, :func:`sup`, :func:`code`, :func:`dim` and are put together with ``+``, :func:`phrase`, :func:`join` and
:func:`listed`. A paragraph is a string.

- **Page**: ``Page(title, kicker, lead, sections, unfinished)``, ``Section(id, short, heading, blocks)``; sections without
  blocks are left out, so that a builder may return an empty list. :func:`write_page` writes it, :func:`page_html` returns it;
  :func:`write_chart` writes a chart as an SVG file.
- **Blocks**: text, :class:`Note`, :class:`Bullets`, :class:`Definitions`, :class:`Figure` (chart and caption),
  :class:`Grid` (small multiples), :class:`Legend`, :class:`Picture`, :class:`Details`, :class:`Table`.
- **Tables**: ``Table(caption, columns, rows)`` of :class:`Column`, :class:`Row` and :class:`Cell`: number formats, the best
  of a column in bold (not in a tie), spread, published number, heat and bars, sorting and filtering.
- **Charts**: :func:`line_chart`, :func:`scatter`, :func:`row_chart`, :func:`heat_map` and
  :func:`share_chart` return a :class:`Chart`, or None where there is nothing to draw; a figure without a
  chart is left out. Colours are numbers, 1 to 6 and 0 for grey: :func:`colours` hands them out.
- **Words**: :func:`show`, :func:`signed`, :func:`first_of`, :func:`mean` and :func:`deviation`.

Altair describes the charts and vl-convert renders them as SVG without a browser; both are imported when the first chart is
drawn. They were chosen over matplotlib, whose SVG is several times larger and carries its fonts as outlines, and over
Plotly and Bokeh, which need their scripts in the page.

>>> page = Page(
...     title="Error under fog",
...     kicker="testtime",
...     lead=phrase("{} has the lowest error, {} %.", strong("TENT"), show(12.34)),
...     sections=[
...         Section(
...             id="result",
...             short="Result",
...             heading="The result",
...             blocks=[
...                 Table(
...                     caption="Error by method",
...                     columns=[Column("error", "%", better="lower")],
...                     rows=[Row("TENT", [Cell(12.34, spread=0.2)]), Row("Source", [20.0], role="control")],
...                 ),
...                 Note("Mean over three seeds, ± their standard deviation."),
...             ],
...         )
...     ],
... )
>>> "<strong>TENT</strong> has the lowest error, 12.3 %." in page_html(page)
True
"""

from testtime.report.blocks import (
    Block,
    Bullets,
    Definitions,
    Details,
    Figure,
    Grid,
    Legend,
    Note,
    Page,
    Picture,
    Section,
)
from testtime.report.drawing import Chart
from testtime.report.lines import Series, line_chart, share_chart
from testtime.report.markup import Text, code, dim, join, listed, phrase, strong, sub, sup
from testtime.report.points import Point, heat_map, row_chart, scatter
from testtime.report.rendering import page_html, write_chart, write_page
from testtime.report.table import Cell, Column, Row, Table
from testtime.report.words import colours, deviation, first_of, mean, show, signed

__all__ = ["Block", "Bullets", "Cell", "Chart", "Column", "Definitions", "Details", "Figure", "Grid"]
__all__ += ["Legend", "Note", "Page", "Picture", "Point", "Row", "Section", "Series", "Table", "Text", "code"]
__all__ += ["colours", "deviation", "dim", "first_of", "heat_map", "join", "line_chart", "listed", "mean"]
__all__ += ["page_html", "phrase", "row_chart", "scatter", "share_chart", "show", "signed", "strong", "sub"]
__all__ += ["sup", "write_chart", "write_page"]
