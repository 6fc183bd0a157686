"""A plan as plain text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ablation.errors import last_line
from ablation.plan import Plan
from ablation.wording import counted


def describe_plan(plan: Plan, *more: str) -> str:
    """How much there is, table by table, and what is shared, extra and failed.

    Args:
        more: paragraphs to append; empty ones are left out.
    """
    return "\n\n".join(["\n".join(_described(plan)), *(text for text in more if text)])


def _described(plan: Plan) -> Iterator[str]:
    c, setting, num_seeds = plan.counts(), plan.setting, len(plan.seeds)
    seeds = ("seed " if num_seeds == 1 else "seeds ") + ", ".join(str(seed) for seed in plan.seeds)
    different = f" ({c.trainings // num_seeds} different x {num_seeds} seeds)" if num_seeds > 1 else ""
    size = [counted(len(plan.tables), "table"), counted(c.rows, "row"), counted(c.cells, "cell")]
    yield f"{plan.study.title}: {', '.join(size)}"
    yield f"Profile {setting.profile}, data {setting.data_name}, {seeds}. {setting.caption}".rstrip()
    yield (
        f"{counted(c.trainings, 'training')}{different}, {counted(c.evaluations, 'evaluation')}: "
        f"{c.complete} complete, "
        f"{c.running} running, {c.waiting} waiting, {c.failed} failed"
        + (f", {c.cancelled} cancelled" if c.cancelled else "")
    )
    yield ""
    yield from _table_lines(plan)
    yield from _section("Shared, trained once:", _shared(plan))
    extra = [f"{t.name}: {len(t.evaluations)} evaluations" for t in plan.trials if len(t.evaluations) > 1]
    yield from _section("Tested in more than one way:", extra)
    failed = [f"{t.key} {t.name}: {last_line(t.error)}" for t in plan.trials if t.state == "FAILED"]
    yield from _section("Failed, and left alone until a retry is asked for:", failed)
    cancelled = [f"{t.key} {t.name}" for t in plan.trials if t.state == "CANCELLED"]
    yield from _section("Cancelled, until a retry is asked for:", cancelled)


def _table_lines(plan: Plan) -> Iterator[str]:
    """One line a table; `new` counts the trainings that no table above it has."""
    some_cancelled = plan.counts().cancelled > 0
    yield "table         rows  trainings   new  complete  running  waiting  failed" + (
        "  cancelled" if some_cancelled else ""
    )
    seen: set[str] = set()
    states = {trial.key: trial.state for trial in plan.trials}
    for table in plan.tables:
        cited = {k for row in table.rows for seed in plan.seeds for k in plan.row_keys(row, seed)}
        own = [states[trial_key] for trial_key in cited]
        yield (
            f"{table.id:<12}{len(table.trained):>6}{len(cited):>11}{len(cited - seen):>6}"
            f"{own.count('COMPLETE'):>10}{own.count('RUNNING'):>9}"
            f"{own.count('WAITING'):>9}{own.count('FAILED'):>8}"
            + (f"{own.count('CANCELLED'):>11}" if some_cancelled else "")
        )
        seen |= cited


def _shared(plan: Plan) -> Iterator[str]:
    """Rows whose training an earlier row already has."""
    first: dict[str, str] = {}
    for table in plan.tables:
        for row in table.rows:
            here = f"{table.id} {row.label}"
            for trial_key in plan.row_keys(row, plan.seeds[0]):
                earlier = first.setdefault(trial_key, here)
                if earlier != here:
                    yield f"{here} = {earlier}"


def _section(title: str, lines: Iterable[str]) -> Iterator[str]:
    shown = [f"  {line}" for line in lines]
    if shown:
        yield from ("", title, *shown)
