"""The status of a study: as text, once or repeatedly, and as JSON."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from ablation.calibration import calibrate, measured, seconds_left
from ablation.errors import last_line
from ablation.plan import Plan, PlannedTrial
from ablation.results.scores import Waiting, waiting
from ablation.session import Session
from ablation.setting import data_id
from ablation.store import AttemptRow, DesiredState, DesiredStates, Store
from ablation.store.schema import TrialState
from ablation.wording import duration

FORMAT = 1
"""Version of `Status.data`: raised when a field is removed or changes its meaning, not for additions."""
EVERY_S = 2.0

_ORDER = {state: rank for rank, state in enumerate(("RUNNING", "WAITING", "FAILED", "CANCELLED", "COMPLETE"))}


@dataclass(frozen=True, slots=True)
class TrialStatus:
    """One trial of the plan.

    Attributes:
        tables: ids of the tables that cite it.
        state: WAITING also when its driver sends no heartbeat.
        step, total: progress of its newest attempt; 0 of 0 before its first report.
        priority: higher starts first.
        micro_batch: samples at a time after an attempt ran out of memory; None for the command's value.
        host, started, last_heartbeat: of the attempt that has not ended, or None.
        seconds_left: estimate while it runs; None where nothing was measured.
        error: last line of the traceback.
    """

    key: str
    name: str
    seed: int
    tables: tuple[str, ...]
    state: TrialState
    step: int
    total: int
    priority: int
    micro_batch: int | None
    host: str | None
    started: datetime | None
    last_heartbeat: datetime | None
    seconds_left: float | None
    error: str | None


@dataclass(frozen=True, slots=True)
class Status:
    """A study at a profile on a data set, at one moment.

    Attributes:
        last_heartbeat: the newest heartbeat of any running trial; None when none runs.
        seconds_left: estimate for all running and waiting trials; None when none runs.
    """

    time: datetime
    study: str
    profile: str
    data_name: str
    seeds: tuple[int, ...]
    workspace: str
    paused: bool
    last_heartbeat: datetime | None
    seconds_left: float | None
    trials: tuple[TrialStatus, ...]
    awaiting_scores: tuple[Waiting, ...]

    @property
    def counts(self) -> dict[TrialState, int]:
        """Number of trials in each state."""
        found = Counter(trial.state for trial in self.trials)
        return {state: found[state] for state in ("COMPLETE", "RUNNING", "WAITING", "FAILED", "CANCELLED")}

    def data(self) -> dict[str, Any]:
        """Plain values for JSON, times in ISO 8601 and UTC; docs/control.md lists the fields."""
        return {
            "format": FORMAT,
            **_plain(asdict(self)),
            "counts": {k.lower(): n for k, n in self.counts.items()},
        }


def status_of(session: Session, now: datetime | None = None) -> Status:
    """The status of a session's plan.

    Args:
        session: newly opened, or `Session.replanned`.
        now: the current time; by default the machine's.
    """
    plan, store = session.plan, session.opened
    desired, live, left = _known(plan, store) if store else (DesiredStates(paused=False, trials={}), {}, {})
    trials = tuple(_trial_status(trial, desired.trials.get(trial.key), live, left) for trial in plan.trials)
    running = [trial for trial in trials if trial.state == "RUNNING"]
    going = [trial.key for trial in plan.trials if trial.state in ("RUNNING", "WAITING")]
    return Status(
        time=now or datetime.now(UTC),
        study=plan.study.name,
        profile=plan.setting.profile,
        data_name=plan.setting.data_name,
        seeds=plan.seeds,
        workspace=str(session.workspace.root),
        paused=desired.paused,
        last_heartbeat=max((trial.last_heartbeat for trial in running if trial.last_heartbeat), default=None),
        seconds_left=_wall([left[key] for key in going if key in left], len(running)),
        trials=tuple(sorted(trials, key=lambda trial: _ORDER[trial.state])),
        awaiting_scores=tuple(waiting(plan, store)) if store else (),
    )


def _known(plan: Plan, store: Store) -> tuple[DesiredStates, dict[str, AttemptRow], dict[str, float]]:
    """Desired states, and by trial key the attempt that has not ended and the seconds left."""
    where = plan.study.name, plan.setting.profile, data_id(plan.setting)
    desired = store.desired_states(*where, [trial.key for trial in plan.trials])
    busy = [key for key, wanted in desired.trials.items() if wanted.state in ("RUNNING", "CANCELLED")]
    live = {a.trial_key: a for a in store.attempts(busy) if a.state == "RUNNING"} if busy else {}
    calibration = calibrate(plan, measured(plan, store)) if live else None
    return desired, live, seconds_left(plan, calibration) if calibration else {}


def _wall(seconds: list[float], at_a_time: int) -> float | None:
    """Seconds until all trials have ended, if as many run at a time as now."""
    return max(sum(seconds) / at_a_time, max(seconds)) if seconds and at_a_time else None


def _trial_status(
    trial: PlannedTrial,
    wanted: DesiredState | None,
    live: Mapping[str, AttemptRow],
    left: Mapping[str, float],
) -> TrialStatus:
    attempt = live.get(trial.key)
    return TrialStatus(
        key=trial.key,
        name=trial.name,
        seed=trial.seed,
        tables=trial.tables,
        state=trial.state,
        step=trial.step,
        total=trial.total,
        priority=wanted.priority if wanted else 0,
        micro_batch=wanted.micro_batch if wanted else None,
        host=host_of(attempt) if attempt else None,
        started=attempt.started if attempt else None,
        last_heartbeat=attempt.heartbeat if attempt else None,
        seconds_left=left.get(trial.key) if trial.state == "RUNNING" else None,
        error=last_line(trial.error) or None,
    )


def host_of(attempt: AttemptRow) -> str:
    """The host of the training process; the driver's until the process has reported."""
    return str((attempt.environment or {}).get("host") or attempt.host)


