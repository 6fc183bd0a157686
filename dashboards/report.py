"""One static web page of a whole study: its progress, its tables and claims, and every trial.

Read-only: built from the store and the study's declarations; the page needs no server and no other file.
Claims that are computed rather than measured stand in the results folder alone: computing them may import
what the study trains with.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path

from ablation.claim import Statistic
from ablation.files import write_whole
from ablation.metric import Metric, in_words
from ablation.plan import Plan, PlannedTrial
from ablation.render import html
from ablation.render.files import writing_to
from ablation.results.claims import verdicts
from ablation.results.table import assemble
from ablation.store import AttemptRow, Store
from ablation.store.schema import TrialState
from ablation.study import Study

STATES: tuple[TrialState, ...] = ("COMPLETE", "RUNNING", "WAITING", "CANCELLED", "FAILED")

_COMPUTED = '<p class="note">Claims that are computed, not measured, are in the results folder alone.</p>'

_STYLE = """
.bar { display: flex; height: .7rem; border-radius: .35rem; overflow: hidden; background: var(--raised);
  margin: 1rem 0 .5rem; max-width: 60rem; }
.bar .COMPLETE { background: var(--good); } .bar .RUNNING { background: var(--busy); }
.bar .FAILED { background: var(--bad); } .bar .WAITING, .bar .CANCELLED { background: var(--line); }
details { border-top: 1px solid var(--line); padding: .3rem 0; max-width: 60rem; }
summary { cursor: pointer; } details[open] > summary { font-weight: 600; }
summary span { float: right; font-size: .85rem; } .COMPLETE { color: var(--good); }
.RUNNING { color: var(--busy); } .FAILED { color: var(--bad); } .WAITING { color: var(--soft); }
pre { background: var(--raised); padding: .75rem; overflow-x: auto; font-size: .8rem; }
svg { width: 100%; max-width: 34rem; height: auto; display: block; }
svg path { fill: none; stroke: var(--busy); stroke-width: 1.5; }
svg text { fill: var(--soft); font-size: 11px; }
svg line { stroke: var(--line); }
details table { font-size: .85rem; margin: .5rem 0; border-width: 1px; }
"""


def write_dashboard(study: Study, plan: Plan, store: Store, path: Path) -> Path:
    """Write the page to `path`, whole or not at all; returns the path.

    Raises:
        UserError: it cannot be written.
    """
    text = page(study, plan, store)
    with writing_to(path.parent):
        return write_whole(path, text)


def page(study: Study, plan: Plan, store: Store) -> str:
    """The page's text."""
    tables = assemble(study, plan, store, [table.id for table in study.tables])
    planned = [filled for filled in tables if filled.table.id in plan.table_ids]
    measured = replace(study, claims=tuple(c for c in study.claims if not isinstance(c, Statistic)))
    body = [
        f"<h1>{escape(study.title)}</h1>",
        f'<p class="note">{escape(planned[0].heading.conditions)} {escape(plan.setting.caption)}</p>',
        _progress(plan),
        '<nav><a href="#claims">Claims</a><a href="#trials">Trials</a></nav>',
        *map(html.table, planned),
        html.claims(verdicts(measured, tables, plan.setting)),
        _COMPUTED * (len(measured.claims) < len(study.claims)),
        '<section id="trials">\n<h2>Trials</h2>',
        *(_trial(trial, study, store) for trial in plan.trials),
        "</section>",
    ]
    return html.page(study.title, "\n".join(body), _STYLE)


def _progress(plan: Plan) -> str:
    counts = Counter(trial.state for trial in plan.trials)
    parts = "".join(f'<div class="{state}" style="flex:{counts[state]}"></div>' for state in STATES)
    words = ", ".join(f"{counts[state]} {state.lower()}" for state in STATES if counts[state])
    return f'<div class="bar">{parts}</div>\n<p>{len(plan.trials)} trials: {words}.</p>'


