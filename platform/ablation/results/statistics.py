"""How sure a difference is: paired bootstrap over test samples, combined with the spread over seeds.

Axes: S seeds, R bootstrap replicates (resamples of the test data, drawn with multiplicity and the same for
every evaluation of a data set, so that replicate r of two evaluations saw the same samples). Values are in
the unit of their metric; estimates are plain differences, and `judge_better` is told which sign is better.

Two things move a measured number. Which samples are tested: estimated by the bootstrap. Which seed was
trained: estimated by the spread over seeds. All seeds see the same samples, so the two parts are independent
and their variances add. With one seed the second part is assumed (`Sample.assumed`) or unknown, and the
estimate says so. Nothing is decided on the bootstrap alone. Two tests of one training count as two trainings
then: seeds change their difference less, but one seed does not show how much.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Literal
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from ablation.errors import UserError
from ablation.metric import Metric, SeedNoise

DIFFERENCE_LEVEL = 0.95
"""Of the two-sided interval that must exclude 0."""
EQUIVALENCE_LEVEL = 0.90
"""Two one-sided tests at 5 % are a 90 % interval inside the margin (Schuirmann 1987)."""

UNKNOWN_SPREAD = "one seed: spread over seeds unknown"
"""The caveat of an interval that decides nothing."""
MOST_DEGREES_OF_FREEDOM = 1000.0
"""Of the bootstrap's part of the error; Student's t is nearly normal there."""

MOST_SEEDS = 20
"""The most seeds that anybody is told to train."""

Outcome = Literal["supported", "refuted", "undecided"]


@dataclass(frozen=True, slots=True)
class Sample:
    """One cell, measured.

    Attributes:
        points_S: float64, the values, in the metric's unit.
        replicates_SR: float64, the values on R resamples of the test data; None where not kept.
        assumed: spread between seeds to assume where there is only one; None for unknown.
    """

    points_S: NDArray[np.float64]
    replicates_SR: NDArray[np.float64] | None = None
    assumed: SeedNoise | None = None


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its standard error, split by cause.

    Attributes:
        sample_variance: of the value, from which samples were tested; None where unknown.
        seed_variance: of the value, from which seeds were trained; None with one seed.
        num_seeds: how many seeds it rests on.
        assumed_degrees_of_freedom: of the seeds' part where it is assumed; None where it was measured here.
    """

    value: float
    sample_variance: float | None
    seed_variance: float | None
    num_seeds: int
    assumed_degrees_of_freedom: int | None = None

    @property
    def known(self) -> bool:
        """Whether the error suffices for a conclusion: the seeds' part is known, and the error is not 0."""
        return self.seed_variance is not None and self.seed_variance + (self.sample_variance or 0.0) > 0

    def interval(self, level: float = DIFFERENCE_LEVEL) -> tuple[float, float] | None:
        """Two-sided confidence interval; None where neither part of the error is known.

        Student's t with the degrees of freedom of Welch and Satterthwaite. The seeds' part has S - 1, or
        those of the estimate that is assumed.
        """
        from scipy.special import stdtrit  # half a second to import, and most commands need no interval

        if self.sample_variance is None and self.seed_variance is None:
            return None
        variance = (self.sample_variance or 0.0) + (self.seed_variance or 0.0)
        half = float(stdtrit(self._degrees_of_freedom(variance), (1 + level) / 2)) * variance**0.5
        return self.value - half, self.value + half

    @property
    def p_value(self) -> float | None:
        """Two-sided p-value of no difference; None where the error is not known (`known`)."""
        from scipy.special import stdtr

        if not self.known:
            return None
        variance = (self.sample_variance or 0.0) + (self.seed_variance or 0.0)
        return 2 * float(stdtr(self._degrees_of_freedom(variance), -abs(self.value) / variance**0.5))

    def _degrees_of_freedom(self, variance: float) -> float:
        if not self.seed_variance:
            return MOST_DEGREES_OF_FREEDOM
        assumed = self.assumed_degrees_of_freedom
        of_seeds = self.num_seeds - 1 if assumed is None else assumed
        return min(MOST_DEGREES_OF_FREEDOM, of_seeds * (variance / self.seed_variance) ** 2)

    @property
    def caveats(self) -> list[str]:
        """What the interval leaves out or assumes."""
        missing = [] if self.sample_variance is not None else ["no bootstrap kept"]
        if self.seed_variance is None:
            missing.append(UNKNOWN_SPREAD)
        elif self.assumed_degrees_of_freedom is not None:
            missing.append("one seed: spread over seeds taken from the profile")
        return missing


