"""A page that has everything, with names that try to break it."""

import math

from testtime import report as rp

HOSTILE = "<script>alert('1')</script>\" onload=\"alert(2)&amp;"
METHODS = ["PAF+KIP", "STAMP", "TENT", "Source", HOSTILE]
COLOURS = rp.colours(METHODS[:3], METHODS)
# One pixel: white and black.
LIGHT, DARK = (
    bytes.fromhex(
        "89504e470d0a1a0a0000000d4948445200000001000000010800000000" + crc + "0000000a4944415478da63" + data
    )
    for crc, data in (
        ("3a7e9b55", "f80f0001010100" + "1bb6ee56" + "0000000049454e44ae426082"),
        ("3a7e9b55", "6000000002000148afa471" + "0000000049454e44ae426082"),
    )
)


def table(rows: int = 12) -> rp.Table:
    """A table with groups, spread, published figures, shades, and rows enough for a filter."""
    columns = [
        rp.Column("mean H", "%", better="higher"),
        *(rp.Column(name, group=group, better="higher") for group in ("A", "B") for name in ("ACC", "H")),
        rp.Column("heat", shade="heat", places=0),
        rp.Column("bar", shade="bar", explain=HOSTILE),
    ]
    names = [METHODS[i] if i < len(METHODS) else f"method {i}" for i in range(rows)]
    body = [
        rp.Row(
            name,
            [
                70.0 + i,
                rp.Cell(60.0 + i, spread=0.3, published=61.25),
                rp.Cell(50.0 - i, spread=0.1),
                math.nan if i == 2 else 40.0,
                None if i == 3 else HOSTILE,
                10.0 * i,
                1.0 + i,
            ],
            role="control" if i == 3 else "method",
            mark="†" if i == 1 else "",
        )
        for i, name in enumerate(names)
    ]
    return rp.Table(f"Figures {HOSTILE}", columns, body, corner="method")


def lines(small: bool = False) -> rp.Chart | None:
    """Five lines with bands, stretches and a reference."""
    series = [
        rp.Series(
            name,
            [i / 10 for i in range(30)],
            [60 + 5 * k + 4 * math.sin(i / 4 + k) for i in range(30)],
            COLOURS[name],
            [0.8] * 30,
        )
        for k, name in enumerate(METHODS)
    ]
    marks = [(0.0, "gaussian noise"), (1.0, HOSTILE), (2.0, "fog")]
    return rp.line_chart(
        series,
        title=f"H over time {HOSTILE}",
        y="H-score, %",
        marks=marks,
        small=small,
    )


def points() -> list[rp.Point]:
    """Thirty points in a crowd."""
    return [
        rp.Point(
            METHODS[i % 5] + f" {i}",
            1.0 + (7 * i % 11),
            60 + (5 * i % 13) / 3,
            0.4,
            COLOURS[METHODS[i % 5]],
        )
        for i in range(30)
    ]


def page() -> rp.Page:
    """The page."""
    several = [
        rp.Point(name, 20.0 + 2 * k + 3 * i, 0, 0.9, i + 1, setting)
        for k, name in enumerate(METHODS)
        for i, setting in enumerate(("continual", HOSTILE))
    ]
    shares = {"known": [0.1, 0.4, 0.3, 0.2, 0.0], "unknown": [0.0, 0.1, 0.2, 0.3, 0.4]}
    matrix = [[float(10 * i + j) for j in range(4)] for i in range(3)]
    charts = [
        rp.Figure(lines(), "H-score over time"),
        rp.Figure(
            rp.scatter(points(), title="Cost", x="time", y="H, %", logarithmic=True, suffix="×"),
            rp.phrase("H against {}", rp.code("time")),
        ),
        rp.Figure(rp.row_chart(several, title="Errors", x="error, %"), "Errors"),
        rp.Figure(rp.row_chart(several, title="Bars", x="error, %", bars=True), "Bars"),
        rp.Figure(
            rp.heat_map(["a", "b", HOSTILE], ["w", "x", "y", "z"], matrix, title="Confusion"), "Confusion"
        ),
        rp.Figure(None, "nothing was drawn"),
    ]
    small = [rp.Figure(lines(small=True), name) for name in ("one", "two")]
    scores = rp.share_chart(shares, title="Scores", ends=("surely known", HOSTILE))
    sections = [
        rp.Section("result", "Result", "The result", [table(), rp.Note(HOSTILE)]),
        rp.Section("time", "Time", "Over time", [rp.Legend(COLOURS), *charts]),
        rp.Section("small", "Small", "Side by side", [rp.Grid([*small, rp.Figure(scores, HOSTILE)])]),
        rp.Section("empty", "Empty", "Nothing", [rp.Figure(None, "x"), rp.Grid([rp.Figure(None, "y")])]),
        rp.Section("none", "None", "Nothing", []),
        rp.Section("pictures", "Pictures", "What it looks like", [rp.Picture(LIGHT, HOSTILE, HOSTILE, DARK)]),
        rp.Section(
            "made",
            "Provenance",
            "How this was made",
            [
                rp.Definitions([(HOSTILE, HOSTILE), ("seeds", 3), ("command", rp.code("testtime run a"))]),
                rp.Details(HOSTILE, [rp.Bullets([HOSTILE, "two"]), HOSTILE]),
            ],
        ),
    ]
    return rp.Page(
        f"Title {HOSTILE}",
        HOSTILE,
        rp.phrase("{} has {} %", rp.strong(HOSTILE), "<5"),
        sections,
        rp.phrase("3 of 10 cells; {} continues it.", rp.code(f"testtime {HOSTILE}")),
    )
