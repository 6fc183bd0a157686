"""What a study no longer needs: checkpoints of trainings that no cell leads to, and what they left behind.

First a list with sizes, for a person to look at; then removal. Numbers are never removed, and neither are the
files behind them but for those of results that others have taken the place of (`ablation retry --stale`), nor
the last checkpoint of a training that a cell rests on: a further test of it may be wanted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ablation.plan import Plan, make_plan
from ablation.provenance.verify import digest
from ablation.storage import Storage
from ablation.storage.names import LOG
from ablation.store import CHECKPOINT, ArtifactRow, AttemptRow, Store, TrialRow
from ablation.study import data_id
from ablation.workspace import Workspace

UNWANTED = "no cell leads to this training any more"
EARLIER = "an earlier checkpoint of a finished training"
REPLACED = "of a training that has been done anew"
UNFINISHED = "left half-written by a process that died"

_PART = re.compile(r".+\.part|\..+\.[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Removable:
    """Something of a trial that nothing needs.

    Attributes:
        name: of the trial.
        files: relative to the trial's directory, with `/`.
        bytes: of those that are on this machine.
        mlflow_run_ids: of its attempts.
        why: one clause.
        attempt_ids: of those that have no checkpoint left without these files.
    """

    trial_key: str
    name: str
    files: tuple[str, ...]
    bytes: int
    mlflow_run_ids: tuple[str, ...]
    why: str
    attempt_ids: tuple[int, ...] = ()


def unneeded(plans: Sequence[Plan], store: Store, workspace: Workspace) -> list[Removable]:
    """What can be removed without any cell missing it.

    A trial is needed while a row of the whole study leads to it, at any seed that was ever asked for. Trials
    with an attempt that has not ended are left alone, and so are those of other studies and of settings
    (a profile with its data) that have no plan here, whose cells nobody can tell.

    Args:
        plans: of one study, one for each setting to clean up.
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
    """The list for a person who decides, and what stays whatever they say."""
    if not found:
        return "There is nothing that no cell needs."
    lines = [f"{_size(item.bytes):>10}  {item.trial_key}  {item.name}: {_what(item)}" for item in found]
    total = _size(sum(item.bytes for item in found))
    stays = (
        "Numbers, the files behind those that count and the last checkpoint of every needed training stay."
    )
    return "\n".join([*lines, f"{total:>10}  in all. {stays}"])


def remove(
    found: Sequence[Removable],
    store: Store,
    workspace: Workspace,
    storage: Storage,
    delete_runs: Callable[[Collection[str]], object],
) -> list[Removable]:
    """Removes what `unneeded` found, but of a trial that has been started since; returns what it removed.

    When it stops half-way, the next list has the rest.

    Args:
        storage: where trials keep their files.
        delete_runs: deletes MLflow runs, as `Mirror.delete_runs`.

    Raises:
        OSError: a file cannot be deleted.
        Exception: whatever `delete_runs` raises when the server is away; the files are gone by then.
    """
    attempts = store.attempts({item.trial_key for item in found})
    running = {attempt.trial_key for attempt in attempts if attempt.state == "RUNNING"}
    going = [item for item in found if item.trial_key not in running]
    for item in going:
        directory = workspace.trial_directory(item.trial_key)
        files = [path for path in item.files if _inside(directory / path, directory)]
        for path in files:
            (directory / path).unlink(missing_ok=True)
        storage.delete(item.trial_key, files)
    store.drop_artifacts([attempt_id for item in going for attempt_id in item.attempt_ids], [CHECKPOINT])
    if run_ids := [run_id for item in going for run_id in item.mlflow_run_ids]:
        delete_runs(run_ids)
        store.forget_mlflow_runs(run_ids)
    return going


# --- which trials -------------------------------------------------------------------------------------


def _belongs(trial: TrialRow, plan: Plan) -> bool:
    setting = plan.setting
    wanted = (plan.study.name, setting.profile, data_id(setting))
    return (trial.study, trial.profile, trial.data_name) == wanted


def _needed(plan: Plan, stored: Sequence[TrialRow]) -> list[str]:
    """Keys that the whole study leads to, at the plan's seeds and at those of all stored trials."""
    seeds = sorted({*plan.seeds, *(trial.seed for trial in stored)})
    return [trial.key for trial in make_plan(plan.study, plan.setting, seeds).trials]


# --- what of a trial ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Trial:
    """A trial that is at rest."""

    row: TrialRow
    attempts: Sequence[AttemptRow]
    store: Store
    workspace: Workspace

    @property
    def directory(self) -> Path:
        return self.workspace.trial_directory(self.row.key)

    def files(self) -> list[str]:
        """All that lies in its directory, as paths in it; no links."""
        found = (path for path in sorted(self.directory.rglob("*")) if path.is_file())
        own = [path for path in found if not path.is_symlink() and _inside(path, self.directory)]
        return [path.relative_to(self.directory).as_posix() for path in own]

    def recorded(self) -> dict[str, ArtifactRow]:
        """What the store knows of those, by path, in the order in which they were written."""
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
        # Not only what was recorded: a training that is stopped writes a last checkpoint unreported.
        unrecorded = [path for path in files if path not in recorded and not _stays(path)]
        if checkpoints or unrecorded or run_ids:
            yield trial.removable([*checkpoints, *unrecorded], UNWANTED, run_ids, trial.attempts)
        return
    if trial.row.state == "COMPLETE":
        yield from _spare(trial, files, recorded)
    if parts := [path for path in files if _is_part(path)]:
        yield trial.removable(parts, UNFINISHED)


def _spare(trial: _Trial, files: Sequence[str], recorded: Mapping[str, ArtifactRow]) -> Iterator[Removable]:
    """What a finished training has behind it: those that it takes the place of, its earlier checkpoints."""
    before = [attempt for attempt in trial.attempts if attempt.number < trial.row.first_attempt]
    ids = {attempt.id for attempt in before}
    own = {path: file for path, file in recorded.items() if file.attempt_id not in ids}
    # Checkpoints may lie in the storage alone; other files are listed where they are here.
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
    """The trial's log, and what the storage notes for itself."""
    return path == LOG or (PurePosixPath(path).name.startswith(".") and not _is_part(path))


def _earlier(directory: Path, checkpoints: Mapping[str, ArtifactRow]) -> list[str]:
    """All that are there but the last written, if that one is whole; else they stay, to fall back on."""
    there = [path for path in checkpoints if (directory / path).is_file()]
    *earlier, last = there or [""]
    return earlier if earlier and digest(directory / last) == checkpoints[last].sha256 else []


def _inside(path: Path, directory: Path) -> bool:
    """Whether a path leads to something in the directory, and the directory is not itself a link."""
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
