"""The files that a report names, and the same report for another machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ablation.protocol import Checkpointed, Evaluated, Report
from ablation.storage.names import path_in


def files_of(report: Report) -> list[Path]:
    """The files that a report names; they must be stored before the report is sent."""
    match report:
        case Checkpointed(path=path):
            return [Path(path)]
        case Evaluated(artifacts=artifacts):
            return [Path(path) for path in artifacts.values()]
        case _:
            return []


def moved(report: Report, source: Path, target: Path) -> Report:
    """The report with its paths in the directory `target` instead of `source`."""

    def move(path: str) -> str:
        return str(target / path_in(source, Path(path)))

    match report:
        case Checkpointed(path=path):
            return replace(report, path=move(path))
        case Evaluated(artifacts=artifacts):
            return replace(report, artifacts={kind: move(path) for kind, path in artifacts.items()})
        case _:
            return report
