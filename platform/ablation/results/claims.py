"""A verdict for each claim of the paper, from the filled tables.

A claim is supported or refuted only where the interval (test data and seeds, see `statistics`) says so;
otherwise it is undecided, and `points_the_papers_way` says whether the point estimates agree with it.
Intervals are those of each claim alone, not adjusted for the number of claims.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Literal, assert_never

import numpy as np
from numpy.typing import NDArray

from ablation.claim import Better, CellRef, Chain, Claim, Equivalent, Range, Statistic, references
from ablation.errors import UserError
from ablation.metric import Metric, SeedNoise
from ablation.results.sources import Source
from ablation.results.statistics import (
    EQUIVALENCE_LEVEL,
    EarlierVersionError,
    Estimate,
    Outcome,
    Sample,
    all_caveats,
    apart,
    difference,
    judge_better,
    judge_within,
    paired,
    read_replicates,
)
from ablation.results.table import FilledCell, FilledTable
from ablation.setting import Setting
from ablation.study import Study

Comparison = Better | Chain | Equivalent | Range
VerdictName = Literal["supported", "refuted", "undecided", "pending"]
OUTCOMES: tuple[VerdictName, ...] = ("supported", "refuted", "undecided", "pending")


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict on one claim.

    Attributes:
        verdict: "pending" while a cell that it rests on is missing.
        points_the_papers_way: by the point estimates alone; None while pending.
        estimate: the difference (Better, Equivalent), the largest distance (Range) or the step that gains
            least (Chain), in the unit of the metric's differences; None for a Statistic.
        interval: at 95 % (Better, Chain) or 90 % (Equivalent, Range); None where unknown.
        detail: the margin or the steps, the missing cells, and what the interval leaves out.
        paper: the paper's own estimate.
        metric: of the cells that the claim rests on; None for a Statistic.
        signed: whether the estimate is a difference; False for a distance, which has no sign.
        unreadable: paths of bootstrap files that are damaged.
        earlier: paths of bootstrap files that an earlier version wrote, without the names of their columns.
    """

    id: str
    text: str
    verdict: VerdictName
    points_the_papers_way: bool | None = None
    estimate: float | None = None
    interval: tuple[float, float] | None = None
    detail: str = ""
    paper: float | None = None
    metric: Metric | None = None
    signed: bool = True
    unreadable: tuple[str, ...] = ()
    earlier: tuple[str, ...] = ()


def verdicts(study: Study, tables: Sequence[FilledTable], setting: Setting) -> list[Verdict]:
    """Judge every claim of the study on these tables; a claim on other tables is pending."""
    cells = {CellRef(table.table.id, cell.row, cell.column): cell for table in tables for cell in table.cells}
    return [_verdict(study, claim, cells, setting) for claim in study.claims]


def summary(judged: Sequence[Verdict]) -> str:
    """One line: the number of claims, of each verdict, and of those that point the paper's way."""
    if not judged:
        return ""
    counts = Counter(verdict.verdict for verdict in judged)
    parts = [f"{counts[outcome]} {outcome}" for outcome in OUTCOMES if counts[outcome]]
    agreeing = sum(verdict.points_the_papers_way is True for verdict in judged)
    return f"{len(judged)} claims: {', '.join(parts)}; {agreeing} point the paper's way."


def _verdict(study: Study, claim: Claim, cells: Mapping[CellRef, FilledCell], setting: Setting) -> Verdict:
    if isinstance(claim, Statistic):
        result = claim.compute(setting)
        outcomes: dict[bool | None, Outcome] = {True: "supported", False: "refuted", None: "undecided"}
        outcome = outcomes[result.holds]
        return Verdict(claim.id, claim.text, outcome, result.holds, detail=result.detail)
    refs = references(claim)
    seeds, metric = _common_seeds(refs, cells), study.metric(study.cell(refs[0]).metric)
    pending = Verdict(
        claim.id,
        claim.text,
        "pending",
        detail=_waits_for(refs, cells),
        paper=_papers_estimate(study, claim, metric),
        metric=metric,
        signed=not isinstance(claim, Range),
    )
    if not seeds:
        return pending
    found = _find(claim, _samples(refs, cells, seeds, setting), metric)
    if any(cells[ref].imported for ref in refs):
        found = replace(found, caveats=("an evaluation server's numbers: no interval",))
    if any(cells[ref].joint for ref in refs):
        found = replace(found, caveats=(f"{len(seeds)} rounds in turns, of one training each",))
    files = _files(refs, cells, seeds)
    notes = (found.detail, _partial(refs, cells, seeds), *found.caveats, *files.notes)
    return replace(
        pending,
        verdict=found.outcome,
        points_the_papers_way=found.points_the_papers_way,
        estimate=found.estimate,
        interval=found.interval,
        detail="; ".join(note for note in notes if note),
        unreadable=tuple(files.unreadable),
        earlier=tuple(files.earlier),
    )


@dataclass(frozen=True, slots=True)
class _Finding:
    """The verdict that follows from the samples."""

    outcome: Outcome
    points_the_papers_way: bool
    estimate: float
    interval: tuple[float, float] | None
    detail: str
    caveats: Sequence[str]


