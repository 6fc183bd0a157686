"""A person steers a study through its store, by names that people use."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from ablation.control.control import Control, chosen, trial_of
from ablation.errors import UserError
from ablation.plan import make_plan
from tests.support import workspaces

MakeWorkspace = Callable[..., workspaces.Workspace]


@pytest.fixture
def workspace(make_workspace: MakeWorkspace) -> workspaces.Workspace:
    return make_workspace()


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("table4 k=5, seed 0", "table4 k=5, seed 0"),
        ("table4 k=5", "table4 k=5, seed 0"),
        ("table1 base", "table1 base, seed 0"),  # though "table1 base+gn" starts so too
        ("table3 a_b", "table1 base+gn+giou, seed 0"),  # by any row that cites it
        ("table2 IoU B", "table2 IoU Box, seed 0"),
        (" table3 c ", "table3 c, seed 0"),
    ],
)
def test_a_trial_is_named_by_a_row_that_cites_it_or_the_start_of_its_name(
    word: str, name: str, workspace: workspaces.Workspace
) -> None:
    assert trial_of(workspace.plan, word).name == name


def test_a_trial_is_named_by_its_key_or_the_start_of_it(workspace: workspaces.Workspace) -> None:
    trial = workspace.plan.trials[-1]
    assert trial_of(workspace.plan, trial.key) == trial
    assert trial_of(workspace.plan, trial.key[:9]) == trial


@pytest.mark.parametrize(
    ("word", "candidates"),
    [("table4 k", ["k=3", "k=5", "k=7"]), ("table1 base+", ["base+gn, seed 0", "base+gn+giou, seed 0"])],
)
def test_a_name_of_several_trials_is_refused_with_a_list_of_them(
    word: str, candidates: list[str], workspace: workspaces.Workspace
) -> None:
    with pytest.raises(UserError) as caught:
        trial_of(workspace.plan, word)
    assert str(caught.value).count("\n") == len(candidates) + 1
    assert all(candidate in str(caught.value) for candidate in candidates)


def test_a_row_at_several_seeds_is_several_trials(make_workspace: MakeWorkspace) -> None:
    plan = make_workspace((0, 1)).plan
    with pytest.raises(UserError, match=r"(?s)k=5, seed 0.*k=5, seed 1"):
        trial_of(plan, "table4 k=5")
    assert trial_of(plan, "table4 k=5, seed 1").seed == 1


@pytest.mark.parametrize("word", ["table9", "", "nothing", "9"])
def test_a_word_that_names_nothing_is_refused(word: str, workspace: workspaces.Workspace) -> None:
    with pytest.raises(UserError, match=f"No trial is called '{word}', and no table; the tables are table1,"):
        chosen(workspace.plan, [word])


def test_a_word_that_is_nearly_a_name_is_refused_with_the_name(workspace: workspaces.Workspace) -> None:
    with pytest.raises(UserError, match=r"(?s)The nearest names:.*  table4 k=5"):
        trial_of(workspace.plan, "tabel4 k=5")


def test_a_trial_has_the_name_that_was_printed_also_where_another_table_was_asked_for(
    workspace: workspaces.Workspace,
) -> None:
    plan = make_plan(workspace.study, workspace.setting, [0], ["table3"])
    for trial in plan.trials:  # table3 shares a training with table1, whose name it has
        assert trial_of(plan, trial.name).key == trial.key
        assert trial_of(plan, trial.name.removesuffix(", seed 0")).key == trial.key
        assert trial_of(plan, trial.key[:6]).key == trial.key
    assert any(trial.name.startswith("table1") for trial in plan.trials)


def test_a_table_names_each_trial_that_it_cites_once(workspace: workspaces.Workspace) -> None:
    by_words = chosen(workspace.plan, ["3", "table3", "table3 c", "table4 k=5"])
    assert [trial.name for trial in by_words] == [
        "table1 base+gn+giou, seed 0",
        "table3 c, seed 0",
        "table4 k=5, seed 0",
    ]


def test_cancelled_trials_are_not_run_until_a_retry(workspace: workspaces.Workspace) -> None:
    control = Control(workspace.plan, workspace.store)
    trials = chosen(workspace.plan, ["table4"])
    workspace.measure("k3", 49.3)
    assert control.cancel(trials) == trials[1:]  # what is complete stays
    assert not {trial.key for trial in trials} & {trial.key for trial in workspace.plan.work()}
    assert workspace.store.claim(trials[1].key, "driver", {}) is None
    assert control.retry(trials) == trials[1:]
    assert {trial.key for trial in trials[1:]} <= {trial.key for trial in workspace.plan.work()}


def test_a_trial_that_no_run_has_added_can_be_cancelled(workspace: workspaces.Workspace) -> None:
    more = make_plan(workspace.study, workspace.setting, (0, 1, 2), None, workspace.store)
    new = [trial for trial in chosen(more, ["table4"]) if trial.seed == 2]
    assert Control(more, workspace.store).cancel(new) == new
    assert len(workspace.store.trial_states()) == len(workspace.plan.trials) + len(new)


def test_priorities_are_raised_relative_to_each_trials_own(workspace: workspaces.Workspace) -> None:
    control = Control(workspace.plan, workspace.store)
    one, two = chosen(workspace.plan, ["table3"])
    assert control.prioritise([one], 5) == {one.key: 5}
    assert control.prioritise([one, two], -1) == {one.key: 4, two.key: -1}
    rows = workspace.store.trial_states([one.key, two.key])
    assert (rows[one.key].priority, rows[two.key].priority) == (4, -1)


def test_a_pause_concerns_one_profile_on_one_data_set(workspace: workspaces.Workspace) -> None:
    elsewhere = replace(workspace.plan, setting=replace(workspace.setting, data_name="others"))
    Control(workspace.plan, workspace.store).set_paused(True)
    where = (workspace.study.name, workspace.setting.profile)
    assert workspace.store.paused(*where, workspace.setting.data_name)
    assert not workspace.store.paused(*where, elsewhere.setting.data_name)
    Control(workspace.plan, workspace.store).set_paused(False)
    assert not workspace.store.paused(*where, workspace.setting.data_name)
