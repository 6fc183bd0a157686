"""What detection studies measure: COCO's and VOC's numbers, speed, counts, and what a training reports."""

from __future__ import annotations

from ablation.metric import Metric
from detector.evaluation.coco_eval import METRIC_NAMES

TOLERANCE = 0.3
"""Points. Trainings of one config at COCO's scale spread over seeds with a standard deviation of about 0.1;
other sources of a difference (layout, versions) reach 0.3."""

COCO_METRICS = tuple(Metric(name, tolerance=TOLERANCE) for name in METRIC_NAMES)
"""In percent, higher is better. One without ground truth (APS without small objects) is left out."""

MAP = Metric("mAP", tolerance=0.5)
"""Pascal VOC's, in percent: the mean over classes of the precision at 11 recalls (2007). The authors of
RefineDet say that trainings of one config fluctuate, and had 79.5 and 80.0 with two versions of Caffe."""

MAP_AREA = Metric("mAP_area", tolerance=0.5)
"""The same by the area under the curve of precision and recall, as VOC has it since 2010."""

VOC_METRICS = (MAP, MAP_AREA, *COCO_METRICS)
"""Of one test: VOC's, then COCO's for the same detections."""

SPEED = Metric(
    "images_per_second", unit="images/s", digits=1, label="speed", rescore_tolerance=None, comparable=False
)
"""Of a trained detector, one image at a time. The paper's is of another machine."""

BOXES = Metric("boxes", unit="", better="neither", digits=0, rescore_tolerance=None, comparable=False)
INPUT = Metric("input", unit="px", better="neither", digits=0, rescore_tolerance=None, comparable=False)
"""Counted from the config of the profile, which may be smaller than the paper's."""

PROGRESS = (
    Metric("loss", unit="", better="lower", digits=3),
    Metric("images_per_second", unit="images/s", digits=0, label="speed"),
)
