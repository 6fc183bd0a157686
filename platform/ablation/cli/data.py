"""The command about a data set: check-data."""

from __future__ import annotations

import argparse
from pathlib import Path

from ablation import studies
from ablation.cli.arguments import Commands, add, add_study, reader, study_options_of
from ablation.errors import UserError
from ablation.options import path


def check_data_command(arguments: argparse.Namespace) -> int:
    """Report what a data set holds and what is wrong with it."""
    study = studies.load_study(arguments.study)
    if study.check_data is None:
        raise UserError(f"The study {study.name!r} cannot check a data set.")
    try:
        print(study.check_data(study_options_of(arguments), arguments.output))
    except OSError as error:
        raise UserError(f"{error.filename or arguments.output}: {error.strerror or error}.") from error
    return 0


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
