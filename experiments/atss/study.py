"""The ATSS study, as the platform finds it by name."""

from __future__ import annotations

from ablation.study import ByClass, Study
from experiments.atss.claims import CLAIMS
from experiments.atss.tables import TABLES
from experiments.detection.metrics import COCO_METRICS, PROGRESS
from experiments.detection.options import DetectionOptions
from experiments.detection.profiles import PROFILES
from experiments.detection.rescore import by_class, rescore
from experiments.detection.server_scores import read_scores
from experiments.detection.study import PACKAGES, check_data, train


def study() -> Study:
    """The whole study: 8 tables, 47 rows, 39 trainings, 41 evaluations, 19 claims."""
    return Study(
        name="atss",
        title="Bridging the Gap Between Anchor-based and Anchor-free Detection via Adaptive Training "
        "Sample Selection (Zhang et al., CVPR 2020)",
        metrics=COCO_METRICS,
        tables=TABLES,
        claims=CLAIMS,
        profiles=PROFILES,
        default_profile="shapes",
        train=train,
        progress=PROGRESS,
        options=DetectionOptions,
        check_data=check_data,
        paper_note="the paper's: COCO minival, Table 8 COCO test-dev",
        predictions="detections",
        rescore=rescore,
        read_scores=read_scores,
        by_class=ByClass("AP", by_class),
        sources=("detector", "experiments"),
        packages=PACKAGES,
    )
