"""Tables filled from the store: every cell with ours, the paper's, their difference, and its trials.

Reads the store, never logs or files. Renderers, claims and figures all use filled tables, so they agree.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from ablation.metric import PERCENT, Metric, SeedNoise
from ablation.results.sources import Source, Sources
from ablation.setting import Setting
from ablation.store import JointRow, Store
from ablation.study import Cell, Row, Study, Table

if TYPE_CHECKING:
    from ablation.plan import Plan

IMPORTED_MARK = "†"
"""Stands beside a number from an evaluation server."""


@dataclass(frozen=True, slots=True)
class FilledCell:
    """One cell: what is declared, and its values.

    Attributes:
        metric: the one that the cell names.
        sources: its value at each seed or in each round, or the one that its configs give; none where the
            number is reported alone.
    """

    cell: Cell
    metric: Metric
    row: str
    column: str
    sources: tuple[Source, ...]
    best: bool = False

    @property
    def values(self) -> dict[int, float]:
        """The values there are, by seed or round."""
        return {source.repetition: source.value for source in self.sources if source.value is not None}

    @property
    def mean(self) -> float | None:
        """Mean over the values there are."""
        return fmean(self.values.values()) if self.values else None

    @property
    def spread(self) -> float | None:
        """Sample standard deviation over seeds or rounds; None below two."""
        return stdev(self.values.values()) if len(self.values) > 1 else None

    @property
    def paper(self) -> float | None:
        """The reported number."""
        return self.cell.paper

    @property
    def difference(self) -> float | None:
        """Ours minus the paper's; None where the two are of different kinds (`Metric.comparable`)."""
        mean = self.mean
        if mean is None or self.paper is None or not self.metric.comparable:
            return None
        return mean - self.paper

    @property
    def reproduced(self) -> bool | None:
        """Whether ours, as shown, is within the metric's tolerance of the paper's; None where unknown."""
        if self.mean is None or self.paper is None:
            return None
        return self.metric.reproduces(self.mean, self.paper)

    @property
    def complete(self) -> bool:
        """Whether every seed or round has its value."""
        return len(self.values) == len(self.sources)

    @property
    def imported(self) -> bool:
        """Whether a value comes from an evaluation server, without a measure of its error."""
        return any(source.state == "imported" for source in self.sources)

    @property
    def joint(self) -> bool:
        """Whether its values are rounds of a joint measurement."""
        return any(source.round is not None for source in self.sources)

    @property
    def state(self) -> str:
        """State of the missing seeds, a failure first; "complete" or "imported" where none is missing.

        "reported" for a number that is the paper's alone, "unreported" where the paper has none either.
        """
        if self.cell.variant is None:
            return "unreported" if self.paper is None else "reported"
        missing = [source for source in self.sources if source.value is None]
        states = {source.state for source in missing}
        if not missing:
            return "imported" if self.imported else "complete"
        if "running" in states and "failed" not in states:
            share = fmean(source.fraction for source in missing if source.state == "running")
            return f"running {math.floor(100 * share)} %"
        return next(state for state in _STATES if state in states)


_STATES = ("failed", "cancelled", "waiting", "submit", "unmeasured", "unreadable", "undefined")
"""Of missing values, the one that a cell shows first."""


@dataclass(frozen=True, slots=True)
class Heading:
    """The conditions under which the numbers of a table were measured.

    Attributes:
        note: the setting's caption.
        paper_note: of the paper's own numbers; None where a table holds none.
        seed_noise: of the setting, by name of the metric.
        joint_note: under which conditions, and on which machine, jointly measured numbers were measured.
    """

    profile: str
    at_paper_scale: bool
    data_name: str
    note: str
    paper_note: str | None
    seeds: tuple[int, ...]
    commits: tuple[str, ...]
    seed_noise: Mapping[str, SeedNoise]
    joint_note: str = ""

    @property
    def conditions(self) -> str:
        """Profile, data set, seeds and commit in one sentence."""
        seeds = ", ".join(map(str, self.seeds))
        commits = ", ".join(map(_short, self.commits)) or "none yet"
        return (
            f"Profile {self.profile}, data set {self.data_name}, "
            f"{'seeds' if len(self.seeds) > 1 else 'seed'} {seeds}, "
            f"{'commits' if len(self.commits) > 1 else 'commit'} {commits}."
        )

    @property
    def legend(self) -> str:
        """How to read a cell."""
        ours = "ours (mean over seeds ± sample standard deviation)" if len(self.seeds) > 1 else "ours"
        if self.paper_note is None:
            return f"Each cell: {ours}."
        note = f" ({self.paper_note})" if self.paper_note else ""
        return f"Each cell: {ours}, then the paper's number at its own scale and ours minus it{note}."

    @property
    def text(self) -> str:
        """Conditions, note and legend as a paragraph."""
        return " ".join(sentence for sentence in (self.conditions, self.note, self.legend) if sentence)


