"""The table across papers: one budget, one evaluator, each paper's own detector and thresholds."""

from __future__ import annotations

from pathlib import Path

import pytest

from ablation.options import NoOptions
from ablation.studies import load_study
from detector.config import Detector, FasterRCNN, SingleShot, Trial, VOCEvaluation
from experiments.detection.options import DetectionOptions
from experiments.detection.small import ScaledSetting
from experiments.detectors.study import COLUMNS, DETECTORS, SCALES, TABLE, study


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> ScaledSetting:
    prepared = study().profiles["smoke"].prepare(tmp_path_factory.mktemp("work"), DetectionOptions())
    assert isinstance(prepared, ScaledSetting)
    return prepared


def trials(setting: ScaledSetting) -> dict[str, Trial]:
    found = {}
    for row in TABLE.rows:
        variant = row.cells[0].variant
        assert variant is not None
        found[row.label] = setting.trial(variant.training, 3)
    return found


def test_the_rows_are_detectors_of_three_families() -> None:
    kinds = [type(detector) for detector, _ in DETECTORS.values()]
    assert kinds == [Detector] * 4 + [SingleShot] * 2 + [FasterRCNN]
    assert study().claims == ()


def test_every_row_has_the_same_budget_seed_and_images(setting: ScaledSetting) -> None:
    found = list(trials(setting).values())
    assert len({trial.schedule for trial in found}) == 1
    assert {trial.seed for trial in found} == {3}
    assert len({trial.data.fingerprint for trial in found}) == 1


def test_every_row_is_tested_by_one_evaluator(setting: ScaledSetting) -> None:
    for row in TABLE.rows:
        variants = {cell.variant for cell in row.cells}
        assert len(variants) == 1
        (variant,) = variants
        assert variant is not None
        assert isinstance(setting.evaluation(variant.evaluation), VOCEvaluation)


def test_the_columns_are_metrics_of_the_study() -> None:
    names = {metric.name for metric in study().metrics}
    assert set(COLUMNS.values()) <= names
    assert study().metrics[0].name == "AP"


def test_the_budget_of_all_rows_is_an_option(tmp_path: Path) -> None:
    profile = study().profiles[SCALES[1].name]
    shorter = profile.prepare(tmp_path, DetectionOptions(max_iterations=3))
    assert {trial.schedule.iterations for trial in trials(shorter).values()} == {3}  # type: ignore[arg-type]


def test_the_study_is_found_by_its_name() -> None:
    found = load_study("detectors")
    assert found.name == "detectors"
    assert found.options is not NoOptions
