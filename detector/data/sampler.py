"""Images, flips and sizes of a step, as pure functions of the seed and the step.

No state is stored between steps, so a resumed run draws the same as an uninterrupted one. The batch does not
depend on the number of workers: each takes a contiguous slice of it.

Only raw bits of the generator and a stable sort are used: numpy guarantees the bits of all versions, but not
the results of `permutation` or `uniform`.

Axes: B images of a whole batch.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from detector.config import AnyData, Data, SquareData
from detector.data.coco import ImageRecord, is_annotated
from detector.errors import DataError

_ORDER, _FLIPS, _SIDES, _GROUPS, _VIEWS = range(5)
"""Streams of random bits from one seed."""


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """The images of a training.

    Attributes:
        indices: (n,) int64, indices into the split, ascending.
        groups: (n,) int64, from 0; a batch has images of one group.
    """

    indices: NDArray[np.int64]
    groups: NDArray[np.int64]

    @property
    def counts(self) -> list[int]:
        """Number of images of each group."""
        return [int(count) for count in np.bincount(self.groups)]


@dataclass(frozen=True, slots=True, eq=False)
class Draw:
    """The images of one step.

    Attributes:
        indices: (B,) int64, indices into the split.
        flips: (B,) bool, True for a horizontal flip.
        short_sides: (B,) int64, pixels that the short side is resized to, or that of the square.
    """

    indices: NDArray[np.int64]
    flips: NDArray[np.bool_]
    short_sides: NDArray[np.int64]


def pool_of(records: Sequence[ImageRecord], data: AnyData) -> Pool:
    """The training images of a split, and their groups.

    Args:
        records: the training split.
        data: `skip_unannotated` and `group_by_aspect` are used; images that are warped to a square are
            all used, in one group. A square image counts as portrait, as in the authors' loader.

    Raises:
        DataError: the split has no training image.
    """
    shaped = data if isinstance(data, Data) else None
    kept = [i for i, r in enumerate(records) if is_annotated(r) or not (shaped and shaped.skip_unannotated)]
    if not kept:
        raise DataError("no training image has an annotation with both sides over 1 pixel")
    grouped = shaped is not None and shaped.group_by_aspect
    landscape = [grouped and records[i].width > records[i].height for i in kept]
    # Numbered from 0 without gaps, also where all images are of one kind.
    groups = np.unique(np.array(landscape), return_inverse=True)[1]
    return Pool(np.array(kept, dtype=np.int64), groups.astype(np.int64))


def draw_batch(pool: Pool, data: AnyData, total_batch: int, seed: int, step: int) -> Draw:
    """The batch of one step.

    Each epoch has every image once. Each group has its own sequence of batches, which continues over epochs;
    the batches of an epoch are in random order.

    Args:
        pool: the images.
        data: `flip` is used, and `short_side` and `min_short_side`, or `side`.
        total_batch: B, images per step over all workers; may exceed the number of images.
        seed: the trial's seed, >= 0.
        step: 0-based.
    """
    group, number = _place(pool, total_batch, seed, step)
    positions = number * total_batch + np.arange(total_batch)
    epochs, places = np.divmod(positions, pool.counts[group])
    indices = np.empty(total_batch, dtype=np.int64)
    for epoch in np.unique(epochs).tolist():
        here = epochs == epoch
        indices[here] = _epoch_order(pool, seed, epoch)[group][places[here]]
    flips = _uniform(seed, _FLIPS, step, total_batch) < data.flip
    return Draw(indices, flips, _sides(data, total_batch, seed, step))


def _sides(data: AnyData, total_batch: int, seed: int, step: int) -> NDArray[np.int64]:
    if isinstance(data, SquareData):
        return np.full(total_batch, data.side, dtype=np.int64)
    least = data.short_side if data.min_short_side is None else data.min_short_side
    sides = least + _uniform(seed, _SIDES, step, total_batch) * (data.short_side - least + 1)
    return sides.astype(np.int64)


def rank_slice(total_batch: int, rank: int, world: int) -> slice:
    """The part of a batch that worker `rank` of `world` computes.

    The first `total_batch % world` workers have one image more. Losses are sums over all workers, so uneven
    parts do not change them.

    Raises:
        ValueError: a worker would have no image.
    """
    if total_batch < world:
        raise ValueError(f"total_batch must be at least the number of workers ({world}), got {total_batch}")
    share, extra = divmod(total_batch, world)
    start = rank * share + min(rank, extra)
    return slice(start, start + share + (rank < extra))


def _place(pool: Pool, total_batch: int, seed: int, step: int) -> tuple[int, int]:
    """(group, index of the group's batch) of a step."""
    counts = pool.counts
    if len(counts) == 1:
        return 0, step

    def before(epoch: int) -> list[int]:
        """Number of full batches of each group from the images of all earlier epochs."""
        return [epoch * count // total_batch for count in counts]

    # At most one batch per group is incomplete, so the step is in no later epoch than this.
    latest = (step + len(counts)) * total_batch // sum(counts) + 1
    epoch = bisect_right(range(latest + 1), step, key=lambda e: sum(before(e))) - 1
    start, end = before(epoch), before(epoch + 1)
    row = np.repeat(np.arange(len(counts)), np.subtract(end, start))
    row = row[np.argsort(_bits(seed, _GROUPS, epoch, len(row)), kind="stable")]
    place = step - sum(start)
    group = int(row[place])
    return group, start[group] + int((row[:place] == group).sum())


@lru_cache(maxsize=4)
def _epoch_order(pool: Pool, seed: int, epoch: int) -> list[NDArray[np.int64]]:
    """Indices of each group's images in the epoch's order. Cached: must not be changed."""
    order = np.argsort(_bits(seed, _ORDER, epoch, len(pool.indices)), kind="stable")
    return [pool.indices[order[pool.groups[order] == group]] for group in range(len(pool.counts))]


class Stream:
    """Random numbers of one image of a step, in the order of the calls."""

    def __init__(self, seed: int, step: int, place: int) -> None:
        """Args: the trial's seed; the step; and the image's place in the whole batch."""
        self._bits = np.random.PCG64(np.random.SeedSequence((seed, _VIEWS, step, place)))

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """Of [low, high)."""
        return low + (high - low) * (int(self._bits.random_raw()) >> 11) * 2.0**-53

    def uniforms(self, *shape: int) -> NDArray[np.float64]:
        """An array of such numbers of [0, 1)."""
        return _fractions(self._bits.random_raw(math.prod(shape))).reshape(shape)

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.uniform() < probability

    def order(self, count: int) -> list[int]:
        """0..count-1 in random order."""
        return sorted(range(count), key=lambda _: self.uniform())


def _uniform(seed: int, stream: int, index: int, count: int) -> NDArray[np.float64]:
    """Uniform on [0, 1)."""
    return _fractions(_bits(seed, stream, index, count))


def _fractions(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """The top 53 bits of random words, as fractions."""
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _bits(seed: int, stream: int, index: int, count: int) -> NDArray[np.uint64]:
    return np.random.PCG64(np.random.SeedSequence((seed, stream, index))).random_raw(count)