@dataclass(frozen=True, slots=True)
class FilledTable:
    """A table with its cells filled, row by row."""

    table: Table
    rows: tuple[tuple[FilledCell, ...], ...]
    heading: Heading

    @property
    def name(self) -> str:
        """The title's name: "Table 3" for the id table3."""
        return re.sub(r"^table(\d+)$", r"Table \1", self.table.id)

    @property
    def caption(self) -> str:
        """The text below the title: the conditions, how to read a cell, and the table's notes."""
        return " ".join([self.heading.text, *self.notes])

    @property
    def notes(self) -> list[str]:
        """Sentences of this table alone: units, numbers that are measured or reported in another way."""
        notes = [*_units(self.cells), *_apart(self.cells)]
        if self.heading.joint_note and any(cell.joint for cell in self.cells):
            notes.append(self.heading.joint_note)
        if reported := [f"{row.label} ({row.source})" for row in self.table.rows if row.source]:
            notes.append(f"Reported, not trained here: {', '.join(reported)}.")
        compared = [cell.reproduced for cell in self.cells if cell.reproduced is not None]
        if self.heading.at_paper_scale and compared:
            share = f"{compared.count(True)} of {len(compared)} cells"
            notes.append(f"Within their tolerance of the paper's number: {share}.")
        if any(cell.imported for cell in self.cells):
            notes.append(f"{IMPORTED_MARK} An evaluation server's number, so differences have no interval.")
        return notes + _to_submit(self.cells)

    @property
    def cells(self) -> tuple[FilledCell, ...]:
        """Every cell, in reading order."""
        return tuple(cell for row in self.rows for cell in row)

    def cell(self, row: str, column: str) -> FilledCell:
        """The cell of that row label and column name."""
        return next(cell for cell in self.cells if (cell.row, cell.column) == (row, column))


def _units(cells: Sequence[FilledCell]) -> list[str]:
    """The metrics that are not percentages of which higher is better, with unit and direction."""
    metrics = dict.fromkeys(cell.metric for cell in cells)
    special = [metric.legend() for metric in metrics if (metric.unit, metric.better) != (PERCENT, "higher")]
    return [f"Units: {'; '.join(dict.fromkeys(special))}."] if special else []


def _apart(cells: Sequence[FilledCell]) -> list[str]:
    """The metrics whose numbers in the paper are not compared with ours."""
    names = dict.fromkeys(cell.metric.title for cell in cells if cell.paper and not cell.metric.comparable)
    return [f"Beside ours and not compared: the paper's {', '.join(names)}."] if names else []


def _to_submit(cells: Sequence[FilledCell]) -> list[str]:
    """How to fill cells that need an evaluation server: one is named, others are counted."""
    sources = [source for cell in cells for source in cell.sources if source.state == "submit"]
    files = {source.evaluation_key: source.submission for source in sources}
    if not files:
        return []
    key, file = next(iter(files.items()))
    more = f" {len(files) - 1} more likewise." if len(files) > 1 else ""
    return [
        f'"submit": only an evaluation server can give the number. Upload {file or "its submission"} of the '
        f"workspace, and import what comes back for {key}: ablation status prints the command.{more}"
    ]


Item = str | bool | FilledCell
"""An entry of the drawn table: text, a check mark or its absence, a cell."""


