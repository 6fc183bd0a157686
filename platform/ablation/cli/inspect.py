"""Commands that show how far a study is and change nothing: plan, status, logs."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial

from rich.console import Console

from ablation.cli.arguments import (
    Commands,
    add,
    add_machines,
    run_options_of,
    selection_of,
    selection_parser,
)
from ablation.control.control import trial_of
from ablation.control.logs import BRING_EVERY_S, account, brought, follow, printable
from ablation.control.status import lines, status_of, watch
from ablation.driver.forecast import forecast
from ablation.errors import UserError
from ablation.plan_text import describe_plan
from ablation.provenance import staleness
from ablation.session import Session


def plan_command(arguments: argparse.Namespace) -> int:
    """Print what is done, stale and left, and how long a run would take on the machines at hand."""
    session = Session.open(selection_of(arguments), writes=False)
    expected = forecast(session, run_options_of(arguments), timed=arguments.probe)
    print(describe_plan(session.plan, _stale(session), expected.describe()))
    return 0


def _stale(session: Session) -> str:
    """How many results are, in a line; "" for none."""
    findings = staleness.find(session.plan, session.opened) if session.opened else []
    count = sum(finding.kind == "stale" for finding in findings)
    command = session.command("status", "--stale", about="part")
    return f"Stale: {count} of the results here; `{command}` says what has changed." if count else ""


def status_command(arguments: argparse.Namespace) -> int:
    """Print how far each training is, why some failed, and what to upload to an evaluation server."""
    if arguments.watch and arguments.stale:
        raise UserError("--stale is looked up once: leave out --watch.")
    session = Session.open(selection_of(arguments), writes=False)
    if arguments.watch:
        watch(lambda: _status_text(session.replanned()), Console())
    elif arguments.json:
        print(json.dumps(_status_data(session, stale=arguments.stale), indent=2, allow_nan=False))
    elif arguments.stale:
        joint = staleness.joint_changes(session.plan, session.store)
        print(
            staleness.describe(
                staleness.find(session.plan, session.store), session.plan, session.command, joint
            )
        )
    else:
        print(_status_text(session))
    return 0


def _status_text(session: Session) -> str:
    return "\n".join(lines(status_of(session), session.command))


def _status_data(session: Session, *, stale: bool) -> dict[str, object]:
    found = {"stale": [asdict(f) for f in staleness.find(session.plan, session.store)]} if stale else {}
    return status_of(session).data() | found


def logs_command(arguments: argparse.Namespace) -> int:
    """Print what a trial has been through: attempts, notices, errors, last numbers, the end of its log."""
    session = Session.of_results(selection_of(arguments))
    trial, store = trial_of(session.plan, arguments.trial), session.store
    bring = partial(brought, session.storage, trial.key, session.workspace.trial_directory(trial.key))
    path, brought_at = bring(), time.monotonic()
    start = path.stat().st_size if path.is_file() else 0
    print(
        "\n".join(printable(line) for line in account(trial, session.study, store, path.parent)), flush=True
    )

    def going_on() -> bool:
        nonlocal brought_at
        rows = store.trial_states([trial.key])
        goes = trial.key in rows and rows[trial.key].state in ("WAITING", "RUNNING")
        if not goes or time.monotonic() > brought_at + BRING_EVERY_S:
            bring()
            brought_at = time.monotonic()
        return goes

    news: Iterator[str] = follow(path, going_on, start=start) if arguments.follow else iter(())
    try:
        for text in news:
            print(printable(text), end="", flush=True)
    except KeyboardInterrupt:
        print()
    return 0


# --- parsers ---------------------------------------------------------------------------------------------


def add_commands(commands: Commands) -> None:
    """The parsers of this module's commands."""
    shared = [selection_parser()]
    add_machines(add(commands, "plan", plan_command, shared, "--tables 3 4 --seeds 3 --probe"))
    status = add(commands, "status", status_command, shared, "--watch")
    how = status.add_mutually_exclusive_group()
    how.add_argument("--watch", action="store_true", help="look again every 2 seconds, until Ctrl-C")
    how.add_argument("--json", action="store_true", help="one JSON object for programs (docs/control.md)")
    status.add_argument(
        "--stale",
        action="store_true",
        help="the cells whose code, data or packages differ from today's in what their result depends on",
    )
    logs = add(commands, "logs", logs_command, shared, '"table3 FCOS" --follow')
    logs.add_argument(
        "trial", metavar="TRIAL", help='its key, its name ("table3 FCOS"), or the start of either'
    )
    logs.add_argument(
        "--follow", action="store_true", help="go on with what is written, until the trial ends"
    )
