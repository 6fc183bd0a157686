"""The text of a cell and of a verdict, shared by every format.

A cell reads "37.1 ±0.2 (37.0, +0.1)": ours, spread over seeds, and in brackets the paper's number and
ours minus it. A number that not all seeds have given yet shows how many have: "37.1 ±0.2 1/3".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ablation.metric import POINTS, Metric
from ablation.results.claims import Verdict
from ablation.results.table import IMPORTED_MARK, FilledCell

CHECK = "✓"


def ours(cell: FilledCell) -> str:
    """Our number, marked where an evaluation server gave it; the state where there is none."""
    if cell.mean is None:
        return cell.state
    return cell.metric.text(cell.mean) + (IMPORTED_MARK if cell.imported else "")


def spread(cell: FilledCell) -> str:
    """Spread over seeds, and how many seeds have a value where not all do; may be ""."""
    around = "" if cell.spread is None else f"±{cell.metric.text(cell.spread)}"
    count = "" if cell.complete or not cell.values else f"{len(cell.values)}/{len(cell.sources)}"
    return " ".join(part for part in (around, count) if part)


def reference(cell: FilledCell, separator: str = ", ") -> str:
    """The paper's number and ours minus it, as shown; "" where the paper has none."""
    if cell.paper is None:
        return ""
    metric, shown = cell.metric, cell.metric.text(cell.paper)
    if cell.mean is None or not metric.comparable:
        return shown
    return f"{shown}{separator}{metric.signed(metric.rounded(cell.mean) - cell.paper)}"


def provenance(cell: FilledCell) -> str:
    """The origin of each seed's value, a line per seed."""
    lines = [
        f"seed {source.seed}{'' if source.round is None else f', round {source.round}'}: "
        f"{source.state if source.value is None else cell.metric.text(source.value, 2)}, "
        f"trial {source.trial_key}, evaluation {source.evaluation_key}"
        for source in cell.sources
    ]
    return "\n".join([f"{cell.row}, {cell.column}: {cell.state}", *lines])


def estimate(verdict: Verdict) -> str:
    """A verdict's estimate with its interval; "" where it has none."""
    if verdict.estimate is None or verdict.metric is None:
        return ""
    show = _differences(verdict.metric, verdict.signed)
    bounds = ", ".join(show(bound, 1) for bound in verdict.interval or ())
    return show(verdict.estimate, 1) + (f" [{bounds}]" if bounds else "") + _unit(verdict.metric)


def paper_estimate(verdict: Verdict) -> str:
    """The paper's own estimate; "" where it has none."""
    if verdict.paper is None or verdict.metric is None:
        return ""
    return _differences(verdict.metric, verdict.signed)(verdict.paper, 0) + _unit(verdict.metric)


def _differences(metric: Metric, signed: bool) -> Callable[[float, int], str]:
    """How differences of a metric are written: with a sign, or distances without."""
    return metric.signed if signed else metric.text


def _unit(metric: Metric) -> str:
    """Behind a difference; points are not named, since most differences are in points."""
    return "" if metric.difference_unit in ("", POINTS) else f" {metric.difference_unit}"


def claims_note(judged: Sequence[Verdict]) -> str:
    """How to read the estimates and intervals of the claims."""
    metrics = dict.fromkeys(verdict.metric for verdict in judged if verdict.metric)
    if all((metric.difference_unit, metric.better) == (POINTS, "higher") for metric in metrics):
        return f"Differences in points. {_INTERVALS}"
    legends = "; ".join(metric.legend(differences=True) for metric in metrics)
    return f"Differences: {legends}. {_INTERVALS}"


_INTERVALS = (
    "Intervals join a bootstrap over the test data, paired between rows, with the "
    "spread over seeds: 95 % for what should be better (the step of a chain that gains least), 90 % for what "
    "should be equivalent within a margin (two one-sided tests at 5 %). They are of each claim alone."
)


def direction(verdict: Verdict) -> str:
    """Whether the sign of our estimate agrees with the claim."""
    return {True: "yes", False: "no", None: ""}[verdict.points_the_papers_way]
