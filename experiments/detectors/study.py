"""Which detector is best on a data set? One table of several papers' detectors, at one budget.

    ablation run --study detectors --data cells --seeds 3

Every row sees the same images in the same order, is trained for as many iterations of as many images by the
same optimiser, and is tested by COCO's and by VOC's evaluation of the same detections, with its own paper's
thresholds. `--max-iterations` changes the budget of all rows. Each detector has the input size of its paper,
made smaller alike: dense detectors keep an image's shape, SSD and RefineDet warp it to their square. No paper
reports this table.
"""

from __future__ import annotations

from dataclasses import replace

from ablation.study import Cell, Row, Study, Table, Variant
from detector.config import AnyDetector, Evaluation, VOCEvaluation
from detector.presets import FASTER_RCNN, FASTER_RCNN_TEST, REFINEDET320, REFINEDET_TEST, SSD300, SSD_TEST
from experiments.atss import presets
from experiments.detection import small
from experiments.detection.metrics import BOXES, COCO_METRICS, INPUT, MAP, MAP_AREA, SPEED
from experiments.detection.recipe import Recipe
from experiments.detection.study import detection_study

DENSE_TEST = VOCEvaluation()
"""The thresholds of the ATSS paper."""

DETECTORS: dict[str, tuple[AnyDetector, Evaluation]] = {
    "RetinaNet": (presets.improved(), DENSE_TEST),
    "RetinaNet + ATSS": (presets.atss(), DENSE_TEST),
    "FCOS": (presets.fcos(1.5), DENSE_TEST),
    "FCOS + ATSS": (presets.fcos_atss(), DENSE_TEST),
    "SSD300": (SSD300, SSD_TEST),
    "RefineDet320": (REFINEDET320, REFINEDET_TEST),
    "Faster R-CNN": (FASTER_RCNN, FASTER_RCNN_TEST),
}
"""The rows: RetinaNet and FCOS with all improvements of the ATSS paper's Table 1, one anchor a location."""

COLUMNS = {
    **{name: name for name in ("AP", "AP50", "AP75", "APS", "APM", "APL")},
    "mAP": MAP.name,
    "Images/s": SPEED.name,
    "Boxes": BOXES.name,
    "Input": INPUT.name,
}
"""Metrics by the name of the column."""


def _row(label: str) -> Row:
    detector, test = DETECTORS[label]
    variant = Variant(Recipe(detector), test)
    return Row(label, (label,), tuple(Cell(variant, metric) for metric in COLUMNS.values()))


TABLE = Table("table1", "Detectors at one budget", ("Detector",), tuple(COLUMNS), tuple(map(_row, DETECTORS)))


SCALES = (
    replace(
        small.SHAPES, summary="every detector for 750 iterations of 16, about 5 minutes on 2 cores (default)"
    ),
    replace(small.SMOKE, summary=f"{small.SMOKE.summary}: half a minute on 2 cores"),
)


def study() -> Study:
    """One table of seven trainings; the ranking at the end of a run compares all pairs of rows."""
    return detection_study(
        name="detectors",
        title="Detectors of several papers at one budget",
        tables=(TABLE,),
        claims=(),
        profiles=map(small.profile, SCALES),
        metrics=(*COCO_METRICS, MAP, MAP_AREA),
    )
