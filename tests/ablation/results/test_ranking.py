"""Which rows are best, which cannot be told apart, and two rows side by side."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest

from ablation.errors import UserError
from ablation.metric import Metric, SeedNoise
from ablation.render.answer import answer
from ablation.results.comparison import compare_rows, find_row
from ablation.results.ranking import Ranking, rank
from ablation.results.statistics import Estimate, Sample, difference, holm, seeds_to_decide
from ablation.results.table import assemble
from tests.support.workspaces import Workspace

Make = Callable[..., Workspace]


def ranking(workspace: Workspace, table: str, column: str | None = None) -> Ranking:
    [filled] = assemble(workspace.study, workspace.plan, workspace.store, [table])
    return rank(filled, workspace.setting, column)


def measured(make: Make, seeds: int, **values: float) -> Workspace:
    """Each method measured at each seed, with a spread of 0.1 over seeds."""
    workspace = make(tuple(range(seeds)))
    generator = np.random.default_rng(1)
    for method, value in values.items():
        noise = generator.normal(0, 0.1, seeds)
        for seed in range(seeds):
            workspace.measure(method, value + float(noise[seed] - noise.mean()), seed)
    return workspace


def test_holm_multiplies_the_smallest_by_all_and_never_decreases() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


def test_an_unknown_p_value_stays_unknown_and_counts_as_a_test() -> None:
    assert holm([0.02, None]) == [0.04, None]


def test_holm_decides_falsely_in_at_most_five_percent_of_families() -> None:
    generator = np.random.default_rng(0)
    families = generator.uniform(size=(4000, 6))
    wrong = sum(min(p for p in holm(list(family)) if p is not None) <= 0.05 for family in families)
    assert 0.035 < wrong / len(families) <= 0.06


def test_the_p_value_is_five_percent_where_the_interval_touches_zero() -> None:
    estimate = Estimate(1.0, 0.04, 0.09, 3)
    low, _ = estimate.interval() or (0.0, 0.0)
    touching = Estimate(1.0 - low, 0.04, 0.09, 3)
    assert touching.p_value == pytest.approx(0.05)
    assert Estimate(1.0, 0.04, None, 1).p_value is None


def test_seeds_to_decide_is_the_first_number_whose_interval_excludes_zero() -> None:
    # Student's t with n - 1 degrees of freedom times 1 / sqrt(n) falls below 0.8 from n = 9 on.
    assert seeds_to_decide(Estimate(0.8, 0.0, 1 / 2, 2)) == 9


def test_no_number_of_seeds_decides_what_the_images_leave_open() -> None:
    assert seeds_to_decide(Estimate(0.8, 1.0, 0.1, 2)) is None
    assert seeds_to_decide(Estimate(0.8, 0.01, None, 1)) is None


def test_rows_that_differ_by_more_than_their_noise_are_groups_of_their_own(make_workspace: Make) -> None:
    workspace = measured(make_workspace, 4, base=30.0, gn=35.0, giou=40.0)
    found = ranking(workspace, "table1")
    assert [[row.label for row in group] for group in found.groups] == [
        ["base+gn+giou"],
        ["base+gn"],
        ["base"],
    ]
    assert found.groups[2][0].versus_best is not None
    assert found.groups[2][0].versus_best.estimate.value == pytest.approx(-10.0)


def test_rows_that_differ_by_less_than_their_noise_share_a_group(make_workspace: Make) -> None:
    workspace = measured(make_workspace, 4, base=30.0, gn=35.0, giou=35.01)
    found = ranking(workspace, "table1")
    assert [row.label for row in found.groups[0]] == ["base+gn+giou", "base+gn"]
    assert [row.label for row in found.rows] == ["base+gn+giou", "base+gn", "base"]
    words = " ".join(answer(found))
    assert "Not told apart from it: base+gn" in words
    assert "Worse: base (" in words


def test_a_row_without_a_number_is_named(make_workspace: Make) -> None:
    workspace = measured(make_workspace, 2, base=30.0, gn=35.0)
    assert "Without a number: other, base+gn+giou." in answer(ranking(workspace, "table1"))


def test_one_seed_of_unknown_spread_says_what_the_test_samples_say_and_decides_nothing(
    make_workspace: Make,
) -> None:
    workspace = measured(make_workspace, 1, base=30.0, gn=35.0, giou=40.0)
    workspace.setting.seed_noise = {}
    words = " ".join(answer(ranking(workspace, "table1")))
    assert "Highest: base+gn+giou, 40.0." in words
    assert "base+gn (−5.0 [−" in words
    assert "nothing is decided: train with --seeds 3" in words
    assert "Worse" not in words


def test_an_assumed_spread_lets_one_seed_decide_large_differences(make_workspace: Make) -> None:
    workspace = measured(make_workspace, 1, base=30.0, gn=35.0, giou=40.0)
    workspace.setting.seed_noise = {"AP": SeedNoise(0.1, 8)}
    assert len(ranking(workspace, "table1").groups) == 3


def test_a_ranking_as_data_is_json_and_says_what_it_would_take(make_workspace: Make) -> None:
    workspace = measured(make_workspace, 3, base=30.0, gn=35.0, giou=35.05)
    data = json.loads(json.dumps(ranking(workspace, "table1").data()))
    best, second = data["groups"][0]
    assert best["row"] == "base+gn+giou"
    assert second["decided"] is False
    assert second["interval"][0] < second["minus_best"] < second["interval"][1]


def test_an_unknown_column_is_refused_with_those_there_are(full: Workspace) -> None:
    with pytest.raises(UserError, match="has no column 'AP99'; it has: AP"):
        ranking(full, "table1", "AP99")


def test_where_lower_is_better_the_lowest_row_is_best() -> None:
    metric = Metric("error", better="lower")
    worse, better = Sample(np.array([5.0, 5.2])), Sample(np.array([3.0, 3.1]))
    assert metric.improvement(difference(worse, better).value) < 0


def test_two_rows_are_compared_by_every_metric_of_their_tests(full: Workspace) -> None:
    left, right = find_row(full.study, "table1 base+gn"), find_row(full.study, "table1 base")
    found = {one.name: one for one in compare_rows(full.study, full.plan, full.store, left, right)}
    assert list(found) == ["AP", "APS"]
    assert found["AP"].estimate is not None
    assert found["AP"].left is not None
    assert found["AP"].right is not None
    assert found["AP"].estimate.value == pytest.approx(found["AP"].left - found["AP"].right)
    json.dumps([one.data() for one in found.values()])


def test_a_label_of_one_training_names_its_row(full: Workspace) -> None:
    assert find_row(full.study, "BASE+gn").row.label == "base+gn"


def test_a_name_of_several_trainings_is_refused_with_their_names(full: Workspace) -> None:
    with pytest.raises(UserError, match=r"may be any of these rows; name one:\n  table1 base"):
        find_row(full.study, "gn")
    with pytest.raises(UserError, match="No row is called 'yolo'"):
        find_row(full.study, "yolo")
