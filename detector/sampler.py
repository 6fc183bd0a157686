"""Which images a step trains on and which of them are mirrored: pure functions of the seed and the step.

Nothing is stored between steps, so a resumed run draws what an uninterrupted one would have, and nothing
depends on how many workers share a batch: each takes a contiguous slice of the same batch.

Only raw bits of the generator and a stable sort are used. numpy promises the same bits for ever, but not
the same `permutation` or `uniform`.

Axes: B images of a whole batch.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_ORDER, _FLIPS = 0, 1
"""Streams of random bits that one seed is split into."""


def training_batch(
    num_images: int, total_batch: int, seed: int, step: int, flip_probability: float
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The batch of one step. Each epoch visits every image once; a batch may straddle epochs.

    Portrait and landscape images mix, where the authors group them: more padding, same images.

    Args:
        num_images: images of the training split, at least 1.
        total_batch: B, images a step over all workers; may be more than `num_images`.
        seed: of the trial, at least 0.
        step: 0 for the first.
        flip_probability: chance of each image, independently, to be mirrored.

    Returns:
        indices: (B,) int64, 0..num_images-1.
        flips: (B,) bool, True where the image is mirrored left to right.
    """
    epochs, places = np.divmod(step * total_batch + np.arange(total_batch), num_images)
    indices = np.empty(total_batch, dtype=np.int64)
    for epoch in np.unique(epochs).tolist():
        here = epochs == epoch
        indices[here] = _epoch_order(num_images, seed, epoch)[places[here]]
    # The top 53 bits of a word, as a fraction: uniform on [0, 1).
    uniform = (_bits(seed, _FLIPS, step, total_batch) >> np.uint64(11)) * 2.0**-53
    return indices, uniform < flip_probability


def rank_slice(total_batch: int, rank: int, world: int) -> slice:
    """The part of a batch that worker `rank` of `world` computes.

    The first `total_batch % world` workers take one image more; losses are sums over all workers, so
    uneven shares change nothing.

    Raises:
        ValueError: a worker would have no image.
    """
    if total_batch < world:
        raise ValueError(f"total_batch must be at least the number of workers ({world}), got {total_batch}")
    share, extra = divmod(total_batch, world)
    start = rank * share + min(rank, extra)
    return slice(start, start + share + (rank < extra))


@lru_cache(maxsize=4)
def _epoch_order(num_images: int, seed: int, epoch: int) -> NDArray[np.int64]:
    order = np.argsort(_bits(seed, _ORDER, epoch, num_images), kind="stable")
    order.flags.writeable = False  # shared by every later call
    return order


def _bits(seed: int, stream: int, index: int, count: int) -> NDArray[np.uint64]:
    return np.random.PCG64(np.random.SeedSequence((seed, stream, index))).random_raw(count)
