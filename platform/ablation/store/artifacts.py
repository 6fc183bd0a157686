"""Files that attempts leave in the workspace, and the numbers that an evaluation server returns."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from ablation.files import sha256_of
from ablation.protocol import Checkpointed, Evaluated, Report
from ablation.store import schema
from ablation.store.reading import Reader, evaluations_by_key, to_null
from ablation.store.records import CHECKPOINT, SCORES
from ablation.store.transactions import Transaction, in_parts, write


class Artifacts(Reader):
    """The part of the store that records files."""

    def import_scores(self, evaluation_key: str, metrics: Mapping[str, float], path: str) -> None:
        """Records the numbers that an evaluation server returned; they replace imported ones.

        Args:
            evaluation_key: of an evaluation without numbers, or with imported ones.
            metrics: by name; NaN where undefined.
            path: the file that was returned, in the workspace.

        Raises:
            ValueError: the evaluation has no result yet, or its numbers were measured here.
        """
        relative, sha256 = self._relative(path), _sha256(self.root / path)
        self._import_scores(evaluation_key, metrics, _file_row(SCORES, relative, sha256))

    @write
    def _import_scores(
        self, t: Transaction, evaluation_key: str, metrics: Mapping[str, float], file: Mapping[str, Any]
    ) -> None:
        e, a = schema.evaluations, schema.attempts
        row = evaluations_by_key(t, e.c.key, [evaluation_key]).get(evaluation_key)
        if row is None or not (row.awaits_scores or row.imported):
            raise ValueError(f"evaluation {evaluation_key} does not take an evaluation server's numbers")
        numbers = {name: to_null(value) for name, value in metrics.items()}
        t.execute(e.update().where(e.c.key == row.key).values(metrics=numbers))
        ids = {"trial_key": row.trial_key, "attempt_id": row.attempt_id, "time": t.now}
        t.insert(schema.artifacts, {**file, **ids, "evaluation_key": row.key})
        t.execute(a.update().where(a.c.id == row.attempt_id).values(mirrored_state=None))

    @write
    def drop_artifacts(
        self, t: Transaction, attempt_ids: Collection[int], kinds: Collection[str]
    ) -> list[str]:
        """Deletes the rows of the attempts' files of those kinds; returns the files' paths."""
        f = schema.artifacts
        kind = f.c.kind.in_(kinds)
        drops = [f.delete().where(f.c.attempt_id.in_(ids), kind) for ids in in_parts(attempt_ids)]
        return sorted({path for drop in drops for path in t.scalars(drop.returning(f.c.path))})

    def _files(self, reports: Sequence[Report]) -> list[dict[str, Any]]:
        """Artifact rows of reports. Files are hashed here, before the transaction."""
        return [file for report in reports for file in self._files_of(report)]

    def _files_of(self, report: Report) -> list[dict[str, Any]]:
        match report:
            case Checkpointed(step, path, sha256):
                return [_file_row(CHECKPOINT, self._relative(path), sha256, step=step)]
            case Evaluated(key, _, artifacts):
                return [
                    _file_row(kind, self._relative(path), _sha256(self.root / path), evaluation_key=key)
                    for kind, path in artifacts.items()
                ]
            case _:
                return []

    def _relative(self, path: str) -> str:
        full = (self.root / path).resolve()
        if not full.is_relative_to(self.root):
            raise ValueError(f"artifacts must lie in the workspace {self.root}, got {path}")
        return full.relative_to(self.root).as_posix()


def _file_row(
    kind: str, path: str, sha256: str | None, *, step: int | None = None, evaluation_key: str | None = None
) -> dict[str, Any]:
    return {"kind": kind, "path": path, "sha256": sha256, "step": step, "evaluation_key": evaluation_key}


def _sha256(path: Path) -> str | None:
    return sha256_of(path) if path.is_file() else None
