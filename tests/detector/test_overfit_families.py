"""The whole path of SSD, RefineDet and Faster R-CNN: what one has seen often enough, it must find again."""

from dataclasses import replace
from pathlib import Path

import pytest

from detector.config import AdamW, Data, FasterRCNN, OneCycle, Proposals, Schedule, SingleShot, Trial
from detector.data.coco import read_data, to_coco_dict
from detector.data.dataset import open_split
from detector.data.shapes import ShapesSpec, draw_dataset
from detector.evaluation.coco_eval import fast_evaluate
from detector.evaluation.inference import detect_split
from detector.presets import (
    FASTER_RCNN,
    REFINEDET320,
    REFINEDET512,
    SSD300,
    SSD512,
    shrunk,
    shrunk_two_stage,
    usual_test,
)
from detector.training.train import RunOptions, train
from experiments.detection.small import supported_precision

DETECTORS: dict[str, SingleShot | FasterRCNN] = {
    "SSD300": shrunk(SSD300, 2, 8),
    "RefineDet320": shrunk(REFINEDET320, 2, 8),
    "SSD512": shrunk(SSD512, 2, 16),
    "RefineDet512": shrunk(REFINEDET512, 2, 8),
    # Anchors and numbers of samples for images of 80 pixels.
    "Faster R-CNN": replace(
        shrunk_two_stage(FASTER_RCNN, 2, 8),
        anchor_sides=(12.0, 24.0, 48.0),
        training=Proposals(1000, 200),
        testing=Proposals(1000, 100),
        rpn_samples=64,
        roi_samples=32,
    ),
}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", DETECTORS)
def test_sixteen_drawn_images_are_learned_by_heart(name: str, tmp_path: Path) -> None:
    detector = replace(DETECTORS[name], num_classes=6)
    side = detector.input_size if isinstance(detector, SingleShot) else 80
    spec = ShapesSpec(image_size=side, num_train=16, num_val=1, max_objects=4, min_size=side // 6)
    split, _ = read_data(draw_dataset(spec, tmp_path))
    data = Data("0" * 12, side, side, flip=0)
    images = open_split(split, "train", data, tmp_path)
    precision, _ = supported_precision()
    schedule = Schedule(200, 8, AdamW(lr=3e-3, weight_decay=0.0), OneCycle(), precision)

    training = train(Trial(detector, schedule, data, 0), split, images, RunOptions(tmp_path / "run"))
    while True:
        try:
            next(training)
        except StopIteration as finished:
            model = finished.value
            break
    results = detect_split(model, images, split, usual_test(detector), precision)
    assert results is not None
    assert fast_evaluate(to_coco_dict(split), results).metrics["AP50"] > 95
