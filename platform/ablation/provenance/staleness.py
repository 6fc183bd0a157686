"""Stale results: those whose code, packages or data have changed since they were measured.

A result depends on the modules that its attempts imported, on packages and on its config. The environment
that the attempts recorded is compared with today's. An edit of a module that a training did not import makes
no result stale, nor does an edit of comments alone, if git has the old text. Stale results are trained again
only on request (`ablation retry --stale`).
"""

from __future__ import annotations

import ast
import difflib
import json
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ablation.plan import Plan, make_plan
from ablation.provenance import environment
from ablation.provenance.record import UNKNOWN, git, leaves
from ablation.setting import data_id
from ablation.store import CHECKPOINT, AttemptRow, EvaluationRow, Store, TrialRow

SUPERSEDED = "Rows whose results have another config than today's; a run trains them again:"
STALE = "Results whose code, packages or data have changed; `{}` trains them again:"
JOINT = "Measured together under other code or packages than today's; `{}` measures again:"

Kind = Literal["stale", "unrecorded", "superseded"]


@dataclass(frozen=True, slots=True)
class Finding:
    """A row's result at a seed that differs from today, or cannot be compared.

    Attributes:
        column: the column, if the row's cells cite different trainings or evaluations; otherwise "".
        kind: "stale" where something differs from today; "unrecorded" where an attempt has no record of
            its environment; "superseded" where only an older config of the row has a result.
        changes: the differences, a clause each: "detector/objectives/losses.py changed since commit abc1234".
    """

    table: str
    row: str
    column: str
    seed: int
    trial_key: str
    evaluation_key: str
    kind: Kind
    changes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The result's name: "table3 FCOS, seed 0"."""
        return f"{self.table} {self.row}{f' {self.column}' if self.column else ''}, seed {self.seed}"

    @property
    def text(self) -> str:
        """The finding as one sentence."""
        return f"{self.name}: {'; '.join(self.changes) or 'nothing recorded'}"


def find(plan: Plan, store: Store) -> list[Finding]:
    """Findings on the results of the planned tables, in reading order; unchanged results have none."""
    comparison = _Comparison(plan, store)
    return [finding for cited in _cited_results(plan) if (finding := comparison.finding(cited))]


def joint_changes(plan: Plan, store: Store) -> tuple[str, ...]:
    """What has changed since the newest joint measurement, a clause each; none where there is none."""
    newest = store.joint(plan.study.name, plan.setting.profile, data_id(plan.setting))
    if newest is None:
        return ()
    return tuple(dict(_Today().changes(newest.provenance["environment"], newest.provenance)).values())


def describe(
    findings: Sequence[Finding], plan: Plan, command: Callable[..., str], joint: Sequence[str] = ()
) -> str:
    """The findings as text: rows grouped by their changes, then those that cannot be compared.

    Args:
        findings: on the results of the plan's tables.
        plan: the plan.
        command: makes the text of a command to suggest (`Session.command`).
        joint: see `joint_changes`.
    """
    again, measure = command("retry", "--stale", about="part"), command("measure", about="part")
    parts = [
        grouped(JOINT.format(measure), [(" and ".join(plan.study.jointly), tuple(joint))] if joint else [])
    ]
    parts += [_section(findings, "stale", STALE.format(again)), _section(findings, "superseded", SUPERSEDED)]
    unrecorded = [finding.name for finding in findings if finding.kind == "unrecorded"]
    if unrecorded:
        parts.append(
            f"Results whose attempts kept no record to compare: {len(unrecorded)} ({_listed(unrecorded)})"
        )
    text = "\n".join(part for part in parts if part)
    return text.rstrip() or f"No result of {', '.join(plan.table_ids)} is stale."


def _section(findings: Sequence[Finding], kind: Kind, title: str) -> str:
    return grouped(title, [(finding.name, finding.changes) for finding in findings if finding.kind == kind])


