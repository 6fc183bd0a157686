"""What the paper says of its tables, as statements that a run supports, refutes or leaves open.

All are about AP. Two detectors count as equal where they differ by less than `SAME`.
"""

from __future__ import annotations

from ablation.claim import Better, CellRef, Chain, Claim, Equivalent, Range, Statistic
from experiments.atss.positives import fair_positives

SAME = 1.0
"""Points of AP. The paper calls 39.3 and 39.2 equal. Seeds at its scale differ by about 0.1 and in short
trainings by several times that, so that no run could decide a margin of a few tenths."""

_IMPROVED = "RetinaNet (#A=1) + GroupNorm + GIoU Loss + In GT Box + Centerness + Scalar"
_IOU, _SSC = "Intersection over Union", "Spatial and Scale Constraint"


def _t1_chain() -> tuple[CellRef, ...]:
    names = _IMPROVED.split(" + ")
    return tuple(CellRef("table1", " + ".join(names[:n]), "AP") for n in range(1, len(names) + 1))


def _t3(row: str) -> CellRef:
    return CellRef("table3", row, "AP")


def _t7_atss() -> tuple[CellRef, ...]:
    shapes = ((3, 3), (3, 1), (1, 3), (1, 1))
    return tuple(CellRef("table7", f"+Imprs.+ATSS (#sc={sc}, #ar={ar})", "AP") for sc, ar in shapes)


def _t8(row: str) -> CellRef:
    return CellRef("table8", row, "AP")


CLAIMS: tuple[Claim, ...] = (
    Better(
        "fcos-beats-retinanet",
        "FCOS is better than RetinaNet (#A=1) as published",
        CellRef("table1", "FCOS", "AP"),
        CellRef("table1", "RetinaNet (#A=1)", "AP"),
    ),
    Chain(
        "inconsistencies-explain-most",
        "Every one of the five implementation improvements raises RetinaNet (#A=1)",
        (_t1_chain(),),
    ),
    Better(
        "gap-remains",
        "After all five improvements a gap to FCOS remains",
        CellRef("table1", "FCOS", "AP"),
        CellRef("table1", _IMPROVED, "AP"),
    ),
    Better(
        "positives-are-essential-box",
        "With box regression, the spatial and scale constraint beats IoU",
        CellRef("table2", _SSC, "Box"),
        CellRef("table2", _IOU, "Box"),
    ),
    Better(
        "positives-are-essential-point",
        "With point regression, the spatial and scale constraint beats IoU",
        CellRef("table2", _SSC, "Point"),
        CellRef("table2", _IOU, "Point"),
    ),
    Equivalent(
        "regression-start-irrelevant-iou",
        "Under IoU, box and point regression are equivalent",
        CellRef("table2", _IOU, "Box"),
        CellRef("table2", _IOU, "Point"),
        SAME,
    ),
    Equivalent(
        "regression-start-irrelevant-ssc",
        "Under the spatial and scale constraint, box and point regression are equivalent",
        CellRef("table2", _SSC, "Box"),
        CellRef("table2", _SSC, "Point"),
        SAME,
    ),
    Better(
        "atss-improves-retinanet",
        "ATSS improves RetinaNet (#A=1)",
        _t3("RetinaNet (#A=1) + ATSS"),
        _t3("RetinaNet (#A=1)"),
    ),
    Better(
        "center-sampling-improves-fcos",
        "Center sampling improves FCOS",
        _t3("FCOS + Center sampling"),
        _t3("FCOS"),
    ),
    Better("atss-improves-fcos", "ATSS improves FCOS", _t3("FCOS + ATSS"), _t3("FCOS")),
    Equivalent(
        "atss-closes-the-gap",
        "With ATSS, anchor-based and anchor-free are equivalent",
        _t3("RetinaNet (#A=1) + ATSS"),
        _t3("FCOS + ATSS"),
        SAME,
    ),
    Range(
        "k-is-robust",
        "AP is insensitive to k from 7 to 17",
        tuple(CellRef("table4", f"k={k}", "AP") for k in (7, 9, 11, 13, 15, 17)),
        SAME,
    ),
    Better(
        "small-k-hurts",
        "k=3 is worse than k=9",
        CellRef("table4", "k=9", "AP"),
        CellRef("table4", "k=3", "AP"),
    ),
    Range(
        "scale-is-robust",
        "AP is insensitive to the anchor scale",
        tuple(CellRef("table5", str(scale), "AP") for scale in (5, 6, 7, 8, 9)),
        SAME,
    ),
    Range(
        "ratio-is-robust",
        "AP is insensitive to the anchor aspect ratio",
        tuple(CellRef("table6", ratio, "AP") for ratio in ("1:4", "1:2", "1:1", "2:1", "4:1")),
        SAME,
    ),
    Better(
        "many-anchors-help-iou",
        "Under IoU assignment, nine anchors per location beat one",
        CellRef("table7", "+Imprs. (#sc=3, #ar=3)", "AP"),
        _t3("RetinaNet (#A=1)"),
    ),
    Range(
        "many-anchors-useless-with-atss",
        "With ATSS, the number of anchors per location does not matter",
        _t7_atss(),
        SAME,
    ),
    Chain(
        "backbones-are-complementary",
        "Stronger backbones, DCN and multi-scale testing each add to ATSS",
        (
            (_t8("ResNet-101"), _t8("ResNet-101-DCN")),
            (
                _t8("ResNeXt-64x4d-101"),
                _t8("ResNeXt-64x4d-101-DCN"),
                _t8("ResNeXt-64x4d-101-DCN (multi-scale testing)"),
            ),
        ),
    ),
    Statistic(
        "fair-positives",
        "ATSS gives every object about 0.2 k L positives whatever its size; IoU and SSC favour large ones",
        fair_positives,
    ),
)
