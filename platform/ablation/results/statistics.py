"""How sure a difference is: paired bootstrap over images, combined with the spread over seeds.

Axes: S seeds, R bootstrap replicates (image resamples, drawn with multiplicity and the same for every
evaluation of a data set, so that replicate r of two evaluations saw the same images). All in percent.

Two things move a measured AP. Which images are tested: estimated by the bootstrap. Which seed was
trained: estimated by the spread over seeds, which all see the same images, so the two parts are
independent and their variances add. With one seed the second part is taken from what the profile's
baseline rows showed between seeds (`Sample.assumed`), or is unknown; either way the estimate says so. No
claim is decided on the images' part alone. Two tests of one training then count as two trainings: what
seeds do to their difference is less, but one seed does not show how much.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from ablation.errors import UserError
from ablation.study import SeedNoise

METRICS = ("AP", "AP50", "AP75", "APS", "APM", "APL")
"""Columns of a bootstrap file that does not name them."""

DIFFERENCE_LEVEL = 0.95
"""Of the two-sided interval that must exclude 0."""
EQUIVALENCE_LEVEL = 0.90
"""Two one-sided tests at 5 % are a 90 % interval inside the margin (Schuirmann 1987)."""

UNKNOWN_SPREAD = "one seed: spread over seeds unknown"
"""Why an interval decides nothing, wherever it lies."""

Outcome = Literal["supported", "refuted", "undecided"]


@dataclass(frozen=True, slots=True)
class Sample:
    """One cell, measured.

    Attributes:
        points_S: float64, the values in percent.
        replicates_SR: float64, the values on R image resamples; None where not kept.
        assumed: spread between seeds to take where there is only one; None for unknown.
    """

    points_S: NDArray[np.float64]
    replicates_SR: NDArray[np.float64] | None = None
    assumed: SeedNoise | None = None


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its standard error, split by cause.

    Attributes:
        image_variance: of the value, from which images were tested; None where unknown.
        seed_variance: of the value, from which seeds were trained; None with one seed.
        num_seeds: how many seeds it rests on.
        assumed_freedom: degrees of freedom of the seeds' part where it is assumed; None where measured here.
    """

    value: float
    image_variance: float | None
    seed_variance: float | None
    num_seeds: int
    assumed_freedom: int | None = None

    @property
    def known(self) -> bool:
        """Whether enough of the error is to conclude something: the seeds' part, and that there is any."""
        return self.seed_variance is not None and self.seed_variance + (self.image_variance or 0.0) > 0

    def interval(self, level: float = DIFFERENCE_LEVEL) -> tuple[float, float] | None:
        """Two-sided confidence interval; None where neither part of the error is known.

        Student's t with Welch and Satterthwaite's degrees of freedom: the seeds' part has S - 1 or those of
        what it was assumed from, the images' part as good as infinitely many.
        """
        if self.image_variance is None and self.seed_variance is None:
            return None
        seeds = self.seed_variance or 0.0
        variance = (self.image_variance or 0.0) + seeds
        of_seeds = self.num_seeds - 1 if self.assumed_freedom is None else self.assumed_freedom
        freedom = of_seeds * (variance / seeds) ** 2 if seeds > 0 else _MANY
        half = t_quantile((1 + level) / 2, freedom) * variance**0.5
        return self.value - half, self.value + half

    @property
    def caveats(self) -> list[str]:
        """What the interval leaves out."""
        missing = [] if self.image_variance is not None else ["no image bootstrap kept"]
        if self.seed_variance is None:
            missing.append(UNKNOWN_SPREAD)
        elif self.assumed_freedom is not None:
            missing.append("one seed: spread over seeds as the baseline rows showed it")
        return missing


def all_caveats(estimates: Iterable[Estimate]) -> tuple[str, ...]:
    """What the interval of any of them leaves out, each once."""
    return tuple(dict.fromkeys(caveat for estimate in estimates for caveat in estimate.caveats))


_MANY = 1000.0


def t_quantile(probability: float, freedom: float) -> float:
    """Quantile of Student's t for any real degrees of freedom from 1 (above 1000 taken as 1000).

    With t = sqrt(f) tan(a), the density in the angle a is proportional to cos(a)^(f-1), smooth and
    bounded, so a trapezoid sum over (-90, 90) degrees inverts it to five digits.
    """
    freedom = float(np.clip(freedom, 1.0, _MANY))
    angles = np.linspace(-np.pi / 2, np.pi / 2, 40001)[1:-1]
    density = np.cos(angles) ** (freedom - 1)
    total = np.cumsum(density) - density / 2
    angle = np.interp(probability, total / np.sum(density), angles)
    return float(np.sqrt(freedom) * np.tan(angle))


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
"""What reading an .npz of which any byte may be wrong raises."""


