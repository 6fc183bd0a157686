"""The command that trains: run."""

from __future__ import annotations

import argparse

from ablation.cli.arguments import (
    Commands,
    add,
    add_format,
    add_machines,
    amount,
    driving,
    positive,
    run_options_of,
    selection_parser,
)
from ablation.cli.inspect import plan_command
from ablation.driver.budget import confirm
from ablation.driver.forecast import forecast
from ablation.driver.run import run_study
from ablation.session import Session


def run_command(arguments: argparse.Namespace) -> int:
    """Train what is missing, and make the tables."""
    if arguments.dry_run:
        return plan_command(arguments)
    with driving(arguments) as session:
        _confirmed(session, arguments)
        options, retry = run_options_of(arguments), arguments.retry_failed
        return run_study(session, options, arguments.command_line, arguments.format, retry_failed=retry)


def _confirmed(session: Session, arguments: argparse.Namespace) -> None:
    """Asks where the run would cost more than --budget-gpu-hours."""
    if arguments.budget_gpu_hours is not None or arguments.probe:
        expected = forecast(session, run_options_of(arguments), timed=arguments.probe)
        print(expected.describe(), flush=True)
        gpus = any(node.gpus for node in expected.nodes)
        confirm(expected.gpu_hours if gpus else 0.0, arguments.budget_gpu_hours, yes=arguments.yes)


def add_commands(commands: Commands) -> None:
    """The parser of `run`."""
    run = add(commands, "run", run_command, [selection_parser()], "--tables 3 4 --seeds 3")
    add_format(run)
    either = run.add_mutually_exclusive_group()
    either.add_argument("--retry-failed", action="store_true", help="also run trials that failed before")
    either.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    add_machines(run)
    run.add_argument(
        "--micro-batch",
        type=positive,
        metavar="N",
        help="samples that a worker takes through the network at a time: needs less memory, changes no "
        "result (default: its whole share of a batch)",
    )
    run.add_argument(
        "--niceness",
        type=int,
        choices=range(20),
        metavar="N",
        help="niceness of the trials' processes on this machine: 0 gives them a fair share of its CPUs, 19 "
        "what other programs leave (default: 0)",
    )
    run.add_argument(
        "--hang-after",
        type=amount,
        metavar="S",
        help="end an attempt that has said nothing for 20 times its usual pace and at least S seconds, and "
        "start it again; 0 waits for ever (default: 600)",
    )
    run.add_argument(
        "--grace",
        type=amount,
        metavar="S",
        help="seconds that running trials get to write a checkpoint when the run is stopped (default: 60)",
    )
    run.add_argument(
        "--budget-gpu-hours",
        type=amount,
        metavar="X",
        help="ask before a run that is estimated to take more than X GPU-hours",
    )
    run.add_argument("--yes", action="store_true", help="start over the budget without asking")
