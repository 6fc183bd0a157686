"""The tables with a column for each class, from the predictions behind every row.

The store does not keep these numbers; they are computed on request.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from ablation.errors import UserError
from ablation.metric import Metric
from ablation.plan import Plan, make_plan
from ablation.results.sources import Source
from ablation.results.table import FilledCell, FilledTable, assemble, mark_best
from ablation.store import Store
from ablation.study import ByClass, Cell, Row, Study

Measure = Callable[[Source], Mapping[str, float] | None]
"""The metric by class for one seed of a row; empty where there is none, None for an unreadable file."""


def by_class(study: Study, plan: Plan, store: Store) -> tuple[list[FilledTable], list[str]]:
    """All tables of the study with a column for each class; without columns where nothing has been tested.

    There is a row for each training and test that a row of the table cites; where there are several, each
    names the column of the table. Where there are more classes than rows, the table is transposed.

    Returns:
        The tables, and a sentence for each file of predictions that cannot be read.

    Raises:
        UserError: the study has no classes.
    """
    if study.by_class is None:
        raise UserError(f"The study {study.name!r} has no numbers by class.")
    whole, problems = make_plan(study, plan.setting, plan.seeds), list[str]()
    tables = assemble(study, whole, store)
    # Reads the store after `assemble`, so that it finds every evaluation that the tables hold.
    measure, metric = _measure(whole, store, study.by_class, problems), study.metric(study.by_class.metric)
    return [_by_class(study, filled, metric, measure) for filled in tables], problems


def _measure(plan: Plan, store: Store, declared: ByClass, problems: list[str]) -> Measure:
    wanted = {e.key: (trial.config, e.config) for trial in plan.trials for e in trial.evaluations}
    rows, kind = store.evaluations(list(wanted)), plan.study.predictions
    known: dict[str, Mapping[str, float] | None] = {}

    def measure(source: Source) -> Mapping[str, float] | None:
        key = source.evaluation_key
        if source.state not in ("complete", "undefined") or kind not in rows[key].artifacts:
            return {}
        if key not in known:
            try:
                path = store.resolve(rows[key].artifacts[kind])
                known[key] = declared.measure(plan.setting, *wanted[key], path)
            except UserError as error:
                known[key] = None
                problems.append(str(error))
        return known[key]

    return measure


def _by_class(study: Study, filled: FilledTable, metric: Metric, measure: Measure) -> FilledTable:
    firsts = _firsts(filled, study.evaluated)
    sources = [source for _, first in firsts for source in first.sources]
    classes = tuple(dict.fromkeys(name for source in sources for name in measure(source) or ()))
    cells = [tuple(_cell(row, first, metric, name, measure) for name in classes) for row, first in firsts]
    rows = [
        replace(row, cells=tuple(cell.cell for cell in line))
        for (row, _), line in zip(firsts, cells, strict=True)
    ]
    table = replace(
        filled.table,
        title=f"{filled.table.title}: {metric.title} by class",
        headers=(*filled.table.headers, *[f"Column of {filled.name}"] * (len(rows) > len(filled.rows))),
        columns=classes,
        rows=tuple(rows),
        transposed=len(classes) > len(rows),
    )
    return FilledTable(table, mark_best(cells), replace(filled.heading, paper_note=None))


def _firsts(filled: FilledTable, tested: Callable[[Cell], bool]) -> list[tuple[Row, FilledCell]]:
    """The first cell of each training and test that a row cites, and its new row, which is still empty."""
    cited = [
        (row, list({cell.cell.variant: cell for cell in reversed(cells) if tested(cell.cell)}.values())[::-1])
        for row, cells in zip(filled.table.rows, filled.rows, strict=True)
        if any(tested(cell.cell) for cell in cells)
    ]
    if all(len(cells) == 1 for _, cells in cited):
        return [(row, first) for row, (first,) in cited]
    return [
        (Row(f"{row.label}, {cell.column}", (*row.headers, cell.column), ()), cell)
        for row, cells in cited
        for cell in cells
    ]


def _cell(row: Row, first: FilledCell, metric: Metric, name: str, measure: Measure) -> FilledCell:
    sources = tuple(_source(source, name, measure(source)) for source in first.sources)
    of_class = replace(metric, name=f"{metric.name} of {name}", label=metric.title)
    return FilledCell(Cell(first.cell.variant, of_class.name), of_class, row.label, name, sources)


def _source(source: Source, name: str, found: Mapping[str, float] | None) -> Source:
    """The same seed with its number for a class; no bootstrap replicates are kept by class."""
    empty = replace(source, value=None, bootstrap=None)
    if found is None:
        return replace(empty, state="unreadable")
    value = found.get(name, math.nan)
    if not math.isnan(value):
        return replace(empty, value=value, state="complete")
    # An evaluation server gives no numbers by class.
    known = source.state in ("complete", "submit", "imported", "undefined")
    return replace(empty, state="undefined") if known else empty
