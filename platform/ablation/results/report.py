"""What a person gets at the end of a command: the tables, the claims, and where everything lies."""

from __future__ import annotations

from collections.abc import Collection

from rich.console import Console

from ablation.results.by_class import by_class
from ablation.results.claims import verdicts
from ablation.results.render import terminal
from ablation.results.render.results import write_results, write_tables
from ablation.results.table import assemble
from ablation.session import Session
from ablation.tracking import server_address

PLAIN_WIDTH = 120
"""Columns where the output is no terminal, and nothing says how wide its reader is."""


def report_console() -> Console:
    """The standard output, wide enough for the tables where it is a file or a pipe."""
    console = Console()
    return console if console.is_terminal else Console(width=PLAIN_WIDTH)


def print_report(session: Session, formats: Collection[str], console: Console | None = None) -> None:
    """Print the planned tables and the claims as the store has them now, and write the results folder.

    The folder and the claims are of all the study's tables, so that a command about one table leaves
    no less there than it found.
    """
    console = console or report_console()
    study, plan = session.study, session.plan
    tables = assemble(study, plan, session.store, [table.id for table in study.tables])
    console.print(terminal.tables([filled for filled in tables if filled.table.id in plan.table_ids]))
    judged = verdicts(study, tables, plan.setting)
    console.print(terminal.claims(judged))
    write_results(session.results, study, tables, judged, formats)
    console.print(f"\nTables, figures and claims: {session.results}", highlight=False, soft_wrap=True)
    console.print(f"Runs and checkpoints:       {session.workspace.root}", highlight=False, soft_wrap=True)
    shown = server_address(session.selection.mlflow_uri) or f"`{session.ui_hint}`, the MLflow UI"
    console.print(f"Every run, curve and picture: {shown}", highlight=False, soft_wrap=True)


def print_by_class(session: Session, formats: Collection[str], console: Console | None = None) -> None:
    """Print the planned tables by class as their detections give them now, and write them to a folder."""
    console = console or report_console()
    tables = by_class(session.study, session.plan, session.store)
    if not tables:
        console.print("By class there is nothing yet: no row has been tested.")
        return
    folder = session.results / "by-class"
    console.print(terminal.tables(tables))
    write_tables(folder, session.study.title, tables, formats)
    console.print(f"\nThe same by class: {folder}", highlight=False, soft_wrap=True)
