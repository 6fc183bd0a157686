"""The command about a data set: check-data."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ablation import studies
from ablation.cli.arguments import Commands, add, add_study, reader, study_options_of
from ablation.errors import UserError
from ablation.options import path

EXIT_PROBLEMS = 1
"""A data set that can be used, with problems; one that cannot be is bad input."""


def check_data_command(arguments: argparse.Namespace) -> int:
    """Report what a data set holds and what is wrong with it; the exit code tells scripts."""
    study = studies.load_study(arguments.study)
    if study.check_data is None:
        raise UserError(f"The study {study.name!r} cannot check a data set.")
    try:
        report = study.check_data(study_options_of(arguments), arguments.output)
    except OSError as error:
        raise UserError(f"{error.filename or arguments.output}: {error.strerror or error}.") from error
    except UserError as error:
        if arguments.json:
            print(json.dumps({"usable": False, "error": str(error)}, indent=2))
        raise
    print(json.dumps({"usable": True, **report.data}, indent=2) if arguments.json else report.text)
    return EXIT_PROBLEMS if report.problems else 0


def add_commands(commands: Commands) -> None:
    """The parser of `check-data`, with those of the study's options that name a data set."""
    check = add(commands, "check-data", check_data_command, [], "--data path/to/coco-format-dataset")
    add_study(check)
    check.set_defaults(study_options=lambda option: option.names_data)
    check.add_argument(
        "--output",
        type=reader(path),
        default=Path("data-check"),
        metavar="DIR",
        help="folder for pictures (default: ./%(default)s)",
    )
    check.add_argument("--json", action="store_true", help="one JSON object for programs (docs/own-data.md)")
