"""Images that look nearly the same: copies, other sizes or qualities of a picture, still frames of a video.

Images are shrunk to 17 x 16 grey pixels. Candidates are those whose dHash (Krawetz, "Kind of Like That",
2013) is nearly equal: one bit for each pair of neighbours in a row, set where it grows brighter by more than
`_MARGIN`. Pictures of small things on an even background have few such bits, so the grey pixels must be
nearly equal too.

Axes: n images.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from detector.errors import DataError

SIDE = 16
MAX_DISTANCE = 12
"""Bits of 256 in which the hashes of similar images differ at most."""

MAX_DIFFERENCE = 32
"""Levels of 255, the mean brightness apart, in which a grey pixel of similar images differs at most."""

_MARGIN = 2
_BANDS = MAX_DISTANCE + 1
"""Of so many parts of two hashes that differ in `MAX_DISTANCE` bits at least one is equal."""

_COMPARED = 2000
"""Images of equal bands that one is compared with; more come only from images that are all alike."""

Thumbnails = NDArray[np.uint8]


def thumbnail(path: Path) -> Thumbnails:
    """(16, 17) uint8: an image in grey.

    Raises:
        DataError: the file cannot be decoded.
    """
    try:
        with Image.open(path) as image:
            image.draft("L", (8 * SIDE, 8 * SIDE))
            small = image.convert("L").resize((SIDE + 1, SIDE), Image.Resampling.BOX)
    except Exception as error:  # Pillow's readers let through whatever damaged bytes make them raise
        raise DataError(f"{path}: cannot be decoded ({error})") from error
    return np.asarray(small)


def thumbnails(paths: Sequence[Path]) -> Thumbnails:
    """(n, 16, 17) uint8, in order.

    Raises:
        DataError: a file cannot be decoded.
    """
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return np.array(list(pool.map(thumbnail, paths)), dtype=np.uint8).reshape(-1, SIDE, SIDE + 1)


def similar_groups(small: Thumbnails) -> list[list[int]]:
    """Groups of at least two images that nearly look the same, directly or by others between them.

    Args:
        small: (n, 16, 17) uint8.

    Returns:
        Indices in ascending order, groups in order of their first.
    """
    grey = small.astype(np.int16)
    hashes = np.packbits((np.diff(grey, axis=2) > _MARGIN).reshape(len(small), -1), axis=1)
    level = grey.reshape(len(small), -1)
    level = level - level.mean(axis=1, keepdims=True).astype(np.int16)
    roots = list(range(len(small)))
    for bucket in _buckets(hashes):
        for i, index in enumerate(bucket[:-1]):
            others = np.array(bucket[i + 1 : i + 1 + _COMPARED])
            near = others[np.bitwise_count(hashes[others] ^ hashes[index]).sum(axis=1) <= MAX_DISTANCE]
            near = near[np.abs(level[near] - level[index]).max(axis=1, initial=0) <= MAX_DIFFERENCE]
            for other in near.tolist():
                _join(roots, index, other)
    groups: defaultdict[int, list[int]] = defaultdict(list)
    for image in range(len(small)):
        groups[_root(roots, image)].append(image)
    return [group for group in groups.values() if len(group) > 1]


def _buckets(hashes: NDArray[np.uint8]) -> Iterator[list[int]]:
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
    groups = similar_groups(thumbnails([path for paths in splits for path in paths]))
    named = [[owners[index] for index in group] for group in groups]
    return [group for group in named if len({split for split, _ in group}) > 1]
