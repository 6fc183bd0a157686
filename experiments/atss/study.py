"""The ATSS study, as the platform finds it by name."""

from __future__ import annotations

from ablation.study import Study
from experiments.atss.claims import CLAIMS
from experiments.atss.profiles import PROFILES
from experiments.atss.tables import TABLES
from experiments.detection.study import detection_study


def study() -> Study:
    """The whole study: 8 tables, 47 rows, 39 trainings, 41 evaluations, 19 claims."""
    return detection_study(
        name="atss",
        title="Bridging the Gap Between Anchor-based and Anchor-free Detection via Adaptive Training "
        "Sample Selection (Zhang et al., CVPR 2020)",
        tables=TABLES,
        claims=CLAIMS,
        profiles=PROFILES,
        paper_note="the paper's: COCO minival, Table 8 COCO test-dev",
    )
