"""A study as data: tables of rows of cells, each cell naming what must be trained and tested for it.

`training` and `evaluation` are frozen dataclasses of the study's own, at the paper's scale. A profile
resolves them to the trial and evaluation configs that are run; equal resolved configs are one trial,
trained once and cited by many cells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ablation.claim import CellRef, Claim, Statistic, comparisons, references
from ablation.metric import Metric
from ablation.options import NoOptions, declared, given, named
from ablation.protocol import JointRequest, JointResult, TrainFunction
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
        variant: what is trained and tested for it; None for a number that is reported alone.
        metric: name of one of the study's metrics.
        paper: the reported number, in the metric's unit, or None.
    """

    variant: Variant | None
    metric: str
    paper: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """A row: its name, its heading columns (text, or True/False for a check mark), its cells.

    Attributes:
        label: names the row within its table, as claims and run names do.
        source: of a row that is reported and not trained, where its numbers come from, as "Redmon et al.,
            CVPR 2016"; "" for a row that is trained.

    Raises:
        ValueError: a row without a source has a cell without a variant, or the reverse.
    """

    label: str
    headers: tuple[str | bool, ...]
    cells: tuple[Cell, ...]
    source: str = ""

    def __post_init__(self) -> None:
        if any((cell.variant is None) != bool(self.source) for cell in self.cells):
            raise ValueError(
                f"row {self.label!r}: either each cell has a variant to train, or none has and the row names "
                "the source of its numbers"
            )

    @staticmethod
    def reported(
        label: str, headers: tuple[str | bool, ...], numbers: Mapping[str, float | None], source: str
    ) -> Row:
        """A row that is not trained: the paper's numbers by metric, None where it reports none."""
        cells = tuple(Cell(None, metric, number) for metric, number in numbers.items())
        return Row(label, headers, cells, source)


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

    @property
    def trained(self) -> tuple[Row, ...]:
        """The rows that are not reported alone."""
        return tuple(row for row in self.rows if not row.source)

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
        is_plain: whether it was made by `plain`.
    """

    name: str
    summary: str
    seeds: int
    prepare: Callable[[Path, Any], Setting]
    is_plain: bool = False

    @staticmethod
    def plain(setting: PlainSetting, summary: str, seeds: int) -> Profile:
        """A profile that is one setting; the study's options replace fields of its trainings.

        An option that names data, or is a path, needs a profile with its own `prepare`: a path says where
        data lies, and a trial is identified by what it trains on.
        """

        def prepare(workspace: Path, options: Any) -> Setting:
            return replace(setting, profile=named(setting.profile, options), changes=given(options))

        return Profile(setting.profile, summary, seeds, prepare, is_plain=True)


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
class JointMeasurement:
    """Numbers that trained rows get together, on one machine in turns: their speed.

    Numbers that a machine decides mean something beside each other alone, so all rows are measured in one
    run, in rounds. In a table such a cell is the mean over the rounds with their standard deviation, and a
    claim compares two rows round by round. With several seeds the first is measured.

    Attributes:
        metrics: names of those that it gives, of the study's.
        conditions: under which it measures, for captions, as "Batch 1, postprocessing included".
        measure: measures all rows of the request; raises ablation.errors.UserError. Called on the machine of
            the driver, when the trials have ended.
    """

    metrics: tuple[str, ...]
    conditions: str
    measure: Callable[[JointRequest], JointResult]


@dataclass(frozen=True, slots=True)
class DataReport:
    """What a study says of a data set that can be used.

    Attributes:
        text: for people.
        data: the same for programs, as JSON values.
        problems: how many kinds of things are wrong with it, or look wrong.
    """

    text: str
    data: Mapping[str, Any]
    problems: int


@dataclass(frozen=True, slots=True)
class Study:
    """A paper: what it measures, its tables, its claims, its profiles, and what trains a trial.

    Attributes:
        metrics: what evaluations report, in the order in which displays show it; a finished trial is
            announced with the first.
        progress: what `Progress.metrics` holds for displays and dashboards to show, in their order.
        options: what a user may change, a frozen dataclass of fields made by `ablation.options.option`.
        check_data: `(options, folder)` to a report on the data set that the options name, pictures of it in
            the folder; raises ablation.errors.UserError for one that cannot be used. None where the study
            cannot check one.
        predictions: the kind of an evaluation's artifact that `rescore` and `by_class` read.
        rescore: `(setting, trial config, evaluation config, predictions file)` to the metrics that those
            predictions give today; None where the study cannot tell.
        read_scores: `(content, source)` of a file that an evaluation server returned to the metrics in it,
            NaN for an undefined one; raises ablation.errors.UserError, which names the source. None where
            no evaluation needs a server.
        by_class: None where the study has no numbers by class.
        computed: metrics that no evaluation reports, because a row's configs decide them (boxes, parameters):
            by name a function of the resolved trial config and evaluation config.
        joint: metrics that trained rows get together; None where there are none.
        sources: names of the packages whose modules decide what a training computes, as "detector".
        packages: installed packages whose version can change a result; recorded with every attempt.
        folder: where its modules lie, for the processes of trials; None where they are installed.

    Raises:
        ValueError: two metrics, tables or claims of one name, a profile under another name than its own, a
            cell of an undeclared metric, or a claim on a cell that does not exist or is not measured here, on
            cells of several metrics, on fewer than two cells, or on a metric without direction.
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
    check_data: Callable[[Any, Path], DataReport] | None = None
    predictions: str = "predictions"
    rescore: Callable[[Setting, Any, Any, Path], Mapping[str, float]] | None = None
    read_scores: Callable[[str, str], Mapping[str, float]] | None = None
    by_class: ByClass | None = None
    computed: Mapping[str, Callable[[Any, Any], float]] = field(default_factory=dict)
    joint: JointMeasurement | None = None
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
        for name in (*self.computed, *self.jointly):
            self._require(name, "computed and joint metrics")
        for claim in self.claims:
            self._check_claim(claim)
        for profile in self.profiles.values():
            if profile.is_plain:
                self._check_plain(profile)

    def _check_plain(self, profile: Profile) -> None:
        """Every option must be a field of every training that such a profile could replace."""
        for option in declared(self.options):
            where = f"{self.name}: option {option.name!r} cannot go with the plain profile {profile.name!r}"
            if option.names_data or option.kind is Path:
                raise ValueError(f"{where}: it names a path or data, so the profile needs its own prepare")
            for table, row, cell in self.cells():
                training = cell.variant and cell.variant.training
                if training and option.name not in {one.name for one in fields(training)}:
                    raise ValueError(
                        f"{where}: the training of {table.id}, row {row.label!r}, has no such field; the "
                        "profile needs its own prepare"
                    )

    def _require(self, name: str, where: str) -> None:
        try:
            self.metric(name)
        except KeyError as error:
            raise ValueError(f"{self.name}: {where}: {error.args[0]}") from None

    def _check_claim(self, claim: Claim) -> None:
        if isinstance(claim, Statistic):
            return
        where = f"{self.name}: claim {claim.id!r}"
        try:
            cells = [self.cell(ref) for ref in references(claim)]
        except KeyError as error:
            raise ValueError(f"{where}: {error.args[0]}") from None
        names = {cell.metric for cell in cells}
        if len(names) != 1:
            raise ValueError(f"{where} must compare cells of one metric, got {sorted(names)}")
        if any(len(set(group)) < 2 for group in comparisons(claim)):
            raise ValueError(f"{where} must compare at least two different cells")
        if any(cell.variant is None for cell in cells):
            raise ValueError(f"{where} rests on a row that is reported and not trained")
        if (name := names.pop()) in self.computed or self.metric(name).better == "neither":
            raise ValueError(f"{where}: {name!r} has no better direction or no error; take a Statistic")

    @property
    def jointly(self) -> tuple[str, ...]:
        """Names of the metrics that rows get together."""
        return self.joint.metrics if self.joint else ()

    def evaluated(self, cell: Cell) -> bool:
        """Whether an evaluation gives the number of a cell."""
        return cell.variant is not None and cell.metric not in (*self.computed, *self.jointly)

    def metric(self, name: str) -> Metric:
        """The metric of that name; KeyError with the names there are."""
        for metric in self.metrics:
            if metric.name == name:
                return metric
        raise KeyError(f"no metric {name!r}; the study declares {[metric.name for metric in self.metrics]}")

    def table_id(self, word: str) -> str:
        """The id of the table that a person names: "3" is "table3" where no table has the id "3"."""
        ids = {table.id for table in self.tables}
        return word if word in ids or f"table{word}" not in ids else f"table{word}"

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
