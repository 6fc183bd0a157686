from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ablation.errors import UserError
from ablation.plan import Counts, Plan, make_plan, register
from ablation.plan_text import describe_plan
from ablation.protocol import Evaluated, Progress
from ablation.resources import Resources, parse_overrides
from ablation.store import Store
from ablation.study import Study, Table
from tests.support.tiny_study import STUDY, TinySetting, cells, never, row


class SeedlessSetting(TinySetting):
    def trial(self, training: Any, seed: int) -> Any:
        return training


SETTING = TinySetting()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store.db")


def plan(store: Store | None = None, *, seeds: tuple[int, ...] = (0,), tables: Any = None) -> Plan:
    return make_plan(STUDY, SETTING, seeds, tables, store)


def run(store: Store, made: Plan, trial_key: str, *, evaluations: int | None = None) -> None:
    """Runs a trial in no time, with only the first `evaluations` of what is missing."""
    attempt = store.claim(trial_key, "test", {})
    assert attempt is not None
    store.record(attempt, [Progress(10, 10)])
    for evaluation in made.trial(trial_key).missing[:evaluations]:
        store.record(attempt, [Evaluated(evaluation.key, {"AP": 39.3})])
    store.finish(attempt)


def test_equal_rows_are_one_trial_and_another_test_is_one_more_evaluation() -> None:
    counts = plan().counts()
    assert counts == Counts(
        rows=6, cells=12, trainings=4, evaluations=5, complete=0, running=0, waiting=4, failed=0
    )


def test_every_seed_is_a_training_of_its_own_and_first_seeds_come_first() -> None:
    trials = plan(seeds=(0, 3)).trials
    assert [trial.seed for trial in trials] == [0, 0, 0, 0, 3, 3, 3, 3]
    assert len({trial.key for trial in trials}) == 8
    assert [trial.config.training.topk for trial in trials[:4]] == [3, 5, 9, 7]


def test_a_name_is_of_the_first_row_that_cites_a_trial_with_its_column_where_cells_differ() -> None:
    assert [trial.name for trial in plan().trials] == [
        "table1 k=3, seed 0",
        "table1 k=5, seed 0",
        "table1 k=9, seed 0",
        "table2 mixed point, seed 0",
    ]


def test_citing_tables_and_names_do_not_depend_on_which_tables_are_asked() -> None:
    whole = {trial.key: (trial.name, trial.tables) for trial in plan().trials}
    part = {trial.key: (trial.name, trial.tables) for trial in plan(tables=["table3"]).trials}
    assert list(part.values()) == [("table1 k=9, seed 0", ("table1", "table2", "table3"))]
    assert part.items() <= whole.items()


def test_only_the_asked_tables_are_planned() -> None:
    assert plan(tables=["table1"]).counts().evaluations == 3
    assert plan(tables=["table3"]).counts().evaluations == 2
    assert plan(tables=["table3", "table1"]).table_ids == ("table1", "table3")


def test_a_cell_leads_to_its_trial_and_evaluation() -> None:
    made = plan(seeds=(0, 1))
    single, multi = STUDY.table("table3").rows
    trial_key, single_key = made.lookup(single.cells[0], 1)
    assert made.lookup(multi.cells[0], 1)[0] == trial_key
    assert made.trial(trial_key).seed == 1
    assert [e.key for e in made.trial(trial_key).evaluations] == [
        single_key,
        made.lookup(multi.cells[1], 1)[1],
    ]
    assert made.lookup(STUDY.table("table1").rows[2].cells[0], 1) == (trial_key, single_key)


def test_what_is_not_planned_is_not_found() -> None:
    made = plan()
    with pytest.raises(KeyError):
        made.lookup(cells(9)[0], 1)
    with pytest.raises(KeyError):
        made.trial("0" * 12)


def test_a_plan_made_with_a_store_writes_nothing(store: Store) -> None:
    plan(store)
    assert store.trial_states() == {}