def grouped(title: str, changed: Iterable[tuple[str, tuple[str, ...]]]) -> str:
    """A title, then names grouped by their changes; "" without names."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, changes in changed:
        groups.setdefault(changes, []).append(name)
    lines = [
        line for changes, names in groups.items() for line in ("", *changes, *(f"    {n}" for n in names))
    ]
    return "\n".join([title, *(f"  {line}".rstrip() for line in lines[1:]), ""]) if lines else ""


def _listed(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


# --- results of the tables -------------------------------------------------------------------------


def _cited_results(plan: Plan) -> Iterator[Finding]:
    """A finding of kind "unrecorded" for each different result of a row at a seed."""
    for table in plan.tables:
        for row in table.trained:
            for seed in plan.seeds:
                columns: dict[tuple[str, str], str] = {}
                for column, cell in zip(table.columns, row.cells, strict=True):
                    columns.setdefault(plan.lookup(cell, seed), column)
                for keys, column in columns.items():
                    shown = column if len(columns) > 1 else ""
                    yield Finding(table.id, row.label, shown, seed, *keys, "unrecorded")


class _Comparison:
    """Compares results with today; reads the store once for all of them."""

    def __init__(self, plan: Plan, store: Store) -> None:
        self.plan, self.store, self.today = plan, store, _Today()
        self.trials = {trial.key: trial for trial in plan.trials}
        stored = store.trial_states(
            list(self.trials)
        )  # read first, so that no result read below belongs to an earlier training
        self.evaluations = store.evaluations([e.key for t in plan.trials for e in t.evaluations])
        self.attempts: dict[str, list[AttemptRow]] = {}
        for attempt in store.attempts(list(self.trials)):
            if attempt.number >= stored[attempt.trial_key].first_attempt:
                self.attempts.setdefault(attempt.trial_key, []).append(attempt)
        self.compared: dict[int, dict[str, str]] = {}
        self.older = self._older()

    def finding(self, cited: Finding) -> Finding | None:
        """The finding on a cited result; None where it is unchanged."""
        evaluation = self.evaluations.get(cited.evaluation_key)
        if evaluation is None:
            changes = self._config_changes(cited)
            return replace(cited, kind="superseded", changes=changes) if changes else None
        attempts = self._behind(evaluation)
        changed: dict[str, str] = {}
        for attempt in attempts:
            changed = self._compared(attempt) | changed  # the oldest attempt's clause stays
        if changed:
            return replace(cited, kind="stale", changes=tuple(changed.values()))
        return cited if any(attempt.environment is None for attempt in attempts) else None

    def _behind(self, evaluation: EvaluationRow) -> list[AttemptRow]:
        """The attempt that evaluated and earlier ones that it may have resumed from, oldest first.

        Those reported a checkpoint, or were stopped or lost and may have written an unreported one. An
        attempt that ended before it reported its environment is left out: it had hardly begun.
        """
        left = {f.attempt_id for f in self.store.artifacts(evaluation.trial_key) if f.kind == CHECKPOINT}
        own = [a for a in self.attempts[evaluation.trial_key] if a.id <= evaluation.attempt_id]
        return [
            a
            for a in own
            if a.id == evaluation.attempt_id
            or a.id in left
            or (a.state in ("INTERRUPTED", "LOST") and a.environment is not None)
        ]

    def _compared(self, attempt: AttemptRow) -> dict[str, str]:
        if attempt.environment is None:
            return {}
        if attempt.id not in self.compared:
            self.compared[attempt.id] = dict(self.today.changes(attempt.environment, attempt.provenance))
        return self.compared[attempt.id]

    def _older(self) -> dict[str, list[tuple[TrialRow, EvaluationRow]]]:
        """Results that no cell of the study cites, by trial name, newest first."""
        if all(trial.state == "COMPLETE" for trial in self.plan.trials):
            return {}
        study, setting = self.plan.study, self.plan.setting
        whole = make_plan(study, setting, self.plan.seeds)
        cited = {evaluation.key for trial in whole.trials for evaluation in trial.evaluations}
        trials = self.store.trial_states()
        found: dict[str, list[tuple[TrialRow, EvaluationRow]]] = {}
        for evaluation in sorted(self.store.evaluations().values(), key=lambda e: e.time, reverse=True):
            trial = trials[evaluation.trial_key]
            own = (trial.study, trial.profile, trial.data_name)
            if own == (study.name, setting.profile, data_id(setting)) and evaluation.key not in cited:
                found.setdefault(trial.name, []).append((trial, evaluation))
        return found

    def _config_changes(self, cited: Finding) -> tuple[str, ...]:
        """Differences of today's configs from the row's most similar older result; none without one."""
        trial = self.trials[cited.trial_key]
        wanted = next(e for e in trial.evaluations if e.key == cited.evaluation_key)
        differences = [
            _config_differences(old.config_json, trial.config_json)
            + _config_differences(tested.config_json, wanted.config_json)
            for old, tested in self.older.get(trial.name, [])
        ]
        return min(differences, key=len, default=())


def _config_differences(then: str, now: str) -> tuple[str, ...]:
    old, new = dict(leaves(json.loads(then))), dict(leaves(json.loads(now)))
    paths = [path for path in {**old, **new} if old.get(path) != new.get(path)]
    return tuple(f"{path} was {_value(old, path)}, is {_value(new, path)}" for path in paths)


def _value(config: Mapping[str, Any], path: str) -> str:
    return str(config[path]) if path in config else "absent"


# --- one attempt against today ------------------------------------------------------------------------


@dataclass
class _Today:
    """Installed packages and source files of today, each read and compared once."""

    python: str = field(default_factory=platform.python_version)
    texts: dict[str, tuple[Path, str] | None] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    clauses: dict[tuple[str, str, str], str | None] = field(default_factory=dict)

    def changes(self, then: Mapping[str, Any], origin: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Differences from a recorded environment, as (module or package, clause) pairs.

        Args:
            then: the result of `environment.describe` in the attempt.
            origin: the attempt's provenance, for its commit.
        """
        for module, digest in then["modules"].items():
            # Most attempts of a plan have one version of the code, and a comparison takes a call of git.
            known = (module, digest, _since(origin))
            if known not in self.clauses:
                self.clauses[known] = self._module_change(module, digest, origin)
            if clause := self.clauses[known]:
                yield module, clause
        for package, version in then["packages"].items():
            now = environment.version(package)
            if now != version:
                yield package, f"{package} was {version or 'absent'}, is {now or 'absent'}"
        if _minor(then["python"]) != _minor(self.python):
            yield "python", f"Python was {_minor(then['python'])}, is {_minor(self.python)}"

    def _module_change(self, module: str, digest: str, origin: Mapping[str, Any]) -> str | None:
        now = self._text(module)
        if now is None:
            return f"{module.replace('.', '/')}.py is gone since {_since(origin)}"
        path, text = now
        if self.hashes[module] == digest:
            return None
        shown = _shown_path(module, path)
        old = _committed_text(path, origin, digest)
        if old is None:
            return f"{shown} changed since {_since(origin)}"
        if _same_code(old, text):
            return None
        return f"{shown} changed since {_since(origin)}, {_size(old, text)}"

    def _text(self, module: str) -> tuple[Path, str] | None:
        if module not in self.texts:
            path = environment.source_file(module)
            text = None if path is None else environment.source_text(path.read_bytes())
            self.texts[module] = None if path is None or text is None else (path, text)
            self.hashes[module] = "" if text is None else environment.source_hash(text)
        return self.texts[module]


