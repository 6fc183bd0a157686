"""Numbers that only an evaluation server can give: the evaluations that await them, and their import.

Where the annotations of a test set are not published, an evaluation leaves a file to upload and no numbers.
What the server returns is imported, and kept beside that file.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ablation.errors import UserError
from ablation.files import write_whole
from ablation.metric import in_words
from ablation.plan import Plan
from ablation.store import SUBMISSION, EvaluationRow, Store
from ablation.study import Study
from ablation.workspace import Workspace

# --- awaited -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Waiting:
    """An evaluation that awaits a server's numbers.

    Attributes:
        name: of the row that wants it, with its seed.
        submission: the file to upload.
    """

    key: str
    name: str
    submission: Path


def waiting(plan: Plan, store: Store) -> list[Waiting]:
    """The plan's evaluations that await a server's numbers, in the order of its trials."""
    names = {e.key: e.name for trial in plan.trials for e in trial.evaluations}
    rows = store.evaluations(list(names))
    found = [rows[key] for key in names if key in rows and rows[key].awaits_scores]
    return [Waiting(row.key, names[row.key], store.resolve(row.artifacts[SUBMISSION])) for row in found]


# --- imported ----------------------------------------------------------------------------------------


def import_scores(
    store: Store, workspace: Workspace, study: Study, start: str, file: Path, *, replace: bool
) -> str:
    """Keep a file that an evaluation server returned, and its numbers, for the evaluation it is about.

    Drivers may be at work meanwhile.

    Args:
        study: the one that the evaluation belongs to; reads the file (`Study.read_scores`).
        start: an evaluation's key, or as many of its first characters as make it unique.
        replace: overwrite different numbers of an earlier import.

    Returns:
        What was done, in one line.

    Raises:
        UserError: no or several such evaluations, one of another study, a file without the numbers, or an
            earlier import has different numbers.
    """
    row = _wanted(store, start)
    trial, content = store.trial_states([row.trial_key])[row.trial_key], _content(file)
    if study.read_scores is None or trial.study != study.name:
        raise UserError(
            f"The study {study.name!r} imports no numbers for evaluation {row.key} of the study "
            f"{trial.study!r}. Name the evaluation's study with --study."
        )
    scores = study.read_scores(content, str(file))
    about = f"{trial.name} (evaluation {row.key})"
    if _defined(row.metrics) == _defined(scores) and row.imported:
        return f"{about} has these numbers already: {_shown(study, scores)}."
    if row.imported and not replace:
        raise UserError(
            f"{about} has other numbers from an earlier import: {_shown(study, row.metrics)}, while {file} "
            f"has {_shown(study, scores)}. --replace overwrites them."
        )
    store.import_scores(row.key, dict(scores), str(_kept(content, row, workspace)))
    return f"{about}: {_shown(study, scores)}."


def _defined(scores: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in scores.items() if math.isfinite(value)}


def _wanted(store: Store, start: str) -> EvaluationRow:
    """The evaluation whose key starts with `start`, of those whose numbers a server gives."""
    rows = store.evaluations()
    matching = [row for key, row in rows.items() if key.startswith(start)]
    found = [row for row in matching if row.awaits_scores or row.imported]
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"Several evaluations start with {start!r}: {', '.join(row.key for row in found)}.")
    if matching:
        raise UserError(f"The numbers of evaluation {matching[0].key} were measured here: nothing to import.")
    waits = [row.key for row in rows.values() if row.awaits_scores]
    known = f"These do: {', '.join(waits)}" if waits else "None does"
    raise UserError(f"No evaluation whose key starts with {start!r} waits for numbers. {known}.")


def _content(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")  # some editors write a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise UserError(f"{file} cannot be read: {reason}.") from error


def _kept(content: str, row: EvaluationRow, workspace: Workspace) -> Path:
    """A copy in the trial's folder, under a path that does not depend on the user's folders.

    Its name holds a hash of the content, so that the file of an earlier import is not overwritten.
    """
    folder = workspace.trial_directory(row.trial_key)
    digest = hashlib.sha256(content.encode()).hexdigest()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return write_whole(folder / f"scores-{row.key}-{digest[:12]}.txt", content)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}.") from error


def _shown(study: Study, scores: Mapping[str, float]) -> str:
    return ", ".join(in_words(study.metrics, scores))
