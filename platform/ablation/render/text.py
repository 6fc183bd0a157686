"""The words of a cell, shared by every format.

A cell reads "37.1 ±0.2 (37.0, +0.1)": ours, spread over seeds, and in brackets the paper's number and
ours minus it. A number that not all seeds have given yet shows how many have: "37.1 ±0.2 1/3".
"""

from __future__ import annotations

from ablation.results.claims import Verdict
from ablation.results.table import IMPORTED_MARK, FilledCell

CHECK = "✓"
MINUS = "−"


def number(value: float) -> str:
    """One decimal, with a real minus sign and never minus zero."""
    return f"{round(value, 1) + 0.0:.1f}".replace("-", MINUS)


def signed(value: float) -> str:
    """One decimal with its sign; nothing before zero."""
    shown = round(value, 1) + 0.0
    return "0.0" if shown == 0 else f"{shown:+.1f}".replace("-", MINUS)


def ours(cell: FilledCell) -> str:
    """Our number, marked where an evaluation server gave it; while there is none, why."""
    if cell.mean is None:
        return cell.state
    return number(cell.mean) + (IMPORTED_MARK if cell.imported else "")


def spread(cell: FilledCell) -> str:
    """Spread over seeds, and how many seeds are there where not all are; may be ""."""
    around = "" if cell.spread is None else f"±{number(cell.spread)}"
    count = "" if cell.complete or not cell.values else f"{len(cell.values)}/{len(cell.sources)}"
    return " ".join(part for part in (around, count) if part)


def reference(cell: FilledCell, separator: str = ", ") -> str:
    """The paper's number and ours minus it, as shown; "" where the paper has none."""
    if cell.paper is None:
        return ""
    if cell.mean is None:
        return number(cell.paper)
    return f"{number(cell.paper)}{separator}{signed(round(cell.mean, 1) - cell.paper)}"


def provenance(cell: FilledCell) -> str:
    """Where each seed's value comes from, a line per seed."""
    lines = [
        f"seed {source.seed}: {source.state if source.value is None else f'{source.value:.3f}'}, "
        f"trial {source.trial_key}, evaluation {source.evaluation_key}"
        for source in cell.sources
    ]
    return "\n".join([f"{cell.row}, {cell.column}: {cell.state}", *lines])


def estimate(verdict: Verdict) -> str:
    """A verdict's estimate with its interval; "" where it has none."""
    if verdict.estimate is None:
        return ""
    bounds = verdict.interval or ()
    interval = f" [{', '.join(_points(bound, verdict, 2) for bound in bounds)}]" if bounds else ""
    return _points(verdict.estimate, verdict, 2) + interval


def paper_estimate(verdict: Verdict) -> str:
    """The paper's own estimate; "" where it has none."""
    return "" if verdict.paper is None else _points(verdict.paper, verdict, 1)


def _points(value: float, verdict: Verdict, decimals: int) -> str:
    sign = "+" if verdict.signed else ""
    return f"{value:{sign}.{decimals}f}".replace("-", MINUS)


def direction(verdict: Verdict) -> str:
    """Whether our numbers lean as the paper's do."""
    return {True: "yes", False: "no", None: ""}[verdict.points_the_papers_way]
