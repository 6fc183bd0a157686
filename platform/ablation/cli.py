"""The command line: `ablation plan | run | status | tables | retry | import-scores | check-data | ui`."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from ablation.errors import UserError, last_line
from ablation.render.results import FORMATS
from ablation.report import print_report
from ablation.run import EXIT_INTERRUPTED, run_study
from ablation.scheduler import Options
from ablation.scores import import_scores, waiting
from ablation.session import SPLIT_PATHS, Selection, Session, load_study, named_data, nothing_has_run
from ablation.store import Store
from ablation.study import Overrides
from ablation.tracking import Mirror
from ablation.workspace import Workspace

EXIT_USAGE = 2


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code: 0 done, 1 a trial failed, 2 bad input, 130 interrupted."""
    argv = sys.argv[1:] if argv is None else argv
    arguments = _parser().parse_args(argv)
    arguments.command_line = shlex.join(["ablation", *argv])
    command: Callable[[argparse.Namespace], int] = arguments.command
    exit_with(lambda: command(arguments))


def exit_with(command: Callable[[], int]) -> NoReturn:
    """Run `command` and exit with its code; what a person can act on is printed without a traceback."""
    try:
        sys.exit(command())
    except UserError as error:
        print(f"ablation: {error}", file=sys.stderr)
        sys.exit(EXIT_USAGE)
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on where this one was.", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:  # the reader of a pipe (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


def selection_of(arguments: argparse.Namespace) -> Selection:
    """What the options of `selection_parser` name."""
    return Selection(
        study=arguments.study,
        profile=arguments.profile,
        tables=arguments.tables,
        seeds=arguments.seeds,
        data=arguments.data,
        split_paths=_split_paths(arguments),
        overrides=_overrides(arguments),
        workspace=arguments.workspace,
    )


def _overrides(arguments: argparse.Namespace) -> Overrides:
    return Overrides(
        max_iterations=arguments.max_iterations,
        short_side=arguments.short_side,
        weights=arguments.weights,
        precision=arguments.precision,
    )


def _split_paths(arguments: argparse.Namespace) -> dict[str, Path]:
    given = {name: getattr(arguments, name) for name in SPLIT_PATHS}
    return {name: path for name, path in given.items() if path is not None}


# --- commands --------------------------------------------------------------------------------------------


def plan_command(arguments: argparse.Namespace) -> int:
    """Print what a run would do."""
    print(_look(arguments).plan.describe())
    return 0


def run_command(arguments: argparse.Namespace) -> int:
    """Train what is missing, and make the tables."""
    if arguments.dry_run:
        return plan_command(arguments)
    options = Options(
        concurrency=arguments.concurrency,
        workers_per_trial=arguments.workers_per_trial,
        micro_batch=arguments.micro_batch,
        cluster=arguments.cluster,
    )
    command, retry = arguments.command_line, arguments.retry_failed
    with _alone(arguments) as session:
        return run_study(session, options, command, arguments.format, retry_failed=retry)


def status_command(arguments: argparse.Namespace) -> int:
    """Print how far each training is, why some failed, and what to upload to an evaluation server."""
    session = _look(arguments)
    plan = session.plan
    counts = plan.counts()
    print(
        f"{plan.study.name} {plan.setting.profile} on {plan.setting.data_name}: "
        f"{counts.trainings} trainings, {counts.complete} complete, {counts.running} running, "
        f"{counts.waiting} waiting, {counts.failed} failed"
    )
    for trial in plan.trials:
        if trial.state != "WAITING" or trial.step:
            progress = f"{trial.step}/{trial.total}" if trial.total else ""
            print(f"  {trial.state:<9} {progress:>11}  {trial.key}  {trial.name}")
        if trial.error:
            print(f"            {last_line(trial.error)}")
    _print_waiting(session)
    return 0


def _print_waiting(session: Session) -> None:
    """What to upload where numbers are an evaluation server's to give, and how to import them."""
    found = waiting(session.plan, session.opened) if session.opened else []
    if found:
        print(f"Numbers that only an evaluation server can give, {len(found)} evaluations:")
    for one in found:
        print(f"  {one.name}")
        print(f"      upload  {one.submission}")
        print(f"      then    {session.command('import-scores', one.key, 'FILE')}")


