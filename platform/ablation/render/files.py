"""The results folder: tables, claims, figures and manifest, each file written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ablation.errors import UserError
from ablation.files import write_whole
from ablation.render import csv, html, latex, markdown
from ablation.render.figures import write_figures
from ablation.results.claims import Verdict, summary
from ablation.results.table import FilledCell, FilledTable
from ablation.study import Study

FORMATS = ("md", "latex", "csv", "html")


def write_results(
    directory: Path,
    study: Study,
    tables: Sequence[FilledTable],
    judged: Sequence[Verdict],
    formats: Collection[str] = FORMATS,
) -> tuple[list[Path], list[str]]:
    """Write the tables in each format, the claims and the manifest, then the figures.

    Returns:
        The paths, and a sentence for each table that cannot be drawn.

    Raises:
        UserError: an unknown format, or a directory that cannot be written.
    """
    texts = _texts(study.title, tables, judged, formats)
    if judged:
        texts["claims.md"] = markdown.claims(study.title, judged)
    texts["manifest.json"] = json.dumps(manifest(study, tables, judged), indent=1, ensure_ascii=False) + "\n"
    with writing_to(directory):
        paths = [write_whole(directory / name, text) for name, text in texts.items()]
        figures, problems = write_figures(directory / "figures", tables)
        return paths + figures, problems


def write_tables(
    directory: Path, title: str, tables: Sequence[FilledTable], formats: Collection[str] = FORMATS
) -> list[Path]:
    """Write only the tables, in each format; returns the paths. Errors as `write_results`."""
    texts = _texts(title, tables, [], formats)
    with writing_to(directory):
        return [write_whole(directory / name, text) for name, text in texts.items()]


@contextmanager
def writing_to(directory: Path) -> Iterator[None]:
    """Creates the folder. An OSError within the context becomes a UserError."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise UserError(
            f"cannot write results to {directory}: {error.strerror or error}; free space there, or choose "
            "another place with --workspace"
        ) from error


def _texts(
    title: str, tables: Sequence[FilledTable], judged: Sequence[Verdict], formats: Collection[str]
) -> dict[str, str]:
    unknown = sorted(set(formats) - set(FORMATS))
    if unknown:
        raise UserError(f"unknown format {', '.join(unknown)}; there are {', '.join(FORMATS)}")
    texts: dict[str, str] = {}
    if "md" in formats:
        texts["tables.md"] = markdown.document(title, tables)
    if "latex" in formats:
        texts["tables.tex"] = latex.document(title, tables)
    if "html" in formats:
        texts["tables.html"] = html.document(title, tables, judged)
    if "csv" in formats:
        texts |= {f"{filled.table.id}.csv": csv.table(filled) for filled in tables}
    return texts


def manifest(study: Study, tables: Sequence[FilledTable], judged: Sequence[Verdict]) -> dict[str, Any]:
    """The sources of every cell as plain data: trial and evaluation keys, values and commits by seed."""
    return {
        "study": study.name,
        "title": study.title,
        "tables": {filled.table.id: _table(filled) for filled in tables},
        "claims": {verdict.id: asdict(verdict) for verdict in judged},
        "summary": summary(judged),
    }


def _table(filled: FilledTable) -> dict[str, Any]:
    rows = {row.label: list(cells) for row, cells in zip(filled.table.rows, filled.rows, strict=True)}
    return {
        "title": filled.table.title,
        **asdict(filled.heading),
        "rows": {label: {cell.column: _cell(cell) for cell in cells} for label, cells in rows.items()},
    }


def _cell(cell: FilledCell) -> dict[str, Any]:
    return {
        "metric": cell.metric.name,
        "ours": cell.mean,
        "spread": cell.spread,
        "paper": cell.paper,
        "difference": cell.difference,
        "state": cell.state,
        "seeds": {
            str(source.seed): {
                "trial": source.trial_key,
                "evaluation": source.evaluation_key,
                "value": source.value,
                "state": source.state,
                "commit": source.commit,
            }
            for source in cell.sources
        },
    }
