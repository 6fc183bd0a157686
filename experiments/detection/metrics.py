"""What detection studies measure: COCO's numbers, and what a training reports while it runs."""

from __future__ import annotations

from ablation.metric import Metric
from detector.evaluation.coco_eval import METRIC_NAMES

TOLERANCE = 0.3
"""Points. Trainings of one config at COCO's scale spread over seeds with a standard deviation of about 0.1;
other sources of a difference (layout, versions) reach 0.3."""

COCO_METRICS = tuple(Metric(name, tolerance=TOLERANCE) for name in METRIC_NAMES)
"""In percent, higher is better. One without ground truth (APS without small objects) is left out."""

PROGRESS = (
    Metric("loss", unit="", better="lower", digits=3),
    Metric("images_per_second", unit="images/s", digits=0, label="speed"),
)
