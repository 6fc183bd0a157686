"""The command line: `ablation plan | run | status | tables | retry | ui`."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path

from ablation.errors import UserError
from ablation.plan import Plan, make_plan
from ablation.store import Store
from ablation.study import Study
from ablation.workspace import Workspace

FORMATS = ("md", "latex", "csv", "html")
SPLIT_PATHS = ("train_annotations", "train_images", "val_annotations", "val_images")

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code: 0 done, 1 a trial failed, 2 bad input, 130 interrupted."""
    arguments = _parser().parse_args(argv)
    try:
        command: Callable[[argparse.Namespace], int] = arguments.command
        sys.exit(command(arguments))
    except UserError as error:
        print(f"ablation: {error}", file=sys.stderr)
        sys.exit(EXIT_USAGE)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:  # the reader of a pipe (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# --- what a command works on ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Session:
    """A study at a profile in a workspace, its plan made from the store."""

    study: Study
    workspace: Workspace
    store: Store
    plan: Plan

    @staticmethod
    def open(arguments: argparse.Namespace) -> Session:
        """From the options that every command shares.

        Raises:
            UserError: an unknown study, profile or table; a data set or a store that cannot be used.
        """
        study = load_study(arguments.study)
        name = arguments.profile or study.default_profile
        if name not in study.profiles:
            raise UserError(f"--profile must be one of {', '.join(study.profiles)}; got {name!r}.")
        profile = study.profiles[name]
        workspace = Workspace.at(arguments.workspace)
        workspace.create()
        setting = profile.prepare(workspace.root, _data(arguments))
        for notice in setting.notices:
            print(f"note: {notice}", file=sys.stderr)
        store = Store.open(workspace.store_path)
        seeds = range(arguments.seeds or profile.seeds)
        plan = make_plan(study, setting, seeds, _table_ids(arguments.tables), store)
        return Session(study, workspace, store, plan)

    def replanned(self) -> Session:
        """The same, with the plan made anew from what the store holds now."""
        plan = make_plan(self.study, self.plan.setting, self.plan.seeds, self.plan.table_ids, self.store)
        return Session(self.study, self.workspace, self.store, plan)


def load_study(name: str) -> Study:
    """The installed study of that name (entry points of the group "ablation.studies")."""
    studies = {point.name: point for point in entry_points(group="ablation.studies")}
    if name not in studies:
        raise UserError(f"--study must be one of {', '.join(sorted(studies)) or '(none installed)'}; got {name!r}.")
    make: Callable[[], Study] = studies[name].load()
    return make()


def _data(arguments: argparse.Namespace) -> Mapping[str, Path] | None:
    """What the user gave as data set: nothing, a directory, or all four paths."""
    given = {name: getattr(arguments, name) for name in SPLIT_PATHS if getattr(arguments, name)}
    flags = ", ".join("--" + name.replace("_", "-") for name in SPLIT_PATHS)
    if arguments.data and given:
        raise UserError(f"--data names a whole data set; give it or the four of {flags}, not both.")
    if given and len(given) < len(SPLIT_PATHS):
        missing = ", ".join("--" + n.replace("_", "-") for n in SPLIT_PATHS if n not in given)
        raise UserError(f"Naming the files of a data set takes all four of {flags}; missing: {missing}.")
    return {"directory": arguments.data} if arguments.data else given or None


def _table_ids(tables: Sequence[str] | None) -> list[str] | None:
    """Both "3" and "table3" name Table 3."""
    return None if tables is None else [f"table{t}" if t.isdigit() else t for t in tables]


# --- commands --------------------------------------------------------------------------------------------


def plan_command(arguments: argparse.Namespace) -> int:
    """Print what a run would do."""
    print(Session.open(arguments).plan.describe())
    return 0


def run_command(arguments: argparse.Namespace) -> int:
    """Train what is missing, and make the tables."""
    if arguments.dry_run:
        return plan_command(arguments)
    from ablation.run import run_study  # imports Ray, which the other commands do without

    session_options = {
        "concurrency": arguments.concurrency,
        "workers_per_trial": arguments.workers_per_trial,
        "cluster": arguments.cluster,
    }
    workspace = Workspace.at(arguments.workspace)
    workspace.create()
    command = shlex.join(["ablation", *sys.argv[1:]] if sys.argv else ["ablation"])
    with workspace.driver_lock(command):
        session = Session.open(arguments)
        return run_study(session, command, arguments.format, arguments.retry_failed, **session_options)


