"""The history of one trial: attempts, metrics, results, and the log of its processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from ablation.control.status import host_of
from ablation.metric import in_words
from ablation.plan import PlannedTrial
from ablation.storage import Storage, StorageError
from ablation.storage.names import LOG
from ablation.store import AttemptRow, EvaluationRow, Store
from ablation.study import Study
from ablation.wording import duration

TAIL = 20
"""Lines of the log that are shown."""
EVERY_S = 1.0
BRING_EVERY_S = 10.0
"""Seconds between two downloads from a remote storage, which gets the log with each checkpoint."""

_TIME = "%Y-%m-%d %H:%M:%S"


def account(trial: PlannedTrial, study: Study, store: Store, directory: Path) -> Iterator[str]:
    """What the store has of a trial and the end of its log, as lines.

    Args:
        directory: the trial's directory, with its log.
    """
    progress = f" {trial.step}/{trial.total}" if trial.total else ""
    yield f"{trial.name}  ({trial.key}): {trial.state}{progress}"
    folders = [row.folder for row in store.trial_states([trial.key]).values()]
    yield f"cited by {', '.join(trial.tables)}; files in {directory.joinpath(*folders)}"
    attempts = store.attempts([trial.key])
    for attempt in attempts:
        yield from _attempt_lines(attempt)
    yield from _section("Notices", store.notices(trial.key))
    if attempts:
        yield from _section("Last numbers", _last_numbers(store, attempts))
    yield from _section("Evaluations", _evaluations(trial, study, store))
    yield from _section("Earlier results", _earlier(trial, study, store, attempts))
    if attempts:
        elsewhere = f"Not on this machine: see {host_of(attempts[-1])}, or give the --storage of the run."
        yield from _section(f"The end of {LOG}", tail(directory / LOG) or [elsewhere])


def _attempt_lines(attempt: AttemptRow) -> Iterator[str]:
    ended = f"to {attempt.ended:{_TIME}}" if attempt.ended else f"last heartbeat {attempt.heartbeat:{_TIME}}"
    commit = str(attempt.provenance.get("commit", "unknown"))[:12]
    gpus = ", ".join((attempt.environment or {}).get("gpus", ()))
    yield ""
    yield f"Attempt {attempt.number}: {attempt.state}, {duration(attempt.seconds)}"
    yield f"  {attempt.started:{_TIME}} {ended} UTC, on {host_of(attempt)}{f' ({gpus})' if gpus else ''}"
    yield f"  driver: process {attempt.pid} on {attempt.host}, commit {commit}"
    yield from (f"  {line}" for line in (attempt.error or "").rstrip().splitlines())


def _last_numbers(store: Store, attempts: list[AttemptRow]) -> Iterator[str]:
    """The last value of each metric, of the newest attempt that has any."""
    for attempt in reversed(attempts):
        last = {row.name: row for row in store.metrics(attempt.id)}
        if last:
            yield from (f"{row.name} {row.value:.4g}  (step {row.step})" for row in last.values())
            return


def _evaluations(trial: PlannedTrial, study: Study, store: Store) -> Iterator[str]:
    rows = store.evaluations([evaluation.key for evaluation in trial.evaluations])
    for evaluation in trial.evaluations:
        if row := rows.get(evaluation.key):
            numbers = _numbers(study, row) or "waits for an evaluation server"
            yield f"{evaluation.key}  {evaluation.name}: {numbers}"


def _earlier(trial: PlannedTrial, study: Study, store: Store, attempts: list[AttemptRow]) -> Iterator[str]:
    numbered = {attempt.id: attempt.number for attempt in attempts}
    for row in store.earlier_results(trial.key):
        when = f"attempt {numbered[row.attempt_id]}, {row.time:{_TIME}} UTC"
        yield f"{row.key}  {when}: {_numbers(study, row) or 'none'}"


def _numbers(study: Study, row: EvaluationRow) -> str:
    return ", ".join(in_words(study.metrics, row.metrics))


def _section(title: str, found: Iterator[str] | list[str]) -> Iterator[str]:
    shown = [f"  {line}" for text in found for line in text.splitlines()]
    if shown:
        yield from ("", title, *shown)


def tail(path: Path, lines: int = TAIL) -> list[str]:
    """The last lines of a text file; none where there is no file."""
    if not path.is_file():
        return []
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - lines * 400))
        return file.read().decode(errors="replace").splitlines()[-lines:]


def brought(storage: Storage, trial_key: str, directory: Path) -> Path:
    """Path of the log in the trial's directory, after the download from a remote storage."""
    with suppress(StorageError):  # not stored yet or unreachable: the local one stays
        storage.download(trial_key, LOG, directory)
    return directory / LOG


def follow(
    path: Path, going_on: Callable[[], bool], *, start: int, wait: Callable[[float], None] = time.sleep
) -> Iterator[str]:
    """The text that is written to a log from byte `start` on, as it grows, while `going_on` is true."""
    more = True
    while more:
        more = going_on()  # before the file is read, so that its last lines are not missed
        size = path.stat().st_size if path.is_file() else 0
        start = start if start <= size else 0  # it was replaced by a new one
        if size > start:
            with path.open("rb") as file:
                file.seek(start)
                text = file.read()
            start += len(text)
            yield text.decode(errors="replace")
        elif more:
            wait(EVERY_S)


def printable(text: str) -> str:
    """The text with control characters replaced, so that a log cannot control the terminal."""
    return "".join(c if c in "\n\t" or c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
