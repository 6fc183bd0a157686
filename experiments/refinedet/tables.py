"""Tables 1 and 2, each row with the paper's numbers, on VOC 2007 test.

Of the paper's comparison (its Table 1) these are the rows on VOC 2007 of which the slides speak. Speed is the
paper's on a Maxwell Titan X.
"""

from __future__ import annotations

from collections.abc import Mapping

from ablation.study import Cell, Row, Table, Variant
from detector.config import SingleShot
from detector.presets import (
    FASTER_RCNN,
    FASTER_RCNN_TEST,
    REFINEDET320,
    REFINEDET512,
    SSD300,
    SSD512,
    SSD_TEST,
)
from experiments.detection.metrics import BOXES, INPUT, MAP, SPEED
from experiments.refinedet.presets import ABLATION, variant

SYSTEM_METRICS = (MAP.name, SPEED.name, BOXES.name, INPUT.name)
SYSTEM_COLUMNS = ("mAP", "FPS", "Boxes", "Input")


def _system(label: str, backbone: str, variant: Variant, papers: tuple[float, ...]) -> Row:
    cells = (Cell(variant, m, p) for m, p in zip(SYSTEM_METRICS, papers, strict=True))
    return Row(label, (label, backbone), tuple(cells))


def _reported(label: str, backbone: str, papers: tuple[float, ...], source: str) -> Row:
    numbers: Mapping[str, float | None] = dict(zip(SYSTEM_METRICS, papers, strict=True))
    return Row.reported(label, (label, backbone), numbers, source)


def _table1() -> Table:
    yolo, yolo2 = "Redmon et al., CVPR 2016", "Redmon and Farhadi, CVPR 2017"
    # Its input is the short side, up to 1000 long, and its boxes the proposals before suppression.
    rows = (
        _system("Faster R-CNN", "VGG-16", variant(FASTER_RCNN, FASTER_RCNN_TEST), (73.2, 7.0, 6000.0, 600.0)),
        _reported("YOLO", "GoogLeNet", (63.4, 45.0, 98.0, 448.0), yolo),
        # The paper has 845 boxes; the authors' README 1,445, which is 17 x 17 cells of 5 at 544.
        _reported("YOLOv2", "Darknet-19", (78.6, 40.0, 845.0, 544.0), yolo2),
        _system("SSD300*", "VGG-16", variant(SSD300, SSD_TEST), (77.2, 46.0, 8732.0, 300.0)),
        _system("SSD512*", "VGG-16", variant(SSD512, SSD_TEST), (79.8, 19.0, 24564.0, 512.0)),
        _system("RefineDet320", "VGG-16", variant(REFINEDET320), (80.0, 40.0, 6375.0, 320.0)),
        _system("RefineDet512", "VGG-16", variant(REFINEDET512), (81.8, 24.0, 16320.0, 512.0)),
    )
    return Table("table1", "Systems on VOC 2007 test", ("Method", "Backbone"), SYSTEM_COLUMNS, rows)


def _table2() -> Table:
    papers = (80.0, 79.5, 77.3, 76.2)
    parts = ("Negative anchor filtering", "Two-step cascaded regression", "Transfer connection block")
    rows = tuple(
        Row(label, ("RefineDet320", *_checks(detector)), (Cell(variant(detector), MAP.name, paper),))
        for (label, detector), paper in zip(ABLATION.items(), papers, strict=True)
    )
    return Table("table2", "Parts of RefineDet320", ("Part", *parts), ("mAP",), rows, transposed=True)


def _checks(detector: SingleShot) -> tuple[bool, bool, bool]:
    """Which of the three parts a detector has."""
    arm = detector.refinement
    return arm is not None and arm.objectness > 0, arm is not None and arm.cascade, bool(detector.transfer)


TABLES = (_table1(), _table2())
