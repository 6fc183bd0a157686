"""Asks before a run that would cost more GPU-hours than the user allowed."""

from __future__ import annotations

import sys
from collections.abc import Callable

from ablation.errors import UserError

_UNKNOWN = "No training was measured yet to estimate this run from (--probe measures a few steps)"


def confirm(
    gpu_hours: float | None,
    budget: float | None,
    *,
    yes: bool,
    ask: Callable[[str], str] = input,
    interactive: bool | None = None,
) -> None:
    """Returns when a run may start.

    Args:
        gpu_hours: the run's estimate; None where nothing was measured to estimate from.
        budget: GPU-hours allowed without a question; None for any number.
        yes: start without a question.
        ask: asks the user.
        interactive: whether a user can answer; whether standard input is a terminal when None.

    Raises:
        UserError: no user can answer, or the answer is no.
    """
    if yes or budget is None or (gpu_hours is not None and gpu_hours <= budget):
        return
    text = (
        f"This run is estimated to take about {gpu_hours:.1f} GPU-hours"
        if gpu_hours is not None
        else _UNKNOWN
    )
    text = f"{text}; --budget-gpu-hours allows {budget:g}."
    if not (sys.stdin.isatty() if interactive is None else interactive):
        raise UserError(f"{text} --yes starts it all the same.")
    if not agreed(f"{text} Start?", ask):
        raise UserError("Not started.")


def agreed(question: str, ask: Callable[[str], str] = input) -> bool:
    """Whether the user answers yes; no is the default, also at the end of the input."""
    try:
        return ask(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False