def all_caveats(estimates: Iterable[Estimate]) -> tuple[str, ...]:
    """The caveats of all estimates, each once."""
    return tuple(dict.fromkeys(caveat for estimate in estimates for caveat in estimate.caveats))


_OF_DAMAGE = (
    OSError,
    ValueError,
    KeyError,
    IndexError,
    EOFError,
    TypeError,
    RuntimeError,
    BadZipFile,
    zlib.error,
)
"""Errors of reading a damaged .npz."""


class EarlierVersionError(UserError):
    """A bootstrap file that does not name its columns, as earlier versions wrote it."""


def read_replicates(path: Path, metric: str) -> NDArray[np.float64] | None:
    """One column of a bootstrap file.

    Args:
        path: an .npz with `replicates`, (R, M), R > 1, and `metrics`, the M names of its columns.
        metric: the column's name.

    Returns:
        (R,) float64, NaN where a resample does not define the metric; None where the file has no such column.

    Raises:
        EarlierVersionError: its columns have no names.
        UserError: it cannot be read.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            replicates = np.asarray(archive["replicates"], dtype=np.float64)
            names = archive["metrics"].tolist() if "metrics" in archive else None
        if names is None:
            raise EarlierVersionError(f"{path}: of an earlier version, which did not name the columns")
        if replicates.ndim != 2 or len(replicates) < 2 or replicates.shape[1] != len(names):
            raise ValueError(f"`replicates` has shape {replicates.shape}, and there are {len(names)} names")
        return replicates[:, names.index(metric)] if metric in names else None
    except _OF_DAMAGE as error:
        raise UserError(
            f"{path}: not a bootstrap file (an .npz with `replicates`, and `metrics` that name its columns): "
            f"{error}"
        ) from error


def paired(replicates: Iterable[NDArray[np.float64] | None]) -> list[NDArray[np.float64]] | None:
    """Replicates of several values; None where one has none, or another number of resamples."""
    arrays = list(replicates)
    known = [array for array in arrays if array is not None]
    return known if len(known) == len(arrays) and len({array.shape for array in known}) == 1 else None


def average(samples: Sequence[Sample]) -> Sample:
    """The mean of several cells as a sample: seed by seed and resample by resample."""
    replicates = paired(sample.replicates_SR for sample in samples)
    points_S = np.mean([sample.points_S for sample in samples], axis=0)
    total = _combined([sample.assumed for sample in samples])
    return Sample(
        points_S,
        None if replicates is None else np.mean(replicates, axis=0),
        None if total is None else SeedNoise(total.sd / len(samples), total.degrees_of_freedom),
    )


def _combined(spreads: Sequence[SeedNoise | None]) -> SeedNoise | None:
    """The noise of a sum of independent trainings; None where that of one is unknown."""
    known = [spread for spread in spreads if spread is not None]
    if len(known) < len(spreads):
        return None
    sd = float(np.sqrt(np.sum(np.square([spread.sd for spread in known]))))
    return SeedNoise(sd, min(spread.degrees_of_freedom for spread in known))


def difference(left: Sample, right: Sample) -> Estimate:
    """Left minus right, paired by seed and by resample.

    Seeds are paired because a seed fixes the order of the training data and the initial weights that two
    configs share; where that pairing does nothing, the interval is wider by the lost degrees of freedom.
    Bootstraps of different numbers of resamples cannot be paired and count as not kept.

    Raises:
        ValueError: different numbers of seeds.
    """
    if left.points_S.shape != right.points_S.shape:
        raise ValueError(f"samples need the same seeds, got {left.points_S.shape} and {right.points_S.shape}")
    both = paired([left.replicates_SR, right.replicates_SR])
    replicates = None if both is None else both[0] - both[1]
    return _estimate(left.points_S - right.points_S, replicates, _combined([left.assumed, right.assumed]))


def _estimate(
    points_S: NDArray[np.float64], replicates_SR: NDArray[np.float64] | None, assumed: SeedNoise | None
) -> Estimate:
    count = len(points_S)
    tested = None if replicates_SR is None else _variance(replicates_SR.mean(axis=0))
    value = float(points_S.mean())
    if count > 1:
        return Estimate(value, tested, float(np.var(points_S, ddof=1)) / count, count)
    if assumed is None:
        return Estimate(value, tested, None, count)
    return Estimate(value, tested, assumed.sd**2, count, assumed.degrees_of_freedom)


def _variance(replicates_R: NDArray[np.float64]) -> float | None:
    """Over the resamples that define the value; None where fewer than two do."""
    defined_R = np.where(np.isfinite(replicates_R), replicates_R, np.nan)
    return None if np.isfinite(defined_R).sum() < 2 else float(np.nanvar(defined_R, ddof=1))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """The p-values adjusted for their number by Holm's step-down method (Holm 1979).

    Those at most 0.05 are decided with at most 5 % probability of any false decision among all of them. An
    unknown one counts as a test and stays unknown.
    """
    known = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(p_values) - rank)))
        adjusted[index] = largest
    return adjusted


def seeds_to_decide(estimate: Estimate, most: int = MOST_SEEDS) -> int | None:
    """How many seeds would show a difference as large as this one, if their spread stays as it is.

    Returns:
        The smallest number above those that it rests on; None where the spread is unknown, or not even
        `most` seeds would suffice: the test samples do not become more with seeds.
    """
    if estimate.seed_variance is None:
        return None
    each = estimate.seed_variance * estimate.num_seeds
    for seeds in range(estimate.num_seeds + 1, most + 1):
        more = replace(estimate, seed_variance=each / seeds, num_seeds=seeds, assumed_degrees_of_freedom=None)
        interval = more.interval()
        if interval is not None and (interval[0] > 0 or interval[1] < 0):
            return seeds
    return None


def judge_better(estimate: Estimate, metric: Metric, tests: int = 1) -> Outcome:
    """Whether a difference is an improvement: above 0, or below where lower is better.

    `tests` is in how many places the same claim could be refuted; a refutation must then hold at the
    level divided among them (Bonferroni). Support needs no such care: a claim made of several is
    supported only when all of them are.
    """
    support = estimate.interval(DIFFERENCE_LEVEL)
    refute = estimate.interval(_shared(DIFFERENCE_LEVEL, tests))
    if not estimate.known or support is None or refute is None:
        return "undecided"
    if min(map(metric.improvement, support)) > 0:
        return "supported"
    return "refuted" if max(map(metric.improvement, refute)) < 0 else "undecided"


@dataclass(frozen=True, slots=True)
class Bounds:
    """How far apart some cells are: the point estimate and a lower and an upper bound, or None.

    Attributes:
        known: see `Estimate.known`, of all pairs.
        caveats: see `Estimate.caveats`, of any pair.
    """

    value: float
    interval: tuple[float, float] | None
    known: bool = True
    caveats: tuple[str, ...] = ()


def judge_within(bounds: Bounds, margin: float) -> Outcome:
    """Whether the bounded distance is smaller than `margin`."""
    if bounds.interval is None or not bounds.known:
        return "undecided"
    low, high = bounds.interval
    if high < margin:
        return "supported"
    return "refuted" if low > margin else "undecided"


def apart(samples: Sequence[Sample]) -> Bounds:
    """Largest minus smallest of the samples, from all pairs; two samples are the equivalence test.

    It is smaller than a margin if every pair is. So the upper bound is the largest over pairs at the level
    of one pair (all must hold, so no correction is needed), and the lower bound is the largest over pairs
    at the level shared among them (one is enough, so Bonferroni). Both are conservative: the distance
    between the largest and the smallest of several noisy cells is overestimated, and the bounds do not
    correct for that.
    """
    pairs = list(_pairs(samples))
    caveats = all_caveats(pairs)
    means = [float(sample.points_S.mean()) for sample in samples]
    highs, lows = [], []
    for pair in pairs:
        support, refute = (
            pair.interval(EQUIVALENCE_LEVEL),
            pair.interval(_shared(EQUIVALENCE_LEVEL, len(pairs))),
        )
        if support is None or refute is None:
            return Bounds(max(means) - min(means), None, caveats=caveats)
        highs.append(max(-support[0], support[1]))
        lows.append(max(refute[0], -refute[1], 0.0))
    known = all(pair.known for pair in pairs)
    return Bounds(max(means) - min(means), (max(lows), max(highs)), known, caveats)


def _pairs(samples: Sequence[Sample]) -> Iterator[Estimate]:
    return (difference(left, right) for left, right in combinations(samples, 2))


def _shared(confidence: float, tests: int) -> float:
    return 1 - (1 - confidence) / tests
