from dataclasses import astuple, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detector.config import Data
from detector.data.coco import ImageRecord
from detector.data.sampler import Pool, draw_batch, pool_of, rank_slice
from detector.errors import DataError

GOLDEN_INDICES = [4, 5, 3, 9, 1, 0, 2, 8, 5, 1, 8, 7]
GOLDEN_FLIPS = [0, 1, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0]


DATA = Data("0" * 12)


def one_group(num_images: int) -> Pool:
    return Pool(np.arange(num_images), np.zeros(num_images, dtype=np.int64))


def two_groups(portraits: int, landscapes: int) -> Pool:
    return Pool(np.arange(portraits + landscapes), np.repeat([0, 1], [portraits, landscapes]))


def indices(pool: Pool, total_batch: int, steps: int, seed: int = 3) -> np.ndarray:
    return np.concatenate([draw_batch(pool, DATA, total_batch, seed, s).indices for s in range(steps)])


def record(width: int = 8, height: int = 8, sides: tuple[float, float] | None = (4.0, 4.0)) -> ImageRecord:
    xywh = np.array([[0.0, 0.0, *sides]] if sides else []).reshape(-1, 4)
    count = len(xywh)
    no = np.zeros(count, bool)
    return ImageRecord(1, "a.png", width, height, xywh, np.zeros(count, int), np.ones(count), no, no)


@given(num_images=st.integers(1, 40), total_batch=st.integers(1, 50), seed=st.integers(0, 2**32))
def test_every_epoch_visits_every_image_once(num_images: int, total_batch: int, seed: int) -> None:
    steps = -(-3 * num_images // total_batch)
    drawn = indices(one_group(num_images), total_batch, steps, seed)
    for epoch in range(3):
        part = drawn[epoch * num_images : (epoch + 1) * num_images]
        assert sorted(part.tolist()) == list(range(num_images))


@given(
    portraits=st.integers(1, 30),
    landscapes=st.integers(1, 30),
    total_batch=st.integers(1, 20),
    seed=st.integers(0, 2**32),
)
def test_a_batch_is_of_one_group_and_each_group_visits_its_images_equally_often(
    portraits: int, landscapes: int, total_batch: int, seed: int
) -> None:
    pool = two_groups(portraits, landscapes)
    steps = [draw_batch(pool, DATA, total_batch, seed, s).indices for s in range(40)]
    rows: list[list[int]] = [[], []]
    for drawn in steps:
        groups = set((drawn >= portraits).tolist())
        assert len(groups) == 1
        rows[groups.pop()] += drawn.tolist()
    for row, own in zip(rows, (range(portraits), range(portraits, portraits + landscapes)), strict=True):
        for start in range(0, len(row) - len(own) + 1, len(own)):
            assert sorted(row[start : start + len(own)]) == list(own)
    # In step with each other: no group is a whole epoch and more than its unfinished batch ahead.
    ahead = len(rows[0]) / portraits - len(rows[1]) / landscapes
    assert abs(ahead) <= 1 + total_batch / portraits + total_batch / landscapes


def test_batches_of_both_groups_come_mixed() -> None:
    pool = two_groups(160, 160)
    kinds = [bool(draw_batch(pool, DATA, 16, 0, s).indices[0] >= 160) for s in range(20)]
    assert sum(kinds) == 10
    assert kinds != sorted(kinds)
    assert kinds != sorted(kinds, reverse=True)


def test_portrait_and_landscape_are_told_apart_only_when_asked() -> None:
    records = [record(8, 4), record(4, 8), record(8, 8)]
    assert pool_of(records, DATA).groups.tolist() == [0, 0, 0]
    assert pool_of(records, replace(DATA, group_by_aspect=True)).groups.tolist() == [1, 0, 0]
    assert pool_of(records[:1], replace(DATA, group_by_aspect=True)).groups.tolist() == [0]


def test_images_without_annotation_are_left_out_only_when_asked() -> None:
    records = [record(sides=None), record(), record(sides=(0.5, 4.0))]
    assert pool_of(records, DATA).indices.tolist() == [0, 1, 2]
    assert pool_of(records, replace(DATA, skip_unannotated=True)).indices.tolist() == [1]
    with pytest.raises(DataError, match="no training image has an annotation"):
        pool_of(records[:1], replace(DATA, skip_unannotated=True))


def test_short_sides_are_drawn_from_the_whole_range_and_fixed_without_one() -> None:
    pool = one_group(10)
    assert set(draw_batch(pool, DATA, 50, 0, 0).short_sides.tolist()) == {800}
    sides = draw_batch(pool, replace(DATA, min_short_side=640), 20_000, 0, 0).short_sides
    assert (sides.min(), sides.max()) == (640, 800)
    assert sides.mean() == pytest.approx(720, abs=2)  # standard deviation of the mean: 0.33


def test_epochs_seeds_and_steps_differ() -> None:
    drawn = indices(one_group(50), 50, 2)
    assert drawn[:50].tolist() != drawn[50:].tolist()
    assert drawn[:50].tolist() != indices(one_group(50), 50, 1, seed=4).tolist()
    flips = [draw_batch(one_group(50), DATA, 50, 3, step).flips.tolist() for step in range(2)]
    assert flips[0] != flips[1]


def test_a_batch_is_the_same_whatever_was_drawn_before() -> None:
    pool = two_groups(10, 20)
    alone = draw_batch(pool, DATA, 16, 7, 11)
    for step in range(11):
        draw_batch(pool, DATA, 16, 7, step)
    again = draw_batch(two_groups(10, 20), DATA, 16, 7, 11)
    for one, other in zip(astuple(alone), astuple(again), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_batches_of_a_seed_never_change() -> None:
    # Golden: computed once; raw PCG64 bits and a stable sort are the same on every machine and numpy.
    draw = draw_batch(one_group(10), DATA, 12, 0, 1)
    assert draw.indices.tolist() == GOLDEN_INDICES
    assert draw.flips.astype(int).tolist() == GOLDEN_FLIPS


@pytest.mark.parametrize(
    ("probability", "low", "high"), [(0.0, 0, 0), (0.5, 9_700, 10_300), (1.0, 20_000, 20_000)]
)
def test_as_many_images_flip_as_asked(probability: float, low: int, high: int) -> None:
    # 20,000 coins: the standard deviation at one half is 71.
    flips = draw_batch(one_group(1000), replace(DATA, flip=probability), 20_000, 0, 0).flips
    assert flips.dtype == np.bool_
    assert low <= flips.sum() <= high


@given(total_batch=st.integers(1, 64), world=st.integers(1, 16))
def test_ranks_share_a_batch_evenly_and_in_order(total_batch: int, world: int) -> None:
    if total_batch < world:
        with pytest.raises(
            ValueError, match=rf"total_batch must be at least .*\({world}\), got {total_batch}"
        ):
            rank_slice(total_batch, 0, world)
        return
    parts = [list(range(total_batch))[rank_slice(total_batch, rank, world)] for rank in range(world)]
    assert [i for part in parts for i in part] == list(range(total_batch))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
