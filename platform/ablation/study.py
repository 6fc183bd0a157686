"""A study as data: tables of rows of cells, each cell naming what must be trained and tested for it.

`training` and `evaluation` are frozen dataclasses of the study's own, at the paper's scale. A profile
resolves them to the trial and evaluation configs that are run; equal resolved configs are one trial,
trained once and cited by many cells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from ablation.errors import UserError
from ablation.protocol import TrainFunction
from ablation.resources import Resources


@dataclass(frozen=True, slots=True)
class Variant:
    """One training and one way to test it."""

    training: Any
    evaluation: Any


@dataclass(frozen=True, slots=True)
class Cell:
    """One number of a table.

    Attributes:
        metric: which of an evaluation's numbers ("AP", "AP50", ...), in percent.
        paper: the reported number, or None.
        tolerance: points of AP within which a run at the paper's own scale counts as reproduced.
    """

    variant: Variant
    metric: str
    paper: float | None = None
    tolerance: float = 0.3


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
        labels = [row.label for row in self.rows]
        if len(set(labels)) != len(labels):
            raise ValueError(f"{self.id}: row labels must differ, got {labels}")
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
class CellRef:
    """Points at a cell: table id, row label, column name."""

    table: str
    row: str
    column: str = "AP"


@dataclass(frozen=True, slots=True)
class Greater:
    """`left` has a higher value than `right`."""

    id: str
    text: str
    left: CellRef
    right: CellRef
    paper_delta: float | None = None


@dataclass(frozen=True, slots=True)
class Chain:
    """Each cell is higher than the one before it."""

    id: str
    text: str
    chains: tuple[tuple[CellRef, ...], ...]


@dataclass(frozen=True, slots=True)
class Equivalent:
    """Two cells differ by less than `margin` points."""

    id: str
    text: str
    left: CellRef
    right: CellRef
    margin: float


@dataclass(frozen=True, slots=True)
class Range:
    """The largest and smallest of the cells differ by less than `margin` points."""

    id: str
    text: str
    cells: tuple[CellRef, ...]
    margin: float


@dataclass(frozen=True, slots=True)
class StatisticResult:
    """What a `Statistic` found: whether it holds (None: not measurable), and the numbers in one sentence."""

    holds: bool | None
    detail: str


@dataclass(frozen=True, slots=True)
class Statistic:
    """A claim checked by computing something that needs no training."""

    id: str
    text: str
    compute: Callable[[Setting], StatisticResult]


Claim = Greater | Chain | Equivalent | Range | Statistic


class SeedNoise(NamedTuple):
    """How much trainings differ by their seeds, beyond what a seed does to both rows of a comparison.

    Attributes:
        sd: standard deviation, in points of AP.
        freedom: degrees of freedom that this estimate rests on.
    """

    sd: float
    freedom: int


def data_id(setting: Setting) -> str:
    """What tells a setting's data set from all others: two of a user's may have one name."""
    return setting.own_data or setting.data_name


class Setting(Protocol):
    """A profile bound to a workspace and a data set: how a paper's row becomes a trial that runs.

    Attributes:
        profile: names the profile and what the user changed of it ("coco-90its"), no other combination
            likewise: part of folder names, of the store and of MLflow's experiments.
        at_paper_scale: whether nothing is smaller than in the paper, so that a cell's tolerance applies.
        data_name: the data set's name, for people.
        own_data: names the user's data set in folder names, no other data set likewise; None when the
            data set is the profile's own. Tables of different data sets never mix.
        seed_noise: what is taken where a claim has one seed; None for unknown.
        exclusive_gpus: whether each worker holds a GPU of its own, where there are GPUs; else trials share
            them.
        caption: one sentence for table captions: images, size, schedule, precision.
        notices: what a person should know before starting (counted repairs, precision fallback).
        context: handed to the train function unhashed (paths, intervals); picklable.
    """

    @property
    def profile(self) -> str:  # noqa: D102
        ...
    @property
    def at_paper_scale(self) -> bool:  # noqa: D102
        ...
    @property
    def data_name(self) -> str:  # noqa: D102
        ...
    @property
    def own_data(self) -> str | None:  # noqa: D102
        ...
    @property
    def seed_noise(self) -> SeedNoise | None:  # noqa: D102
        ...
    @property
    def exclusive_gpus(self) -> bool:  # noqa: D102
        ...
    @property
    def caption(self) -> str:  # noqa: D102
        ...
    @property
    def notices(self) -> Sequence[str]:  # noqa: D102
        ...
    @property
    def context(self) -> Any:  # noqa: D102
        ...

    def trial(self, training: Any, seed: int) -> Any:
        """The resolved trial config of a row's training at that seed."""
        ...

    def evaluation(self, evaluation: Any) -> Any:
        """The resolved evaluation config."""
        ...

    def resources(self, trial: Any) -> Resources | None:
        """What a resolved trial config needs; None leaves it to the machine (one worker, a fair share)."""
        ...

    def cost(self, trial: Any, evaluations: Sequence[Any]) -> float:
        """Work of a resolved trial and its evaluations, in units of one setting: the longest start first."""
        ...


