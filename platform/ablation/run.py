"""The `run` command: everything between a plan and its tables."""

from __future__ import annotations

import sys
from collections.abc import Collection

from rich.console import Console

from ablation import provenance, scheduler
from ablation.display import display
from ablation.errors import last_line
from ablation.plan import register
from ablation.report import print_report, report_console
from ablation.scheduler import Options, Summary
from ablation.session import Session
from ablation.tracking import Mirror

EXIT_FAILED, EXIT_INTERRUPTED = 1, 130


def run_study(
    session: Session, options: Options, command: str, formats: Collection[str], *, retry_failed: bool
) -> int:
    """Train and evaluate what is missing, mirror it to MLflow, print and write the tables.

    The caller holds the workspace's driver lock.

    Returns:
        Exit code: 0 when every planned trial is complete, 1 when one is not, 130 when a person stopped it.
    """
    console = report_console()
    store = session.store
    store.reclaim_all()
    register(session.plan, store)
    if retry_failed:
        store.retry([trial.key for trial in session.plan.trials if trial.state == "FAILED"])
    session = session.replanned()
    print(session.plan.describe(), flush=True)
    facts = provenance.collect(command)
    invocation = store.start_invocation(command, facts)
    mirror = Mirror.of(store, session.workspace)
    mirror.start()
    try:
        summary = _train(session, options, console, facts, invocation)
    finally:
        store.end_invocation(invocation)
        mirror.close()
        if mirror.last_error:
            console.print(
                f"MLflow does not have everything yet ({mirror.last_error}); the next run copies it."
            )
    return _conclude(session.replanned(), summary, formats, console)


def _train(
    session: Session, options: Options, console: Console, facts: dict[str, object], invocation: int
) -> Summary:
    plan = session.plan
    with display(plan, console) as listener:
        return scheduler.run(
            plan.work(),
            session.study.train,
            plan.setting.context,
            session.store,
            session.workspace,
            options,
            listener,
            whole_gpus=plan.setting.whole_gpus,
            provenance=facts,
            invocation_id=invocation,
        )


def _conclude(session: Session, summary: Summary, formats: Collection[str], console: Console) -> int:
    """Tables and parting words."""
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
    return EXIT_FAILED if incomplete else 0
