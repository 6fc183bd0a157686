"""A few steps of one training tell the pace of a machine."""

from pathlib import Path

import pytest

from ablation.driver.probe import probe
from ablation.plan import Plan, make_plan
from tests.support.toy_driver import Toy, ToySetting, toy_study, train


def _plan(*toys: Toy) -> Plan:
    return make_plan(toy_study(list(toys)), ToySetting(), [0])


@pytest.mark.process
@pytest.mark.timeout(120)
def test_a_probe_measures_the_pace_after_the_first_step_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    plan = _plan(Toy("slow", steps=1000, step_seconds=0.2))
    seen = probe(train, plan.trials, None)
    assert seen is not None
    assert (seen.trial_key, seen.steps) == (plan.trials[0].key, 1000)
    assert 0.2 <= seen.step_seconds < 0.6
    assert list(tmp_path.iterdir()) == []


@pytest.mark.process
@pytest.mark.timeout(120)
def test_a_training_that_fails_or_says_nothing_in_time_tells_no_pace() -> None:
    assert probe(train, (), None) is None
    assert probe(train, _plan(Toy("broken", steps=1, fault="raise")).trials, None, limit_s=60) is None
    assert probe(train, _plan(Toy("slow", steps=9, step_seconds=600)).trials, None, limit_s=1) is None
