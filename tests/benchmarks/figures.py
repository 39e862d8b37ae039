"""The figures that benchmarks return, and the table that they are shown in."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One line of the table: what was measured, ours, the peer's or the limit's, and the goal.

    `goal` is a text such as ``>= 5``, ``<= 10`` or ``>= 60 %``; it is compared with `judged`, in the goal's own unit.
    """

    what: str
    ours: str
    peer: str = ""
    ratio: str = ""
    goal: str = ""
    judged: float | None = None
    note: str = ""

    @property
    def met(self) -> str:
        """Return yes or no, or nothing where there is no goal."""
        if self.judged is None:
            return ""
        comparison, limit = self.goal.split()[:2]
        met = self.judged >= float(limit) if comparison == ">=" else self.judged <= float(limit)
        return "yes" if met else "**no**"


HEADINGS = ("What", "Ours", "Peer or limit", "Ratio", "Goal", "Met")


def markdown(figures: Sequence[Figure]) -> str:
    """Return a Markdown table, with the notes under it."""
    notes: list[str] = []
    rows = [HEADINGS]
    for figure in figures:
        what = figure.what
        if figure.note:
            if figure.note not in notes:
                notes.append(figure.note)
            what += f" [{notes.index(figure.note) + 1}]"
        rows.append((what, figure.ours, figure.peer, figure.ratio, figure.goal, figure.met))
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    shown = "".join(f"\n[{number}] {note}  " for number, note in enumerate(notes, 1))
    return "\n".join(lines) + "\n" + shown


def quantile(values: Sequence[float], fraction: float) -> float:
    """Return the value below which a fraction of all lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(fraction * len(ordered)))]


def median(values: Sequence[float]) -> float:
    """Return the median of some runs."""
    return statistics.median(values)


def ms(seconds: float) -> str:
    """Print seconds as milliseconds."""
    return f"{seconds * 1000:,.1f} ms"


def times(ratio: float) -> str:
    """Print a ratio."""
    return f"{ratio:,.1f}x"


def percent(ratio: float) -> str:
    """Print a ratio as a percentage."""
    return f"{ratio * 100:.0f} %"