def status_command(arguments: argparse.Namespace) -> int:
    """Print how far the study is, and why what failed failed."""
    plan = Session.open(arguments).plan
    counts = plan.counts()
    print(
        f"{plan.study.name} {plan.setting.profile} on {plan.setting.data_name}: {counts.trainings} trainings, "
        f"{counts.complete} complete, {counts.running} running, {counts.waiting} waiting, {counts.failed} failed"
    )
    for trial in plan.trials:
        if trial.state != "WAITING" or trial.step:
            progress = f"{trial.step}/{trial.total}" if trial.total else ""
            print(f"  {trial.state:<9} {progress:>11}  {trial.key}  {trial.name}")
        if trial.error:
            print(f"            {trial.error.strip().splitlines()[-1]}")
    return 0


def tables_command(arguments: argparse.Namespace) -> int:
    """Print the tables and write them in the formats asked for."""
    from ablation.report import print_report

    print_report(Session.open(arguments), arguments.format)
    return 0


def retry_command(arguments: argparse.Namespace) -> int:
    """Let failed trials run again."""
    session = Session.open(arguments)
    failed = {t.key for t in session.plan.trials if t.state == "FAILED"}
    unknown = sorted(set(arguments.trials) - failed)
    if unknown:
        raise UserError(f"Not among this study's failed trials: {', '.join(unknown)}. `ablation status` lists them.")
    freed = session.store.retry(set(arguments.trials) or failed)
    print(f"{len(freed)} trials wait to be run again: `ablation run` with the same options starts them.")
    return 0


def ui_command(arguments: argparse.Namespace) -> int:
    """Become the MLflow UI on this workspace."""
    workspace = Workspace.at(arguments.workspace)
    if not workspace.mlflow_path.is_file():
        raise UserError(f"{workspace.mlflow_path} is not there yet: `ablation run` makes it.")
    uri = f"sqlite:///{workspace.mlflow_path}"
    address = f"http://{arguments.host}:{arguments.port}"
    print(f"MLflow UI on {address} (Ctrl-C ends it)", flush=True)
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri, "--workers", "1"]
    os.execv(sys.executable, [*command, "--host", arguments.host, "--port", str(arguments.port)])


# --- the parser --------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ablation",
        description="Turn a paper's tables into a program: plan, train, track and assemble them.",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    shared = [_selection()]
    _add(commands, "plan", plan_command, shared)
    _add_run(commands, shared)
    _add(commands, "status", status_command, shared)
    tables = _add(commands, "tables", tables_command, shared)
    _add_format(tables)
    retry = _add(commands, "retry", retry_command, shared)
    retry.add_argument("trials", nargs="*", metavar="TRIAL", help="keys of failed trials (default: all)")
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
    run.add_argument("--retry-failed", action="store_true", help="run failed trials again too")
    run.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    run.add_argument(
        "--concurrency", type=_positive, metavar="N", help="trials at a time (default: as many as fit)"
    )
    run.add_argument(
        "--workers-per-trial",
        type=_positive,
        default=1,
        metavar="N",
        help="processes that train one trial together (default: 1)",
    )
    run.add_argument(
        "--cluster",
        nargs="?",
        const="auto",
        metavar="ADDRESS",
        help="run on a Ray cluster: the given address, or the running one",
    )


def _selection() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False, parents=[_workspace()])
    what = parser.add_argument_group("what to work on")
    what.add_argument("--study", default="atss", metavar="NAME", help="(default: %(default)s)")
    what.add_argument("--profile", metavar="NAME", help="scale to run at, as shapes or smoke (default: the study's)")
    what.add_argument("--tables", nargs="+", metavar="N", help="only these tables, as 3 4 (default: all)")
    what.add_argument("--seeds", type=_positive, metavar="N", help="trainings of each row (default: the profile's)")
    what.add_argument("--data", type=Path, metavar="DIR", help="COCO-format data set to use instead of the profile's")
    for name in SPLIT_PATHS:
        flag = "--" + name.replace("_", "-")
        what.add_argument(flag, type=Path, metavar="PATH", help="instead of --data; all four together")
    return parser


def _workspace() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(
        "--workspace", type=Path, metavar="DIR", help="where runs and results go (default: ./runs, ./results)"
    )
    return parser


def _add_format(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--format",
        type=_formats,
        default=FORMATS,
        metavar="F,F",
        help=f"files to write, any of {','.join(FORMATS)} (default: all)",
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
