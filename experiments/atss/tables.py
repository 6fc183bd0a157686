"""Tables 1 to 8, each row with the paper's numbers. AP on COCO minival; Table 8 on test-dev."""

from __future__ import annotations

from dataclasses import replace

from ablation.study import Cell, Row, Table, Variant
from detector.config import Anchors, Assigner, Detector, Regression, SpatialScale
from detector.evaluation.coco_eval import AP_NAMES
from experiments.atss import presets
from experiments.atss.presets import MULTI_SCALE, SINGLE_SCALE
from experiments.detection.recipe import Recipe


def _row(label: str, headers: tuple[str | bool, ...], variant: Variant, paper: tuple[float, ...]) -> Row:
    """A row whose columns are the numbers of one evaluation: AP alone, or all six."""
    metrics = AP_NAMES[: len(paper)]
    cells = (Cell(variant, m, p) for m, p in zip(metrics, paper, strict=True))
    return Row(label, headers, tuple(cells))


def _one_x(detector: Detector) -> Variant:
    return Variant(Recipe(detector), SINGLE_SCALE)


# --- Table 1: the implementation inconsistencies, removed one by one ---------------------------------


def _table1() -> Table:
    switches = tuple(presets.IMPROVEMENTS)
    rows = [_row("FCOS", ("FCOS", *[True] * len(switches)), _one_x(presets.fcos()), (37.8,))]
    detector, label = presets.retinanet(), "RetinaNet (#A=1)"
    rows.append(_row(label, ("RetinaNet (#A=1)", *[False] * len(switches)), _one_x(detector), (32.5,)))
    for number, (switch, paper) in enumerate(zip(switches, (33.4, 34.9, 35.3, 36.8, 37.0), strict=True), 1):
        detector, label = presets.IMPROVEMENTS[switch](detector), f"{label} + {switch}"
        checks = [i < number for i in range(len(switches))]
        rows.append(_row(label, ("RetinaNet (#A=1)", *checks), _one_x(detector), (paper,)))
    title = "Implementation inconsistencies between RetinaNet (#A=1) and FCOS, removed one by one"
    return Table("table1", title, ("Inconsistency", *switches), ("AP",), tuple(rows), transposed=True)


# --- Table 2: how positives are defined x where regression starts ------------------------------------


def _table2() -> Table:
    papers = {"Intersection over Union": (37.0, 36.9), "Spatial and Scale Constraint": (37.8, 37.8)}
    assigners: tuple[Assigner, ...] = (presets.INSIDE_GT, SpatialScale())
    starts: tuple[Regression, ...] = (presets.BOXES, presets.POINTS)
    rows = []
    for (label, paper), assigner in zip(papers.items(), assigners, strict=True):
        cells = (
            Cell(_one_x(presets.improved(assigner, start)), "AP", ap)
            for start, ap in zip(starts, paper, strict=True)
        )
        rows.append(Row(label, (label,), tuple(cells)))
    title = "Definition of positives (rows) and starting status of regression (columns)"
    return Table("table2", title, ("Classification",), ("Box", "Point"), tuple(rows))


# --- Table 3: ATSS on both detectors -----------------------------------------------------------------

ATSS_ROW = (39.3, 57.5, 42.8, 24.3, 43.3, 51.3)
"""RetinaNet (#A=1) + ATSS with k = 9 and one square anchor of 8 strides; five tables cite it."""


def _table3() -> Table:
    rows = {
        "RetinaNet (#A=1)": (presets.improved(), (37.0, 55.1, 39.9, 21.4, 41.2, 48.6)),
        "RetinaNet (#A=1) + ATSS": (presets.atss(), ATSS_ROW),
        "FCOS": (presets.fcos(), (37.8, 55.6, 40.7, 22.1, 41.8, 48.8)),
        "FCOS + Center sampling": (presets.fcos(1.5), (38.6, 57.4, 41.4, 22.3, 42.5, 49.8)),
        "FCOS + ATSS": (presets.fcos_atss(), (39.2, 57.3, 42.4, 22.7, 43.1, 51.5)),
    }
    made = tuple(_row(label, (label,), _one_x(d), paper) for label, (d, paper) in rows.items())
    return Table("table3", "Verification of ATSS", ("Method",), AP_NAMES, made)


# --- Tables 4 to 7: the hyperparameter k, and the anchors --------------------------------------------


def _table4() -> Table:
    papers = {3: 38.0, 5: 38.8, 7: 39.1, 9: 39.3, 11: 39.1, 13: 39.0, 15: 39.1, 17: 39.2, 19: 38.9}
    rows = tuple(_row(f"k={k}", (str(k),), _one_x(presets.atss(k)), (ap,)) for k, ap in papers.items())
    return Table("table4", "Values of the hyperparameter k", ("k",), ("AP",), rows, transposed=True)