def _find(claim: Comparison, samples: Mapping[CellRef, Sample], metric: Metric) -> _Finding:
    match claim:
        case Better():
            estimate = difference(samples[claim.left], samples[claim.right])
            return _signed_finding(estimate, judge_better(estimate, metric), metric)
        case Equivalent():
            return _equivalent(samples[claim.left], samples[claim.right], claim.margin)
        case Range():
            return _range([samples[ref] for ref in claim.cells], claim.margin)
        case Chain():
            steps = _steps(claim, samples)
            least = min(steps, key=lambda step: metric.improvement(step.value))
            found = _signed_finding(least, _judge_chain(steps, metric), metric)
            detail = "steps " + "; ".join(_signed(metric, step) for step in steps)
            return replace(found, detail=detail, caveats=all_caveats(steps))
        case _:
            assert_never(claim)


def _signed_finding(estimate: Estimate, outcome: Outcome, metric: Metric) -> _Finding:
    value = estimate.value
    agrees = metric.improvement(value) > 0
    return _Finding(outcome, agrees, value, estimate.interval(), "", estimate.caveats)


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


def _judge_chain(steps: Sequence[Estimate], metric: Metric) -> Outcome:
    """All steps must be supported; one refuted refutes (at the level shared among the steps)."""
    outcomes = {judge_better(step, metric, tests=len(steps)) for step in steps}
    if "refuted" in outcomes:
        return "refuted"
    return "undecided" if "undecided" in outcomes else "supported"


def _papers_estimate(study: Study, claim: Comparison, metric: Metric) -> float | None:
    """The claim's estimate from the paper's own numbers; None where it does not report all of them."""
    reported = {ref: study.cell(ref).paper for ref in references(claim)}
    numbers = {ref: value for ref, value in reported.items() if value is not None}
    if len(numbers) < len(reported):
        return None
    match claim:
        case Better() | Equivalent():
            value = numbers[claim.left] - numbers[claim.right]
        case Range():
            value = max(numbers.values()) - min(numbers.values())
        case Chain():
            steps = [numbers[b] - numbers[a] for chain in claim.chains for a, b in pairwise(chain)]
            value = min(steps, key=metric.improvement)
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
    """The sample of each cell; means alone, which have no interval, where a number is imported."""
    if any(cells[ref].imported for ref in refs):
        return {ref: Sample(np.array([fmean(cells[ref].values[seed] for seed in seeds)])) for ref in refs}
    return {ref: sample(cells[ref], seeds, setting.seed_noise) for ref in refs}


def sample(cell: FilledCell, seeds: Sequence[int], seed_noise: Mapping[str, SeedNoise]) -> Sample:
    """The measurements behind a cell at these seeds; replicates only where every seed kept as many.

    Args:
        seed_noise: the spread over seeds to assume where there is only one (`Setting.seed_noise`).
    """
    replicates = paired(_replicates(path, cell.metric.name) for path in _bootstraps(cell, seeds))
    together = None if replicates is None else np.stack(replicates)
    assumed = seed_noise.get(cell.metric.name)
    return Sample(np.array([cell.values[seed] for seed in seeds]), together, assumed)


def _bootstraps(cell: FilledCell, seeds: Sequence[int]) -> list[Path | None]:
    """Paths of a cell's replicates, seed by seed; none for rounds."""
    by_seed = {source.repetition: source.bootstrap for source in cell.sources}
    return [by_seed[seed] for seed in seeds]


def _replicates(path: Path | None, metric: str) -> NDArray[np.float64] | None:
    """None where the file is missing or damaged; the verdict then names what it lacks."""
    try:
        return read_replicates(path, metric) if path is not None and path.is_file() else None
    except UserError:
        return None


@dataclass(slots=True)
class _Files:
    """The bootstrap files behind a claim.

    Attributes:
        unreadable, earlier: see `Verdict`.
        lengths: numbers of resamples of the others.
    """

    unreadable: list[str] = field(default_factory=list)
    earlier: list[str] = field(default_factory=list)
    lengths: set[int] = field(default_factory=set)

    @property
    def notes(self) -> list[str]:
        """What keeps them from being used."""
        notes = [f"unreadable: {', '.join(self.unreadable)}"] if self.unreadable else []
        notes += [f"of an earlier version: {', '.join(self.earlier)}"] if self.earlier else []
        if len(self.lengths) > 1:
            lengths = ", ".join(map(str, sorted(self.lengths)))
            notes.append(f"bootstraps of different lengths ({lengths} resamples) cannot be paired")
        return notes


def _files(refs: Sequence[CellRef], cells: Mapping[CellRef, FilledCell], seeds: Sequence[int]) -> _Files:
    found, metric = _Files(), cells[refs[0]].metric.name
    paths = {path for ref in refs for path in _bootstraps(cells[ref], seeds) if path is not None}
    for path in sorted(path for path in paths if path.is_file()):
        try:
            if (replicates := read_replicates(path, metric)) is not None:
                found.lengths.add(len(replicates))
        except EarlierVersionError:
            found.earlier.append(str(path))
        except UserError:
            found.unreadable.append(str(path))
    return found


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
    total = len({source.repetition for source in planned})
    return "" if len(seeds) == total else f"{len(seeds)} of {total} seeds so far"


def _signed(metric: Metric, step: Estimate) -> str:
    bounds = ", ".join(metric.signed(bound, 1) for bound in step.interval() or ())
    return metric.signed(step.value, 1) + (f" [{bounds}]" if bounds else "")
