"""How far a study is: for people, once or again and again, and for programs."""

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
from ablation.store import AttemptRow, DesiredState, DesiredStates, Store
from ablation.store.schema import TrialState
from ablation.study import data_id
from ablation.wording import duration

FORMAT = 1
"""Version of `Status.data`: raised when something of it goes or changes its meaning, not for additions."""
EVERY_S = 2.0

_ORDER = {state: rank for rank, state in enumerate(("RUNNING", "WAITING", "FAILED", "CANCELLED", "COMPLETE"))}


@dataclass(frozen=True, slots=True)
class TrialStatus:
    """One trial of the plan.

    Attributes:
        tables: ids of the tables that cite it.
        state: WAITING also when its driver has gone silent.
        step, total: how far its newest attempt came; 0 of 0 before its first report.
        priority: higher starts first.
        micro_batch: what want of memory made of it; None for what was asked for.
        host, started, last_sign: of the attempt that runs, or whose driver has gone silent; else None.
        seconds_left: as estimated, while it runs; None where nothing is known to estimate from.
        error: the last line of what failed.
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
    last_sign: datetime | None
    seconds_left: float | None
    error: str | None


@dataclass(frozen=True, slots=True)
class Status:
    """A study at a profile on a data set, at one moment.

    Attributes:
        last_sign: the newest sign of life of any running trial; None when none runs.
        seconds_left: of everything that runs or waits, as estimated, while something runs; else None.
    """

    time: datetime
    study: str
    profile: str
    data_name: str
    seeds: tuple[int, ...]
    workspace: str
    paused: bool
    last_sign: datetime | None
    seconds_left: float | None
    trials: tuple[TrialStatus, ...]
    awaiting_scores: tuple[Waiting, ...]

    @property
    def counts(self) -> dict[TrialState, int]:
        """How many trials are in each state."""
        found = Counter(trial.state for trial in self.trials)
        return {state: found[state] for state in ("COMPLETE", "RUNNING", "WAITING", "FAILED", "CANCELLED")}

    def data(self) -> dict[str, Any]:
        """All of it as plain values, for JSON: times in ISO 8601, UTC; docs/control.md lists the fields."""
        return {
            "format": FORMAT,
            **_plain(asdict(self)),
            "counts": {k.lower(): n for k, n in self.counts.items()},
        }


def status_of(session: Session, now: datetime | None = None) -> Status:
    """The status of a session's plan, as the store has it now.

    Args:
        session: opened anew, or `Session.replanned`.
        now: the time that it is.
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
        last_sign=max((trial.last_sign for trial in running if trial.last_sign), default=None),
        seconds_left=_wall([left[key] for key in going if key in left], len(running)),
        trials=tuple(sorted(trials, key=lambda trial: _ORDER[trial.state])),
        awaiting_scores=tuple(waiting(plan, store)) if store else (),
    )


def _known(plan: Plan, store: Store) -> tuple[DesiredStates, dict[str, AttemptRow], dict[str, float]]:
    """What is wanted, and by trial the attempt that has not ended and the seconds left."""
    where = plan.study.name, plan.setting.profile, data_id(plan.setting)
    desired = store.desired_states(*where, [trial.key for trial in plan.trials])
    busy = [key for key, wanted in desired.trials.items() if wanted.state in ("RUNNING", "CANCELLED")]
    live = {a.trial_key: a for a in store.attempts(busy) if a.state == "RUNNING"} if busy else {}
    calibration = calibrate(plan, measured(plan, store)) if live else None
    return desired, live, seconds_left(plan, calibration) if calibration else {}


def _wall(seconds: list[float], at_a_time: int) -> float | None:
    """Seconds until all these trials have ended, if as many run at a time as do now."""
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
        last_sign=attempt.heartbeat if attempt else None,
        seconds_left=left.get(trial.key) if trial.state == "RUNNING" else None,
        error=last_line(trial.error) or None,
    )


def host_of(attempt: AttemptRow) -> str:
    """The machine that trains; its driver's until it has said so."""
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


# --- for people ------------------------------------------------------------------------------------------


def lines(status: Status, command: Callable[..., str]) -> Iterator[str]:
    """The status as text.

    Args:
        status: what to tell.
        command: makes the command that a person types next (`Session.command`).
    """
    counts = ", ".join(f"{number} {state.lower()}" for state, number in status.counts.items())
    yield f"{status.study} {status.profile} on {status.data_name}: {len(status.trials)} trainings, {counts}"
    if status.paused:
        yield f"Paused: nothing starts before `{command('resume', study=True)}`."
    if status.last_sign:
        left = f"; about {duration(status.seconds_left)} left" if status.seconds_left else ""
        seen = f"{_ago(status.last_sign, status.time)}, {status.last_sign:%H:%M:%S} UTC"
        yield f"Last sign of life {seen}{left}"
    for trial in status.trials:
        yield from _trial_lines(trial, status.time)
    if status.awaiting_scores:
        number = len(status.awaiting_scores)
        yield f"Numbers that only an evaluation server can give, {number} evaluations:"
    for one in status.awaiting_scores:
        yield f"  {one.name}"
        yield f"      upload  {one.submission}"
        yield f"      then    {command('import-scores', one.key, 'FILE')}"


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
        yield f"{trial.micro_batch} images at a time"
    if trial.host:
        yield f"stopping on {trial.host}" if trial.state == "CANCELLED" else f"on {trial.host}"
    if trial.last_sign:
        seen = _ago(trial.last_sign, now)
        yield seen if trial.state == "RUNNING" else f"silent since {trial.last_sign:%H:%M:%S} UTC"
    if trial.seconds_left is not None:
        yield f"{duration(trial.seconds_left)} left"


def _ago(moment: datetime, now: datetime) -> str:
    """How long ago; clocks of machines may differ by a little, so never in the future."""
    return f"{duration(max(0.0, (now - moment).total_seconds()))} ago"


def watch(
    look: Callable[[], str],
    console: Console,
    *,
    every_s: float = EVERY_S,
    wait: Callable[[float], None] = time.sleep,
) -> None:
    """Show what `look` returns, again and again, until Ctrl-C.

    A terminal has one picture that is redrawn. Anything else gets the whole text once, then only lines
    that are new, so that a file of them stays readable.

    Args:
        look: reads the status anew.
        console: where to.
        every_s: seconds between two looks.
        wait: sleeps so long.
    """
    try:
        if console.is_terminal and not console.is_dumb_terminal:
            with Live(console=console, auto_refresh=False) as live:
                while True:
                    live.update(Text(look(), no_wrap=True, overflow="ellipsis"), refresh=True)
                    wait(every_s)
        told: set[str] = set()
        while True:
            now = look().splitlines()
            for line in now:
                if line not in told:
                    console.print(line, markup=False, highlight=False, soft_wrap=True)
            told = set(now)
            wait(every_s)
    except KeyboardInterrupt:
        return
