"""Which rows of a table are best, and which cannot be told apart.

All pairs of rows are compared at the seeds that both have, and their p-values are adjusted together by Holm's
method. Rows are then grouped from the best on: a group is the best row that is left and every row that is not
shown to be worse than it. A row of a later group is worse than the first row of every earlier group, but
perhaps not than each of its other rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from ablation.errors import UserError
from ablation.metric import Metric
from ablation.results.claims import sample
from ablation.results.statistics import DIFFERENCE_LEVEL, Estimate, difference, holm, seeds_to_decide
from ablation.results.table import FilledCell, FilledTable
from ablation.setting import Setting


@dataclass(frozen=True, slots=True)
class Comparison:
    """A row beside the first row of its group, or the first row of a group beside the best row.

    Attributes:
        estimate: this row minus the other, in the unit of the metric's differences.
        adjusted_p: by Holm's method over all pairs of the table; None where the spread is unknown.
    """

    estimate: Estimate
    adjusted_p: float | None

    @property
    def decided(self) -> bool:
        """Whether the two differ."""
        return self.adjusted_p is not None and self.adjusted_p <= 1 - DIFFERENCE_LEVEL


@dataclass(frozen=True, slots=True)
class RankedRow:
    """One row.

    Attributes:
        mean: over its seeds.
        versus_best: compared with the best row; None for that row itself.
    """

    label: str
    mean: float
    num_seeds: int
    versus_best: Comparison | None


@dataclass(frozen=True, slots=True)
class Ranking:
    """The rows of a table by one column, best first.

    Attributes:
        groups: rows that cannot be told apart from the first of them, best group first.
        missing: rows without a number.
    """

    table: FilledTable
    column: str
    metric: Metric
    groups: tuple[tuple[RankedRow, ...], ...]
    missing: tuple[str, ...]

    @property
    def rows(self) -> list[RankedRow]:
        """All of them, best first."""
        return sorted((row for group in self.groups for row in group), key=lambda row: self._order(row.mean))

    def _order(self, mean: float) -> float:
        return -self.metric.improvement(mean)

    def data(self) -> dict[str, Any]:
        """As JSON values, for programs."""
        return {
            "table": self.table.table.id,
            "column": self.column,
            "metric": self.metric.name,
            "unit": self.metric.unit,
            "groups": [[_data(row) for row in group] for group in self.groups],
            "missing": list(self.missing),
        }


def rank(filled: FilledTable, setting: Setting, column: str | None = None) -> Ranking:
    """The rows of a table ranked by a column, the first one when None.

    Raises:
        UserError: the table has no such column, or it holds several metrics.
    """
    column = column or filled.table.columns[0]
    if column not in filled.table.columns:
        names = ", ".join(filled.table.columns)
        raise UserError(f"{filled.name} has no column {column!r}; it has: {names}.")
    cells = [cell for cell in filled.cells if cell.column == column]
    metrics = {cell.metric for cell in cells}
    if len(metrics) > 1:
        raise UserError(f"{filled.name}: the rows of column {column!r} show different metrics.")
    trained = [cell for cell in cells if cell.sources and not cell.joint]
    measured = [cell for cell in trained if cell.values]
    missing = tuple(cell.row for cell in trained if not cell.values)
    metric = cells[0].metric
    best_first = sorted(measured, key=lambda cell: -metric.improvement(cell.mean or 0.0))
    groups = tuple(_groups(best_first, _compared(best_first, setting)))
    return Ranking(filled, column, metric, groups, missing)


def compare(left: FilledCell, right: FilledCell, setting: Setting) -> Estimate | None:
    """Left minus right at the seeds that both have; None where they have none in common."""
    seeds = sorted(left.values.keys() & right.values.keys())
    if not seeds:
        return None
    noise = {} if left.imported or right.imported else setting.seed_noise
    return difference(sample(left, seeds, noise), sample(right, seeds, noise))


Pairs = dict[tuple[str, str], Comparison]
"""By the labels of the worse and the better row."""


def _compared(best_first: Sequence[FilledCell], setting: Setting) -> Pairs:
    estimates = {
        (worse.row, better.row): estimate
        for better, worse in combinations(best_first, 2)
        if (estimate := compare(worse, better, setting)) is not None
    }
    adjusted = holm([estimate.p_value for estimate in estimates.values()])
    return {
        pair: Comparison(estimate, p) for (pair, estimate), p in zip(estimates.items(), adjusted, strict=True)
    }


def _groups(best_first: Sequence[FilledCell], pairs: Pairs) -> Iterator[tuple[RankedRow, ...]]:
    left = list(best_first)
    while left:
        first = left[0]
        own = [cell for cell in left if cell is first or not _differs(pairs, cell, first)]
        left = [cell for cell in left if cell not in own]
        yield tuple(_row(cell, pairs.get((cell.row, best_first[0].row))) for cell in own)


def _differs(pairs: Pairs, worse: FilledCell, better: FilledCell) -> bool:
    pair = pairs.get((worse.row, better.row))
    return pair is not None and pair.decided


def _row(cell: FilledCell, versus_best: Comparison | None) -> RankedRow:
    return RankedRow(cell.row, cell.mean or 0.0, len(cell.values), versus_best)


def _data(row: RankedRow) -> dict[str, Any]:
    found: dict[str, Any] = {"row": row.label, "mean": row.mean, "seeds": row.num_seeds}
    if row.versus_best is None:
        return found
    estimate = row.versus_best.estimate
    return found | {
        "minus_best": estimate.value,
        "interval": estimate.interval(),
        "adjusted_p": row.versus_best.adjusted_p,
        "decided": row.versus_best.decided,
        "seeds_to_decide": None if row.versus_best.decided else seeds_to_decide(estimate),
        "caveats": estimate.caveats,
    }