def test_registering_twice_changes_nothing(store: Store) -> None:
    register(plan(store), store)
    before = store.trial_states()
    register(plan(store), store)
    assert store.trial_states() == before
    assert before.keys() == {trial.key for trial in plan().trials}
    assert before[plan().trials[2].key].tables == ("table1", "table2", "table3")


def test_states_come_from_the_store(store: Store) -> None:
    made = plan(store)
    register(made, store)
    done, failed, running, waiting = (trial.key for trial in made.trials)
    run(store, made, done)
    lost = store.claim(failed, "test", {})
    assert lost is not None
    store.fail(lost, "Traceback\nValueError: boom\n")
    attempt = store.claim(running, "test", {})
    assert attempt is not None
    store.record(attempt, [Progress(4, 10)])
    again = plan(store)
    assert [trial.state for trial in again.trials] == ["COMPLETE", "FAILED", "RUNNING", "WAITING"]
    assert [trial.key for trial in again.work()] == [waiting]
    assert (again.trial(running).step, again.trial(running).total) == (4, 10)
    assert again.trial(failed).error == "Traceback\nValueError: boom\n"
    assert again.counts().failed == 1
    store.retry([failed])
    assert [trial.key for trial in plan(store).work()] == [failed, waiting]


def test_a_further_evaluation_makes_a_complete_trial_work_and_asks_only_for_that(store: Store) -> None:
    first = plan(store, tables=["table1"])
    register(first, store)
    key = first.trials[2].key
    run(store, first, key)
    assert plan(store, tables=["table1"]).trial(key).state == "COMPLETE"
    more = plan(store)
    assert more.trial(key).state == "WAITING"
    assert [e.config.multi_scale for e in more.trial(key).missing] == [True]
    register(more, store)
    run(store, more, key)
    assert plan(store).trial(key).state == "COMPLETE"


def test_a_trial_is_complete_for_a_plan_that_no_longer_wants_what_is_missing(store: Store) -> None:
    made = plan(store)
    register(made, store)
    key = made.trials[2].key
    run(store, made, key, evaluations=1)
    assert plan(store).trial(key).state == "WAITING"
    assert plan(store, tables=["table1"]).trial(key).state == "COMPLETE"


def test_more_seeds_keep_what_is_done(store: Store) -> None:
    made = plan(store)
    register(made, store)
    for trial in made.trials:
        run(store, made, trial.key)
    more = plan(store, seeds=(0, 1))
    assert (more.counts().complete, more.counts().waiting) == (4, 4)
    assert plan(store).work() == ()


def test_the_description_says_what_is_shared_extra_done_and_failed(store: Store) -> None:
    made = plan(store)
    register(made, store)
    run(store, made, made.trials[0].key)
    attempt = store.claim(made.trials[1].key, "test", {})
    assert attempt is not None
    store.fail(attempt, "Traceback\nValueError: boom\n")
    assert describe_plan(plan(store)) == (
        """\
ATSS: 3 tables, 6 rows, 12 cells
Profile tiny, data dots, seed 0. Four images.
4 trainings, 5 evaluations: 1 complete, 0 running, 2 waiting, 1 failed

table         rows  trainings   new  complete  running  waiting  failed
table1           3          3     3         1        0        1       1
table2           1          2     1         0        0        2       0
table3           2          1     0         0        0        1       0

Shared, trained once:
  table2 mixed = table1 k=9
  table3 single = table1 k=9
  table3 multi = table1 k=9

Tested in more than one way:
  table1 k=9, seed 0: 2 evaluations

Failed, and left alone until a retry is asked for:
  """
        + made.trials[1].key
        + " table1 k=5, seed 0: ValueError: boom"
    )


def test_the_description_of_a_plan_without_a_store_needs_none() -> None:
    text = describe_plan(plan(seeds=(0, 1, 2), tables=["table1"]))
    assert "9 trainings (3 different x 3 seeds), 9 evaluations" in text
    assert "seeds 0, 1, 2." in text
    assert "Failed" not in text


