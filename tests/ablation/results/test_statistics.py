from contextlib import suppress

import numpy as np
import pytest

from ablation.errors import UserError
from ablation.metric import Metric, SeedNoise
from ablation.results.statistics import (
    Bounds,
    EarlierVersionError,
    Estimate,
    Sample,
    apart,
    average,
    difference,
    judge_better,
    judge_within,
    read_replicates,
)


def sample(points, noise=None):
    points = np.asarray(points, dtype=float)
    return Sample(points, None if noise is None else points[:, None] + np.asarray(noise))


HIGHER, LOWER = Metric("accuracy"), Metric("error", better="lower")


@pytest.mark.parametrize(
    ("seeds", "quantile"), [(2, 12.7062), (3, 4.3027), (6, 2.5706), (31, 2.0423), (100_001, 1.9623)]
)
def test_intervals_use_students_quantiles(seeds, quantile):
    assert Estimate(0.0, None, 1.0, seeds).interval()[1] == pytest.approx(quantile, abs=1e-4)


def test_noise_that_both_cells_share_does_not_widen_their_difference():
    noise = np.random.default_rng(0).normal(0, 5, 500)
    estimate = difference(sample([40.0], noise), sample([38.0], noise))
    assert estimate.value == pytest.approx(2.0)
    assert estimate.interval() == pytest.approx((2.0, 2.0))


def test_one_seed_rests_on_the_bootstrap_alone_and_says_so():
    left, right = np.random.default_rng(0).normal(0, 1, (2, 5000))
    estimate = difference(sample([40.0], left), sample([38.0], right))
    low, high = estimate.interval()
    assert high - low == pytest.approx(2 * 1.96 * 2**0.5, rel=0.05)
    assert any("one seed" in caveat for caveat in estimate.caveats)


def test_spread_over_seeds_alone_gives_the_paired_t_interval():
    # Differences 1, 2, 3: mean 2, standard error 1/sqrt(3), t(2) = 4.3027.
    estimate = difference(sample([11.0, 12.0, 13.0]), sample([10.0, 10.0, 10.0]))
    assert estimate.interval() == pytest.approx((2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), rel=1e-3)
    assert estimate.caveats == ["no bootstrap kept"]


def test_variances_of_samples_and_seeds_add():
    estimate = Estimate(0.0, sample_variance=3.0, seed_variance=1.0, num_seeds=3)
    # Welch and Satterthwaite: 2 * (4 / 1)^2 = 32 degrees of freedom, t = 2.0369.
    assert estimate.interval()[1] == pytest.approx(2.0369 * 2.0, rel=1e-3)
    assert estimate.caveats == []


def test_without_replicates_and_with_one_seed_nothing_is_decided():
    estimate = difference(sample([40.0]), sample([38.0]))
    assert estimate.interval() is None
    assert judge_better(estimate, HIGHER) == "undecided"
    assert judge_within(apart([sample([40.0]), sample([40.0])]), 1.0) == "undecided"


def test_a_difference_is_supported_refuted_or_undecided_by_its_interval():
    def estimate(value):
        return Estimate(value, 0.25, 0.0, 1)  # interval of value +- 0.98

    outcomes = [judge_better(estimate(v), HIGHER) for v in (1.2, 0.5, -1.2)]
    assert outcomes == ["supported", "undecided", "refuted"]
    assert judge_better(estimate(-1.2), HIGHER, tests=5) == "undecided"


def test_where_lower_is_better_a_negative_difference_is_an_improvement():
    outcomes = [judge_better(Estimate(v, 0.25, 0.0, 1), LOWER) for v in (1.2, -0.5, -1.2)]
    assert outcomes == ["refuted", "undecided", "supported"]
    assert judge_better(Estimate(1.2, 0.25, 0.0, 1), LOWER, tests=5) == "undecided"


def test_nothing_is_decided_where_the_seeds_part_is_unknown_or_nothing_varies_at_all():
    for estimate in (Estimate(9.0, 0.25, None, 1), Estimate(9.0, 0.0, 0.0, 2)):
        assert estimate.interval()[0] > 0
        assert judge_better(estimate, HIGHER) == "undecided"
    nothing = [Sample(np.zeros(1), np.zeros((1, 100)))] * 2
    assert judge_within(apart(nothing), 1.0) == "undecided"


def test_within_a_margin_is_supported_refuted_or_undecided_by_its_bounds():
    judged = [judge_within(Bounds(0.5, bounds), 1.0) for bounds in ((0.0, 0.9), (0.2, 1.1), (1.1, 2.0))]
    assert judged == ["supported", "undecided", "refuted"]


def test_two_cells_apart_is_the_equivalence_test():
    left, right = np.random.default_rng(1).normal(0, 0.2, (2, 5000))
    bounds = apart([sample([40.0], left), sample([39.7], right)])
    low, high = bounds.interval
    assert bounds.value == pytest.approx(0.3)
    assert high == pytest.approx(0.3 + 1.645 * 0.2 * 2**0.5, rel=0.03)
    assert low == 0.0


def test_bounds_of_a_range_contain_those_of_every_pair():
    rng = np.random.default_rng(2)
    cells = [sample([40 + value], rng.normal(0, 0.3, 1000)) for value in (0.0, 0.4, 1.0, 0.6)]
    whole = apart(cells)
    for i in range(4):
        for j in range(i):
            assert whole.interval[1] >= apart([cells[i], cells[j]]).interval[1]
    assert whole.interval[0] <= apart([cells[0], cells[2]]).interval[0]
    assert whole.value == pytest.approx(1.0)