def read_replicates(path: Path, metric: str) -> NDArray[np.float64]:
    """One column of a bootstrap file.

    Args:
        path: an .npz with `replicates`, (R, M), percent, and `metrics`, the M names of its columns; without
            names they are `METRICS`.
        metric: the column's name.

    Returns:
        (R,) float64.

    Raises:
        UserError: it cannot be read, or has no such column.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            replicates = np.asarray(archive["replicates"], dtype=np.float64)
            names = archive["metrics"].tolist() if "metrics" in archive else METRICS
        return replicates[:, names.index(metric)]
    except _OF_DAMAGE as error:
        raise UserError(
            f"{path}: not a bootstrap file (an .npz with `replicates` that have a column {metric}): {error}"
        ) from error


def average(samples: Sequence[Sample]) -> Sample:
    """The mean of several cells, seed by seed and resample by resample, as if it were a cell."""
    replicates = [sample.replicates_SR for sample in samples]
    known = [array for array in replicates if array is not None]
    points_S = np.mean([sample.points_S for sample in samples], axis=0)
    total = _combined([sample.assumed for sample in samples])
    return Sample(
        points_S,
        np.mean(known, axis=0) if len(known) == len(replicates) else None,
        None if total is None else SeedNoise(total.sd / len(samples), total.freedom),
    )


def _combined(spreads: Sequence[SeedNoise | None]) -> SeedNoise | None:
    """Of a sum of independent trainings; None where one is unknown."""
    known = [spread for spread in spreads if spread is not None]
    if len(known) < len(spreads):
        return None
    sd = float(np.sqrt(np.sum(np.square([spread.sd for spread in known]))))
    return SeedNoise(sd, min(spread.freedom for spread in known))


def difference(left: Sample, right: Sample) -> Estimate:
    """Left minus right, paired by seed and by image resample.

    Seeds are paired because a seed fixes the order of the images and the initial weights that two
    configs share; where that pairing does nothing, the interval is wider by the lost degrees of freedom.
    """
    if left.points_S.shape != right.points_S.shape:
        raise ValueError(f"samples need the same seeds, got {left.points_S.shape} and {right.points_S.shape}")
    replicates = None
    if left.replicates_SR is not None and right.replicates_SR is not None:
        if left.replicates_SR.shape != right.replicates_SR.shape:
            raise ValueError(
                "samples need the same image resamples, got replicates of shape "
                f"{left.replicates_SR.shape} and {right.replicates_SR.shape}"
            )
        replicates = left.replicates_SR - right.replicates_SR
    return _estimate(left.points_S - right.points_S, replicates, _combined([left.assumed, right.assumed]))


def _estimate(
    points_S: NDArray[np.float64], replicates_SR: NDArray[np.float64] | None, assumed: SeedNoise | None
) -> Estimate:
    count = len(points_S)
    images = None if replicates_SR is None else float(np.nanvar(replicates_SR.mean(axis=0), ddof=1))
    value = float(points_S.mean())
    if count > 1:
        return Estimate(value, images, float(np.var(points_S, ddof=1)) / count, count)
    if assumed is None:
        return Estimate(value, images, None, count)
    return Estimate(value, images, assumed.sd**2, count, assumed.freedom)


def judge_greater(estimate: Estimate, tests: int = 1) -> Outcome:
    """Whether the value is above 0.

    `tests` is in how many places the same claim could be refuted; a refutation must then hold at the
    level divided among them (Bonferroni). Support needs no such care: a claim made of several is
    supported only when all of them are.
    """
    support = estimate.interval(DIFFERENCE_LEVEL)
    refute = estimate.interval(_shared(DIFFERENCE_LEVEL, tests))
    if not estimate.known or support is None or refute is None:
        return "undecided"
    if support[0] > 0:
        return "supported"
    return "refuted" if refute[1] < 0 else "undecided"


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
    """Whether what is bounded is smaller than `margin`."""
    if bounds.interval is None or not bounds.known:
        return "undecided"
    low, high = bounds.interval
    if high < margin:
        return "supported"
    return "refuted" if low > margin else "undecided"


def apart(samples: Sequence[Sample]) -> Bounds:
    """Largest minus smallest of the samples, from all pairs; two samples are the equivalence test.

    Smaller than a margin means that every pair is. So the upper bound is the largest over pairs at the
    level of one pair (all must hold, so no correction is needed), and the lower bound is the largest
    over pairs at the level shared among them (one is enough, so Bonferroni). Both are conservative:
    picking the highest and lowest of several noisy cells makes their distance look larger than it is,
    and this takes no credit for that.
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
