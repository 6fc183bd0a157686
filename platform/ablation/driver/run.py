"""The `run` command: everything between a plan and its tables."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Collection, Mapping
from typing import Any

from rich.console import Console

from ablation.calibration import calibrate, measured, seconds_left
from ablation.driver import joint, launch
from ablation.driver.display import display
from ablation.driver.launch import Summary
from ablation.errors import UserError, last_line
from ablation.plan import register
from ablation.plan_text import describe_plan
from ablation.provenance import record as provenance
from ablation.render.report import print_report, report_console
from ablation.run_options import Options
from ablation.session import Session
from ablation.tracking.mirror import Mirror

EXIT_FAILED, EXIT_INTERRUPTED = 1, 130


def run_study(
    session: Session, options: Options, command: str, formats: Collection[str], *, retry_failed: bool
) -> int:
    """Train and evaluate what is missing, mirror it to MLflow, print and write the tables.

    The caller holds the workspace's driver lock, unless drivers share the store.

    Returns:
        Exit code: 0 when every planned trial is complete, 1 when one is not, 130 when a person stopped it.
    """
    console, store = report_console(), session.store
    # First what may be refused, before anything is written.
    mirror = Mirror.of(store, session.workspace, session.selection.mlflow_uri)
    storage = session.storage
    storage.probe()
    session = _registered(session, retry_failed)
    print(describe_plan(session.plan), flush=True)
    facts = provenance.collect(command, packages=session.study.packages)
    invocation = store.start_invocation(command, facts)
    mirror.start()
    try:
        plan = session.plan
        keys = [evaluation.key for trial in plan.trials for evaluation in trial.evaluations]
        results = {key: row.metrics for key, row in store.evaluations(keys).items()}
        with display(plan, results, console) as listener:
            seconds = seconds_left(plan, calibrate(plan, measured(plan, store)))
            summary = launch.run(
                plan,
                options,
                store,
                storage,
                session.workspace,
                listener,
                seconds,
                facts=facts,
                invocation_id=invocation,
            )
    finally:
        store.end_invocation(invocation)
        mirror.close()
        if mirror.last_error:
            console.print(
                f"MLflow does not have everything yet: {mirror.last_error.rstrip('.')}. "
                f"The next run copies it, or `{session.command('sync')}`.",
                markup=False,
            )
    session = session.replanned()
    unmeasured = "" if summary.interrupted else _measure_jointly(session, options, facts)
    return _conclude(session, summary, formats, console, unmeasured)


def _registered(session: Session, retry_failed: bool) -> Session:
    """The session after the store knows its plan, and what lost drivers held is free again."""
    store = session.store
    if store.shared:
        store.reclaim_silent()
    else:
        store.reclaim_all()
    register(session.plan, store)
    if retry_failed:
        store.retry([trial.key for trial in session.plan.trials if trial.state == "FAILED"])
    return session.replanned()


def _conclude(
    session: Session,
    summary: Summary,
    formats: Collection[str],
    console: Console,
    unmeasured: str = "",
) -> int:
    """Tables and parting words; `unmeasured` says why rows were not measured together."""
    if summary.interrupted:
        console.print("\nStopped. The same command goes on where this one was.")
        return EXIT_INTERRUPTED
    print_report(session, formats, console)
    incomplete = [trial for trial in session.plan.trials if trial.state != "COMPLETE"]
    for trial in incomplete:
        reason = f": {last_line(trial.error)}" if trial.error else ""
        print(f"{trial.state.lower()}: {trial.name}{reason}", file=sys.stderr)
    if num_failed := session.plan.counts().failed:
        print(f"{num_failed} failed; `--retry-failed` runs them again.", file=sys.stderr)
    if unmeasured:
        print(unmeasured, file=sys.stderr)
    return EXIT_FAILED if incomplete or unmeasured else 0


def _measure_jointly(session: Session, options: Options, facts: Mapping[str, Any]) -> str:
    """Measures rows together where that is due; returns why it could not, "" otherwise.

    Not after a run on a cluster, whose driver may be on a machine that nobody means to measure.
    """
    if session.study.joint is None or not joint.due(session):
        return ""
    names, command = " and ".join(session.study.jointly), session.command("measure", about="part")
    if options.cluster:
        print(f"`{command}`, on the machine that is meant, measures {names}.")
        return ""
    print(f"Measuring {names} of the trained rows in turns ...", flush=True)
    try:
        print(joint.measure(session, facts), flush=True)
    except UserError as error:
        return f"not measured ({names}): {error} `{command}` tries again."
    except Exception:  # of the study: its numbers are in the store, and the tables are still to be written
        return f"not measured ({names}); `{command}` tries again.\n{traceback.format_exc()}"
    return ""
