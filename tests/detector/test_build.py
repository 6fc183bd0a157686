"""Config classes become the right objects."""

import pytest
import torch

from detector.config import (
    ATSS,
    FPN,
    BoxRegression,
    Detector,
    Head,
    MaxIoU,
    PointRegression,
    ResNet,
    SpatialScale,
)
from detector.geometry.box_coders import BoxCoder, PointCoder
from detector.model.build import build_assigner, build_coder, build_detector
from detector.objectives.assigners import ATSSAssigner, MaxIoUAssigner, SpatialScaleAssigner


@pytest.mark.parametrize(
    ("config", "kind"),
    [(MaxIoU(), MaxIoUAssigner), (SpatialScale(), SpatialScaleAssigner), (ATSS(), ATSSAssigner)],
)
def test_each_assigner_config_builds_its_assigner(config: object, kind: type) -> None:
    assert type(build_assigner(config)) is kind  # type: ignore[arg-type]


def test_each_regression_builds_its_coder() -> None:
    assert type(build_coder(BoxRegression())) is BoxCoder
    assert type(build_coder(PointRegression())) is PointCoder


def test_the_coders_bias_starts_the_box_output() -> None:
    model = build_detector(
        Detector(
            backbone=ResNet(block="basic", depths=(0, 1, 1, 1), widths=(16, 16, 16, 16)),
            fpn=FPN(channels=16),
            head=Head(num_convs=1, centerness=True),
            regression=PointRegression(),
        )
    )
    assert model.head.box_output.bias is not None
    assert model.head.box_output.bias.tolist() == [4, 4, 4, 4, 0]


def test_equal_seeds_build_equal_weights() -> None:
    config = Detector(backbone=ResNet(depths=(1, 1, 1, 1)), fpn=FPN(channels=32))
    torch.manual_seed(3)
    first = build_detector(config).state_dict()
    torch.manual_seed(3)
    second = build_detector(config).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
