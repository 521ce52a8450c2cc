"""Candidates in shadow on a stream without labels: what each gives away, and which to take."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray

from testtime.adapter import Adapter
from testtime.bench import sets
from testtime.bench.cell import SLOW, source_batches
from testtime.bench.page import document, figure, show, table, write_page
from testtime.bench.protocol import Row
from testtime.bench.svg import Series, line_chart
from testtime.data import ImageSet
from testtime.files import damaged, read_array, read_json, read_lines, write_array, write_json, write_lines
from testtime.methods import Source
from testtime.models import model_card
from testtime.processor import Precision
from testtime.progress import progress
from testtime.selection import (
    Advice,
    Diagnostics,
    appearance_features,
    mirrored,
    monitor,
    over_time,
    recommend,
    turned,
)
from testtime.streams import Stream

__all__ = [
    "Shadow",
    "advise",
    "advise_text",
    "judged",
    "read_looks",
    "read_signs",
    "started_precision",
    "unfinished",
    "write_advice",
]

FIGURES = {
    "accuracy": "estimate",
    "aetta": "AETTA",
    "agreement": "agreement",
    "confidence": "confidence",
    "confidence_drift": "drift",
    "diversity": "diversity",
    "diversity_drift": "drift",
}
LOOKS = "looks.npy"
AGAIN = "delete it and run the same testtime bench command again: it keeps the candidates that are finished"
LINES = 6  # candidates whose lines have a colour


@final
@dataclass(frozen=True)
class Shadow:
    """A run of candidates on a stream.

    Args:
        rows: the candidates; the first is what is in use.
        model: the source model, a key of `testtime.models.MODELS`.
        data: the folder of its weights.
        stream: what arrives.
        source: unlabelled images of the source; methods that need them are left out where there are none.
        device: "cpu" or "cuda".
        precision: "bfloat16" runs the networks under autocast.
        mirror: whether a mirrored image is still of its class, by default as the model declares; if not, images are turned
            instead.
        every: also candidates of more than 20 forwards a batch.
    """

    rows: Sequence[Row]
    model: str
    data: str
    stream: Stream
    source: ImageSet | None = None
    device: str = "cpu"
    precision: Precision = "float32"
    mirror: bool | None = None
    every: bool = False

    def run(self, out: str | Path, about: dict[str, Any], say: Callable[[str], None] = print) -> None:
        """Run every candidate that is not finished, one after the other, and write the signs of each as they come.

        Args:
            out: folder of the run.
            about: what else ``shadow.json`` is to say.
            say: takes lines for a person.

        Raises:
            ValueError: the folder holds another run, or no candidate is left.
        """
        folder = Path(out)
        rows = [row for row in self.rows if self._fits(row, say)]
        if not rows:
            raise ValueError("no candidate is left: name others with --methods, or give --source")
        settings = {
            "model": self.model,
            "batches": len(self.stream),
            "images": self.stream.images,
            "precision": self.precision,
            "mirror": self.mirrors,
            **about,
        }
        path = folder / "shadow.json"
        if path.is_file():
            before = read_json(path, AGAIN)
            other = [name for name in settings if name != "command" and before.get(name) != settings[name]]
            if other:
                raise ValueError(
                    f"{folder} holds a run with another {', '.join(other)}; give another folder with --out"
                )
            with damaged(path, AGAIN):
                labels = [str(label) for label in before["candidates"]]
        else:
            labels = []
        labels += [row.label for row in rows if row.label not in labels]
        write_json(path, {**settings, "candidates": labels})
        if not (folder / LOOKS).is_file():
            batches = progress(self.stream, len(self.stream), "what images look like")
            write_array(folder / LOOKS, np.concatenate([appearance_features(b.x).numpy() for b in batches]))
        for row in rows:
            file = folder / "signs" / f"{row.slug}.jsonl"
            if file.is_file():
                say(f"{row.label}: finished already")
                continue
            self._one(row, file)

    @property
    def mirrors(self) -> bool:
        """Whether images are mirrored, otherwise turned."""
        return model_card(self.model).views.mirror if self.mirror is None else self.mirror

    def _fits(self, row: Row, say: Callable[[str], None]) -> bool:
        adapter = self._build(row)
        if adapter.source != "none" and self.source is None:
            say(f"{row.label}: left out, it must see images of the source; give them with --source")
            return False
        if adapter.cost[0] > SLOW and not self.every:
            say(
                f"{row.label}: left out, it takes {adapter.cost[0]:g} forwards a batch; name it with --methods"
            )
            return False
        return True

    def _build(self, row: Row) -> Adapter:
        model, _ = sets.source_model(self.model, self.data)
        adapter = row.build(model.to(self.device), model_card(self.model).classes, 0)
        adapter.to(self.device)
        return adapter

    def _one(self, row: Row, file: Path) -> None:
        adapter = self._build(row)
        with torch.autocast(
            torch.device(self.device).type, torch.bfloat16, enabled=self.precision == "bfloat16"
        ):
            if adapter.source != "none":
                assert self.source is not None
                batches = source_batches(self.source, self.stream.batch_size, 0, self.stream.domains[0].size)
                adapter.prepare([x.to(self.device) for x in batches])
            plain = Source(sets.source_model(self.model, self.data)[0].to(self.device))
            labels: list[np.ndarray] = []

            def images() -> Iterator[torch.Tensor]:
                for batch in self.stream.prefetch(1):
                    labels.append(batch.y.numpy())
                    yield batch.x.to(self.device)

            right = known = 0
            lines = []
            seen = monitor(adapter, images(), plain, disturb=mirrored if self.mirrors else turned)
            for signs in progress(seen, len(self.stream), row.label):
                lines.append(asdict(signs))
                right += int((labels[-1] == signs.predicted).sum())
                known += int((labels[-1] >= 0).sum())
        if known:
            truth = file.parent.parent / "judged" / f"{row.slug}.json"
            write_json(truth, {"accuracy": 100 * right / known})
        write_lines(file, lines)


def started_precision(folder: str | Path) -> Precision | None:
    """The precision that a run without labels began with; None where there is no run."""
    path = Path(folder) / "shadow.json"
    if not path.is_file():
        return None
    precision: Precision = read_json(path, AGAIN, {"precision": str})["precision"]
    return precision


def read_signs(folder: str | Path) -> dict[str, list[Diagnostics]]:
    """What the candidates of a run gave away, in the order in which they were given.

    Raises:
        ValueError: the folder is not that of a run without labels, or no candidate is finished.
    """
    path = Path(folder) / "shadow.json"
    if not path.is_file():
        raise ValueError(
            f"{folder} is not the folder of a run without labels: run testtime bench --no-labels first"
        )
    found = {}
    for label in read_json(path, AGAIN, {"candidates": [str]})["candidates"]:
        file = Path(folder) / "signs" / f"{Row(label, '').slug}.jsonl"
        if file.is_file():
            again = (
                "or was written by another version; delete it and run the same testtime bench command again"
            )
            with damaged(file, again):
                lines = read_lines(file, again)
                found[label] = [_diagnostics(line) for line in lines]
                if not lines:
                    raise ValueError("it is empty")
    if not found:
        raise ValueError(f"{folder}: no candidate is finished; the same bench command goes on")
    return found


def _diagnostics(line: dict[str, Any]) -> Diagnostics:
    """A line of a candidate's file; earlier versions called the predicted classes "said"."""
    predicted = line.pop("predicted", None) or line.pop("said")
    return Diagnostics(**line, predicted=tuple(predicted))


