"""Numbers that only an evaluation server can give: which are waited for, and taking them in.

The annotations of a test set such as COCO's test-dev are not published. So an evaluation on it leaves a
file to upload and no numbers; what the server returns is imported, and kept beside that file.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablation.errors import UserError
from ablation.files import write_whole
from ablation.plan import Plan
from ablation.results.statistics import METRICS
from ablation.store import SUBMISSION, EvaluationRow, Store
from ablation.workspace import Workspace

_UNDEFINED = -1.0
"""What COCO's tools answer where no ground truth has the size asked for."""

# "Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all | maxDets=100 ] = 0.436"
_SUMMARY_LINE = re.compile(
    r"\(AP\)\s*@\[\s*IoU=([\d.:]+)\s*\|\s*area=\s*(\w+)\s*\|\s*maxDets=\s*\d+\s*\]\s*=\s*(\S+)"
)
_SUMMARY_NAMES = {
    ("0.50:0.95", "all"): "AP",
    ("0.50", "all"): "AP50",
    ("0.75", "all"): "AP75",
    ("0.50:0.95", "small"): "APS",
    ("0.50:0.95", "medium"): "APM",
    ("0.50:0.95", "large"): "APL",
}
_LONG_NAMES = {"APSMALL": "APS", "APMEDIUM": "APM", "APLARGE": "APL"}


# --- which are waited for ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Waiting:
    """An evaluation that waits for a server's numbers.

    Attributes:
        name: of the row that wants it, with its seed.
        submission: the file to upload.
    """

    key: str
    name: str
    submission: Path


def waiting(plan: Plan, store: Store) -> list[Waiting]:
    """Those of the plan, in the order of its trials."""
    names = {e.key: e.name for trial in plan.trials for e in trial.evaluations}
    rows = store.evaluations(list(names))
    found = [rows[key] for key in names if key in rows and rows[key].awaits_scores]
    return [Waiting(row.key, names[row.key], store.resolve(row.artifacts[SUBMISSION])) for row in found]


# --- taking them in ----------------------------------------------------------------------------------


def import_scores(store: Store, workspace: Workspace, start: str, file: Path, *, replace: bool) -> str:
    """Keep a file that an evaluation server returned, and its numbers, for the evaluation it is about.

    Drivers may be at work meanwhile.

    Args:
        start: an evaluation's key, or as many of its first characters as make it unique.
        file: see `read_scores`.
        replace: other numbers that were imported before give way.

    Returns:
        What was done, in one line.

    Raises:
        UserError: no or several such evaluations, a file without the numbers, or other numbers are there.
    """
    row = _wanted(store, start)
    content = _content(file)
    scores = parse_scores(content, str(file))
    about = f"{store.trial_states([row.trial_key])[row.trial_key].name} (evaluation {row.key})"
    if row.metrics == scores:
        return f"{about} has these numbers already: {_shown(scores)}."
    if row.imported and not replace:
        raise UserError(
            f"{about} has other numbers from an earlier import: {_shown(row.metrics)}, while {file} has "
            f"{_shown(scores)}. With --replace these take their place."
        )
    store.import_scores(row.key, scores, str(_kept(content, row, workspace)))
    return f"{about}: {_shown(scores)}."


def _wanted(store: Store, start: str) -> EvaluationRow:
    """The evaluation whose key starts so, of those whose numbers a server gives."""
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
        return file.read_text(encoding="utf-8-sig")  # editors put a mark before it
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise UserError(f"{file} cannot be read: {reason}.") from error


def _kept(content: str, row: EvaluationRow, workspace: Workspace) -> Path:
    """A copy beside the trial's other files, where its path does not depend on a person's folders.

    Named after what it holds, so that an earlier import's file stays what the store says it is.
    """
    folder = workspace.trial_directory(row.trial_key)
    digest = hashlib.sha256(content.encode()).hexdigest()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return write_whole(folder / f"scores-{row.key}-{digest[:12]}.txt", content)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}.") from error


def _shown(scores: Mapping[str, float]) -> str:
    return ", ".join(
        f"{name} {'undefined' if value < 0 else f'{value:.1f}'}" for name, value in scores.items()
    )


def parse_scores(content: str, source: str) -> dict[str, float]:
    """The numbers of `METRICS`, in percent, from what an evaluation server returns.

    Args:
        content: the summary that pycocotools prints, whose numbers are fractions; or a JSON object with
            AP, AP50, AP75, APS, APM and APL (AP_50 and AP_small are understood too), in percent when
            one of them is above 1, else fractions. Average recalls are passed over.
        source: where it is from, for messages.

    Raises:
        UserError: not all six numbers are there, one of them twice, or one that none of them can be.
    """
    is_json = content.lstrip().startswith("{")
    pairs = _from_json(content, source) if is_json else _from_summary(content)
    names = [name for name, _ in pairs]
    missing = [name for name in METRICS if name not in names]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if missing or repeated:
        problem = f"{', '.join(missing)} missing" if missing else f"{', '.join(repeated)} given twice"
        raise UserError(
            f"{source}: {problem}. It must be the 12 lines that pycocotools prints, or a JSON object with "
            f"{', '.join(METRICS)}."
        )
    scores = {name: _number(name, value, source) for name, value in pairs}
    scale = 1.0 if is_json and max(scores.values()) > 1 else 100.0
    return {name: _percent(name, scores[name], scale, source) for name in METRICS}


def _from_summary(content: str) -> list[tuple[str, Any]]:
    found = [(_SUMMARY_NAMES.get((iou, area)), value) for iou, area, value in _SUMMARY_LINE.findall(content)]
    return [(name, value) for name, value in found if name is not None]


def _from_json(content: str, source: str) -> list[tuple[str, Any]]:
    try:
        given = json.loads(content, object_pairs_hook=list)
    except ValueError as error:
        raise UserError(f"{source} is no valid JSON: {error}.") from error
    plain = [(re.sub(r"[^A-Z0-9]", "", name.upper()), value, name) for name, value in given]
    pairs = [(_LONG_NAMES.get(short, short), value, name) for short, value, name in plain]
    unknown = [name for short, _, name in pairs if short not in METRICS and not short.startswith("AR")]
    if unknown:
        raise UserError(
            f"{source}: {', '.join(unknown)} unknown; {', '.join(METRICS)} and average recalls (AR...) are "
            "what a COCO evaluation gives."
        )
    return [(short, value) for short, value, _ in pairs if short in METRICS]


def _number(name: str, value: Any, source: str) -> float:
    try:
        if isinstance(value, bool | list):
            raise TypeError
        return float(value)
    except (TypeError, ValueError):
        raise UserError(f"{source}: {name} must be a number, got {value!r}.") from None


def _percent(name: str, value: float, scale: float, source: str) -> float:
    """In percent, to the ten digits that decimals have; undefined stays what it is."""
    if value == _UNDEFINED:
        return value
    percent = round(value * scale, 10)
    if not 0 <= percent <= 100:
        unit = "percent" if scale == 1 else "a fraction"
        raise UserError(f"{source}: {name} is {value:g}, read as {unit}: it must lie in 0..{100 / scale:g}.")
    return percent
