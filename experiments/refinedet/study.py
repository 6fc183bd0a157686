"""The RefineDet study, as the platform finds it by name."""

from __future__ import annotations

from ablation.study import Study
from experiments.detection.metrics import VOC_METRICS
from experiments.detection.study import detection_study
from experiments.refinedet.claims import CLAIMS
from experiments.refinedet.profiles import PROFILES
from experiments.refinedet.tables import TABLES


def study() -> Study:
    """The whole study: 2 tables, 11 rows of which 2 are reported, 8 trainings, 10 claims."""
    return detection_study(
        name="refinedet",
        title="Single-Shot Refinement Neural Network for Object Detection (Zhang et al., CVPR 2018)",
        tables=TABLES,
        claims=CLAIMS,
        profiles=PROFILES,
        paper_note="the paper's: VOC 2007 test, trained on VOC 2007 and 2012",
        metrics=VOC_METRICS,
    )
