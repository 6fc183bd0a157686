"""What one training is worth beyond its seed."""

from dataclasses import replace
from pathlib import Path

import pytest

from detector.data.shapes import ShapesSpec
from experiments.atss.seed_noise import ROWS, average_precision, spread
from experiments.detection import small
from experiments.detection.options import DetectionOptions
from experiments.detection.small import SMOKE


def test_what_a_seed_does_to_both_rows_is_no_spread() -> None:
    assert spread([(40.0, 41.0), (30.0, 31.0), (50.0, 51.0)]) == 0.0
    assert spread([(40.0, 40.7), (40.0, 42.8), (40.0, 41.6)]) == pytest.approx(0.745, abs=0.01)


def test_a_training_of_a_baseline_row_has_an_ap(tmp_path: Path) -> None:
    drawn = replace(SMOKE, shapes=ShapesSpec(image_size=64, num_train=8, num_val=4, min_size=8))
    setting = small.prepare(drawn, tmp_path, DetectionOptions(max_iterations=2))
    assert 0.0 <= average_precision(setting, ROWS[0], 101) <= 100.0
