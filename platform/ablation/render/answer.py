"""A ranking in words: which row to use, and what is not known about it."""

from __future__ import annotations

from collections.abc import Sequence

from ablation.metric import Metric
from ablation.results.ranking import RankedRow, Ranking
from ablation.results.statistics import MOST_SEEDS, Estimate, seeds_to_decide
from ablation.wording import counted


def answer(ranking: Ranking) -> list[str]:
    """Sentences on the best row, those that cannot be told apart from it, and the worse ones."""
    if len(ranking.rows) < 2:
        return [f"{ranking.table.name}: fewer than two rows have a number in column {ranking.column}."]
    best, metric = ranking.groups[0][0], ranking.metric
    conditions = f"{ranking.table.heading.data_name}, {counted(best.num_seeds, 'seed')}"
    said = [f"{ranking.table.name}, {metric.title} on {conditions}."]
    if _unknown(ranking):
        return [*said, *_undecided(ranking), *_missing(ranking)]
    alike, worse = ranking.groups[0][1:], [row for group in ranking.groups[1:] for row in group]
    said.append(f"Best: {best.label}, {metric.text(best.mean)}.")
    if alike:
        said.append(f"Not told apart from it: {_list(alike, metric)}.")
        said += _to_decide(alike[0])
    if worse:
        said.append(f"Worse: {_list(worse, metric)}.")
    return [*said, *_missing(ranking)]


def interval(estimate: Estimate, metric: Metric) -> str:
    """ "+2.7 [1.6, 3.9]"; without brackets where nothing is known of the error."""
    bounds = ", ".join(metric.signed(bound) for bound in estimate.interval() or ())
    return metric.signed(estimate.value) + (f" [{bounds}]" if bounds else "")


def _unknown(ranking: Ranking) -> bool:
    """Whether no pair can be decided, because nobody knows how far seeds spread."""
    compared = [row.versus_best for row in ranking.rows if row.versus_best is not None]
    return all(one.adjusted_p is None for one in compared)


def _undecided(ranking: Ranking) -> list[str]:
    """What can be said where nobody knows how far seeds spread."""
    best, metric = ranking.rows[0], ranking.metric
    return [
        f"{'Highest' if metric.better == 'higher' else 'Lowest'}: {best.label}, {metric.text(best.mean)}.",
        f"Compared with it, on these test samples alone: {_list(ranking.rows[1:], metric)}.",
        "How far other seeds would move these numbers is not known, so nothing is decided: train with "
        "--seeds 3.",
    ]


def _to_decide(second: RankedRow) -> list[str]:
    if second.versus_best is None:
        return []
    seeds = seeds_to_decide(second.versus_best.estimate)
    if seeds is not None:
        return [f"A difference as large as that from {second.label} would take about {seeds} seeds to show."]
    return [
        f"{MOST_SEEDS} seeds would not show a difference as small as that from {second.label} on these test "
        "samples: choose by cost."
    ]


def _missing(ranking: Ranking) -> list[str]:
    return [f"Without a number: {', '.join(ranking.missing)}."] if ranking.missing else []


def _list(rows: Sequence[RankedRow], metric: Metric) -> str:
    return "; ".join(
        f"{row.label} ({interval(row.versus_best.estimate, metric) if row.versus_best else '?'})"
        for row in rows
    )
