"""Images that look nearly the same: copies, other sizes or qualities of one picture, frames of one video.

A picture's hash is a dHash (Krawetz, "Kind of Like That", 2013): shrunk to 17 x 16 grey pixels, one bit for
each pair of neighbours in a row, whether it grows brighter. Differences of up to `_MARGIN` levels are no
growth, so that noise on an even background sets no bits.

Axes: n images.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from detector.errors import DataError

SIDE = 16
MAX_DISTANCE = 12
"""Bits of 256 in which pictures that count as nearly the same differ at most."""

_MARGIN = 2
_BANDS = MAX_DISTANCE + 1
"""Of so many parts of two hashes that differ in `MAX_DISTANCE` bits at least one is equal."""

Hashes = NDArray[np.uint8]


def image_hash(path: Path) -> Hashes:
    """(32,) uint8: the 256 bits of an image's hash.

    Raises:
        DataError: the file cannot be decoded.
    """
    try:
        with Image.open(path) as image:
            image.draft("L", (8 * SIDE, 8 * SIDE))
            small = image.convert("L").resize((SIDE + 1, SIDE), Image.Resampling.BOX)
    except Exception as error:  # Pillow's readers let through whatever damaged bytes make them raise
        raise DataError(f"{path}: cannot be decoded ({error})") from error
    grey = np.asarray(small).astype(np.int16)
    return np.packbits(grey[:, 1:] - grey[:, :-1] > _MARGIN)


def image_hashes(paths: Sequence[Path]) -> Hashes:
    """(n, 32) uint8, in order.

    Raises:
        DataError: a file cannot be decoded.
    """
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return np.array(list(pool.map(image_hash, paths)), dtype=np.uint8).reshape(-1, SIDE * SIDE // 8)


def similar_groups(hashes: Hashes) -> list[list[int]]:
    """Groups of at least two images that nearly look the same, directly or by others between them.

    Args:
        hashes: (n, 32) uint8.

    Returns:
        Indices in ascending order, groups in order of their first.
    """
    distinct, which = np.unique(hashes, axis=0, return_inverse=True)
    roots = list(range(len(distinct)))
    for bucket in _buckets(distinct):
        own = distinct[bucket]
        for i, index in enumerate(bucket[:-1]):
            distances = np.bitwise_count(own[i + 1 :] ^ own[i]).sum(axis=1)
            for other in np.flatnonzero(distances <= MAX_DISTANCE).tolist():
                _join(roots, index, bucket[i + 1 + other])
    groups: defaultdict[int, list[int]] = defaultdict(list)
    for image, hashed in enumerate(which.reshape(-1).tolist()):
        groups[_root(roots, hashed)].append(image)
    return sorted(group for group in groups.values() if len(group) > 1)


def _buckets(hashes: Hashes) -> Iterable[list[int]]:
    """Groups of hashes that have a band in common; every pair that is near enough is in one of them."""
    bits = np.unpackbits(hashes, axis=1)
    for band in np.array_split(bits, _BANDS, axis=1):
        keys = np.packbits(band, axis=1)
        equal: defaultdict[bytes, list[int]] = defaultdict(list)
        for index, key in enumerate(keys):
            equal[key.tobytes()].append(index)
        yield from (bucket for bucket in equal.values() if len(bucket) > 1)


def _root(roots: list[int], index: int) -> int:
    while roots[index] != index:
        roots[index] = roots[roots[index]]
        index = roots[index]
    return index


def _join(roots: list[int], one: int, two: int) -> None:
    one, two = _root(roots, one), _root(roots, two)
    roots[max(one, two)] = min(one, two)


def similar_across(splits: Sequence[Sequence[Path]]) -> list[list[tuple[int, int]]]:
    """Groups of nearly equal images that lie in more than one split.

    Args:
        splits: image files of each split.

    Returns:
        (split, image) index pairs by group.

    Raises:
        DataError: a file cannot be decoded.
    """
    owners = [(s, i) for s, paths in enumerate(splits) for i in range(len(paths))]
    groups = similar_groups(image_hashes([path for paths in splits for path in paths]))
    named = [[owners[index] for index in group] for group in groups]
    return [group for group in named if len({split for split, _ in group}) > 1]