def grid(filled: FilledTable) -> tuple[tuple[Item, ...], ...]:
    """The table as the paper draws it, heading row first; a transposed one has rows as columns."""
    table = filled.table
    lines: list[tuple[Item, ...]] = [(*table.headers, *table.columns)]
    lines += [(*row.headers, *cells) for row, cells in zip(table.rows, filled.rows, strict=True)]
    return tuple(zip(*lines, strict=True)) if table.transposed else tuple(lines)


def num_heading_columns(filled: FilledTable) -> int:
    """Number of columns of `grid` that hold headings instead of cells."""
    return 1 if filled.table.transposed else len(filled.table.headers)


def spans(line: Sequence[Item]) -> list[tuple[Item, int]]:
    """Neighbours with equal text merged: each item and how many columns it takes."""
    merged: list[tuple[Item, int]] = []
    for item in line:
        if merged and isinstance(item, str) and item == merged[-1][0]:
            merged[-1] = (item, merged[-1][1] + 1)
        else:
            merged.append((item, 1))
    return merged


def assemble(
    study: Study, plan: Plan, store: Store, table_ids: Sequence[str] | None = None
) -> list[FilledTable]:
    """Fill the named tables (all that are planned when None) with what the store holds now."""
    tables = [table for table in study.tables if table.id in (table_ids or plan.table_ids)]
    sources = Sources.read(
        plan, store, [cell for table in tables for row in table.rows for cell in row.cells]
    )
    return [_fill(study, plan, table, sources) for table in tables]


def _short(commit: str) -> str:
    name, plus, changes = commit.partition("+")
    return f"{name[:10]}{plus}{changes}"


def _fill(study: Study, plan: Plan, table: Table, sources: Sources) -> FilledTable:
    def filled(row: Row, cell: Cell, column: str) -> FilledCell:
        return FilledCell(cell, study.metric(cell.metric), row.label, column, sources.of(cell))

    rows = [
        tuple(filled(row, cell, column) for cell, column in zip(row.cells, table.columns, strict=True))
        for row in table.rows
    ]
    return FilledTable(table, mark_best(rows), _heading(study, plan, rows, sources.joint))


def mark_best(rows: Sequence[Sequence[FilledCell]]) -> tuple[tuple[FilledCell, ...], ...]:
    """Mark the best complete cell of each metric in a column, and the cells that show the same number.

    None is marked where all complete cells of the metric show the same number.
    """
    columns = [_mark_column(column) for column in zip(*rows, strict=True)]
    return tuple(zip(*columns, strict=True))


def _mark_column(column: Sequence[FilledCell]) -> list[FilledCell]:
    shown: dict[Metric, set[float]] = defaultdict(set)
    for cell in column:
        if cell.mean is not None and cell.complete:
            shown[cell.metric].add(cell.metric.rounded(cell.mean))
    best = {metric: metric.best(values) for metric, values in shown.items() if len(values) > 1}
    return [replace(cell, best=_is_best(cell, best.get(cell.metric))) for cell in column]


def _is_best(cell: FilledCell, best: float | None) -> bool:
    return cell.mean is not None and cell.complete and cell.metric.rounded(cell.mean) == best


def _heading(
    study: Study, plan: Plan, rows: Sequence[Sequence[FilledCell]], joint: JointRow | None
) -> Heading:
    setting: Setting = plan.setting
    commits = {source.commit for row in rows for cell in row for source in cell.sources if source.commit}
    reported = any(cell.paper is not None for row in rows for cell in row)
    return Heading(
        setting.profile,
        setting.at_paper_scale,
        setting.data_name,
        setting.caption,
        study.paper_note if reported else None,
        tuple(plan.seeds),
        tuple(sorted(commits)),
        setting.seed_noise,
        _joint_note(study, joint) if joint else "",
    )


def _joint_note(study: Study, joint: JointRow) -> str:
    """How the newest joint measurement measured."""
    if study.joint is None:
        return ""
    names = " and ".join(study.metric(name).title for name in study.joint.metrics)
    how = f"all rows in turns, mean of {joint.num_rounds} rounds ± sample standard deviation"
    day = f"{joint.time:%Y-%m-%d}"
    return f"{names[:1].upper()}{names[1:]}: {study.joint.conditions}, on {joint.machine}, {day}; {how}."