def read_looks(folder: str | Path) -> NDArray[np.float32]:
    """What the images of a run look like, in the order of the stream.

    Raises:
        ValueError: the run began with an earlier version.
    """
    path = Path(folder) / LOOKS
    if not path.is_file():
        raise ValueError(f"{path} is missing; the same bench command writes it, and keeps what is finished")
    return read_array(path, "delete it and run the same testtime bench command again")


def judged(folder: str | Path) -> dict[str, float]:
    """The accuracy of each candidate in percent, where the stream was one with labels; no estimate has seen it."""
    files = sorted((Path(folder) / "judged").glob("*.json"))
    by_slug = {}
    for file in files:
        again = f"delete it and signs/{file.stem}.jsonl, and run the same testtime bench command again"
        with damaged(file, again):
            by_slug[file.stem] = float(read_json(file, again)["accuracy"])
    return {label: by_slug[s] for label in read_signs(folder) if (s := Row(label, "").slug) in by_slug}


def advise(folder: str | Path) -> Advice:
    """What a run recommends.

    Raises:
        ValueError: as `read_signs`.
    """
    return recommend(read_signs(folder), read_looks(folder))


def unfinished(folder: str | Path) -> str:
    """What an advice is limited to, as text, while candidates of the run have no result; else nothing."""
    names = read_json(Path(folder) / "shadow.json", AGAIN, {"candidates": [str]})["candidates"]
    done = len(read_signs(folder))
    return f", of the {done} of {len(names)} candidates that are finished" if done < len(names) else ""