@pytest.mark.parametrize("num_seeds", [2, 3, 5])
def test_intervals_hold_the_truth_about_as_often_as_they_say(num_seeds):
    rng = np.random.default_rng(num_seeds)
    trials, held = 600, 0
    for _ in range(trials):
        image = rng.normal(0, 0.3)  # what this test set adds to the difference, for every seed
        points = 1.0 + image + rng.normal(0, 0.4, num_seeds)
        replicates = points[:, None] + rng.normal(0, 0.3, 200)
        low, high = difference(
            Sample(points, replicates), Sample(np.zeros(num_seeds), np.zeros((num_seeds, 200)))
        ).interval()
        held += low <= 1.0 <= high
    assert 0.92 <= held / trials <= 0.995


def test_the_average_of_cells_is_taken_seed_by_seed_and_resample_by_resample():
    middle = average([sample([1.0, 2.0], np.zeros(3)), sample([3.0, 6.0], np.ones(3))])
    np.testing.assert_allclose(middle.points_S, [2.0, 4.0])
    np.testing.assert_allclose(middle.replicates_SR, [[2.5] * 3, [4.5] * 3])
    assert average([sample([1.0]), sample([1.0], np.zeros(3))]).replicates_SR is None


def test_samples_that_cannot_be_paired_are_refused():
    with pytest.raises(ValueError, match="same seeds"):
        difference(sample([1.0, 2.0]), sample([1.0]))


def test_bootstraps_of_different_lengths_count_as_not_kept():
    short, long = sample([1.0], np.zeros(10)), sample([1.0], np.zeros(11))
    assert "no bootstrap kept" in difference(short, long).caveats
    assert average([short, long]).replicates_SR is None


def test_resamples_that_do_not_define_a_value_are_left_out():
    noise = np.array([1.0, np.nan, -1.0, np.inf])
    assert difference(sample([1.0], noise), sample([0.0], np.zeros(4))).sample_variance == pytest.approx(2.0)
    one = np.array([1.0, np.nan, np.nan, np.nan])
    assert difference(sample([1.0], one), sample([0.0], np.zeros(4))).sample_variance is None


def test_replicates_are_read_by_metric(tmp_path):
    path = tmp_path / "bootstrap.npz"
    np.savez_compressed(path, replicates=np.arange(6.0).reshape(3, 2), metrics=["loss", "accuracy"])
    assert read_replicates(path, "accuracy").tolist() == [1.0, 3.0, 5.0]
    assert read_replicates(path, "AP") is None


def test_replicates_whose_columns_have_no_names_are_refused(tmp_path):
    np.savez(tmp_path / "bootstrap.npz", replicates=np.zeros((2, 6)))
    with pytest.raises(EarlierVersionError, match=r"bootstrap\.npz: of an earlier version"):
        read_replicates(tmp_path / "bootstrap.npz", "AP")


@pytest.mark.parametrize("shape", [(2,), (1, 1), (0, 1), (2, 2), (2, 1, 1)])
def test_replicates_of_another_shape_than_the_names_say_are_refused(tmp_path, shape):
    np.savez(tmp_path / "bootstrap.npz", replicates=np.zeros(shape), metrics=["AP"])
    with pytest.raises(UserError, match=r"bootstrap\.npz: .*has shape"):
        read_replicates(tmp_path / "bootstrap.npz", "AP")


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut off"])
def test_a_damaged_bootstrap_file_is_named(tmp_path, content):
    path = tmp_path / "bootstrap.npz"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"bootstrap\.npz"):
        read_replicates(path, "AP")


def test_replicates_with_any_byte_changed_are_either_read_or_named(tmp_path):
    path = tmp_path / "bootstrap.npz"
    replicates = np.random.default_rng(0).random((5, 1))
    np.savez_compressed(path, replicates=replicates, metrics=["AP"])
    whole, harmless = path.read_bytes(), 0
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        with suppress(UserError):
            assert np.array_equal(read_replicates(path, "AP"), replicates[:, 0]), place
            harmless += 1
    assert harmless < len(whole) / 2


def test_one_seed_takes_the_spread_that_the_profile_states():
    flat = np.zeros(100)
    left = Sample(np.array([40.0]), np.full((1, 100), 40.0) + flat, assumed=SeedNoise(0.75, 8))
    right = Sample(np.array([38.0]), np.full((1, 100), 38.0) + flat, assumed=SeedNoise(0.75, 8))
    estimate = difference(left, right)
    low, high = estimate.interval()
    half = 2.306 * 0.75 * 2**0.5  # Student's t with what the spread rests on
    assert (low, high) == pytest.approx((2 - half, 2 + half), abs=0.01)
    assert "taken from the profile" in estimate.caveats[0]


def test_measured_seeds_come_before_assumed_ones():
    left = Sample(np.array([40.0, 41.0]), assumed=SeedNoise(0.75, 8))
    right = Sample(np.array([38.0, 39.0]), assumed=SeedNoise(0.75, 8))
    estimate = difference(left, right)
    assert estimate.seed_variance == 0.0
    assert estimate.caveats == ["no bootstrap kept"]