def tables_command(arguments: argparse.Namespace) -> int:
    """Print the tables and write them in the formats asked for."""
    print_report(_look(arguments), arguments.format)
    return 0


def retry_command(arguments: argparse.Namespace) -> int:
    """Let failed trials run again with the next `ablation run`."""
    with _alone(arguments) as session:
        failed = {t.key for t in session.plan.trials if t.state == "FAILED"}
        unknown = sorted(set(arguments.trial) - failed)
        if unknown:
            raise UserError(
                f"Not among this study's failed trials: {', '.join(unknown)}. `ablation status` lists them."
            )
        freed = session.store.retry(set(arguments.trial) or failed)
    print(f"{len(freed)} trials wait to be run again: `ablation run` with the same options starts them.")
    return 0


def import_scores_command(arguments: argparse.Namespace) -> int:
    """Import the numbers that an evaluation server returned."""
    workspace = Workspace.at(arguments.workspace)
    if not workspace.store_path.exists():
        raise nothing_has_run(workspace)
    with workspace.driver_lock(arguments.command_line):
        store = Store.open(workspace.store_path)
        print(import_scores(store, workspace, arguments.key, arguments.file, replace=arguments.replace))
        mirror = Mirror.of(store, workspace)
        if not mirror.try_sync():
            print(f"MLflow does not have it yet ({mirror.last_error}); the next run copies it.")
    return 0


def check_data_command(arguments: argparse.Namespace) -> int:
    """Report what a data set holds and what is wrong with it."""
    study = load_study(arguments.study)
    if study.check_data is None:
        raise UserError(f"The study {study.name!r} has no check for data sets.")
    data = named_data(arguments.path, _split_paths(arguments))
    if data is None:
        raise UserError("Name the data set: its folder, or its four files and folders.")
    try:
        print(study.check_data(data, arguments.output))
    except OSError as error:
        raise UserError(f"{error.filename or arguments.output}: {error.strerror or error}.") from error
    return 0


def ui_command(arguments: argparse.Namespace) -> int:
    """Show the runs in MLflow's web interface."""
    workspace = Workspace.at(arguments.workspace)
    if not workspace.mlflow_path.is_file():
        raise UserError(f"{workspace.mlflow_path} is not there yet: `ablation run` makes it.")
    address = f"http://{arguments.host}:{arguments.port}"
    print(f"MLflow UI on {address} (Ctrl-C ends it)", flush=True)
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", workspace.mlflow_uri]
    where = ["--host", arguments.host, "--port", str(arguments.port)]
    os.execv(sys.executable, [*command, *where, "--workers", "1"])


def _look(arguments: argparse.Namespace) -> Session:
    return Session.open(selection_of(arguments), writes=False)


@contextmanager
def _alone(arguments: argparse.Namespace) -> Iterator[Session]:
    """A session that may write: no other command does meanwhile."""
    workspace = Workspace.at(arguments.workspace)
    workspace.create()
    with workspace.driver_lock(arguments.command_line):
        yield Session.open(selection_of(arguments), writes=True)


# --- the parser --------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ablation",
        description="Reproduce the tables of a paper: plan what they need, train it, and put them together.",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    shared = [selection_parser()]
    _add(commands, "plan", plan_command, shared)
    _add_run(commands, shared)
    _add(commands, "status", status_command, shared)
    tables = _add(commands, "tables", tables_command, shared)
    _add_format(tables)
    retry = _add(commands, "retry", retry_command, shared)
    retry.add_argument(
        "--trial", nargs="+", default=(), metavar="KEY", help="only these (default: all that failed)"
    )
    _add_import_scores(commands)
    _add_check_data(commands)
    ui = _add(commands, "ui", ui_command, [_workspace()])
    ui.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    ui.add_argument("--port", type=_port, default=5000, help="port to listen on (default: %(default)s)")
    return parser


def _add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    command: Callable[[argparse.Namespace], int],
    parents: list[argparse.ArgumentParser],
) -> argparse.ArgumentParser:
    summary = (command.__doc__ or "").splitlines()[0]
    parser = commands.add_parser(name, help=summary, description=summary, parents=parents, allow_abbrev=False)
    parser.set_defaults(command=command)
    return parser


