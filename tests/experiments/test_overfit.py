"""The whole path on real COCO images: what a detector has seen often enough, it must find again.

Sixteen images of 80 classes whose ids have gaps, two with crowds, two without any object; every object is
at least 6 pixels large. A wrong label mapping, box scaling, crowd or coordinate rule keeps AP far below 90.
"""

from dataclasses import replace
from pathlib import Path

import pytest

from detector.config import FPN, AdamW, Data, Evaluation, OneCycle, ResNet, Schedule, Trial
from detector.data.coco import ImageRecord, Split, read_split, to_coco_dict
from detector.data.dataset import open_split
from detector.evaluation.coco_eval import evaluate
from detector.evaluation.inference import detect_split
from detector.training.train import RunOptions, train
from experiments.atss import presets
from experiments.detection.small import supported_precision

SHORT_SIDE = 192
SMALLEST = 12.0
"""Pixels, after resizing, of the smaller side of the smallest object in an image that is taken."""

CROWDED, EMPTY = (438, 564), (250, 508)
"""Image ids."""

BACKBONE = ResNet(
    block="basic",
    depths=(0, 1, 1, 1),
    widths=(32, 48, 96, 128),
    stem="patch",
    stem_channels=32,
    stem_stride=4,
    stage_strides=(1, 1, 2, 2),
    norm="group_norm",
    frozen_stages=0,
)


def sixteen(records: tuple[ImageRecord, ...]) -> tuple[ImageRecord, ...]:
    def plain(record: ImageRecord) -> bool:
        sides = record.xywh[:, 2:] * SHORT_SIDE / min(record.width, record.height)
        return not record.crowd.any() and len(sides) > 0 and bool((sides >= SMALLEST).all())

    special = [r for r in records if r.id in CROWDED + EMPTY]
    chosen = special + [r for r in records if plain(r)][: 16 - len(special)]
    return tuple(sorted(chosen, key=lambda r: r.id))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_sixteen_coco_images_are_learned_by_heart(shared: Path, tmp_path: Path) -> None:
    coco = shared / "data" / "coco_mini"
    split = read_split(Split(coco / "annotations" / "instances_train2017.json", coco / "train2017"))
    split = replace(split, images=sixteen(split.images))
    assert len(split.images) == 16
    detector = replace(presets.atss(), backbone=BACKBONE, fpn=FPN(48))
    detector = replace(detector, head=replace(detector.head, num_convs=2))
    precision, _ = supported_precision()  # bf16 that a processor has to imitate takes four times as long
    schedule = Schedule(260, 8, AdamW(lr=4e-3, weight_decay=0.0), OneCycle(), precision)
    long_side = SHORT_SIDE * 5 // 3
    data = Data("0" * 12, SHORT_SIDE, long_side, flip=0, group_by_aspect=True, skip_unannotated=True)
    images = open_split(split, "train", data, tmp_path)

    training = train(Trial(detector, schedule, data, 0), split, images, RunOptions(tmp_path / "run"))
    while True:
        try:
            next(training)
        except StopIteration as finished:
            model = finished.value
            break
    results = detect_split(model, images, split, Evaluation(), schedule.precision)
    assert results is not None
    assert evaluate(to_coco_dict(split), results).metrics["AP"] > 90
