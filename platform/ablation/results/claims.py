"""A verdict for each claim of the paper, from the filled tables.

A claim is supported or refuted only where the interval (images and seeds, see `statistics`) says so;
otherwise it is undecided, and `points_the_papers_way` says which way the numbers lean. Intervals are
those of each claim alone, not adjusted for how many claims a study makes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Literal, assert_never

import numpy as np
from numpy.typing import NDArray

from ablation.errors import UserError
from ablation.results.statistics import (
    EQUIVALENCE_LEVEL,
    Estimate,
    Outcome,
    Sample,
    all_caveats,
    apart,
    difference,
    judge_greater,
    judge_within,
    read_replicates,
)
from ablation.results.table import FilledCell, FilledTable, Source
from ablation.study import (
    CellRef,
    Chain,
    Claim,
    Equivalent,
    Greater,
    Range,
    SeedNoise,
    Setting,
    Statistic,
    Study,
)

VerdictName = Literal["supported", "refuted", "undecided", "pending"]
OUTCOMES: tuple[VerdictName, ...] = ("supported", "refuted", "undecided", "pending")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one claim.

    Attributes:
        verdict: "pending" while a cell that it rests on is missing.
        points_the_papers_way: by the point estimates alone; None while pending.
        estimate: in points of AP: the difference (Greater, Equivalent), the largest distance (Range), the
            smallest step (Chain); None for a Statistic.
        interval: at 95 % (Greater, Chain) or 90 % (Equivalent, Range); None where unknown.
        detail: the margin or the steps, what the claim waits for, and what the interval leaves out.
        paper: the paper's own estimate.
        signed: whether the estimate is a difference; False for a distance, which has no sign.
    """

    id: str
    text: str
    verdict: VerdictName
    points_the_papers_way: bool | None = None
    estimate: float | None = None
    interval: tuple[float, float] | None = None
    detail: str = ""
    paper: float | None = None
    signed: bool = True


def verdicts(study: Study, tables: Sequence[FilledTable], setting: Setting) -> list[Verdict]:
    """Judge every claim of the study on these tables; a claim on other tables is pending."""
    cells = {CellRef(table.table.id, cell.row, cell.column): cell for table in tables for cell in table.cells}
    return [_verdict(study, claim, cells, setting) for claim in study.claims]


def summary(judged: Sequence[Verdict]) -> str:
    """One line: how many claims there are, what became of them, how many point the paper's way."""
    counts = Counter(verdict.verdict for verdict in judged)
    parts = [f"{counts[outcome]} {outcome}" for outcome in OUTCOMES if counts[outcome]]
    agreeing = sum(verdict.points_the_papers_way is True for verdict in judged)
    return f"{len(judged)} claims: {', '.join(parts)}; {agreeing} point the paper's way."


def references(claim: Claim) -> tuple[CellRef, ...]:
    """The cells that a claim rests on."""
    match claim:
        case Greater() | Equivalent():
            return (claim.left, claim.right)
        case Chain():
            return tuple(ref for chain in claim.chains for ref in chain)
        case Range():
            return claim.cells
        case Statistic():
            return ()
        case _:
            assert_never(claim)


def _verdict(study: Study, claim: Claim, cells: Mapping[CellRef, FilledCell], setting: Setting) -> Verdict:
    if isinstance(claim, Statistic):
        result = claim.compute(setting)
        outcomes: dict[bool | None, Outcome] = {True: "supported", False: "refuted", None: "undecided"}
        outcome = outcomes[result.holds]
        return Verdict(claim.id, claim.text, outcome, result.holds, detail=result.detail)
    refs = references(claim)
    seeds = _common_seeds(refs, cells)
    pending = Verdict(
        claim.id,
        claim.text,
        "pending",
        detail=_waits_for(refs, cells),
        paper=_papers_estimate(study, claim),
        signed=not isinstance(claim, Range),
    )
    if not seeds:
        return pending
    found = _find(claim, _samples(refs, cells, seeds, setting))
    if any(cells[ref].imported for ref in refs):
        found = replace(found, caveats=("an evaluation server's numbers: no interval",))
    notes = (found.detail, _partial(refs, cells, seeds), *found.caveats, _damaged(refs, cells, seeds))
    return replace(
        pending,
        verdict=found.outcome,
        points_the_papers_way=found.points_the_papers_way,
        estimate=found.estimate,
        interval=found.interval,
        detail="; ".join(note for note in notes if note),
    )


@dataclass(frozen=True, slots=True)
class _Finding:
    """What the samples say of a claim."""

    outcome: Outcome
    points_the_papers_way: bool
    estimate: float
    interval: tuple[float, float] | None
    detail: str
    caveats: Sequence[str]


def _find(claim: Greater | Chain | Equivalent | Range, samples: Mapping[CellRef, Sample]) -> _Finding:
    match claim:
        case Greater():
            estimate = difference(samples[claim.left], samples[claim.right])
            return _signed_finding(estimate, judge_greater(estimate))
        case Equivalent():
            return _equivalent(samples[claim.left], samples[claim.right], claim.margin)
        case Range():
            return _range([samples[ref] for ref in claim.cells], claim.margin)
        case Chain():
            steps = _steps(claim, samples)
            detail = "steps " + "; ".join(_signed(step.value, step.interval()) for step in steps)
            smallest = _signed_finding(min(steps, key=lambda step: step.value), _judge_chain(steps))
            return replace(smallest, detail=detail, caveats=all_caveats(steps))
        case _:
            assert_never(claim)


def _signed_finding(estimate: Estimate, outcome: Outcome) -> _Finding:
    value = estimate.value
    return _Finding(outcome, value > 0, value, estimate.interval(), "", estimate.caveats)


