"""Files that a study no longer needs: a list with sizes first, then their removal.

Removable are files of trials that no cell cites, of trainings that were replaced (`ablation retry --stale`),
earlier checkpoints, and partly written files. Never removed are metrics and results, the files of results
that count, and the last checkpoint of a cited trial, which a further evaluation may need.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ablation.files import sha256_of
from ablation.plan import Plan, make_plan
from ablation.setting import data_id
from ablation.storage import Storage
from ablation.storage.names import LOG
from ablation.store import CHECKPOINT, ArtifactRow, AttemptRow, Store, TrialRow
from ablation.workspace import Workspace

UNWANTED = "no cell cites this training any more"
EARLIER = "an earlier checkpoint of a finished training"
REPLACED = "of a training that was replaced by a new one"
UNFINISHED = "partly written by a process that died"

_PART = re.compile(r".+\.part|\..+\.[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Removable:
    """Files and MLflow runs of a trial that can be removed.

    Attributes:
        name: the trial's name.
        files: paths relative to the trial's directory, with `/`.
        bytes: size of those files that are on this machine.
        mlflow_run_ids: MLflow runs of its attempts.
        why: the reason, one clause.
        attempt_ids: attempts that have no checkpoint after the removal.
    """

    trial_key: str
    name: str
    files: tuple[str, ...]
    bytes: int
    mlflow_run_ids: tuple[str, ...]
    why: str
    attempt_ids: tuple[int, ...] = ()


def unneeded(plans: Sequence[Plan], store: Store, workspace: Workspace) -> list[Removable]:
    """What can be removed without changing a cell.

    A trial is needed if any row of the whole study cites it, at any seed in the store. Trials with a running
    attempt are skipped, and so are trials of other studies and of settings that have no plan here.

    Args:
        plans: plans of one study, one for each setting (a profile with its data) to clean up.
    """
    stored = store.trial_states()
    attempts: dict[str, list[AttemptRow]] = {}
    for attempt in store.attempts():
        attempts.setdefault(attempt.trial_key, []).append(attempt)
    own = [trial for trial in stored.values() if any(_belongs(trial, plan) for plan in plans)]
    needed = {key for plan in plans for key in _needed(plan, own)}
    found: list[Removable] = []
    for trial in own:
        runs = attempts.get(trial.key, [])
        if not any(attempt.state == "RUNNING" for attempt in runs):
            found += _of_trial(_Trial(trial, runs, store, workspace), trial.key in needed)
    return found


def describe(found: Sequence[Removable]) -> str:
    """The list with sizes as text, and what is kept in any case."""
    if not found:
        return "Nothing can be removed: every file is needed by a cell."
    lines = [f"{_size(item.bytes):>10}  {item.trial_key}  {item.name}: {_what(item)}" for item in found]
    total = _size(sum(item.bytes for item in found))
    stays = "Results, their files and the last checkpoint of every training that a cell cites are kept."
    return "\n".join([*lines, f"{total:>10}  in all. {stays}"])


def remove(
    found: Sequence[Removable],
    store: Store,
    workspace: Workspace,
    storage: Storage,
    delete_runs: Callable[[Collection[str]], object],
) -> list[Removable]:
    """Removes what `unneeded` found, except of trials that run by now; returns what it removed.

    After an error, the next list has what is left.

    Args:
        storage: the storage of the trials' files.
        delete_runs: deletes MLflow runs, as `Mirror.delete_runs`.

    Raises:
        OSError: a file cannot be deleted.
        Exception: what `delete_runs` raises; the files have been removed by then.
    """
    attempts = store.attempts({item.trial_key for item in found})
    running = {attempt.trial_key for attempt in attempts if attempt.state == "RUNNING"}
    removed = [item for item in found if item.trial_key not in running]
    for item in removed:
        directory = workspace.trial_directory(item.trial_key)
        files = [path for path in item.files if _inside(directory / path, directory)]
        for path in files:
            (directory / path).unlink(missing_ok=True)
        storage.delete(item.trial_key, files)
    store.drop_artifacts([attempt_id for item in removed for attempt_id in item.attempt_ids], [CHECKPOINT])
    if run_ids := [run_id for item in removed for run_id in item.mlflow_run_ids]:
        delete_runs(run_ids)
        store.forget_mlflow_runs(run_ids)
    return removed


# --- trials -------------------------------------------------------------------------------------


def _belongs(trial: TrialRow, plan: Plan) -> bool:
    setting = plan.setting
    wanted = (plan.study.name, setting.profile, data_id(setting))
    return (trial.study, trial.profile, trial.data_name) == wanted


def _needed(plan: Plan, stored: Sequence[TrialRow]) -> list[str]:
    """Keys of the trials of the whole study, at the plan's seeds and at those of all stored trials."""
    seeds = sorted({*plan.seeds, *(trial.seed for trial in stored)})
    return [trial.key for trial in make_plan(plan.study, plan.setting, seeds).trials]


