"""What a person sees while trials run: a live picture on a terminal, plain lines anywhere else.

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
from ablation.plan import Plan, PlannedTrial
from ablation.protocol import Evaluated, Noticed, Progress, Report
from ablation.wording import duration

Results = Mapping[str, Mapping[str, float]]
"""Numbers of evaluations by name, by key of the evaluation."""

LOSS, SPEED = "loss", "images_per_second"
"""Names of the two metrics of a `Progress` that are shown."""
LINE_EVERY_S = 30.0
REFRESH_PER_S = 2


class Listener(Protocol):
    """Hears of every trial, in the driver's main thread."""

    def started(self, trial: PlannedTrial) -> None:
        """An attempt began."""

    def reported(self, trial: PlannedTrial, report: Report) -> None:
        """It reported; the store has it already."""

    def finished(self, trial: PlannedTrial) -> None:
        """It came to its end."""

    def failed(self, trial: PlannedTrial, error: str) -> None:
        """It failed for good; `error` ends with the reason."""

    def lost(self, trial: PlannedTrial, reason: str) -> None:
        """A process of it died, and it starts again; `reason` ends with a line for people."""

    def released(self, trial: PlannedTrial, why: str) -> None:
        """Its attempt ended before the trial did, and not by accident."""

    def noted(self, text: str) -> None:
        """Something that a person should know of the whole run."""

    def stopping(self) -> None:
        """A person stopped the run."""


# --- what is known ------------------------------------------------------------------------------------


@dataclass(slots=True)
class Active:
    """A running trial.

    Attributes:
        since: when the attempt began, on the board's clock.
        first_step, first_time: of its first report, from which its pace is measured.
        last_time: of its last report of progress.
        evaluated: the numbers of its last evaluation.
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
        """Of its training; None before two reports."""
        if self.first_step is None or self.step <= self.first_step:
            return None
        pace = (self.last_time - self.first_time) / (self.step - self.first_step)
        return (self.total - self.step) * pace


class Board:
    """Counts what a plan has and is getting.

    Args:
        plan: what is planned; what its trials do not miss counts as there.
        results: the numbers of the evaluations that are there, by key.
        clock: seconds.
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
        self.failed = sum(trial.state == "FAILED" for trial in plan.trials)
        self._results = dict(results or {})
        self._cells = _cells(plan)

    def start(self, trial: PlannedTrial) -> Active:
        """An attempt began; it may go on where an earlier one stopped."""
        if self._began is None:
            self._began = self._clock()
        self.active[trial.key] = Active(trial, self._clock())
        return self.active[trial.key]

    def report(self, trial: PlannedTrial, report: Report) -> None:
        """Takes in a report."""
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
        """The trial came to an end."""
        active = self.active.pop(trial.key)
        spent = active.cost_done if failed else trial.cost
        self._ended += spent
        self._to_do -= trial.cost - spent
        self.failed += failed
        self.done += not failed
        return active

    def lose(self, trial: PlannedTrial) -> None:
        """The attempt is gone; another one follows."""
        self.active.pop(trial.key)

    def seconds(self, active: Active) -> float:
        """How long an attempt has run."""
        return self._clock() - active.since

    def tables(self) -> dict[str, tuple[float | None, ...]]:
        """The main number of each planned table, cell by cell: the mean over those seeds that are there.

        None where there is none yet; NaN where the data has nothing to average, or only an evaluation
        server can say.
        """
        return {table: tuple(self._value(*cell) for cell in cells) for table, cells in self._cells.items()}

    def _value(self, metric: str, evaluations: Sequence[str]) -> float | None:
        there = [self._results[key].get(metric, math.nan) for key in evaluations if key in self._results]
        return fmean(there) if there else None

    def seconds_left(self) -> float | None:
        """Of the whole run, from the pace so far; None while nothing has moved.

        Trials count by their cost: the longest come first, and the pace of trials would be that of these.
        """
        moved = self._ended + sum(active.cost_done for active in list(self.active.values()))
        if self._began is None or moved <= 0:
            return None
        return max(0.0, self._to_do - moved) * (self._clock() - self._began) / moved


