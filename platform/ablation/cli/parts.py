"""Pieces that the parsers of several commands share, and what they mean."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from ablation.driver.options import Options
from ablation.render.files import FORMATS
from ablation.session import SPLIT_PATHS, Selection, Session
from ablation.study import Overrides
from ablation.workspace import Workspace

STORE_VARIABLE = "ABLATION_STORE"
"""What --store is where it is not given; the place for a password."""

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
Command = Callable[[argparse.Namespace], int]


def add(
    commands: Commands, name: str, command: Command, parents: Sequence[argparse.ArgumentParser], example: str
) -> argparse.ArgumentParser:
    """A command's parser; its help is the first line of the function's docstring, and an example."""
    summary = (command.__doc__ or "").splitlines()[0]
    parser = commands.add_parser(
        name,
        help=summary,
        description=summary,
        epilog=f"example: ablation {name} {example}".rstrip(),
        parents=list(parents),
        allow_abbrev=False,
    )
    parser.set_defaults(command=command)
    return parser


# --- what to work on, and where --------------------------------------------------------------------------


def places_parser() -> argparse.ArgumentParser:
    """The options that say where everything lies: a parent of every command's parser but check-data's."""
    parser = argparse.ArgumentParser(add_help=False)
    where = parser.add_argument_group("where things are")
    where.add_argument(
        "--workspace",
        type=Path,
        metavar="DIR",
        help="folder for runs and results (default: ./runs and ./results)",
    )
    where.add_argument(
        "--store",
        metavar="URL",
        help="PostgreSQL database for the results, postgresql+psycopg://USER@HOST/DATABASE, its password in "
        f"PGPASSWORD; or the whole address in {STORE_VARIABLE} (default: a file in the workspace)",
    )
    where.add_argument(
        "--mlflow-uri",
        metavar="URL",
        help="MLflow server that mirrors the results, http://HOST:PORT, its account in "
        "MLFLOW_TRACKING_USERNAME and _PASSWORD; or MLFLOW_TRACKING_URI (default: a file in the workspace)",
    )
    where.add_argument(
        "--storage",
        metavar="PLACE",
        help="where trials keep their files when not all machines share the workspace: a folder that they do "
        "share, or an fsspec URL as s3://BUCKET/FOLDER (default: in the workspace)",
    )
    return parser


def selection_parser() -> argparse.ArgumentParser:
    """The options that every command on a study has: a parent of its parser."""
    parser = argparse.ArgumentParser(add_help=False, parents=[places_parser()])
    what = parser.add_argument_group("what to work on")
    add_study(what)
    what.add_argument(
        "--profile",
        metavar="NAME",
        help="scale to run at, as smoke; an unknown name prints them all (default: the study's choice)",
    )
    what.add_argument("--tables", nargs="+", metavar="N", help="only these tables, as 3 4 (default: all)")
    what.add_argument(
        "--seeds",
        type=positive,
        metavar="N",
        help="train every row with N seeds (default: the profile's number)",
    )
    what.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="folder of a COCO-format data set to use instead of the profile's",
    )
    add_split_paths(parser, "--data")
    _add_overrides(parser)
    parser.set_defaults(resources=[])
    return parser


def _add_overrides(parser: argparse.ArgumentParser) -> None:
    change = parser.add_argument_group("changes to the profile, whose numbers then go to tables of their own")
    change.add_argument("--max-iterations", type=positive, metavar="N", help="train at most N iterations")
    change.add_argument(
        "--short-side", type=positive, metavar="N", help="resize images to this short side, in pixels"
    )
    change.add_argument(
        "--weights",
        metavar="SOURCE",
        help='what backbones start from: a file, a folder, or "none" for random weights',
    )
    change.add_argument("--precision", metavar="NAME", help="arithmetic of the networks: fp32, bf16 or fp16")


def add_study(parser: argparse._ActionsContainer) -> None:
    """--study."""
    parser.add_argument(
        "--study",
        default="atss",
        metavar="NAME",
        help="paper to reproduce, by its name or its Python file (default: %(default)s)",
    )


def add_split_paths(parser: argparse.ArgumentParser, instead_of: str) -> None:
    """A data set by its four parts."""
    group = parser.add_argument_group(f"the data set by its files instead of {instead_of}, all four together")
    for name in SPLIT_PATHS:
        split, _, part = name.partition("_")
        whose = {"train": "training", "val": "validation"}[split]
        what = {"annotations": f"JSON file of the {whose} split", "images": f"folder of {whose} images"}[part]
        group.add_argument("--" + name.replace("_", "-"), type=Path, metavar="PATH", help=what)


def selection_of(arguments: argparse.Namespace) -> Selection:
    """What the options of `selection_parser` name."""
    overrides = Overrides(
        max_iterations=arguments.max_iterations,
        short_side=arguments.short_side,
        weights=arguments.weights,
        precision=arguments.precision,
    )
    return replace(
        places_of(arguments),
        study=arguments.study,
        profile=arguments.profile,
        tables=arguments.tables,
        seeds=arguments.seeds,
        data=arguments.data,
        split_paths=split_paths_of(arguments),
        overrides=overrides,
        resources=arguments.resources,
    )


def places_of(arguments: argparse.Namespace) -> Selection:
    """What the options of `places_parser` name, for commands that are about no study in particular."""
    return Selection(
        workspace=arguments.workspace,
        store=arguments.store or os.environ.get(STORE_VARIABLE) or None,
        mlflow_uri=arguments.mlflow_uri,
        storage=arguments.storage,
    )


def split_paths_of(arguments: argparse.Namespace) -> dict[str, Path]:
    """The parts of a data set that were given."""
    given = {name: getattr(arguments, name) for name in SPLIT_PATHS}
    return {name: path for name, path in given.items() if path is not None}


# --- how to run ------------------------------------------------------------------------------------------


def add_machines(parser: argparse.ArgumentParser) -> None:
    """What decides how trials are spread over machines, and so how long a run takes."""
    machines = parser.add_argument_group("on which machines")
    machines.add_argument(
        "--cluster",
        nargs="?",
        const=os.environ.get("RAY_ADDRESS") or "auto",
        metavar="ADDRESS",
        help="run on the Ray cluster at ADDRESS; without ADDRESS, on that of RAY_ADDRESS, or on the one that "
        "this machine is part of",
    )
    machines.add_argument(
        "--concurrency",
        type=positive,
        metavar="N",
        help="trials at a time (default: as many as the CPUs or GPUs allow)",
    )
    machines.add_argument(
        "--workers-per-trial",
        type=positive,
        metavar="N",
        help="processes that train one trial together (default: the profile's choice)",
    )
    machines.add_argument(
        "--resources",
        action="append",
        default=[],
        metavar="WHERE=WHAT",
        help="what trials hold, as table8=workers:8,cpus:4,gpus:1,memory:16G, the last three for each "
        "worker; WHERE is all, a table, TABLE/ROW, or a trial's key. May be given several times (default: "
        "the profile's choice)",
    )
    machines.add_argument(
        "--probe", action="store_true", help="train a few steps on this machine first, to estimate from"
    )


def options_of(arguments: argparse.Namespace) -> Options:
    """What the options of `add_machines` and of `run` say."""
    given = {name: getattr(arguments, name, None) for name in Options.__dataclass_fields__}
    return Options(**{name: value for name, value in given.items() if value is not None})


@contextmanager
def driving(arguments: argparse.Namespace) -> Iterator[Session]:
    """A session of a driver. An SQLite store has one at a time; a database server as many as there are."""
    selection = selection_of(arguments)
    workspace = Workspace.at(selection.workspace)
    workspace.create()
    alone = selection.store is None
    with workspace.driver_lock(arguments.command_line) if alone else nullcontext():
        yield Session.open(selection, writes=True)


# --- values ----------------------------------------------------------------------------------------------


def add_format(parser: argparse.ArgumentParser) -> None:
    """--format."""
    parser.add_argument(
        "--format",
        type=_formats,
        default=FORMATS,
        metavar="F,F",
        help=f"formats to write the tables in, any of {','.join(FORMATS)} (default: all)",
    )


def _formats(text: str) -> tuple[str, ...]:
    chosen = tuple(part.strip() for part in text.split(",") if part.strip())
    unknown = [part for part in chosen if part not in FORMATS]
    if unknown or not chosen:
        raise argparse.ArgumentTypeError(f"allowed are {','.join(FORMATS)}, got {text!r}")
    return chosen


def positive(text: str) -> int:
    """A whole number from 1 on."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number >= 1, got {text!r}")
    return int(text)


def amount(text: str) -> float:
    """A finite number from 0 on."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number >= 0, got {text!r}")
    return value


def port(text: str) -> int:
    """A TCP port."""
    if not text.isdigit() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"must be a port from 1 to 65535, got {text!r}")
    return int(text)