@dataclass(frozen=True, slots=True)
class Overrides:
    """What a user may change of a profile; None leaves it as it is.

    All of it is part of a trial's identity, for it ends up in the resolved config.

    Attributes:
        max_iterations: train at most so many.
        short_side: of images as trained and tested on, in pixels.
        weights: what backbones start from; the profile knows which sources there are.
        precision: of the arithmetic, "fp32", "bf16" or "fp16"; the profile knows which it can do.
    """

    max_iterations: int | None = None
    short_side: int | None = None
    weights: str | None = None
    precision: str | None = None


@dataclass(frozen=True)
class PlainSetting:
    """A `Setting` for rows that are trained as they are written: a study of one's own starts with it.

    A training is a frozen dataclass with a field `seed`, and the evaluations are as they are.
    """

    profile: str
    caption: str = ""
    data_name: str = "its own"
    notices: tuple[str, ...] = ()
    context: Any = None
    own_data: str | None = None
    seed_noise: SeedNoise | None = None
    at_paper_scale: bool = False
    exclusive_gpus: bool = False

    def trial(self, training: Any, seed: int) -> Any:
        """The training with its seed."""
        return replace(training, seed=seed)

    def evaluation(self, evaluation: Any) -> Any:
        """As it is."""
        return evaluation

    def resources(self, trial: Any) -> Resources | None:
        """A fair share of the machine."""
        return None

    def cost(self, trial: Any, evaluations: Sequence[Any]) -> float:
        """All trainings are as long; their tests count for nothing."""
        return 1.0


@dataclass(frozen=True, slots=True)
class Profile:
    """A scale at which a study can run.

    Attributes:
        summary: one line of help.
        seeds: number of seeds when the user names none.
        prepare: `(workspace, data, overrides)` to a setting; makes or checks the data set. `data` is what
            the user gave with --data (None for the profile's own). Raises ablation.errors.UserError,
            for an override that the profile cannot take too.
    """

    name: str
    summary: str
    seeds: int
    prepare: Callable[[Path, Mapping[str, Path] | None, Overrides], Setting]

    @staticmethod
    def plain(setting: Setting, summary: str, seeds: int) -> Profile:
        """A profile that is one setting, and takes neither data nor changes of the user's."""

        def prepare(workspace: Path, data: Mapping[str, Path] | None, overrides: Overrides) -> Setting:
            if data is not None or overrides != Overrides():
                raise UserError(
                    f"The profile {setting.profile!r} takes no data set and no changes of itself."
                )
            return setting

        return Profile(setting.profile, summary, seeds, prepare)


@dataclass(frozen=True, slots=True)
class Study:
    """A paper: its tables, its claims, the profiles it can run at, and what trains a trial.

    Attributes:
        check_data: `(data, folder)` to a report on a data set that a user wants to use, pictures of it in
            the folder; raises ablation.errors.UserError. None where the study cannot check one.
        rescore: `(setting, trial config, evaluation config, detections file)` to the metrics that those
            detections give today; None where the study cannot tell.
        by_class: of the same arguments, AP in percent by class name, NaN where the images hold none of it;
            None where the study has no classes.
        sources: names of the packages whose modules decide what a training computes, as "detector".
        folder: where its modules lie, for the processes of trials; None where they are installed.
    """

    name: str
    title: str
    tables: tuple[Table, ...]
    claims: tuple[Claim, ...]
    profiles: Mapping[str, Profile]
    default_profile: str
    train: TrainFunction
    paper_note: str = ""
    check_data: Callable[[Mapping[str, Path], Path], str] | None = None
    rescore: Callable[[Setting, Any, Any, Path], Mapping[str, float]] | None = None
    by_class: Callable[[Setting, Any, Any, Path], Mapping[str, float]] | None = None
    sources: tuple[str, ...] = ()
    folder: Path | None = None

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