def _cells(plan: Plan) -> dict[str, list[tuple[str, list[str]]]]:
    """Of each planned table, its first metric and the evaluations behind each cell that has it."""
    return {
        table.id: [
            (cell.metric, [plan.lookup(cell, seed)[1] for seed in plan.seeds])
            for row in table.rows
            for cell in row.cells
            if cell.metric == table.rows[0].cells[0].metric
        ]
        for table in plan.tables
    }


# --- words --------------------------------------------------------------------------------------------


def facts(active: Active) -> list[str]:
    """Step, loss, speed and time left of a running trial, as far as they are known."""
    if not active.total:
        return ["starting"]
    if active.step >= active.total:
        return [f"{active.step}/{active.total}", "evaluating"]
    texts = [f"{active.step}/{active.total}"]
    if LOSS in active.metrics:
        texts.append(f"loss {active.metrics[LOSS]:.3f}")
    if SPEED in active.metrics:
        texts.append(f"{active.metrics[SPEED]:.0f} img/s")
    return [*texts, f"{duration(active.seconds_left())} left"]


def overall(board: Board) -> str:
    """Trials done, failed, and the estimated end."""
    failed = f", {board.failed} failed" if board.failed else ""
    left = board.seconds_left()
    if not left:
        return f"{board.done} of {board.total} trials done{failed}"
    end = datetime.now() + timedelta(seconds=left)
    return f"{board.done} of {board.total} trials done{failed}, {duration(left)} left (about {end:%H:%M})"


def filled(numbers: Sequence[float | None]) -> str:
    """One of `Board.tables` in a line: a dot where nothing is yet, a dash for what is not known here."""
    return " ".join(
        "   ·" if number is None else "   –" if math.isnan(number) else f"{number:4.1f}" for number in numbers
    )


# --- showing ------------------------------------------------------------------------------------------


class PlainDisplay:
    """A line for every event, and one for each running trial every half minute; no control codes.

    Args:
        write: takes a line.
        every_s: between two lines of one running trial.
    """

    def __init__(self, board: Board, write: Callable[[str], None], every_s: float = LINE_EVERY_S) -> None:
        self._board = board
        self._write = write
        self._every_s = every_s
        self._told: dict[str, float] = {}
        self._told_tables = board.tables()

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
        numbers = [f"AP {active.evaluated['AP']:.1f}"] if "AP" in active.evaluated else []
        taken = duration(self._board.seconds(active))
        self._say("finished", trial, ", ".join([*numbers, taken]) + f"; {overall(self._board)}")
        self._tell_tables()

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
        self._say("running", trial, ", ".join(facts(self._board.active[trial.key])))

    def _tell_tables(self) -> None:
        """Those tables that have more numbers than when last told."""
        now = self._board.tables()
        for table, numbers in now.items():
            if filled(numbers) != filled(self._told_tables[table]):  # as text, since no NaN equals another
                self._line(table, filled(numbers))
        self._told_tables = now

    def _say(self, event: str, trial: PlannedTrial, text: str = "") -> None:
        rest = f": {text}" if text else ""
        self._line(event, f"{trial.name}{rest}")

    def _line(self, event: str, text: str) -> None:
        self._write(f"{datetime.now():%H:%M:%S}  {event:8}  {text}")


class LiveDisplay(PlainDisplay):
    """Events as lines that scroll by, and under them a picture of the moment that stays."""

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
        grid = Table.grid(padding=(0, 2))
        for active in list(self._board.active.values()):
            bar = ProgressBar(total=1.0, completed=active.fraction, width=20)
            grid.add_row(Text(active.trial.name, overflow="ellipsis", no_wrap=True), bar, *facts(active))
        of = max(1, self._board.total)
        bar = ProgressBar(total=of, completed=self._board.done, width=20)
        whole = Table.grid(padding=(0, 2))
        whole.add_row(bar, Text(overall(self._board)))
        tables = Table.grid(padding=(0, 2))
        for table, numbers in self._board.tables().items():
            tables.add_row(Text(table), Text(filled(numbers), style="dim"))
        return Group(grid, whole, tables)

    def _tell(self, trial: PlannedTrial) -> None:
        """The picture shows it."""

    def _tell_tables(self) -> None:
        """The picture shows it."""

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
