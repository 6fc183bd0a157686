"""A metric says how its values are written, rounded and compared."""

import pytest

from ablation.metric import SECONDS, Metric

AP = Metric("AP", tolerance=0.3)
ERROR = Metric("error", better="lower", digits=2)
TIME = Metric("time", unit=SECONDS, better="lower", digits=0, label="Time")
COUNT = Metric("objects", unit="", digits=0)


def test_numbers_have_the_metrics_digits_a_real_minus_and_no_minus_zero() -> None:
    assert [AP.text(value) for value in (37.04, -0.04, -1.26)] == ["37.0", "0.0", "−1.3"]
    assert [ERROR.text(value) for value in (4.004, 4.0)] == ["4.00", "4.00"]
    assert [TIME.text(12.6), TIME.text(12.6, 1)] == ["13", "12.6"]


def test_a_difference_has_its_sign_and_one_that_rounds_to_zero_none() -> None:
    assert [AP.signed(value) for value in (0.16, -0.16, 0.04, -0.04)] == ["+0.2", "−0.2", "0.0", "0.0"]
    assert ERROR.signed(0.04) == "+0.04"


def test_units_stand_behind_values_and_differences_of_percentages_are_points() -> None:
    assert [m.difference_unit for m in (AP, TIME, COUNT)] == ["points", "s", ""]
    assert [m.with_unit(3.0) for m in (AP, TIME, COUNT)] == ["AP 3.0 %", "Time 3 s", "objects 3"]
    axes = [m.axis for m in (AP, ERROR, TIME, COUNT)]
    assert axes == ["AP (%)", "error (%, lower is better)", "Time (s, lower is better)", "objects"]


def test_a_legend_names_unit_and_direction() -> None:
    assert ERROR.legend() == "error in %, lower is better"
    assert ERROR.legend(differences=True) == "error in points, lower is better"
    assert COUNT.legend() == "objects, higher is better"


def test_the_best_value_and_the_gain_follow_the_direction() -> None:
    assert (AP.best([1.0, 3.0, 2.0]), ERROR.best([1.0, 3.0, 2.0])) == (3.0, 1.0)
    assert (AP.improvement(2.0), ERROR.improvement(2.0)) == (2.0, -2.0)


def test_a_number_is_reproduced_when_it_is_within_the_tolerance_as_shown() -> None:
    assert AP.reproduces(39.64, 39.3)  # shows as 39.6
    assert not AP.reproduces(39.66, 39.3)
    assert ERROR.reproduces(4.0, 4.0) is None, "it has no tolerance"


def test_a_metric_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a name"):
        Metric("")
    with pytest.raises(ValueError, match="higher, lower or neither, got 'smaller'"):
        Metric("error", better="smaller")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="digits must be >= 0, got -1"):
        Metric("error", digits=-1)
