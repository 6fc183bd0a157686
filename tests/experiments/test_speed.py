"""Speed is measured in turns, warm, from a trained detector's own files."""

import itertools
import time
from pathlib import Path

import pytest

from ablation.errors import UserError
from ablation.protocol import Evaluated, EvaluationRequest, JointRequest, Request, Trained
from detector.presets import SSD_TEST
from experiments.atss.presets import SINGLE_SCALE, atss
from experiments.detection import small, speed
from experiments.detection.options import DetectionOptions
from experiments.detection.recipe import Recipe
from experiments.detection.small import SMOKE
from experiments.detection.train_trial import train_trial
from experiments.refinedet.presets import ABLATION


def test_rounds_go_back_and_forth_and_every_row_has_a_turn_in_each() -> None:
    taken: list[str] = []

    def turn(name: str, number: itertools.count) -> speed.Turn:  # type: ignore[type-arg]
        def one() -> float:
            taken.append(name)
            return float(next(number))

        return one

    count = itertools.count()
    found = speed.rounds({name: turn(name, count) for name in "abc"}, 2)
    assert "".join(taken) == "abccba"
    assert found == {
        "a": {"images_per_second": [0.0, 5.0]},
        "b": {"images_per_second": [1.0, 4.0]},
        "c": {"images_per_second": [2.0, 3.0]},
    }


def test_the_first_steps_of_a_turn_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def step(seconds: float) -> None:
        clock[0] += seconds

    steps = [lambda: step(100.0)] * speed.WARM_UP + [lambda: step(0.25)] * 8
    assert speed.images_per_second(steps) == pytest.approx(4.0)


@pytest.mark.slow
def test_detectors_of_two_families_are_measured_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "ROUNDS", 2)
    setting = small.prepare(SMOKE, tmp_path, DetectionOptions(precision="fp32", max_iterations=2))
    whole = next(iter(ABLATION.values()))
    rows = []
    for key, (detector, test) in {"a" * 12: (atss(), SINGLE_SCALE), "b" * 12: (whole, SSD_TEST)}.items():
        trial, folder = setting.trial(Recipe(detector), 0), tmp_path / key
        reports = train_trial(Request(key, trial, (EvaluationRequest(key, test),), folder, setting.context))
        assert isinstance(list(reports)[-1], Evaluated)
        rows.append(Trained(key, key, trial, test, folder))
    found = speed.measure(JointRequest(tuple(rows), setting.context))
    assert all(len(row["images_per_second"]) == 2 for row in found.rounds.values())
    assert all(value > 0 for row in found.rounds.values() for value in row["images_per_second"])
    assert "thread" in found.machine or "NVIDIA" in found.machine


def test_a_trial_without_a_checkpoint_is_named(tmp_path: Path) -> None:
    setting = small.prepare(SMOKE, tmp_path, DetectionOptions(precision="fp32"))
    trial = setting.trial(Recipe(atss()), 0)
    row = Trained("a" * 12, "table1 a, seed 0", trial, SINGLE_SCALE, tmp_path / "none")
    with pytest.raises(UserError, match=r"none/checkpoints.*cannot be read"):
        speed.measure(JointRequest((row,), setting.context))
