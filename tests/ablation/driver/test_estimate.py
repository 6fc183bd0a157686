"""How long a plan takes, and on what that rests."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ablation.calibration import Calibration, Measured, calibrate, measured, seconds_left
from ablation.driver.estimate import estimate, makespan
from ablation.driver.scheduler import GangScheduler, QueueEntry
from ablation.plan import Plan, make_plan, register
from ablation.protocol import Evaluated, Progress
from ablation.resources import Node, Resources, parse_overrides
from ablation.store import Store
from tests.support.tiny_study import STUDY, TinySetting

GPU = Resources(cpus=4, gpus=1)


class Setting(TinySetting):
    """A training of k is k hundred units of work, a plain evaluation one and one at several scales five."""

    def resources(self, trial: Any) -> Resources | None:
        return None


@dataclass
class Pace:
    trial_key: str
    steps: int
    train_seconds: float
    total_seconds: float
    complete: bool


def paced(*rows: Pace, total: int = 10) -> Store:
    """A store that knows paces and totals."""

    def trial_states(keys: Collection[str]) -> dict[str, SimpleNamespace]:
        return {key: SimpleNamespace(total=total) for key in keys}

    return cast(Store, SimpleNamespace(pace=lambda *where: list(rows), trial_states=trial_states))


def plan(
    store: Store | None = None, seeds: Sequence[int] = (0,), resources: Sequence[str] = ("all=gpus:1,cpus:4",)
) -> Plan:
    return make_plan(STUDY, Setting(), seeds, None, store, parse_overrides(resources))


def calibrated(made: Plan, *found: Measured) -> Calibration:
    calibration = calibrate(made, found)
    assert calibration is not None
    return calibration


def test_the_pace_of_attempts_is_read_from_the_store() -> None:
    made = plan(resources=["all=workers:2,gpus:0"])
    three, five = made.trials[0].key, made.trials[1].key
    store = paced(
        Pace(three, 8, 16.0, 30.0, True),
        Pace(five, 4, 12.0, 30.0, False),
        Pace(five, 0, 0.0, 3.0, False),
    )
    assert measured(made, store) == [Measured(three, 2.0, 10, 2, 14.0), Measured(five, 3.0, 10, 2, None)]


def test_what_was_measured_counts_for_its_row_whatever_the_seed() -> None:
    made = plan(seeds=(0, 1))
    three, five = made.trials[0].key, made.trials[1].key
    found = calibrated(made, Measured(three, 6.0, 100), Measured(five, 2.0, 100))
    seconds = seconds_left(made, found)
    rest = found.rest_unit_seconds
    assert [seconds[t.key] for t in made.trials if t.config.training.topk == 3] == [600 + rest] * 2
    assert [seconds[t.key] for t in made.trials if t.config.training.topk == 5] == [200 + rest] * 2


def test_other_rows_take_as_long_as_their_work_at_the_median_pace() -> None:
    made = plan()
    three, five, nine, seven = (trial.key for trial in made.trials)
    found = calibrated(made, Measured(three, 3.0, 100), Measured(five, 10.0, 100), Measured(seven, 21.0, 100))
    assert found.unit_seconds == 2.0  # of 1, 2 and 3
    assert found.rest_unit_seconds == 2.0  # nothing said of evaluations
    assert seconds_left(made, found)[nine] == 2 * (900 + 6)


def test_start_and_evaluations_are_counted_as_they_were_measured() -> None:
    made = plan()
    three, _, nine, _ = (trial.key for trial in made.trials)
    found = calibrated(made, Measured(three, 3.0, 100, rest_seconds=50.0))
    assert seconds_left(made, found) == pytest.approx({
        three: 350, made.trials[1].key: 550, nine: 900 + 6 * 50, made.trials[3].key: 750,
    })  # fmt: skip


def test_more_workers_take_the_less_time() -> None:
    alone, together = plan(), plan(resources=["all=workers:4,gpus:0"])
    found = calibrated(alone, Measured(alone.trials[0].key, 3.0, 100))
    ratio = {
        key: seconds / seconds_left(together, found)[key]
        for key, seconds in seconds_left(alone, found).items()
    }
    assert ratio == pytest.approx(dict.fromkeys(ratio, 4.0))


def test_what_is_done_takes_no_time_and_what_has_begun_takes_the_rest(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store.db")
    made = plan(store)
    register(made, store)
    three, five = made.trials[:2]
    for trial, step in ((three, 10), (five, 4)):
        attempt = store.claim(trial.key, "test", {})
        assert attempt is not None
        store.record(attempt, [Progress(step, 10)])
        if trial is three:
            store.record(attempt, [Evaluated(three.missing[0].key, {"AP": 1.0})])
            store.finish(attempt)
    again = plan(store)
    seconds = seconds_left(again, calibrated(again, Measured(five.key, 50.0, 10, rest_seconds=7.0)))
    assert seconds[three.key] == 0
    assert seconds[five.key] == pytest.approx(0.6 * 500 + 7)
    assert estimate(again, None, [Node("a", 1, 0, 0)]).trials == 3


def test_without_a_measurement_there_is_an_order_and_no_estimate() -> None:
    made = plan()
    assert calibrate(made, []) is None
    assert calibrate(made, [Measured("f" * 12, 1.0, 100)]) is None
    assert seconds_left(made, None) == {trial.key: trial.cost for trial in made.trials}
    found = estimate(made, None, [Node("a", 16, 8, 0)])
    assert (found.gpu_hours, found.wall_seconds) == (None, None)
    assert found.describe() == (
        """\
