"""A study as data: tables of rows of cells, each cell naming what must be trained and tested for it.

`training` and `evaluation` are frozen dataclasses of the study's own, at the paper's scale. A profile
resolves them to the trial and evaluation configs that are run; equal resolved configs are one trial,
trained once and cited by many cells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ablation.claim import CellRef, Claim, Statistic, comparisons, references
from ablation.metric import Metric
from ablation.options import NoOptions, given, named
from ablation.protocol import TrainFunction
from ablation.setting import PlainSetting, Setting


def _require_different(what: str, names: Sequence[str]) -> None:
    if len(set(names)) != len(names):
        raise ValueError(f"{what} must differ, got {list(names)}")


@dataclass(frozen=True, slots=True)
class Variant:
    """One training and one way to test it."""

    training: Any
    evaluation: Any


@dataclass(frozen=True, slots=True)
class Cell:
    """One number of a table.

    Attributes:
        metric: name of one of the study's metrics.
        paper: the reported number, in the metric's unit, or None.
    """

    variant: Variant
    metric: str
    paper: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """A row: its name, its heading columns (text, or True/False for a check mark), its cells.

    Attributes:
        label: names the row within its table, as claims and run names do.
    """

    label: str
    headers: tuple[str | bool, ...]
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """A table of the paper.

    Attributes:
        id: "table1"; also the file name of its CSV.
        headers: names of the heading columns.
        columns: names of the cell columns.
        transposed: drawn with rows as columns, as the paper draws Tables 1 and 4.
    """

    id: str
    title: str
    headers: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    transposed: bool = False

    def __post_init__(self) -> None:
        _require_different(f"{self.id}: row labels", [row.label for row in self.rows])
        _require_different(f"{self.id}: headers", self.headers)
        _require_different(f"{self.id}: columns", self.columns)
        for row in self.rows:
            if len(row.headers) != len(self.headers) or len(row.cells) != len(self.columns):
                raise ValueError(
                    f"{self.id}, row {row.label!r}: needs {len(self.headers)} headers and "
                    f"{len(self.columns)} cells, got {len(row.headers)} and {len(row.cells)}"
                )

    def row(self, label: str) -> Row:
        """The row of that label; KeyError with the labels there are."""
        for row in self.rows:
            if row.label == label:
                return row
        raise KeyError(f"{self.id} has no row {label!r}; it has {[row.label for row in self.rows]}")


@dataclass(frozen=True, slots=True)
class Profile:
    """A scale at which a study can run.

    Attributes:
        summary: one line of help.
        seeds: number of seeds when the user names none.
        prepare: `(workspace, options)` to a setting; makes or checks the data set. `options` is an instance
            of the study's `options`. Raises ablation.errors.UserError, for an option that the profile
            cannot take too.
    """

    name: str
    summary: str
    seeds: int
    prepare: Callable[[Path, Any], Setting]

    @staticmethod
    def plain(setting: PlainSetting, summary: str, seeds: int) -> Profile:
        """A profile that is one setting; the study's options replace fields of its trainings."""

        def prepare(workspace: Path, options: Any) -> Setting:
            return replace(setting, profile=named(setting.profile, options), changes=given(options))

        return Profile(setting.profile, summary, seeds, prepare)


