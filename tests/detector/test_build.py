"""Config classes become the right objects, of the authors' size."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from detector.assigners import ATSSAssigner, MaxIoUAssigner, SpatialScaleAssigner
from detector.box_coders import BoxCoder, PointCoder
from detector.build import build_assigner, build_coder, build_detector
from detector.config import (
    ATSS,
    FPN,
    Anchors,
    BoxRegression,
    Detector,
    Head,
    MaxIoU,
    PointRegression,
    ResNet,
    SpatialScale,
)
from detector.dense_detector import DenseDetector
from detector.norms import FrozenBatchNorm2d

R50 = ResNet(stride_in_1x1=True)
R101 = replace(R50, depths=(3, 4, 23, 3))
X32 = replace(R101, groups=32, width_per_group=8, stride_in_1x1=False)
X64 = replace(X32, groups=64, width_per_group=4)
C3_C5, C4_C5 = (False, True, True, True), (False, False, True, True)
NINE = Anchors(scale=4.0, scales_per_octave=3, ratios=(0.5, 1.0, 2.0))


def atss(backbone: ResNet, *, deformable: bool = False) -> Detector:
    head = Head(group_norm=True, centerness=True, level_scale=True, deformable=deformable)
    return Detector(backbone=backbone, head=head)


OFFICIAL = {
    "atss/atss_R_50_FPN_1x.yaml": atss(R50),
    "atss/atss_R_101_FPN_2x.yaml": atss(R101),
    "atss/atss_X_101_32x8d_FPN_2x.yaml": atss(X32),
    "atss/atss_X_101_64x4d_FPN_2x.yaml": atss(X64),
    "atss/atss_dcnv2_R_50_FPN_1x.yaml": atss(replace(R50, deformable=C3_C5), deformable=True),
    "atss/atss_dcnv2_R_101_FPN_2x.yaml": atss(replace(R101, deformable=C3_C5), deformable=True),
    "atss/atss_dcnv2_X_101_32x8d_FPN_2x.yaml": atss(replace(X32, deformable=C4_C5), deformable=True),
    "atss/atss_dcnv2_X_101_64x4d_FPN_2x.yaml": atss(replace(X64, deformable=C4_C5), deformable=True),
    "fcos/fcos_imprv_R_50_FPN_1x.yaml": atss(R50),
    "retinanet/retinanet_R-50-FPN_1x.yaml": Detector(backbone=R50, anchors=NINE, fpn=FPN(p6_from="C5")),
    "retinanet/retinanet_R-50-FPN_P5_1x.yaml": Detector(backbone=R50, anchors=NINE),
    "retinanet #A=1 P5 (override)": Detector(backbone=R50),
    "retinanet #A=1 C5 (override)": Detector(backbone=R50, fpn=FPN(p6_from="C5")),
}


def meta(config: Detector) -> DenseDetector:
    with torch.device("meta"):
        return build_detector(config)


def count(module: nn.Module, *, learned_only: bool = False) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not learned_only)


@pytest.mark.parametrize("name", OFFICIAL)
def test_models_have_as_many_parameters_as_the_authors(shared: Path, name: str) -> None:
    expected = json.loads((shared / "golden" / "model_stats.json").read_text())[name]
    model = meta(OFFICIAL[name])
    frozen = [m for m in model.modules() if isinstance(m, FrozenBatchNorm2d)]
    assert {
        "params_learnable_tensors": count(model),
        "params_requires_grad": count(model, learned_only=True),
        "frozen_bn_buffers": sum(b.numel() for m in frozen for b in m.buffers()),
        "body": count(model.backbone),
        "fpn": count(model.fpn),
        "head": count(model.head),
    } == {key: value for key, value in expected.items() if "gmacs" not in key and "which" not in key}


def convolution_macs(model: nn.Module, height: int, width: int) -> float:
    """Multiply-adds of all convolutions for one image, in units of 1e9."""
    total = 0

    def add(conv: nn.Conv2d, _: object, out: torch.Tensor) -> None:
        nonlocal total
        total += out.shape[-1] * out.shape[-2] * conv.weight.numel()

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(add)
    model(torch.empty(1, 3, height, width, device="meta"))
    return total / 1e9


@pytest.mark.parametrize(
    "name",
    [
        "atss/atss_R_50_FPN_1x.yaml",
        "retinanet/retinanet_R-50-FPN_1x.yaml",
        "atss/atss_dcnv2_R_50_FPN_1x.yaml",
        "atss/atss_X_101_32x8d_FPN_2x.yaml",
    ],
)
def test_models_do_as_many_multiplications_as_the_authors(shared: Path, name: str) -> None:
    expected = json.loads((shared / "golden" / "model_stats.json").read_text())[name]["conv_gmacs_800x1216"]
    assert convolution_macs(meta(OFFICIAL[name]), 800, 1216) == pytest.approx(expected, abs=1e-3)


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