def advise_text(advice: Advice, known: dict[str, float] | None = None, unfinished: str = "") -> str:
    """The advice for a terminal: a table, the name and the reasons.

    Args:
        advice: from `advise`.
        known: the accuracies, for a column that judges the estimates.
        unfinished: text from `unfinished`.
    """
    head = ["method", *FIGURES.values(), "ms", "alarms"]
    head[2:2] = ["(true)"] if known else []
    rows = [head]
    for c in advice.candidates:
        figures = [getattr(c, name) for name in FIGURES]
        cells = [show(v) for v in figures]
        if known:
            cells.insert(1, show(known.get(c.name, math.nan)))
        rows.append([c.name, *cells, f"{c.milliseconds:.0f}", str(len(c.alarms) or "–")])
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(w) if not i else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    take = f"Take {advice.name}{unfinished}."
    lines += ["estimated without labels, in percent", "", take, *advice.reasons]
    if known and advice.name in known:
        best = max(known, key=lambda name: known[name])
        lines += [
            "",
            f"Judged with the labels: the best is {best} with {known[best]:.1f} %, {advice.name} has "
            f"{known[advice.name]:.1f} %, {known[best] - known[advice.name]:.1f} points less.",
        ]
    return "\n".join(lines)


def write_advice(folder: str | Path) -> Path:
    """Write ``recommendation.html``: the estimates over time, and the signs of each candidate."""
    seen, alike, advice = read_signs(folder), read_looks(folder), advise(folder)
    about = read_json(Path(folder) / "shadow.json", AGAIN)
    colours = {c.name: i for i, c in enumerate(advice.candidates[:LINES], 1)}
    series = []
    for c in reversed(advice.candidates):
        ends, guesses = over_time(seen[c.name], alike)
        series.append(Series(c.name, ends, guesses, colours.get(c.name, 0)))
    drawn = line_chart(
        series, "Estimated accuracy", "the estimate of each candidate along the stream", "%", x_unit="images"
    )
    rows = [
        f'<tr><th scope="row">{escape(c.name)}</th>'
        + "".join(f"<td>{show(v)}</td>" for v in (*(getattr(c, name) for name in FIGURES), c.milliseconds))
        + f'<td class="left">{escape("; ".join(c.alarms)) or "–"}</td></tr>'
        for c in advice.candidates
    ]
    head = (
        "<tr>"
        + "".join(f"<th>{name}</th>" for name in ("method", *FIGURES.values(), "ms"))
        + '<th class="left">alarms</th>'
        + "</tr>"
    )
    told = "".join(f"<li>{escape(reason)}</li>" for reason in advice.reasons)
    content = document(
        f"Take {advice.name}{unfinished(folder)}",
        f"testtime · {about['images']} images without labels · {about['model']}",
        f"<ul>{told}</ul>",
        [
            (
                "time",
                "Time",
                "Over time",
                figure(drawn, "Accuracy as it is estimated without labels"),
            ),
            (
                "signs",
                "Diagnostics",
                "What each gave away",
                table("All in percent but the time of a batch", head, rows),
            ),
        ],
    )
    return write_page(Path(folder) / "recommendation.html", content)