def _add_run(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], shared: list[argparse.ArgumentParser]
) -> None:
    run = _add(commands, "run", run_command, shared)
    _add_format(run)
    either = run.add_mutually_exclusive_group()
    either.add_argument("--retry-failed", action="store_true", help="also run trials that failed before")
    either.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    run.add_argument(
        "--concurrency",
        type=_positive,
        metavar="N",
        help="trials at a time (default: as many as the CPUs or GPUs allow)",
    )
    run.add_argument(
        "--workers-per-trial",
        type=_positive,
        default=1,
        metavar="N",
        help="processes that train one trial together (default: 1)",
    )
    run.add_argument(
        "--micro-batch",
        type=_positive,
        metavar="N",
        help="images that a worker takes through the network at a time: needs less memory, changes no "
        "result (default: its whole share of a batch)",
    )
    run.add_argument(
        "--cluster",
        nargs="?",
        const="auto",
        metavar="ADDRESS",
        help="run on the Ray cluster at ADDRESS; without ADDRESS, on the one that this machine is part of",
    )


def _add_import_scores(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    scores = _add(commands, "import-scores", import_scores_command, [_workspace()])
    scores.add_argument(
        "key", metavar="KEY", help="of the evaluation, or its first characters; `ablation status` prints it"
    )
    scores.add_argument(
        "file",
        type=Path,
        metavar="FILE",
        help="what the server returned: the 12 lines that pycocotools prints, or JSON with AP, AP50, AP75, "
        "APS, APM, APL (fractions, or percent when one is above 1)",
    )
    scores.add_argument("--replace", action="store_true", help="replace numbers that were imported earlier")


def _add_check_data(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    check = _add(commands, "check-data", check_data_command, [])
    _add_study(check)
    check.add_argument(
        "path", type=Path, nargs="?", metavar="PATH", help="folder of a COCO-format data set, as for --data"
    )
    _add_split_paths(check, "PATH")
    check.add_argument(
        "--output",
        type=Path,
        default=Path("data-check"),
        metavar="DIR",
        help="where the pictures go (default: ./%(default)s)",
    )


def selection_parser() -> argparse.ArgumentParser:
    """The options that every command on a study has: a parent of its parser."""
    parser = argparse.ArgumentParser(add_help=False, parents=[_workspace()])
    what = parser.add_argument_group("what to work on")
    _add_study(what)
    what.add_argument(
        "--profile",
        metavar="NAME",
        help="scale to run at, as smoke; an unknown name prints them all (default: the study's choice)",
    )
    what.add_argument("--tables", nargs="+", metavar="N", help="only these tables, as 3 4 (default: all)")
    what.add_argument(
        "--seeds",
        type=_positive,
        metavar="N",
        help="train every row with N seeds (default: the profile's number)",
    )
    what.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="folder of a COCO-format data set to use instead of the profile's",
    )
    _add_split_paths(parser, "--data")
    change = parser.add_argument_group("changes to the profile, whose numbers then go to tables of their own")
    change.add_argument("--max-iterations", type=_positive, metavar="N", help="train at most N iterations")
    change.add_argument(
        "--short-side", type=_positive, metavar="N", help="resize images to this short side, in pixels"
    )
    change.add_argument(
        "--weights",
        metavar="SOURCE",
        help='what backbones start from: a file, a folder, or "none" for random weights',
    )
    change.add_argument("--precision", metavar="NAME", help="arithmetic of the networks: fp32, bf16 or fp16")
    return parser


def _add_study(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--study", default="atss", metavar="NAME", help="paper to reproduce (default: %(default)s)"
    )


def _add_split_paths(parser: argparse.ArgumentParser, instead_of: str) -> None:
    group = parser.add_argument_group(f"the data set by its files instead of {instead_of}, all four together")
    for name in SPLIT_PATHS:
        split, _, part = name.partition("_")
        whose = {"train": "training", "val": "validation"}[split]
        what = {"annotations": f"JSON file of the {whose} split", "images": f"folder of {whose} images"}[part]
        group.add_argument("--" + name.replace("_", "-"), type=Path, metavar="PATH", help=what)


def _workspace() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(
        "--workspace",
        type=Path,
        metavar="DIR",
        help="folder for runs and results (default: ./runs and ./results)",
    )
    return parser


def _add_format(parser: argparse.ArgumentParser) -> None:
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


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number >= 1, got {text!r}")
    return int(text)


def _port(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"must be a port from 1 to 65535, got {text!r}")
    return int(text)
