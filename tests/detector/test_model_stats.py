"""The detectors are of the authors' size, tensor by tensor and multiplication by multiplication."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from detector.config import FPN, Detector
from detector.model.build import build_detector
from detector.model.dense_detector import DenseDetector
from detector.model.norms import FrozenBatchNorm2d
from experiments.atss import presets

R50_DCN = replace(presets.RESNET_50, deformable=presets.RESNET_101_DCN.deformable)
ATSS_R50 = presets.atss()
ATSS_R101 = presets.large(presets.RESNET_101).detector
ATSS_R101_DCN = presets.large(presets.RESNET_101_DCN).detector
RETINANET_9 = presets.retinanet(presets.NINE_ANCHORS)


def from_c5(detector: Detector) -> Detector:
    return replace(detector, fpn=FPN(p6_from="C5"))


OFFICIAL = {
    "atss/atss_R_50_FPN_1x.yaml": ATSS_R50,
    "atss/atss_R_101_FPN_1x.yaml": ATSS_R101,
    "atss/atss_R_101_FPN_2x.yaml": ATSS_R101,
    "atss/atss_X_101_32x8d_FPN_2x.yaml": presets.large(presets.RESNEXT_101_32X8D).detector,
    "atss/atss_X_101_64x4d_FPN_2x.yaml": presets.large(presets.RESNEXT_101_64X4D).detector,
    "atss/atss_dcnv2_R_50_FPN_1x.yaml": presets.large(R50_DCN).detector,
    "atss/atss_dcnv2_R_101_FPN_1x.yaml": ATSS_R101_DCN,
    "atss/atss_dcnv2_R_101_FPN_2x.yaml": ATSS_R101_DCN,
    "atss/atss_dcnv2_X_101_32x8d_FPN_2x.yaml": presets.large(presets.RESNEXT_101_32X8D_DCN).detector,
    "atss/atss_dcnv2_X_101_64x4d_FPN_2x.yaml": presets.large(presets.RESNEXT_101_64X4D_DCN).detector,
    "fcos/fcos_R_50_FPN_1x.yaml": presets.fcos(),
    "fcos/fcos_imprv_R_50_FPN_1x.yaml": presets.fcos(1.5),
    "retinanet/retinanet_R-50-FPN_1x.yaml": from_c5(RETINANET_9),
    "retinanet/retinanet_R-50-FPN_P5_1x.yaml": RETINANET_9,
    "retinanet #A=1 P5 (override)": presets.retinanet(),
    "retinanet #A=1 C5 (override)": from_c5(presets.retinanet()),
}
"""The authors' configs by the name of their file."""


@pytest.fixture(scope="module")
def stats(authors: Path) -> dict[str, dict[str, Any]]:
    """Counts over the authors' own model classes, by config."""
    counts: dict[str, dict[str, Any]] = json.loads((authors / "model_stats.json").read_text())
    return counts


def meta(config: Detector) -> DenseDetector:
    with torch.device("meta"):
        return build_detector(config)


def count(module: nn.Module, *, learned_only: bool = False) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not learned_only)


def gmacs(model: DenseDetector, height: int, width: int) -> dict[str, float]:
    """Multiply-adds of the convolutions of each part for one image, in units of 1e9.

    A deformable convolution counts as its kernel and the convolution of its offsets, as in the stats; its
    sampling does not.
    """
    totals = dict.fromkeys(("backbone", "fpn", "head"), 0)
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            part = name.split(".")[0]

            def add(conv: nn.Conv2d, _: object, out: torch.Tensor, part: str = part) -> None:
                totals[part] += out.shape[-1] * out.shape[-2] * conv.weight.numel()

            module.register_forward_hook(add)
    model(torch.empty(1, 3, height, width, device="meta"))
    return {part: total / 1e9 for part, total in totals.items()}


def test_every_model_that_was_counted_has_a_config_here(stats: dict[str, dict[str, Any]]) -> None:
    assert set(stats) == set(OFFICIAL)


@pytest.mark.parametrize("name", OFFICIAL)
def test_models_have_as_many_parameters_as_the_authors(stats: dict[str, dict[str, Any]], name: str) -> None:
    model = meta(OFFICIAL[name])
    frozen = [m for m in model.modules() if isinstance(m, FrozenBatchNorm2d)]
    assert {
        "params_learnable_tensors": count(model),
        "params_requires_grad": count(model, learned_only=True),
        "frozen_bn_buffers": sum(b.numel() for m in frozen for b in m.buffers()),
        "body": count(model.backbone),
        "fpn": count(model.fpn),
        "head": count(model.head),
    } == {key: value for key, value in stats[name].items() if "gmacs" not in key and "which" not in key}


@pytest.mark.parametrize("name", OFFICIAL)
def test_models_do_as_many_multiplications_as_the_authors(
    stats: dict[str, dict[str, Any]], name: str
) -> None:
    ours = gmacs(meta(OFFICIAL[name]), 800, 1216)
    # The stats have three decimals.
    assert round(sum(ours.values()), 3) == stats[name]["conv_gmacs_800x1216"]
    assert round(ours["backbone"] + ours["fpn"], 3) == stats[name]["of_which_backbone_fpn"]


def as_mmdetection(model: DenseDetector) -> tuple[int, int]:
    """Parameters and learned ones of mmdetection's model, from those of ours.

    There a batch norm's scale and shift are parameters, and learned outside the frozen stages, where
    ours (and the authors') are constants. Its towers have no bias before a group norm, ours (and the
    authors') do.
    """
    head, channels = model.config.head, model.config.fpn.channels
    tower_biases = 2 * head.num_convs * channels if head.group_norm else 0
    affines = {
        name: module.weight.numel() + module.bias.numel()
        for name, module in model.backbone.named_modules()
        if isinstance(module, FrozenBatchNorm2d)
    }
    learned = sum(n for name, n in affines.items() if name.startswith(("layer2", "layer3", "layer4")))
    total = count(model) + sum(affines.values()) - tower_biases
    return total, count(model, learned_only=True) + learned - tower_biases


# Counted on mmdetection 3.3.0's models with 80 classes. Learned parameters in millions, multiply-adds of
# one 800x1280 image in units of 1e9; the whole number of parameters is known for one.
@pytest.mark.parametrize(
    ("detector", "parameters", "learned", "multiplications"),
    [
        (ATSS_R50, 32_295_322, 32.07, 204.487),
        (ATSS_R101, None, 51.06, 280.246),
        (from_c5(RETINANET_9), None, 37.74, 238.536),
    ],
)
def test_models_are_of_mmdetections_size_where_the_two_count_alike(
    detector: Detector, parameters: int | None, learned: float, multiplications: float
) -> None:
    # Its ResNets have the stride in the 3x3, which costs the 1x1 before it four times as much.
    model = meta(replace(detector, backbone=replace(detector.backbone, stride_in_1x1=False)))
    total, trained = as_mmdetection(model)
    assert parameters in (None, total)
    assert round(trained / 1e6, 2) == learned
    assert round(sum(gmacs(model, 800, 1280).values()), 3) == multiplications
