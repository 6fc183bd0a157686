"""What a run shows while its trials train: a live view on a terminal, plain lines anywhere else.

Both keep the same `Board`. The scheduler only knows a `Listener`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from statistics import fmean
from typing import Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ablation.errors import last_line
from ablation.metric import Metric
from ablation.plan import Plan, PlannedTrial
from ablation.protocol import Evaluated, Noticed, Progress, Report
from ablation.wording import duration

Results = Mapping[str, Mapping[str, float]]
"""Metrics of evaluations by name, by key of the evaluation."""

CELL_WIDTH = 4
LINE_EVERY_S = 30.0
REFRESH_PER_S = 2


class Listener(Protocol):
    """Is told of the events of a run, in the driver's main thread."""

    def started(self, trial: PlannedTrial) -> None:
        """An attempt began."""

    def reported(self, trial: PlannedTrial, report: Report) -> None:
        """An attempt sent a report; the store has it already."""

    def finished(self, trial: PlannedTrial) -> None:
        """The trial is complete."""

    def failed(self, trial: PlannedTrial, error: str) -> None:
        """The trial failed for good; the last line of `error` is the reason."""

    def lost(self, trial: PlannedTrial, reason: str) -> None:
        """A process of the attempt died, and another attempt follows; the last line is the reason."""

    def released(self, trial: PlannedTrial, why: str) -> None:
        """The attempt was ended on request before the trial was complete."""

    def noted(self, text: str) -> None:
        """Something that concerns the whole run."""

    def stopping(self) -> None:
        """The user stopped the run."""


# --- state -------------------------------------------------------------------------------------


@dataclass(slots=True)
class Active:
    """A running trial.

    Attributes:
        since: when the attempt began, on the board's clock.
        first_step, first_time: of its first report, from which its pace is measured.
        last_time: of its last report of progress.
        evaluated: the metrics of its last evaluation.
    """

    trial: PlannedTrial
    since: float
    step: int = 0
    total: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    first_step: int | None = None
    first_time: float = 0.0
    last_time: float = 0.0
    evaluated: Mapping[str, float] = field(default_factory=dict)

    @property
    def fraction(self) -> float:
        """Share of the training that is done."""
        return self.step / self.total if self.total else 0.0

    @property
    def cost_done(self) -> float:
        """What this run has done of the trial's cost, in the setting's units."""
        left = self.total - self.trial.step
        return self.trial.cost * max(0, self.step - self.trial.step) / left if left > 0 else 0.0

    def seconds_left(self) -> float | None:
        """Estimate for the rest of its training; None before two reports."""
        if self.first_step is None or self.step <= self.first_step:
            return None
        pace = (self.last_time - self.first_time) / (self.step - self.first_step)
        return (self.total - self.step) * pace


