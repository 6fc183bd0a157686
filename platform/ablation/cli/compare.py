"""Commands that answer which row to use: best, compare."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from rich import box
from rich.table import Table

from ablation.cli.arguments import Commands, add, selection_of, selection_parser
from ablation.metric import Metric
from ablation.render.answer import answer, interval
from ablation.render.report import report_console
from ablation.results.comparison import Difference, Side, compare_classes, compare_rows, find_row
from ablation.results.ranking import rank
from ablation.results.table import assemble
from ablation.session import Session

CLASSES = 10
"""How many classes are printed: those that differ most."""


def best_command(arguments: argparse.Namespace) -> int:
    """Rank the rows of each table: the best, those that cannot be told apart from it, the worse ones."""
    session = Session.of_results(selection_of(arguments))
    tables = assemble(session.study, session.plan, session.store)
    rankings = [rank(filled, session.plan.setting, arguments.column) for filled in tables]
    if arguments.json:
        print(json.dumps([ranking.data() for ranking in rankings], indent=2))
        return 0
    console = report_console()
    for ranking in rankings:
        console.print(*answer(ranking), "", sep="\n", markup=False, highlight=False)
    return 0


def compare_command(arguments: argparse.Namespace) -> int:
    """Compare two rows: every metric and class, the difference and its interval."""
    session = Session.of_results(selection_of(arguments))
    study, plan, store = session.study, session.plan, session.store
    left, right = find_row(study, arguments.left), find_row(study, arguments.right)
    metrics = compare_rows(study, plan, store, left, right)
    classes, problems = compare_classes(study, plan, store, left, right)
    if arguments.json:
        found = {"left": left.name, "right": right.name, "problems": problems}
        lists = {"metrics": [one.data() for one in metrics], "classes": [one.data() for one in classes]}
        print(json.dumps(found | lists, indent=2))
        return 0
    console = report_console()
    if not metrics:
        console.print(f"Neither {left.name} nor {right.name} has a number yet.", highlight=False)
        return 0
    console.print(_table("Metric", metrics, left, right))
    if classes:
        console.print(_table("Class", classes[:CLASSES], left, right))
        if len(classes) > CLASSES:
            console.print(f"and {len(classes) - CLASSES} classes that differ less.", highlight=False)
    for line in [*dict.fromkeys(_caveats(metrics)), *problems]:
        console.print(line, markup=False, highlight=False)
    return 0


def _table(what: str, rows: Sequence[Difference], left: Side, right: Side) -> Table:
    drawn = Table(box=box.SIMPLE_HEAD, show_edge=False, header_style="bold")
    drawn.add_column(what)
    drawn.add_column(left.name, justify="right")
    drawn.add_column(right.name, justify="right")
    drawn.add_column("difference", justify="right")
    for row in rows:
        shown = interval(row.estimate, row.metric) if row.estimate else ""
        drawn.add_row(row.name, _number(row.left, row.metric), _number(row.right, row.metric), shown)
    return drawn


def _number(value: float | None, metric: Metric) -> str:
    return "–" if value is None else metric.text(value)


def _caveats(rows: Sequence[Difference]) -> list[str]:
    return [f"Note: {caveat}." for row in rows if row.estimate for caveat in row.estimate.caveats]


# --- parsers ---------------------------------------------------------------------------------------------


def add_commands(commands: Commands) -> None:
    """The parsers of this module's commands."""
    best = add(commands, "best", best_command, [selection_parser()], "--tables 3")
    best.add_argument("--column", metavar="NAME", help="column to rank by (default: the first of each table)")
    compare = add(commands, "compare", compare_command, [selection_parser()], '"table3 FCOS" "table3 ATSS"')
    for side in ("left", "right"):
        compare.add_argument(side, metavar="ROW", help='a row by its label, "FCOS", or "table3 FCOS"')
    for parser in (best, compare):
        parser.add_argument("--json", action="store_true", help="JSON for programs (docs/results.md)")