@dataclass(frozen=True, slots=True)
class ByClass:
    """A metric that an evaluation also has for each class of its test data.

    Attributes:
        metric: its name.
        measure: `(setting, trial config, evaluation config, predictions file)` to the metric by class name,
            NaN for a class without test data; raises ablation.errors.UserError.
    """

    metric: str
    measure: Callable[[Setting, Any, Any, Path], Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Study:
    """A paper: what it measures, its tables, its claims, its profiles, and what trains a trial.

    Attributes:
        metrics: what evaluations report, in the order in which displays show it; a finished trial is
            announced with the first.
        progress: what `Progress.metrics` holds for displays and dashboards to show, in their order.
        options: what a user may change, a frozen dataclass of fields made by `ablation.options.option`.
        check_data: `(options, folder)` to a report on the data set that the options name, pictures of it in
            the folder; raises ablation.errors.UserError. None where the study cannot check one.
        predictions: the kind of an evaluation's artifact that `rescore` and `by_class` read.
        rescore: `(setting, trial config, evaluation config, predictions file)` to the metrics that those
            predictions give today; None where the study cannot tell.
        read_scores: `(content, source)` of a file that an evaluation server returned to the metrics in it,
            NaN for an undefined one; raises ablation.errors.UserError, which names the source. None where
            no evaluation needs a server.
        by_class: None where the study has no numbers by class.
        sources: names of the packages whose modules decide what a training computes, as "detector".
        packages: installed packages whose version can change a result; recorded with every attempt.
        folder: where its modules lie, for the processes of trials; None where they are installed.

    Raises:
        ValueError: two metrics, tables or claims of one name, a profile under another name than its own, a
            cell of an undeclared metric, or a claim on a cell that does not exist, on cells of several
            metrics, or on fewer than two cells.
    """

    name: str
    title: str
    metrics: tuple[Metric, ...]
    tables: tuple[Table, ...]
    claims: tuple[Claim, ...]
    profiles: Mapping[str, Profile]
    default_profile: str
    train: TrainFunction
    progress: tuple[Metric, ...] = ()
    paper_note: str = ""
    options: type[Any] = NoOptions
    check_data: Callable[[Any, Path], str] | None = None
    predictions: str = "predictions"
    rescore: Callable[[Setting, Any, Any, Path], Mapping[str, float]] | None = None
    read_scores: Callable[[str, str], Mapping[str, float]] | None = None
    by_class: ByClass | None = None
    sources: tuple[str, ...] = ()
    packages: tuple[str, ...] = ("torch", "numpy")
    folder: Path | None = None

    def __post_init__(self) -> None:
        for kind, names in (
            ("names of metrics", [metric.name for metric in self.metrics]),
            ("names of progress", [metric.name for metric in self.progress]),
            ("ids of tables", [table.id for table in self.tables]),
            ("ids of claims", [claim.id for claim in self.claims]),
        ):
            _require_different(f"{self.name}: {kind}", names)
        for name, profile in self.profiles.items():
            if profile.name != name:
                raise ValueError(f"{self.name}: the profile {profile.name!r} is declared as {name!r}")
        for table, row, cell in self.cells():
            self._require(cell.metric, f"{table.id}, row {row.label!r}")
        if self.by_class:
            self._require(self.by_class.metric, "by_class")
        for claim in self.claims:
            self._check_claim(claim)

    def _require(self, name: str, where: str) -> None:
        try:
            self.metric(name)
        except KeyError as error:
            raise ValueError(f"{self.name}: {where}: {error.args[0]}") from None

    def _check_claim(self, claim: Claim) -> None:
        try:
            names = {self.cell(ref).metric for ref in references(claim)}
        except KeyError as error:
            raise ValueError(f"{self.name}: claim {claim.id!r}: {error.args[0]}") from None
        if len(names) != 1 and not isinstance(claim, Statistic):
            raise ValueError(
                f"{self.name}: claim {claim.id!r} must compare cells of one metric, got {sorted(names)}"
            )
        if any(len(set(group)) < 2 for group in comparisons(claim)):
            raise ValueError(f"{self.name}: claim {claim.id!r} must compare at least two different cells")

    def metric(self, name: str) -> Metric:
        """The metric of that name; KeyError with the names there are."""
        for metric in self.metrics:
            if metric.name == name:
                return metric
        raise KeyError(f"no metric {name!r}; the study declares {[metric.name for metric in self.metrics]}")

    def table(self, table_id: str) -> Table:
        """The table of that id; KeyError with the ids there are."""
        for table in self.tables:
            if table.id == table_id:
                return table
        raise KeyError(f"no table {table_id!r}; there are {[table.id for table in self.tables]}")

    def cell(self, ref: CellRef) -> Cell:
        """The cell a reference points at; KeyError names what is there."""
        table = self.table(ref.table)
        if ref.column not in table.columns:
            raise KeyError(f"{ref.table} has no column {ref.column!r}; it has {list(table.columns)}")
        return table.row(ref.row).cells[table.columns.index(ref.column)]

    def cells(self, table_ids: Sequence[str] | None = None) -> Iterator[tuple[Table, Row, Cell]]:
        """Every cell of the named tables (all when None), in reading order."""
        for table in self.tables:
            if table_ids is None or table.id in table_ids:
                for row in table.rows:
                    for cell in row.cells:
                        yield table, row, cell
