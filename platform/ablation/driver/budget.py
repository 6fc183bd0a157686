"""A study that would cost more than a person allowed starts only when that person says so."""

from __future__ import annotations

import sys
from collections.abc import Callable

from ablation.errors import UserError

_UNKNOWN = "Nothing is known yet to estimate this run from (--probe times a few steps)"


def confirm(
    gpu_hours: float | None,
    budget: float | None,
    *,
    yes: bool,
    ask: Callable[[str], str] = input,
    interactive: bool | None = None,
) -> None:
    """Return when a run may start.

    Args:
        gpu_hours: that the run is estimated to take; None where nothing is known to estimate from.
        budget: as much as is allowed without a question; None for any amount.
        yes: the answer was given beforehand.
        ask: puts a question to the person.
        interactive: whether somebody is there to answer; that of the standard input when None.

    Raises:
        UserError: nobody is there to ask, or the answer is no.
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
    """Whether the person says yes; no is the default, also at the end of the input."""
    try:
        return ask(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False
