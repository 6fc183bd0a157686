"""Arguments that the parsers of several commands share, and what they mean."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from typing import Any, TypeAlias

from ablation import studies
from ablation.errors import UserError
from ablation.options import Option, declared, path
from ablation.render.files import FORMATS
from ablation.run_options import Options
from ablation.session import STORE_VARIABLE, Locations, Selection, Session
from ablation.studies import DEFAULT_STUDY
from ablation.workspace import Workspace

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


# --- where everything lies -------------------------------------------------------------------------------


def locations_parser() -> argparse.ArgumentParser:
    """The options that say where everything lies: a parent of the parsers of commands on a workspace."""
    parser = argparse.ArgumentParser(add_help=False)
    where = parser.add_argument_group("where things are")
    where.add_argument(
        "--workspace",
        type=reader(path),
        metavar="DIR",
        help="folder for runs and results (default: ./runs and ./results)",
    )
    where.add_argument(
        "--store",
        type=reader(place),
        metavar="URL",
        help="PostgreSQL database for the results, postgresql+psycopg://USER@HOST/DATABASE, its password in "
        f"PGPASSWORD; or the whole address in {STORE_VARIABLE} (default: a file in the workspace)",
    )
    where.add_argument(
        "--mlflow-uri",
        type=reader(place),
        metavar="URL",
        help="MLflow server that mirrors the results, http://HOST:PORT, its account in "
        "MLFLOW_TRACKING_USERNAME and _PASSWORD; or MLFLOW_TRACKING_URI (default: a file in the workspace)",
    )
    where.add_argument(
        "--storage",
        type=reader(place),
        metavar="PLACE",
        help="where trials keep their files when not all machines share the workspace: a folder that they do "
        "share, or an fsspec URL as s3://BUCKET/FOLDER (default: in the workspace)",
    )
    return parser


def locations_of(arguments: argparse.Namespace) -> Locations:
    """The value of the options of `locations_parser`."""
    return Locations(
        workspace=arguments.workspace,
        store=arguments.store or os.environ.get(STORE_VARIABLE) or None,
        mlflow_uri=arguments.mlflow_uri,
        storage=arguments.storage,
    )


# --- what to work on -------------------------------------------------------------------------------------


def selection_parser(*, whole: bool = False) -> argparse.ArgumentParser:
    """The options of every command on a study, but for the study's own: a parent of its parser.

    Args:
        whole: the command is about all tables and seeds, and cannot be told which.
    """
    parser = argparse.ArgumentParser(add_help=False, parents=[locations_parser()])
    what = parser.add_argument_group("what to work on")
    add_study(what)
    what.add_argument(
        "--profile",
        metavar="NAME",
        help="scale to run at, as smoke; an unknown name prints them all (default: the study's choice)",
    )
    parser.set_defaults(resources=[], tables=None, seeds=None, study_options=lambda option: True)
    if whole:
        return parser
    what.add_argument("--tables", nargs="+", metavar="N", help="only these tables, as 3 4 (default: all)")
    what.add_argument(
        "--seeds",
        type=positive,
        metavar="N",
        help="train every row with N seeds (default: the profile's number)",
    )
    return parser


def add_study(parser: argparse._ActionsContainer) -> None:
    """--study."""
    parser.add_argument(
        "--study",
        type=lambda text: str(path(text)) if text.endswith(".py") else text,
        default=DEFAULT_STUDY,
        metavar="NAME",
        help="paper to reproduce, by its name or its Python file (default: %(default)s)",
    )


def selection_of(arguments: argparse.Namespace) -> Selection:
    """The value of the options of `selection_parser` and of the study's own."""
    return Selection(
        **asdict(locations_of(arguments)),
        study=arguments.study,
        profile=arguments.profile,
        options=study_options_of(arguments),
        tables=arguments.tables,
        seeds=arguments.seeds,
        resources=arguments.resources,
    )


# --- the study's own options -----------------------------------------------------------------------------


def add_study_options(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    """Adds the own options of the study that --study names to the parser of a command that takes them.

    The parser's default `study_options` says which of them it takes; without it none.

    Args:
        parser: of the command.
        argv: the command's arguments, of which only --study is looked at.

    Raises:
        UserError: there is no such study, or one of its options has the name of another option.
    """
    takes: Callable[[Option], bool] | None = parser.get_default("study_options")
    if takes is None:
        return
    first = argparse.ArgumentParser(prog=parser.prog, add_help=False, allow_abbrev=False)
    add_study(first)
    study = studies.load_study(first.parse_known_args(argv)[0].study)
    parser.set_defaults(options_class=study.options)
    groups: dict[str, argparse._ArgumentGroup] = {}
    for option in filter(takes, declared(study.options)):
        title = option.group or f"options of the study {study.name}"
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        try:
            _add_option(groups[title], option)
        except argparse.ArgumentError as error:
            raise UserError(
                f"The study {study.name!r} has an option of the command's own: {error}"
            ) from error


def _add_option(group: argparse._ArgumentGroup, option: Option) -> None:
    common: dict[str, Any] = {"dest": _dest(option.name), "help": option.help, "default": None}
    if option.kind is bool:
        group.add_argument(option.flag, action=argparse.BooleanOptionalAction, **common)
    else:
        metavar = option.metavar or ("{" + ",".join(option.choices) + "}" if option.choices else "VALUE")
        group.add_argument(option.flag, type=reader(option.parsed), metavar=metavar, **common)


def _dest(name: str) -> str:
    """Where argparse keeps the value, apart from the command's own arguments."""
    return f"study.{name}"


def study_options_of(arguments: argparse.Namespace) -> Any:
    """The study's options as given; UserError for some that contradict each other."""
    kind: type[Any] = arguments.options_class
    given = {option.name: getattr(arguments, _dest(option.name), None) for option in declared(kind)}
    try:
        return kind(**given)
    except ValueError as error:
        raise UserError(str(error)) from error


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


def run_options_of(arguments: argparse.Namespace) -> Options:
    """The value of the options of `add_machines` and of `run`."""
    given = {name: getattr(arguments, name, None) for name in Options.__dataclass_fields__}
    return Options(**{name: value for name, value in given.items() if value is not None})


@contextmanager
def driving(arguments: argparse.Namespace) -> Iterator[Session]:
    """A session of a driver. An SQLite store has one driver at a time; a database server has any number."""
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


def reader(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """`parse` as argparse calls it: the message of its ValueError is shown."""

    def read(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return read


def place(text: str) -> str:
    """A URL, or the absolute path of a folder; ValueError for an empty text."""
    return text if "://" in text else str(path(text))


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