# --- files of a trial ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Trial:
    """A trial without a running attempt."""

    row: TrialRow
    attempts: Sequence[AttemptRow]
    store: Store
    workspace: Workspace

    @property
    def directory(self) -> Path:
        return self.workspace.trial_directory(self.row.key)

    def files(self) -> list[str]:
        """Files in its directory, as relative paths; no links."""
        found = (path for path in sorted(self.directory.rglob("*")) if path.is_file())
        own = [path for path in found if not path.is_symlink() and _inside(path, self.directory)]
        return [path.relative_to(self.directory).as_posix() for path in own]

    def recorded(self) -> dict[str, ArtifactRow]:
        """The store's rows of files in its directory, by relative path, in the order of writing."""
        base = self.directory.resolve()
        files = [(self.store.resolve(f.path).resolve(), f) for f in self.store.artifacts(self.row.key)]
        return {p.relative_to(base).as_posix(): f for p, f in files if _inside(p, self.directory)}

    def removable(
        self,
        files: Sequence[str],
        why: str,
        run_ids: Sequence[str] = (),
        attempts: Sequence[AttemptRow] = (),
    ) -> Removable:
        sizes = [path.stat().st_size for name in files if (path := self.directory / name).is_file()]
        ids = tuple(attempt.id for attempt in attempts)
        return Removable(self.row.key, self.row.name, tuple(files), sum(sizes), tuple(run_ids), why, ids)


def _of_trial(trial: _Trial, needed: bool) -> Iterator[Removable]:
    files, recorded = trial.files(), trial.recorded()
    if not needed:
        checkpoints = [path for path, file in recorded.items() if file.kind == CHECKPOINT]
        run_ids = [attempt.mlflow_run_id for attempt in trial.attempts if attempt.mlflow_run_id]
        # Unrecorded files too: a training that is stopped may not report its last checkpoint.
        unrecorded = [path for path in files if path not in recorded and not _stays(path)]
        if checkpoints or unrecorded or run_ids:
            yield trial.removable([*checkpoints, *unrecorded], UNWANTED, run_ids, trial.attempts)
        return
    if trial.row.state == "COMPLETE":
        yield from _spare(trial, files, recorded)
    if parts := [path for path in files if _is_part(path)]:
        yield trial.removable(parts, UNFINISHED)


def _spare(trial: _Trial, files: Sequence[str], recorded: Mapping[str, ArtifactRow]) -> Iterator[Removable]:
    """Of a finished training: the files of those that it replaced, and its earlier checkpoints."""
    before = [attempt for attempt in trial.attempts if attempt.number < trial.row.first_attempt]
    ids = {attempt.id for attempt in before}
    own = {path: file for path, file in recorded.items() if file.attempt_id not in ids}
    # Checkpoints may be in the storage alone; other files are listed only if they are on this machine.
    replaced = {path for path in recorded if path not in own and recorded[path].kind == CHECKPOINT}
    outside = [path for path in files if before and not path.startswith(f"{trial.row.folder}/")]
    replaced |= {path for path in outside if path not in own and not _stays(path) and not _is_part(path)}
    if replaced:
        yield trial.removable(sorted(replaced), REPLACED, attempts=before)
    checkpoints = {path: file for path, file in own.items() if file.kind == CHECKPOINT}
    if earlier := _earlier(trial.directory, checkpoints):
        yield trial.removable(earlier, EARLIER)


def _is_part(path: str) -> bool:
    return bool(_PART.fullmatch(PurePosixPath(path).name))


def _stays(path: str) -> bool:
    """Whether it is the trial's log or a hidden file of the storage."""
    return path == LOG or (PurePosixPath(path).name.startswith(".") and not _is_part(path))


def _earlier(directory: Path, checkpoints: Mapping[str, ArtifactRow]) -> list[str]:
    """All checkpoints but the last, if that one is intact; none otherwise."""
    there = [path for path in checkpoints if (directory / path).is_file()]
    *earlier, last = there or [""]
    return earlier if earlier and sha256_of(directory / last) == checkpoints[last].sha256 else []


def _inside(path: Path, directory: Path) -> bool:
    """Whether a path resolves to a place inside the directory, which is not itself a link."""
    return not directory.is_symlink() and path.resolve().is_relative_to(directory.resolve())


# --- as text ------------------------------------------------------------------------------------------


def _what(item: Removable) -> str:
    count = len(item.mlflow_run_ids)
    runs = f", with {count} MLflow run{'s' if count > 1 else ''}" if count else ""
    return f"{item.why}{runs}"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
