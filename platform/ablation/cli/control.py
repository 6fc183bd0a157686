"""Commands that steer: pause, resume, cancel, retry, prioritise, gc.

They work beside running drivers, from any terminal or machine that reaches the store. A driver reads the
desired states every two seconds; where none runs, the next one finds them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ablation.cli.arguments import Commands, add, selection_of, selection_parser
from ablation.control import gc
from ablation.control.control import Control, Renewal, chosen
from ablation.credentials import hidden
from ablation.driver.budget import agreed
from ablation.errors import UserError
from ablation.plan import PlannedTrial
from ablation.provenance import staleness
from ablation.session import Session
from ablation.tracking.mirror import Mirror

_SHOWN = 10
"""Trials that an answer names before it only counts the rest."""
ANEW = "Trained and tested anew, from nothing, because of what has changed since:"


def pause_command(arguments: argparse.Namespace) -> int:
    """Let running trials write a checkpoint and stop, and none start, until `resume`."""
    session = _session(arguments)
    Control(session.plan, session.store).set_paused(True)
    command = session.command("resume", about="setting")
    print(f"{_named(session)} is paused: what runs stops at a checkpoint. `{command}` lets it go on.")
    return 0


def resume_command(arguments: argparse.Namespace) -> int:
    """Let a paused study go on."""
    session = _session(arguments)
    Control(session.plan, session.store).set_paused(False)
    command = session.command("run", about="setting")
    print(f"{_named(session)} goes on, by a running driver or the next `{command}`.")
    return 0


def cancel_command(arguments: argparse.Namespace) -> int:
    """Stop trials at a checkpoint, or never start them, until `retry`; what is complete stays."""
    session = _session(arguments)
    trials = chosen(session.plan, arguments.what)
    cancelled = Control(session.plan, session.store).cancel(trials)
    _tell("cancelled", cancelled, trials)
    named = {session.study.table_id(word.strip()) for word in arguments.what}
    others = sorted({table for trial in cancelled for table in trial.tables} - named)
    if cancelled and others:
        command = session.command("retry", *arguments.what, about="part")
        print(f"Also missing now in {', '.join(others)}. `{command}` brings them back.")
    return 0


def retry_command(arguments: argparse.Namespace) -> int:
    """Let trials that failed or were cancelled run again, or renew those behind stale cells (--stale)."""
    session = _session(arguments)
    if arguments.stale:
        return _renew(session, arguments)
    failed = [trial for trial in session.plan.trials if trial.state == "FAILED"]
    trials = chosen(session.plan, arguments.what) if arguments.what else failed
    _tell("waiting again", Control(session.plan, session.store).retry(trials), trials)
    return 0


def _renew(session: Session, arguments: argparse.Namespace) -> int:
    """Renews the trials behind stale cells, after showing which they are and what changed."""
    control = Control(session.plan, session.store)
    found = control.stale(arguments.what)
    going = [renewal for renewal in found if not renewal.runs]
    print(_renewals(session, found, chosen(session.plan, arguments.what)))
    if not going or not _agreed(
        arguments, "Train and test all this again from nothing?", "Nothing was changed"
    ):
        return 0
    renewed = control.renew(going)
    _tell("renewed", renewed, [])
    if len(renewed) < len(going):
        print(f"{len(going) - len(renewed)} left alone: an attempt has been made meanwhile.")
    print(
        f"`{session.command('run', about='part')}` does it; a run that is at work leaves it to the next one."
    )
    return 0


def _renewals(session: Session, found: Sequence[Renewal], named: Sequence[PlannedTrial]) -> str:
    """Which trials would be renewed and why, and which would not."""
    going = [one for one in found if not one.runs]
    parts = [staleness.grouped(ANEW, [(f"{one.trial.key}  {one.trial.name}", one.changes) for one in going])]
    if tables := sorted({table for one in going for table in one.trial.tables}):
        parts.append(
            f"Until then their cells in {', '.join(tables)} wait. "
            f"`{session.command('logs', going[0].trial.key, about='part')}`, likewise of each, shows the "
            f"numbers of before; their files stay until `{session.command('gc', about='setting')}`."
        )
    for one in found:
        if one.runs:
            command = session.command("cancel", one.trial.key, about="part")
            parts.append(f"{one.trial.name}: left alone, an attempt goes on (`{command}` stops it)")
    stale = [one.trial.key for one in found]
    parts += [f"{trial.name}: nothing is known to have changed" for trial in named if trial.key not in stale]
    text = "\n".join(part for part in parts if part)
    return text or "No result is known to rest on what has changed since."


def prioritise_command(arguments: argparse.Namespace) -> int:
    """Let trials start before others."""
    session = _session(arguments)
    trials = chosen(session.plan, arguments.what)
    levels = Control(session.plan, session.store).prioritise(trials, arguments.by)
    for trial in trials[:_SHOWN]:
        print(f"  priority {levels[trial.key]:>3}  {trial.key}  {trial.name}")
    if len(trials) > _SHOWN:
        print(f"  and {len(trials) - _SHOWN} more")
    return 0


def gc_command(arguments: argparse.Namespace) -> int:
    """Remove checkpoints, superseded files and MLflow runs that no cell needs, after showing them."""
    session = _session(arguments)
    found = gc.unneeded([session.plan], session.store, session.workspace)
    print(gc.describe(found))
    if not found:
        return 0
    if not _agreed(arguments, "Remove all this?", "Nothing was removed"):
        return 0
    removed = _removed(session, found)
    print(f"Removed: {len(removed)} of {len(found)}.")
    return 0


def _removed(session: Session, found: Sequence[gc.Removable]) -> list[gc.Removable]:
    mirror = Mirror.of(session.store, session.workspace, session.selection.mlflow_uri)
    try:
        return gc.remove(found, session.store, session.workspace, session.storage, mirror.delete_runs)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{error.filename} cannot be removed: {error.strerror}.") from error
    except Exception as error:  # MLflow and its transports raise anything
        raise UserError(f"MLflow did not remove its runs: {hidden(str(error))}") from error


def _agreed(arguments: argparse.Namespace, question: str, otherwise: str) -> bool:
    """Whether a person wants what they were shown; UserError where nobody is there to ask."""
    if arguments.yes:
        return True
    if not sys.stdin.isatty():
        raise UserError(f"{otherwise}: nobody is there to ask. --yes does it unasked.")
    if agreed(question):
        return True
    print(f"{otherwise}.")
    return False


def _session(arguments: argparse.Namespace) -> Session:
    return Session.beside_drivers(selection_of(arguments))


def _named(session: Session) -> str:
    setting = session.plan.setting
    return f"{session.study.name} {setting.profile} on {setting.data_name}"


def _tell(done: str, changed: Sequence[PlannedTrial], asked: Sequence[PlannedTrial]) -> None:
    """What has changed, and why the rest has not."""
    print(f"{len(changed)} {'trial is' if len(changed) == 1 else 'trials are'} {done}.")
    for trial in changed[:_SHOWN]:
        print(f"  {trial.key}  {trial.name}")
    if len(changed) > _SHOWN:
        print(f"  and {len(changed) - _SHOWN} more")
    left = [trial for trial in asked if trial not in changed]
    for state in dict.fromkeys(trial.state for trial in left):
        print(f"As before, for {state.lower()}: {sum(trial.state == state for trial in left)}")


# --- parsers ---------------------------------------------------------------------------------------------


def add_commands(commands: Commands) -> None:
    """The parsers of this module's commands."""
    shared = [selection_parser()]
    whole = [selection_parser(whole=True)]
    add(commands, "pause", pause_command, whole, "--profile coco")
    add(commands, "resume", resume_command, whole, "--profile coco")
    _add_what(add(commands, "cancel", cancel_command, shared, '"table3 FCOS" table8'), "+")
    retry = add(commands, "retry", retry_command, shared, "0123abcd")
    _add_what(retry, "*")
    retry.add_argument(
        "--stale",
        action="store_true",
        help="train and test anew, from nothing, the trials behind stale cells (`status --stale`): all, or "
        "those given. Results without a record of their code are renewed only where their trial is given; "
        "rows whose config has changed need none of this, as any run trains them. Earlier numbers stay in "
        "the store",
    )
    retry.add_argument("--yes", action="store_true", help="with --stale: do not ask")
    prioritise = add(commands, "prioritise", prioritise_command, shared, "table3 --by 10")
    _add_what(prioritise, "+")
    prioritise.add_argument(
        "--by",
        type=int,
        default=1,
        metavar="N",
        help="raise their priority by N, which is 0 at first; lower it where N is negative (default: 1)",
    )
    collect = add(commands, "gc", gc_command, whole, "--yes")
    collect.add_argument("--yes", action="store_true", help="remove without asking")


def _add_what(parser: argparse.ArgumentParser, number: str) -> None:
    parser.add_argument(
        "what",
        nargs=number,
        metavar="TRIAL|TABLE",
        help='a trial by its key, its name ("table3 FCOS") or the start of either; or a table, as table3',
    )
