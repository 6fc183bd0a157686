"""What a command prints at its end: the tables, the claims, and where the files lie."""

from __future__ import annotations

from collections.abc import Collection

from rich.console import Console

from ablation.claim import Claim, references
from ablation.render import terminal
from ablation.render.answer import answer
from ablation.render.files import write_results, write_tables
from ablation.results.by_class import by_class
from ablation.results.claims import verdicts
from ablation.results.ranking import rank
from ablation.results.table import assemble
from ablation.session import Session
from ablation.tracking.client import server_address

PLAIN_WIDTH = 120
"""Columns where the output is no terminal."""


def report_console() -> Console:
    """The standard output, wide enough for the tables where it is a file or a pipe."""
    console = Console()
    return console if console.is_terminal else Console(width=PLAIN_WIDTH)


def print_report(session: Session, formats: Collection[str], console: Console | None = None) -> None:
    """Print the planned tables and the claims as the store has them now, and write the results folder.

    The folder always holds all tables and claims of the study, also after a command about one table.
    """
    console = console or report_console()
    study, plan = session.study, session.plan
    tables = assemble(study, plan, session.store, [table.id for table in study.tables])
    console.print(terminal.tables([filled for filled in tables if filled.table.id in plan.table_ids]))
    judged = verdicts(study, tables, plan.setting)
    about = {claim.id for claim in study.claims if _is_about(claim, plan.table_ids)}
    if about:
        renew = session.command("retry", "--stale", about="part")
        console.print(terminal.claims([verdict for verdict in judged if verdict.id in about], renew))
    if plan.setting.own_data or not study.claims:  # then nobody says what to expect: which row is best?
        for filled in tables:
            if filled.table.id in plan.table_ids and filled.table.columns:
                lines = answer(rank(filled, plan.setting))
                console.print(*lines, "", sep="\n", markup=False, highlight=False)
    _, problems = write_results(session.results, study, tables, judged, formats)
    for problem in problems:
        console.print(problem, highlight=False, markup=False, soft_wrap=True)
    console.print(f"\nTables, figures and claims: {session.results}", highlight=False, soft_wrap=True)
    console.print(f"Runs and checkpoints:       {session.workspace.root}", highlight=False, soft_wrap=True)
    shown = server_address(session.selection.mlflow_uri) or f"`{session.ui_hint}`, the MLflow UI"
    console.print(f"Every run, curve and picture: {shown}", highlight=False, soft_wrap=True)


def _is_about(claim: Claim, table_ids: Collection[str]) -> bool:
    """Whether the claim rests on one of the tables, or on no table at all."""
    rests_on = {ref.table for ref in references(claim)}
    return not rests_on or not rests_on.isdisjoint(table_ids)


def print_by_class(session: Session, formats: Collection[str], console: Console | None = None) -> None:
    """Print the planned tables by class, from the stored predictions, and write all tables to a folder."""
    console = console or report_console()
    tables, problems = by_class(session.study, session.plan, session.store)
    planned = [filled for filled in tables if filled.table.id in session.plan.table_ids]
    console.print(terminal.tables([filled for filled in planned if filled.table.columns]))
    if empty := [filled.name for filled in planned if not filled.table.columns]:
        console.print(f"No row has been tested of {', '.join(empty)}.", highlight=False)
    for problem in problems:
        console.print(problem, highlight=False, markup=False)
    if problems:
        console.print(f"`{session.command('verify', about='part')}` looks at every file.", highlight=False)
    if measured := [filled for filled in tables if filled.table.columns]:
        folder = session.results / "by-class"
        write_tables(folder, session.study.title, measured, formats)
        console.print(f"\nThe same by class: {folder}", highlight=False, soft_wrap=True)