def _plain(value: Any) -> Any:
    match value:
        case dict():
            return {name: _plain(part) for name, part in value.items()}
        case list() | tuple():
            return [_plain(part) for part in value]
        case datetime():
            return value.isoformat(timespec="seconds")
        case str() | int() | float() | None:
            return value
        case _:
            return str(value)


# --- as text ------------------------------------------------------------------------------------------


def lines(status: Status, command: Callable[..., str]) -> Iterator[str]:
    """The status as text.

    Args:
        command: makes the text of a command to suggest (`Session.command`).
    """
    counts = ", ".join(f"{number} {state.lower()}" for state, number in status.counts.items())
    yield f"{status.study} {status.profile} on {status.data_name}: {len(status.trials)} trainings, {counts}"
    if status.paused:
        yield f"Paused: nothing starts before `{command('resume', about='setting')}`."
    if status.last_heartbeat:
        left = f"; about {duration(status.seconds_left)} left" if status.seconds_left else ""
        seen = f"{_ago(status.last_heartbeat, status.time)}, {status.last_heartbeat:%H:%M:%S} UTC"
        yield f"Last heartbeat {seen}{left}"
    for trial in status.trials:
        yield from _trial_lines(trial, status.time)
    if status.awaiting_scores:
        number = len(status.awaiting_scores)
        yield f"{number} evaluations wait for the numbers of an evaluation server:"
    for one in status.awaiting_scores:
        yield f"  {one.name}"
        yield f"      upload  {one.submission}"
        yield f"      then    {command('import-scores', one.key, 'FILE', about='study')}"


def _trial_lines(trial: TrialStatus, now: datetime) -> Iterator[str]:
    notes = ", ".join(_notes(trial, now))
    if trial.state != "WAITING" or trial.step or notes:
        progress = f"{trial.step}/{trial.total}" if trial.total else ""
        line = f"  {trial.state:<9} {progress:>11}  {trial.key}  {trial.name}"
        yield f"{line}  ({notes})" if notes else line
    if trial.error:
        yield f"            {trial.error}"


def _notes(trial: TrialStatus, now: datetime) -> Iterator[str]:
    if trial.priority:
        yield f"priority {trial.priority}"
    if trial.micro_batch:
        yield f"{trial.micro_batch} samples at a time"
    if trial.host:
        yield f"stopping on {trial.host}" if trial.state == "CANCELLED" else f"on {trial.host}"
    if trial.last_heartbeat:
        seen = _ago(trial.last_heartbeat, now)
        yield seen if trial.state == "RUNNING" else f"silent since {trial.last_heartbeat:%H:%M:%S} UTC"
    if trial.seconds_left is not None:
        yield f"{duration(trial.seconds_left)} left"


def _ago(moment: datetime, now: datetime) -> str:
    """How long ago. Never negative: the clocks of machines may differ."""
    return f"{duration(max(0.0, (now - moment).total_seconds()))} ago"


def watch(
    poll: Callable[[], str],
    console: Console,
    *,
    every_s: float = EVERY_S,
    wait: Callable[[float], None] = time.sleep,
) -> None:
    """Shows the text of `poll` repeatedly until Ctrl-C.

    A terminal is redrawn. Other outputs get the whole text once and then only new lines.

    Args:
        poll: returns the current text.
        console: the output.
        every_s: seconds between two polls.
        wait: sleeps for a number of seconds.
    """
    try:
        if console.is_terminal and not console.is_dumb_terminal:
            with Live(console=console, auto_refresh=False) as live:
                while True:
                    live.update(Text(poll(), no_wrap=True, overflow="ellipsis"), refresh=True)
                    wait(every_s)
        shown: set[str] = set()
        while True:
            now = poll().splitlines()
            for line in now:
                if line not in shown:
                    console.print(line, markup=False, highlight=False, soft_wrap=True)
            shown = set(now)
            wait(every_s)
    except KeyboardInterrupt:
        return