def _trial(trial: PlannedTrial, study: Study, store: Store) -> str:
    share = (
        f" {math.floor(100 * trial.step / trial.total)} %" if trial.state == "RUNNING" and trial.total else ""
    )
    notices = "".join(f'<p class="note">{escape(notice)}</p>' for notice in store.notices(trial.key))
    error = f"<pre>{escape(trial.error)}</pre>" if trial.error else ""
    return (
        f'<details id="{trial.key}"><summary>{escape(trial.name)}'
        f'<span class="{trial.state}">{trial.state.lower()}{share}</span></summary>\n'
        f'<p class="note">Trial {trial.key}, cited by {escape(", ".join(trial.tables))}.</p>{notices}{error}'
        f"{''.join(_curves(trial, study, store))}{_results(trial, study, store)}"
        f"{_attempts(store.attempts([trial.key]))}"
        f"<details><summary>Config</summary><pre>{escape(trial.config_json)}</pre></details></details>"
    )


def _curves(trial: PlannedTrial, study: Study, store: Store) -> Iterator[str]:
    """A curve for each progress metric that the study declares and the trial has reported."""
    return (curve(store.curve(trial.key, metric.name), metric) for metric in study.progress)


def _results(trial: PlannedTrial, study: Study, store: Store) -> str:
    rows = [
        [key, *(["submit"] if row.awaits_scores else in_words(study.metrics, row.metrics, 1))]
        for key, row in store.evaluations([evaluation.key for evaluation in trial.evaluations]).items()
    ]
    return _plain_table("Evaluation", rows)


def _attempts(attempts: Sequence[AttemptRow]) -> str:
    rows = [
        [
            str(attempt.number),
            attempt.state.lower(),
            f"{attempt.started:%Y-%m-%d %H:%M} UTC",
            f"{attempt.seconds:.0f} s",
            attempt.host,
            str(attempt.provenance.get("commit", ""))[:10],
        ]
        for attempt in attempts
    ]
    return _plain_table("Attempt", rows)


def _plain_table(name: str, rows: Sequence[Sequence[str]]) -> str:
    """Rows that start with their name; nothing when there are none."""
    lines = [
        f'<tr><th class="left">{name} {escape(row[0])}</th>'
        + "".join(f"<td>{escape(entry)}</td>" for entry in row[1:])
        + "</tr>"
        for row in rows
    ]
    return f'<div class="scroll"><table>{"".join(lines)}</table></div>' if lines else ""


def curve(points: Sequence[tuple[int, float]], metric: Metric, width: int = 540, height: int = 130) -> str:
    """An inline SVG of the (step, value) points of a metric; nothing below two finite ones."""
    finite = [(step, value) for step, value in points if math.isfinite(value)]
    if len(finite) < 2 or finite[-1][0] == finite[0][0]:
        return ""
    left, bottom = 44, height - 20
    first, last = finite[0][0], finite[-1][0]
    low, high = min(value for _, value in finite), max(value for _, value in finite)

    def place(step: int, value: float) -> str:
        x = left + (width - left - 6) * (step - first) / (last - first)
        y = bottom - (bottom - 12) * (value - low) / ((high - low) or 1.0)
        return f"{x:.1f},{y:.1f}"

    line = " L".join(place(step, value) for step, value in finite)
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(metric.title)} from '
        f'{metric.text(finite[0][1])} to {metric.text(finite[-1][1])} over {last} steps">'
        f'<line x1="{left}" y1="{bottom}" x2="{width}" y2="{bottom}"/><path d="M{line}"/>'
        f'<text x="0" y="16">{metric.text(high)}</text><text x="0" y="{bottom}">{metric.text(low)}</text>'
        f'<text x="{width}" y="16" text-anchor="end">{escape(metric.axis)}</text>'
        f'<text x="{left}" y="{height - 5}">step {first}</text>'
        f'<text x="{width}" y="{height - 5}" text-anchor="end">{last}</text></svg>'
    )