@pytest.mark.parametrize("seeds", [(), (1, 1), (-1,)])
def test_seeds_must_be_different_and_not_negative(seeds: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="Seeds must be different"):
        plan(seeds=seeds)


@pytest.mark.parametrize("tables", [["table9"], ["table1", "tabel2"], []])
def test_tables_that_do_not_exist_are_named_with_those_that_do(tables: list[str]) -> None:
    with pytest.raises(UserError, match="has the tables table1, table2, table3; asked for"):
        plan(tables=tables)


def test_a_trial_config_without_the_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="does not hold the seed"):
        make_plan(STUDY, SeedlessSetting(), (0, 1))


def test_what_is_left_to_do_is_counted_from_the_newest_step_and_without_what_is_done(store: Store) -> None:
    made = plan(store)
    register(made, store)
    assert [trial.cost for trial in made.trials] == [301, 501, 906, 701]
    three, five, nine, _ = (trial.key for trial in made.trials)
    run(store, made, three)
    attempt = store.claim(five, "test", {})
    assert attempt is not None
    store.record(attempt, [Progress(4, 10)])
    run(store, made, nine, evaluations=1)
    assert [trial.cost for trial in plan(store).trials] == [0, 301, 5, 701]


def test_a_person_changes_resources_for_all_a_table_a_row_or_a_trial() -> None:
    nine = plan().trials[2].key
    texts = [
        "table2=workers:2",
        f"{nine}=gpus:1",
        "all=cpus:4,gpus:0,memory:2G",
        "table1/k=5=workers:3",
        "3=workers:4",
    ]
    made = make_plan(STUDY, SETTING, (0,), resources=parse_overrides(texts))
    assert [trial.resources for trial in made.trials] == [
        Resources(1, 4, 0, 2 << 30),
        Resources(3, 4, 0, 2 << 30),
        Resources(4, 4, 1, 2 << 30),  # of table2 and table3, the later
        Resources(2, 4, 0, 2 << 30),
    ]
    assert [trial.resources for trial in plan().trials] == [None, None, Resources(cpus=2), None]


@pytest.mark.parametrize("where", ["table9", "table1/k=4", "0" * 12, "ALL"])
def test_resources_for_what_is_not_there_are_refused(where: str) -> None:
    with pytest.raises(UserError, match=f"--resources {where}: it is none of all, table1, table2, table3"):
        make_plan(STUDY, SETTING, (0,), resources=parse_overrides([f"{where}=cpus:2"]))


def test_a_cancelled_trial_is_counted_and_named_and_no_work(store: Store) -> None:
    made = plan(store)
    register(made, store)
    store.cancel([made.trials[1].key])
    again = plan(store)
    assert again.trials[1].state == "CANCELLED"
    assert (again.counts().cancelled, len(again.work())) == (1, 3)
    text = describe_plan(again, "About 3 hours.")
    assert "0 failed, 1 cancelled" in text
    assert "failed  cancelled\n" in text
    assert f"Cancelled, until a retry is asked for:\n  {made.trials[1].key} table1 k=5, seed 0" in text
    assert text.endswith("\n\nAbout 3 hours.")


def test_a_config_without_identity_is_refused_with_its_row() -> None:
    bad = Study(
        "bad",
        "Bad",
        STUDY.metrics,
        (Table("t", "", (), ("AP", "AP50"), (row("x", float("nan")),)),),
        (),
        {},
        "",
        never,
    )
    with pytest.raises(TypeError, match="topk") as caught:
        make_plan(bad, SETTING, (0,))
    assert caught.value.__notes__ == ["in t, row 'x'"]


def test_an_evaluation_is_named_after_the_first_row_that_cites_it() -> None:
    (nine,) = plan(tables=["table3"]).trials
    assert [(e.config.multi_scale, e.name) for e in nine.evaluations] == [
        (False, "table3 single, seed 0"),
        (True, "table3 multi, seed 0"),
    ]