class Board:
    """The state of a run: active trials, counts, and the tables as far as they are filled.

    Args:
        plan: its trials without missing evaluations count as done.
        results: the metrics of the stored evaluations, by key.
        clock: in seconds.
    """

    def __init__(
        self, plan: Plan, results: Results | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._began: float | None = None
        self.active: dict[str, Active] = {}
        self.total = len(plan.trials)
        self.done = sum(not trial.missing for trial in plan.trials)
        self._to_do = sum(trial.cost for trial in plan.work())
        self._ended = 0.0
        self._failed = {trial.key: 0.0 for trial in plan.trials if trial.state == "FAILED"}
        """The cost that was spent here on each trial that has failed."""
        self._results = dict(results or {})
        self._cells = _cells(plan)
        self.study = plan.study

    def start(self, trial: PlannedTrial) -> Active:
        """An attempt began, perhaps from a checkpoint of an earlier one, or because a person retried it."""
        if (spent := self._failed.pop(trial.key, None)) is not None:
            self._ended -= spent
            self._to_do += trial.cost - spent
        if self._began is None:
            self._began = self._clock()
        self.active[trial.key] = Active(trial, self._clock())
        return self.active[trial.key]

    def report(self, trial: PlannedTrial, report: Report) -> None:
        """An attempt sent a report."""
        active, now = self.active[trial.key], self._clock()
        if isinstance(report, Progress):
            active.step, active.total, active.last_time = report.step, report.total, now
            active.metrics = report.metrics or active.metrics
            if active.first_step is None:
                active.first_step, active.first_time = report.step, now
        elif isinstance(report, Evaluated):
            self._results[report.key] = report.metrics
            active.evaluated = report.metrics

    def end(self, trial: PlannedTrial, *, failed: bool = False) -> Active:
        """The trial is complete, or failed for good."""
        active = self.active.pop(trial.key)
        spent = active.cost_done if failed else trial.cost
        self._ended += spent
        self._to_do -= trial.cost - spent
        if failed:
            self._failed[trial.key] = spent
        self.done += not failed
        return active

    @property
    def failed(self) -> int:
        """The number of trials that have failed."""
        return len(self._failed)

    def lose(self, trial: PlannedTrial) -> None:
        """The attempt ended before the trial did."""
        self.active.pop(trial.key)

    def seconds(self, active: Active) -> float:
        """How long an attempt has run."""
        return self._clock() - active.since

    def tables(self) -> dict[str, str]:
        """The planned tables as a line each: of the cells with the first metric, the mean over seeds so far.

        A dot stands for a cell that has no result yet, a dash for one whose evaluation has no number: the
        test data holds nothing to measure, or only an evaluation server can give it.
        """
        return {
            table: " ".join(self._cell(metric, keys) for keys in cells)
            for table, (metric, cells) in self._cells.items()
        }

    def _cell(self, metric: Metric, evaluations: Sequence[str]) -> str:
        have = [self._results[key].get(metric.name, math.nan) for key in evaluations if key in self._results]
        if not have:
            return "·".rjust(CELL_WIDTH)
        mean = fmean(have)
        return ("–" if math.isnan(mean) else metric.text(mean)).rjust(CELL_WIDTH)

    def seconds_left(self) -> float | None:
        """Estimate for the whole run, from the pace so far; None while there is no progress.

        Trials count by their cost: the longest start first, so the number done says little about the rest.
        """
        moved = self._ended + sum(active.cost_done for active in list(self.active.values()))
        if self._began is None or moved <= 0:
            return None
        return max(0.0, self._to_do - moved) * (self._clock() - self._began) / moved


def _cells(plan: Plan) -> dict[str, tuple[Metric, list[list[str]]]]:
    """The first metric of each planned table that evaluations give, and those behind each of its cells."""
    tables = {}
    for table in plan.tables:
        cells = [cell for row in table.rows for cell in row.cells if plan.study.evaluated(cell)]
        first = [cell for cell in cells if cell.metric == cells[0].metric]
        keys = [[plan.lookup(cell, seed)[1] for seed in plan.seeds] for cell in first]
        if first:
            tables[table.id] = (plan.study.metric(first[0].metric), keys)
    return tables


# --- words --------------------------------------------------------------------------------------------


def facts(active: Active, progress: Sequence[Metric]) -> list[str]:
    """Step, progress metrics and time left of a running trial, as far as they are known."""
    if not active.total:
        return ["starting"]
    if active.step >= active.total:
        return [f"{active.step}/{active.total}", "evaluating"]
    shown = [m.with_unit(active.metrics[m.name]) for m in progress if m.name in active.metrics]
    return [f"{active.step}/{active.total}", *shown, f"{duration(active.seconds_left())} left"]


def overall(board: Board) -> str:
    """Trials done, failed, and the estimated end."""
    failed = f", {board.failed} failed" if board.failed else ""
    left = board.seconds_left()
    if not left:
        return f"{board.done} of {board.total} trials done{failed}"
    end = datetime.now() + timedelta(seconds=left)
    return f"{board.done} of {board.total} trials done{failed}, {duration(left)} left (about {end:%H:%M})"


# --- showing ------------------------------------------------------------------------------------------


class PlainDisplay:
    """A line for every event, and one for each running trial every half minute; no control codes.

    Args:
        write: is given each line.
        every_s: seconds between two lines of one running trial.
    """

    def __init__(self, board: Board, write: Callable[[str], None], every_s: float = LINE_EVERY_S) -> None:
        self._board = board
        self._write = write
        self._every_s = every_s
        self._told: dict[str, float] = {}
        self._written_tables = board.tables()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def started(self, trial: PlannedTrial) -> None:
        """See `Listener`."""
        self._board.start(trial)
        self._told[trial.key] = time.monotonic()
        self._say("started", trial)

    def reported(self, trial: PlannedTrial, report: Report) -> None:
        """See `Listener`."""
        self._board.report(trial, report)
        if isinstance(report, Noticed):
            self._say("note", trial, report.message)
        elif time.monotonic() - self._told[trial.key] >= self._every_s:
            self._told[trial.key] = time.monotonic()
            self._tell(trial)

    def finished(self, trial: PlannedTrial) -> None:
        """See `Listener`."""
        active = self._board.end(trial)
        main = self._board.study.metrics[0]
        numbers = [main.with_unit(active.evaluated[main.name])] if main.name in active.evaluated else []
        taken = duration(self._board.seconds(active))
        self._say("finished", trial, ", ".join([*numbers, taken]) + f"; {overall(self._board)}")
        self._write_tables()

    def failed(self, trial: PlannedTrial, error: str) -> None:
        """See `Listener`."""
        self._board.end(trial, failed=True)
        self._say("FAILED", trial, last_line(error))

    def lost(self, trial: PlannedTrial, reason: str) -> None:
        """See `Listener`."""
        self._board.lose(trial)
        self._say("again", trial, last_line(reason))

    def released(self, trial: PlannedTrial, why: str) -> None:
        """See `Listener`."""
        self._board.lose(trial)
        self._say("stopped", trial, why)

    def noted(self, text: str) -> None:
        """See `Listener`."""
        self._line("note", text)

    def stopping(self) -> None:
        """See `Listener`."""
        self._write("Stopping; once more to end at once.")

    def _tell(self, trial: PlannedTrial) -> None:
        shown = facts(self._board.active[trial.key], self._board.study.progress)
        self._say("running", trial, ", ".join(shown))

    def _write_tables(self) -> None:
        """Writes the tables that have changed since the last call."""
        now = self._board.tables()
        for table, line in now.items():
            if line != self._written_tables[table]:
                self._line(table, line)
        self._written_tables = now

    def _say(self, event: str, trial: PlannedTrial, text: str = "") -> None:
        rest = f": {text}" if text else ""
        self._line(event, f"{trial.name}{rest}")

    def _line(self, event: str, text: str) -> None:
        self._write(f"{datetime.now():%H:%M:%S}  {event:8}  {text}")


class LiveDisplay(PlainDisplay):
    """Events as lines that scroll by, and below them a view of the current state."""

    def __init__(self, board: Board, console: Console) -> None:
        super().__init__(board, self._print)
        self._console = console
        self._live = Live(
            console=console, get_renderable=self.picture, refresh_per_second=REFRESH_PER_S, transient=True
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def picture(self) -> RenderableType:
        """The running trials, the whole, the tables."""
        grid, progress = Table.grid(padding=(0, 2)), self._board.study.progress
        for active in list(self._board.active.values()):
            bar = ProgressBar(total=1.0, completed=active.fraction, width=20)
            name = Text(active.trial.name, overflow="ellipsis", no_wrap=True)
            grid.add_row(name, bar, *facts(active, progress))
        of = max(1, self._board.total)
        bar = ProgressBar(total=of, completed=self._board.done, width=20)
        whole = Table.grid(padding=(0, 2))
        whole.add_row(bar, Text(overall(self._board)))
        tables = Table.grid(padding=(0, 2))
        for table, line in self._board.tables().items():
            tables.add_row(Text(table), Text(line, style="dim"))
        return Group(grid, whole, tables)

    def _tell(self, trial: PlannedTrial) -> None:
        """Nothing: the view shows it."""

    def _write_tables(self) -> None:
        """Nothing: the view shows it."""

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False)


def display(plan: Plan, results: Results, console: Console) -> PlainDisplay:
    """The display that suits the console; a context manager and a `Listener`.

    Args:
        plan, results: see `Board`.
        console: where to.
    """
    board = Board(plan, results)
    if console.is_terminal and not console.is_dumb_terminal:
        return LiveDisplay(board, console)
    return PlainDisplay(
        board, lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True)
    )