def _equivalent(left: Sample, right: Sample, margin: float) -> _Finding:
    estimate = difference(left, right)
    return _Finding(
        judge_within(apart([left, right]), margin),
        abs(estimate.value) < margin,
        estimate.value,
        estimate.interval(EQUIVALENCE_LEVEL),
        f"margin ±{margin:g}",
        estimate.caveats,
    )


def _range(group: Sequence[Sample], margin: float) -> _Finding:
    bounds = apart(group)
    return _Finding(
        judge_within(bounds, margin),
        bounds.value < margin,
        bounds.value,
        bounds.interval,
        f"highest minus lowest, margin {margin:g}",
        bounds.caveats,
    )


def _steps(claim: Chain, samples: Mapping[CellRef, Sample]) -> list[Estimate]:
    return [
        difference(samples[after], samples[before])
        for chain in claim.chains
        for before, after in pairwise(chain)
    ]


def _judge_chain(steps: Sequence[Estimate]) -> Outcome:
    """All steps must be supported; one refuted refutes (at the level shared among the steps)."""
    outcomes = {judge_greater(step, tests=len(steps)) for step in steps}
    if "refuted" in outcomes:
        return "refuted"
    return "undecided" if "undecided" in outcomes else "supported"


def _papers_estimate(study: Study, claim: Greater | Chain | Equivalent | Range) -> float | None:
    """The claim's estimate from the paper's own numbers; None where it reports one of them not."""
    if isinstance(claim, Greater):
        return claim.paper_delta
    reported = {ref: study.cell(ref).paper for ref in references(claim)}
    numbers = {ref: value for ref, value in reported.items() if value is not None}
    if len(numbers) < len(reported):
        return None
    match claim:
        case Equivalent():
            value = numbers[claim.left] - numbers[claim.right]
        case Range():
            value = max(numbers.values()) - min(numbers.values())
        case Chain():
            value = min(numbers[b] - numbers[a] for chain in claim.chains for a, b in pairwise(chain))
        case _:
            assert_never(claim)
    return round(value, 6)


def _common_seeds(refs: Sequence[CellRef], cells: Mapping[CellRef, FilledCell]) -> list[int]:
    """Seeds at which every cell has its value."""
    having = [set(cells[ref].values) if ref in cells else set() for ref in refs]
    return sorted(set.intersection(*having))


def _samples(
    refs: Sequence[CellRef], cells: Mapping[CellRef, FilledCell], seeds: Sequence[int], setting: Setting
) -> dict[CellRef, Sample]:
    """What each cell measured; means alone, of which no interval follows, where a number is imported."""
    if any(cells[ref].imported for ref in refs):
        return {ref: Sample(np.array([fmean(cells[ref].values[seed] for seed in seeds)])) for ref in refs}
    return {ref: sample(cells[ref], seeds, setting.seed_noise) for ref in refs}


def sample(cell: FilledCell, seeds: Sequence[int], seed_noise: SeedNoise | None) -> Sample:
    """The measurements behind a cell at these seeds; replicates only where every seed kept them.

    Args:
        seed_noise: what to take for the spread over seeds where there is only one (`Setting.seed_noise`).
    """
    replicates = [_replicates(path, cell.cell.metric) for path in _bootstraps(cell, seeds)]
    known = [array for array in replicates if array is not None]
    together = np.stack(known) if len(known) == len(replicates) else None
    return Sample(np.array([cell.values[seed] for seed in seeds]), together, seed_noise)


def _bootstraps(cell: FilledCell, seeds: Sequence[int]) -> list[Path | None]:
    """Paths of a cell's replicates, seed by seed."""
    by_seed = {source.seed: source.bootstrap for source in cell.sources}
    return [by_seed[seed] for seed in seeds]


def _replicates(path: Path | None, metric: str) -> NDArray[np.float64] | None:
    """None where there are none, or none any more: artifacts may have been cleared away, or damaged.

    The verdict then says what it lacks; one bad file is no reason to have no report.
    """
    try:
        return read_replicates(path, metric) if path is not None and path.is_file() else None
    except UserError:
        return None


def _damaged(refs: Sequence[CellRef], cells: Mapping[CellRef, FilledCell], seeds: Sequence[int]) -> str:
    """Which replicates are there but cannot be read; "" where none."""
    there = {
        (path, cells[ref].cell.metric)
        for ref in refs
        for path in _bootstraps(cells[ref], seeds)
        if path is not None and path.is_file()
    }
    bad = sorted(str(path) for path, metric in there if _replicates(path, metric) is None)
    return f"unreadable: {', '.join(bad)}" if bad else ""


def _waits_for(refs: Sequence[CellRef], cells: Mapping[CellRef, FilledCell]) -> str:
    """Which cells are missing, at most three named."""
    missing = [ref for ref in refs if ref not in cells or not cells[ref].values]
    if not missing:
        return "no seed has all of its cells yet"
    names = [f"{ref.table} {ref.row!r}{_why(cells.get(ref))}" for ref in dict.fromkeys(missing)]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"needs {', '.join(names[:3])}{more}"


def _why(cell: FilledCell | None) -> str:
    if cell is None:
        return " (not planned)"
    return " (an evaluation server's number)" if cell.state == "submit" else f" ({cell.state})"


def _partial(refs: Sequence[CellRef], cells: Mapping[CellRef, FilledCell], seeds: Sequence[int]) -> str:
    planned: set[Source] = {source for ref in refs for source in cells[ref].sources}
    total = len({source.seed for source in planned})
    return "" if len(seeds) == total else f"{len(seeds)} of {total} seeds so far"


def _signed(value: float, interval: tuple[float, float] | None) -> str:
    bounds = "" if interval is None else f" [{interval[0]:+.2f}, {interval[1]:+.2f}]"
    return f"{value:+.2f}{bounds}".replace("-", "−")