Estimate: none yet. --probe times a few steps; so does the first training.
  4 trials of 4 CPUs, 1 GPU
  disk: about 4.0 GiB (1.0 GiB a trial assumed: none has finished here)"""
    )


def test_the_estimate_says_what_it_takes_and_what_it_rests_on() -> None:
    made = plan(resources=["all=gpus:1,cpus:4", "1/k=3=workers:2,memory:16G"])
    found = [Measured(trial.key, step, 3600) for trial, step in zip(made.trials, (1, 2, 3, 4), strict=True)]
    text = estimate(made, calibrate(made, found), [Node("a", 8, 2, 64 << 30)]).describe()
    assert text == (
        """\
Estimate, from 4 trainings measured here, 27% apart for equal work:
  10 GPU-hours, 40.1 CPU-hours
  about 5 h 31 min on 1 node of 8 CPUs and 2 GPUs in all
  longest: table2 mixed point, seed 0, 4 h 00 min
  1 trial of 2 workers of 4 CPUs, 1 GPU, 16.0 GiB; 3 trials of 4 CPUs, 1 GPU
  disk: about 4.0 GiB (1.0 GiB a trial assumed: none has finished here)"""
    )


@pytest.mark.parametrize(
    ("probed", "basis"), [(True, "from a probe of 1 training"), (False, "from 1 training measured here")]
)
def test_a_probe_is_named_as_one(probed: bool, basis: str) -> None:
    made = plan()
    found = calibrate(made, [Measured(made.trials[0].key, 1.0, 100)], probed=probed)
    assert found is not None and found.basis == basis


def test_where_there_are_no_gpus_nobody_holds_any() -> None:
    made = plan(resources=["all=gpus:1,cpus:0"])
    found = estimate(made, None, [Node("a", 2, 0, 0)])
    assert found.sizes == {Resources(cpus=1): 4}
    assert found.homeless == ()


def test_a_trial_without_a_size_of_its_own_holds_the_machines_share() -> None:
    made = plan(resources=())
    share = Resources(cpus=1, gpus=0.5)
    found = estimate(
        made, calibrate(made, [Measured(made.trials[0].key, 36.0, 100)]), [Node("a", 2, 1, 0)], share=share
    )
    assert found.sizes == {share: 4}
    assert found.gpu_hours == pytest.approx(0.5 * sum(seconds_left(made, found.calibration).values()) / 3600)


def test_what_fits_on_no_node_is_named() -> None:
    made = plan(resources=["all=gpus:1", "table1=gpus:4"])
    found = estimate(made, calibrate(made, [Measured(made.trials[0].key, 1.0, 100)]), [Node("a", 8, 2, 0)])
    assert found.homeless == ("table1 k=3, seed 0", "table1 k=5, seed 0", "table1 k=9, seed 0")
    assert found.describe().endswith("no node has room for table1 k=3, seed 0 and 2 more")


def test_disk_is_what_finished_trials_take(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store.db")
    made = plan(store)
    register(made, store)
    done = made.trials[0]
    attempt = store.claim(done.key, "test", {})
    assert attempt is not None
    store.record(attempt, [Evaluated(done.missing[0].key, {"AP": 1.0})])
    store.finish(attempt)
    folder = tmp_path / done.key / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "last.pt").write_bytes(bytes(3 << 20))
    found = estimate(plan(store), None, [Node("a", 1, 0, 0)], directory=lambda key: tmp_path / key)
    assert (found.disk, found.disk_basis) == (9 << 20, "3 MiB a trial, as finished ones have")


def test_nothing_left_takes_nothing(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store.db")
    made = plan(store)
    register(made, store)
    store.cancel([trial.key for trial in made.trials])
    assert estimate(plan(store), None, []).describe() == "Estimate: nothing is left to do."


@pytest.mark.parametrize(("slots", "seconds"), [(1, 60), (2, 30), (8, 20)])
def test_wall_time_is_what_the_scheduler_would_make_of_it(slots: int, seconds: float) -> None:
    work = [20, 10, 10, 10, 5, 5]
    nodes = [Node("a", slots, 0, 0)]
    assert (
        makespan(GangScheduler(nodes), (QueueEntry(str(i), Resources(), s) for i, s in enumerate(work)))
        == seconds
    )
