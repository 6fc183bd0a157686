"""Killed in the middle, by a signal that no program survives, a run goes on and ends the same."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ablation.store import AttemptRow, Store

ROOT = Path(__file__).resolve().parents[2]
COMMAND = (sys.executable, str(ROOT / "experiments" / "reproduce_tables.py"))
OPTIONS = ("--profile", "smoke", "--tables", "2", "--format", "md", "--concurrency", "1")
FIRST_CHECKPOINT, LAST_STEP = 5, 10

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module", params=["atss", "refinedet"])
def study(request: pytest.FixtureRequest) -> str:
    """Table 2 of either has four trainings; a RefineDet finds its targets by its own predictions."""
    name: str = request.param
    return name


def _start(study: str, workspace: Path, *more: str) -> subprocess.Popen[str]:
    command = [*COMMAND, "--study", study, *OPTIONS, "--workspace", str(workspace), *more]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=subprocess.STDOUT, text=True, cwd=workspace.parent)


def _finish(study: str, workspace: Path, *more: str) -> str:
    process = _start(study, workspace, *more)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    return output


def _wait_for(workspace: Path, pattern: str, count: int) -> None:
    """Until that many files are there."""
    deadline = time.monotonic() + 300
    while len(list(workspace.glob(pattern))) < count:
        assert time.monotonic() < deadline, f"no {pattern} within five minutes"
        time.sleep(0.005)


def _results(workspace: Path) -> dict[str, tuple[dict[str, float], dict[str, float]]]:
    """Of each trial: the losses of its last step, and the numbers of its evaluation."""
    store = Store.open(workspace / "store.db")
    found = {}
    for key, trial in store.trial_states().items():
        assert trial.state == "COMPLETE"
        last = store.attempts([key])[-1]
        losses = {
            m.name: m.value
            for m in store.metrics(last.id)
            if m.step == LAST_STEP and m.name.startswith("loss")
        }
        (evaluation,) = [e for e in store.evaluations().values() if e.trial_key == key]
        found[key] = (losses, evaluation.metrics)
    store.close()
    return found


def _attempts(workspace: Path) -> list[AttemptRow]:
    store = Store.open(workspace / "store.db")
    attempts = store.attempts()
    store.close()
    return attempts


@pytest.fixture(scope="module")
def undisturbed(study: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workspace = tmp_path_factory.mktemp("quiet") / "workspace"
    _finish(study, workspace)
    return workspace


def test_a_second_run_finds_nothing_to_do(study: str, undisturbed: Path) -> None:
    before = len(_attempts(undisturbed))
    output = _finish(study, undisturbed)
    assert "4 complete" in output
    assert len(_attempts(undisturbed)) == before == 4


def test_speed_is_measured_once_the_trainings_of_a_study_with_speed_have_ended(
    study: str, undisturbed: Path
) -> None:
    store = Store.open(undisturbed / "store.db")
    (own,) = store.studies()
    measured = store.joint(*own, "shapes")
    assert (measured is not None) == (study == "refinedet")
    assert measured is None or len(measured.rounds) == 1, "of table 2 one row is a system of table 1 too"
    store.close()


def test_a_driver_killed_in_the_middle_goes_on_without_mlflow_and_ends_bit_for_bit_the_same(
    study: str, undisturbed: Path, tmp_path: Path
) -> None:
    workspace = tmp_path / "workspace"
    driver = _start(study, workspace)
    _wait_for(workspace, f"artifacts/*/checkpoints/step_{FIRST_CHECKPOINT:08d}-*.pt", 2)
    os.kill(driver.pid, signal.SIGKILL)
    driver.communicate()
    done = sum(attempt.state == "COMPLETE" for attempt in _attempts(workspace))
    assert "MLflow does not have everything yet" in _finish(
        study, workspace, "--mlflow-uri", "http://127.0.0.1:9"
    )
    attempts = _attempts(workspace)
    assert done < 4
    assert any(attempt.state == "LOST" for attempt in attempts)
    assert sum(attempt.state == "COMPLETE" for attempt in attempts) == 4
    assert _results(workspace) == _results(undisturbed)


def test_two_drivers_never_share_a_workspace(study: str, undisturbed: Path, tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    first = _start(study, workspace)
    _wait_for(workspace, "driver.lock", 1)
    _wait_for(workspace, "store.db", 1)
    second = _start(study, workspace)
    output, _ = second.communicate(timeout=120)
    first.send_signal(signal.SIGINT)
    stopped, _ = first.communicate(timeout=120)
    assert second.returncode == 2
    assert f"in use by process {first.pid}" in output
    assert first.returncode == 130
    assert "same command goes on" in stopped
    assert undisturbed.exists()