def _table5() -> Table:
    papers = {
        5: (39.0, 57.9, 41.9, 23.2, 42.8, 50.5),
        6: (39.2, 57.6, 42.5, 23.5, 42.8, 51.1),
        7: (39.3, 57.6, 42.4, 22.9, 43.2, 51.3),
        8: ATSS_ROW,
        9: (38.9, 56.5, 42.0, 22.9, 42.4, 50.3),
    }
    rows = tuple(
        _row(str(scale), (str(scale),), _one_x(presets.atss(anchors=Anchors(float(scale)))), paper)
        for scale, paper in papers.items()
    )
    return Table("table5", "Anchor scale: square anchors of that many strides", ("Scale",), AP_NAMES, rows)


def _table6() -> Table:
    """Height : width, as the authors' ASPECT_RATIOS; the paper does not say which comes first."""
    papers = {
        "1:4": (0.25, (39.1, 57.2, 42.3, 23.1, 43.1, 51.4)),
        "1:2": (0.5, (39.0, 56.9, 42.5, 23.3, 43.5, 50.6)),
        "1:1": (1.0, ATSS_ROW),
        "2:1": (2.0, (39.3, 57.4, 42.3, 22.8, 43.4, 51.0)),
        "4:1": (4.0, (39.1, 56.9, 42.6, 22.9, 42.9, 50.7)),
    }
    rows = tuple(
        _row(label, (label,), _one_x(presets.atss(anchors=Anchors(ratios=(ratio,)))), paper)
        for label, (ratio, paper) in papers.items()
    )
    return Table("table6", "Anchor aspect ratio (scale 8)", ("Aspect ratio",), AP_NAMES, rows)


def _table7() -> Table:
    nine = presets.NINE_ANCHORS
    rows = (
        ("RetinaNet (#A=9)", "3", "3", presets.retinanet(nine), (36.3, 55.2, 38.8, 19.8, 39.8, 48.8)),
        ("+Imprs.", "3", "3", presets.improved(anchors=nine), (38.4, 56.2, 41.6, 22.2, 42.4, 50.1)),
        ("+Imprs.+ATSS", "3", "3", presets.atss(anchors=nine), (39.2, 57.6, 42.7, 23.8, 42.8, 50.9)),
        (
            "+Imprs.+ATSS",
            "3",
            "1",
            presets.atss(anchors=replace(nine, ratios=(1.0,))),
            (39.3, 57.7, 42.6, 23.8, 43.5, 51.2),
        ),
        (
            "+Imprs.+ATSS",
            "1",
            "3",
            presets.atss(anchors=Anchors(ratios=nine.ratios)),
            (39.2, 57.1, 42.5, 23.2, 43.1, 50.3),
        ),
        ("+Imprs.+ATSS", "1", "1", presets.atss(), ATSS_ROW),
    )
    made = tuple(
        _row(f"{method} (#sc={sc}, #ar={ar})", (method, sc, ar), _one_x(detector), paper)
        for method, sc, ar, detector, paper in rows
    )
    title = "Anchors per location: number of scales (#sc) and of aspect ratios (#ar)"
    return Table("table7", title, ("Method", "#sc", "#ar"), AP_NAMES, made)


# --- Table 8: larger backbones, test-dev -------------------------------------------------------------


def _table8() -> Table:
    rows = {
        "ResNet-101": (presets.RESNET_101, (43.6, 62.1, 47.4, 26.1, 47.0, 53.6)),
        "ResNeXt-32x8d-101": (presets.RESNEXT_101_32X8D, (45.1, 63.9, 49.1, 27.9, 48.2, 54.6)),
        "ResNeXt-64x4d-101": (presets.RESNEXT_101_64X4D, (45.6, 64.6, 49.7, 28.5, 48.9, 55.6)),
        "ResNet-101-DCN": (presets.RESNET_101_DCN, (46.3, 64.7, 50.4, 27.7, 49.8, 58.4)),
        "ResNeXt-32x8d-101-DCN": (presets.RESNEXT_101_32X8D_DCN, (47.7, 66.6, 52.1, 29.3, 50.8, 59.7)),
        "ResNeXt-64x4d-101-DCN": (presets.RESNEXT_101_64X4D_DCN, (47.7, 66.5, 51.9, 29.7, 50.8, 59.4)),
    }
    made = [
        _row(label, (label, ""), Variant(presets.large(backbone), replace(SINGLE_SCALE, split="test")), paper)
        for label, (backbone, paper) in rows.items()
    ]
    multi_scale = {
        "ResNeXt-32x8d-101-DCN": (50.6, 68.6, 56.1, 33.6, 52.9, 62.2),
        "ResNeXt-64x4d-101-DCN": (50.7, 68.9, 56.3, 33.2, 52.9, 62.4),
    }
    for label, paper in multi_scale.items():
        variant = Variant(presets.large(rows[label][0]), replace(MULTI_SCALE, split="test"))
        made.append(_row(f"{label} (multi-scale testing)", (label, "multi-scale"), variant, paper))
    title = "ATSS with larger backbones"
    return Table("table8", title, ("Backbone", "Testing"), AP_NAMES, tuple(made))


TABLES = (
    _table1(),
    _table2(),
    _table3(),
    _table4(),
    _table5(),
    _table6(),
    _table7(),
    _table8(),
)