def _shown_path(module: str, path: Path) -> str:
    """The path from the top package on: "detector/objectives/losses.py"."""
    depth = module.count(".") + (2 if path.name == "__init__.py" else 1)
    return "/".join(path.parts[-depth:])


def _minor(python: str) -> str:
    return ".".join(python.split(".")[:2])


def _since(origin: Mapping[str, Any]) -> str:
    """The version of an attempt's code, as text."""
    commit = origin.get("commit") or UNKNOWN
    if commit == UNKNOWN:
        return "it was recorded"
    day = f" ({origin['committed']})" if origin.get("committed") else ""
    return f"commit {commit[:7]}{day}{' with uncommitted changes' if origin.get('dirty') else ''}"


def _committed_text(path: Path, origin: Mapping[str, Any], digest: str) -> str | None:
    """The module's recorded text, if the attempt's commit has it (compared by its hash)."""
    commit = origin.get("commit") or UNKNOWN
    shown = None if commit == UNKNOWN else git(path.parent, "show", f"{commit}:./{path.name}")
    text = None if shown is None else environment.source_text(shown.encode())
    return text if text is not None and environment.source_hash(text) == digest else None


def _size(old: str, new: str) -> str:
    """The number of added and removed lines, as in git's statistics."""
    lines = list(difflib.unified_diff(old.splitlines(), new.splitlines(), n=0, lineterm=""))[2:]
    return f"+{sum(x.startswith('+') for x in lines)} -{sum(x.startswith('-') for x in lines)} lines"


def _same_code(old: str, new: str) -> bool:
    """Whether two texts differ only in comments, docstrings and layout."""
    try:
        return _code(old) == _code(new)
    except (SyntaxError, ValueError):
        return False


def _code(text: str) -> str:
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [statement for statement in node.body if not _is_text(statement)]
    return ast.dump(tree)


def _is_text(statement: ast.stmt) -> bool:
    value = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)
