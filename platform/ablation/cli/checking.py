"""Commands about what can be trusted: check-data, verify, import-scores."""

from __future__ import annotations

import argparse
from pathlib import Path

from ablation.cli.looking import look
from ablation.cli.parts import (
    Commands,
    add,
    add_split_paths,
    add_study,
    places_of,
    places_parser,
    selection_parser,
    split_paths_of,
)
from ablation.errors import UserError
from ablation.provenance.verify import summary, verify
from ablation.results.scores import import_scores
from ablation.session import existing_store, load_study, named_data
from ablation.tracking.mirror import Mirror
from ablation.workspace import Workspace

EXIT_WRONG = 1


def check_data_command(arguments: argparse.Namespace) -> int:
    """Report what a data set holds and what is wrong with it."""
    study = load_study(arguments.study)
    if study.check_data is None:
        raise UserError(f"The study {study.name!r} has no check for data sets.")
    data = named_data(arguments.path, split_paths_of(arguments))
    if data is None:
        raise UserError("Name the data set: its folder, or its four files and folders.")
    try:
        print(study.check_data(data, arguments.output))
    except OSError as error:
        raise UserError(f"{error.filename or arguments.output}: {error.strerror or error}.") from error
    return 0


def verify_command(arguments: argparse.Namespace) -> int:
    """Compute the numbers of every cell anew from its stored detections, and compare."""
    session = look(arguments)
    verdicts = []
    for verdict in verify(session.plan, session.store):
        verdicts.append(verdict)
        print(f"{'same ' if verdict.ok else 'WRONG'}  {verdict.name}", flush=True)
        for line in (*verdict.problems, *verdict.notes):
            print(f"         {line}", flush=True)
    print(summary(verdicts))
    return 0 if all(verdict.ok for verdict in verdicts) else EXIT_WRONG


def import_scores_command(arguments: argparse.Namespace) -> int:
    """Import the numbers that an evaluation server returned."""
    places = places_of(arguments)
    store, workspace = existing_store(places), Workspace.at(places.workspace)
    study = load_study(arguments.study)
    print(import_scores(store, workspace, study, arguments.key, arguments.file, replace=arguments.replace))
    mirror = Mirror.of(store, workspace, places.mlflow_uri)
    if not mirror.try_sync():
        print(f"MLflow does not have it yet ({mirror.last_error}); a run or `ablation sync` copies it.")
    return 0


# --- their parsers ---------------------------------------------------------------------------------------


def add_commands(commands: Commands) -> None:
    """The parsers of this module's commands."""
    _add_check_data(commands)
    add(commands, "verify", verify_command, [selection_parser()], "--tables 3")
    _add_import_scores(commands)


def _add_check_data(commands: Commands) -> None:
    check = add(commands, "check-data", check_data_command, [], "path/to/coco-format-dataset")
    add_study(check)
    check.add_argument(
        "path", type=Path, nargs="?", metavar="PATH", help="folder of a COCO-format data set, as for --data"
    )
    add_split_paths(check, "PATH")
    check.add_argument(
        "--output",
        type=Path,
        default=Path("data-check"),
        metavar="DIR",
        help="where the pictures go (default: ./%(default)s)",
    )


def _add_import_scores(commands: Commands) -> None:
    scores = add(
        commands, "import-scores", import_scores_command, [places_parser()], "bbcc5ad2fb25 answer.json"
    )
    add_study(scores)
    scores.add_argument(
        "key", metavar="KEY", help="of the evaluation, or its first characters; `ablation status` prints it"
    )
    scores.add_argument(
        "file",
        type=Path,
        metavar="FILE",
        help="what the server returned, in a format that the study reads",
    )
    scores.add_argument("--replace", action="store_true", help="replace numbers that were imported earlier")
