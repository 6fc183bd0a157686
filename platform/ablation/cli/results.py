"""Commands about the numbers: tables, export, verify, measure, import-scores."""

from __future__ import annotations

import argparse

from ablation import studies
from ablation.cli.arguments import (
    Commands,
    add,
    add_format,
    add_study,
    driving,
    locations_of,
    locations_parser,
    reader,
    selection_of,
    selection_parser,
)
from ablation.driver import joint
from ablation.options import path
from ablation.provenance.record import collect
from ablation.provenance.verify import summary, verify
from ablation.render.export import DATA_FORMATS, export
from ablation.render.report import print_by_class, print_report
from ablation.results.frames import Results
from ablation.results.scores import import_scores
from ablation.session import Session, existing_store
from ablation.tracking.mirror import Mirror
from ablation.workspace import Workspace

EXIT_DIFFERENT = 1


def tables_command(arguments: argparse.Namespace) -> int:
    """Print the tables and write them in the formats asked for."""
    session = Session.of_results(selection_of(arguments))
    if arguments.by_class:
        print_by_class(session, arguments.format)
    else:
        print_report(session, arguments.format)
    return 0


def export_command(arguments: argparse.Namespace) -> int:
    """Write trials, attempts, curves, numbers, cells and claims as data files."""
    results = Results(Session.of_results(selection_of(arguments)))
    for written in export(results, arguments.folder, arguments.format):
        print(written)
    return 0


def verify_command(arguments: argparse.Namespace) -> int:
    """Compute the numbers of every cell anew from its stored predictions, and compare."""
    session = Session.of_results(selection_of(arguments))
    verdicts = []
    for verdict in verify(session.plan, session.store):
        verdicts.append(verdict)
        print(f"{'same ' if verdict.ok else 'WRONG'}  {verdict.name}", flush=True)
        for line in (*verdict.problems, *verdict.notes):
            print(f"         {line}", flush=True)
    print(summary(verdicts))
    return 0 if all(verdict.ok for verdict in verdicts) else EXIT_DIFFERENT


def measure_command(arguments: argparse.Namespace) -> int:
    """Measure on this machine what trained rows measure together, as their speed, and make the tables."""
    with driving(arguments) as session:
        facts = collect(arguments.command_line, packages=session.study.packages)
        print(joint.measure(session, facts))
        print_report(session, arguments.format)
    return 0


def import_scores_command(arguments: argparse.Namespace) -> int:
    """Import the numbers that an evaluation server returned."""
    locations = locations_of(arguments)
    store, workspace = existing_store(locations), Workspace.at(locations.workspace)
    study = studies.load_study(arguments.study)
    print(import_scores(store, workspace, study, arguments.key, arguments.file, replace=arguments.replace))
    mirror = Mirror.of(store, workspace, locations.mlflow_uri)
    if not mirror.try_sync():
        command = locations.command("sync")
        print(f"MLflow does not have it yet ({mirror.last_error}); a run or `{command}` copies it.")
    return 0


# --- parsers ---------------------------------------------------------------------------------------------


def add_commands(commands: Commands) -> None:
    """The parsers of this module's commands."""
    tables = add(commands, "tables", tables_command, [selection_parser()], "--format md,latex")
    add_format(tables)
    tables.add_argument(
        "--by-class", action="store_true", help="a number for every class in place of the paper's columns"
    )
    _add_export(commands)
    add(commands, "verify", verify_command, [selection_parser()], "--tables 3")
    add_format(add(commands, "measure", measure_command, [selection_parser()], "--study refinedet"))
    _add_import_scores(commands)


def _add_export(commands: Commands) -> None:
    data = add(commands, "export", export_command, [selection_parser()], "numbers --format parquet")
    data.add_argument(
        "folder", type=reader(path), metavar="DIR", help="folder to write to; made where there is none"
    )
    data.add_argument(
        "--format",
        choices=DATA_FORMATS,
        default=DATA_FORMATS[0],
        help="of the files (default: %(default)s)",
    )


def _add_import_scores(commands: Commands) -> None:
    scores = add(
        commands, "import-scores", import_scores_command, [locations_parser()], "bbcc5ad2fb25 answer.json"
    )
    add_study(scores)
    scores.add_argument(
        "key", metavar="KEY", help="of the evaluation, or its first characters; `ablation status` prints it"
    )
    scores.add_argument(
        "file",
        type=reader(path),
        metavar="FILE",
        help="what the server returned, in a format that the study reads",
    )
    scores.add_argument("--replace", action="store_true", help="replace numbers that were imported earlier")
