"""Two rows side by side: every metric and class of their tests, with the interval of the difference."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from ablation.errors import UserError
from ablation.metric import Metric
from ablation.plan import Plan, make_plan
from ablation.results.by_class import by_class
from ablation.results.ranking import compare
from ablation.results.sources import Sources
from ablation.results.statistics import Estimate
from ablation.results.table import FilledCell, FilledTable
from ablation.store import Store
from ablation.study import Cell, Row, Study, Table


@dataclass(frozen=True, slots=True)
class Side:
    """A row of a table, as a person named it."""

    table: Table
    row: Row

    @property
    def name(self) -> str:
        """ "table3 FCOS"."""
        return f"{self.table.id} {self.row.label}"


@dataclass(frozen=True, slots=True)
class Difference:
    """One metric, or one class, of both rows.

    Attributes:
        name: of the metric or the class.
        left, right: means over seeds; None while there is none.
        estimate: left minus right at the seeds that both have; None where they have none in common.
    """

    name: str
    metric: Metric
    left: float | None
    right: float | None
    estimate: Estimate | None

    def data(self) -> dict[str, Any]:
        """As JSON values, for programs."""
        estimate = self.estimate
        return {
            "name": self.name,
            "unit": self.metric.unit,
            "better": self.metric.better,
            "left": self.left,
            "right": self.right,
            "difference": None if estimate is None else estimate.value,
            "interval": None if estimate is None else estimate.interval(),
            "p_value": None if estimate is None else estimate.p_value,
            "caveats": [] if estimate is None else estimate.caveats,
        }


def find_row(study: Study, text: str) -> Side:
    """The row that a text names: "table3 FCOS", "FCOS", or a part of the label that only one training has.

    Raises:
        UserError: no row has it, or rows of different trainings have it; names them.
    """
    wanted = text.strip().casefold()
    sides = [Side(table, row) for table in study.tables for row in table.rows if _trained(row)]
    tests = (
        lambda side: side.name.casefold() == wanted,
        lambda side: side.row.label.casefold() == wanted,
        lambda side: wanted in side.name.casefold(),
    )
    for test in tests:
        found = [side for side in sides if test(side)]
        if len({_first(side.row).variant for side in found}) == 1:
            return found[0]
        if found:
            names = "\n".join(f"  {side.name}" for side in found)
            raise UserError(f"{text!r} may be any of these rows; name one:\n{names}")
    names = "\n".join(f"  {side.name}" for side in sides)
    raise UserError(f"No row is called {text!r}. The rows are:\n{names}")


def compare_rows(study: Study, plan: Plan, store: Store, left: Side, right: Side) -> list[Difference]:
    """Every metric that a test of the rows reports, in the study's order."""
    whole = make_plan(study, plan.setting, plan.seeds)
    cells = {side: list(_cells(study, side)) for side in (left, right)}
    sources = Sources.read(whole, store, [cell for own in cells.values() for cell in own])

    def filled(side: Side, cell: Cell) -> FilledCell:
        metric = study.metric(cell.metric)
        return FilledCell(cell, metric, side.row.label, cell.metric, sources.of(cell))

    pairs = zip(cells[left], cells[right], strict=True)
    both = [(filled(left, a), filled(right, b)) for a, b in pairs]
    return [_difference(a.metric.title, a, b, plan) for a, b in both if a.values or b.values]


def compare_classes(
    study: Study, plan: Plan, store: Store, left: Side, right: Side
) -> tuple[list[Difference], list[str]]:
    """The metric of every class, largest difference first; without images' part of the interval.

    Returns:
        The differences, and a sentence for each file of predictions that cannot be read.
    """
    if study.by_class is None:
        return [], []
    tables, problems = by_class(study, plan, store)
    sides = [_by_class(tables, side) for side in (left, right)]
    found = [_difference(name, sides[0][name], sides[1][name], plan) for name in sides[0] if name in sides[1]]
    return sorted(found, key=lambda one: -abs(one.estimate.value) if one.estimate else 0.0), problems


def _by_class(tables: list[FilledTable], side: Side) -> dict[str, FilledCell]:
    """The first line of the row in its table by class."""
    [filled] = [one for one in tables if one.table.id == side.table.id]
    lines = zip(filled.table.rows, filled.rows, strict=True)
    own = [cells for row, cells in lines if row.label.startswith(side.row.label)]
    return {cell.column: replace(cell, row=side.row.label) for cell in own[0]} if own else {}


def _difference(name: str, left: FilledCell, right: FilledCell, plan: Plan) -> Difference:
    return Difference(name, left.metric, left.mean, right.mean, compare(left, right, plan.setting))


def _trained(row: Row) -> bool:
    return any(cell.variant is not None for cell in row.cells)


def _first(row: Row) -> Cell:
    """The first cell that something is trained for."""
    return next(cell for cell in row.cells if cell.variant is not None)


def _cells(study: Study, side: Side) -> Iterator[Cell]:
    """A cell for each metric that the test of the row's first cell reports."""
    variant = _first(side.row).variant
    return (
        Cell(variant, metric.name)
        for metric in study.metrics
        if metric.name not in study.computed and metric.name not in study.jointly
    )
