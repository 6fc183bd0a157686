import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detector.sampler import rank_slice, training_batch

GOLDEN_INDICES = [4, 5, 3, 9, 1, 0, 2, 8, 5, 1, 8, 7]
GOLDEN_FLIPS = [0, 1, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0]


def indices(num_images: int, total_batch: int, steps: int, seed: int = 3) -> np.ndarray:
    return np.concatenate([training_batch(num_images, total_batch, seed, s, 0.5)[0] for s in range(steps)])


@given(num_images=st.integers(1, 40), total_batch=st.integers(1, 50), seed=st.integers(0, 2**32))
def test_every_epoch_visits_every_image_once(num_images: int, total_batch: int, seed: int) -> None:
    steps = -(-3 * num_images // total_batch)
    drawn = indices(num_images, total_batch, steps, seed)
    for epoch in range(3):
        part = drawn[epoch * num_images : (epoch + 1) * num_images]
        assert sorted(part.tolist()) == list(range(num_images))


def test_epochs_seeds_and_steps_differ() -> None:
    drawn = indices(50, 50, 2)
    assert drawn[:50].tolist() != drawn[50:].tolist()
    assert drawn[:50].tolist() != indices(50, 50, 1, seed=4).tolist()
    flips = [training_batch(50, 50, 3, step, 0.5)[1].tolist() for step in range(2)]
    assert flips[0] != flips[1]


def test_a_batch_is_the_same_whatever_was_drawn_before() -> None:
    alone = training_batch(30, 16, 7, 11, 0.5)
    for step in range(11):
        training_batch(30, 16, 7, step, 0.5)
    again = training_batch(30, 16, 7, 11, 0.5)
    np.testing.assert_array_equal(alone[0], again[0])
    np.testing.assert_array_equal(alone[1], again[1])


def test_the_batches_of_a_seed_never_change() -> None:
    # Golden: computed once; raw PCG64 bits and a stable sort are the same on every machine and numpy.
    drawn, flips = training_batch(10, 12, 0, 1, 0.5)
    assert drawn.tolist() == GOLDEN_INDICES
    assert flips.astype(int).tolist() == GOLDEN_FLIPS


@pytest.mark.parametrize(
    ("probability", "low", "high"), [(0.0, 0, 0), (0.5, 9_700, 10_300), (1.0, 20_000, 20_000)]
)
def test_as_many_images_flip_as_asked(probability: float, low: int, high: int) -> None:
    # 20,000 coins: the standard deviation at one half is 71.
    flips = training_batch(1000, 20_000, 0, 0, probability)[1]
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
