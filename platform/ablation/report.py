"""What a person gets at the end of a command: the tables, the claims, and where everything lies."""

from __future__ import annotations

from collections.abc import Collection

from rich.console import Console

from ablation.claims import verdicts
from ablation.render import terminal
from ablation.render.results import write_results
from ablation.session import Session
from ablation.table import assemble

PLAIN_WIDTH = 120
"""Columns where the output is no terminal, and nothing says how wide its reader is."""


def report_console() -> Console:
    """The standard output, wide enough for the tables where it is a file or a pipe."""
    console = Console()
    return console if console.is_terminal else Console(width=PLAIN_WIDTH)


def print_report(session: Session, formats: Collection[str], console: Console | None = None) -> None:
    """Print the tables and the claims as the store has them now, and write the results folder."""
    console = console or report_console()
    tables = assemble(session.study, session.plan, session.store)
    judged = verdicts(session.study, tables, session.plan.setting)
    console.print(terminal.tables(tables))
    console.print(terminal.claims(judged))
    write_results(session.results, session.study, tables, judged, formats)
    console.print(f"\nTables, figures and claims: {session.results}", highlight=False, soft_wrap=True)
    console.print(f"Runs and checkpoints:       {session.workspace.root}", highlight=False, soft_wrap=True)
    console.print("Every run, curve and picture: `make ui`, the MLflow UI", highlight=False)
