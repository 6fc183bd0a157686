"""Work counted from a config, without a network, is what the network does."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from detector.config import Data, Detector, Evaluation, Schedule, SingleScale, SingleShot, Trial
from detector.model.build import build_detector
from detector.presets import FASTER_RCNN, REFINEDET320, REFINEDET512, SSD300, SSD512, shrunk, shrunk_two_stage
from experiments.atss import presets
from experiments.detection.cost import DEFORMABLE, FLIPPED, TRAINING, trial_cost
from experiments.detection.cost_single_shot import multiply_adds, two_stage_multiply_adds
from experiments.detection.small import SHAPES

SIDE = 256
SQUARE = Data("0" * 12, SIDE, SIDE)
ONCE = Schedule(iterations=1, total_batch=1)
IMAGES = {"val": 1, "test": 3}


def cost(
    detector: Detector, *evaluations: Evaluation, data: Data = SQUARE, schedule: Schedule = ONCE
) -> float:
    return trial_cost(Trial(detector, schedule, data, 0), evaluations, IMAGES)


def forward_cost(detector: Detector) -> float:
    return cost(detector, Evaluation()) - cost(detector)


def counted(detector: Detector) -> float:
    """10^12 multiply-adds of a forward pass, as torch counts them."""
    model = build_detector(detector).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8))
    return float(counter.get_total_flops()) / 2 / 1e12


@pytest.mark.parametrize(
    "detector",
    [
        presets.retinanet(),
        presets.atss(),
        presets.retinanet(presets.NINE_ANCHORS),
        presets.large(presets.RESNET_101).detector,
        SHAPES.networks.small(presets.atss(), 5),
        SHAPES.networks.small(presets.large(presets.RESNET_101).detector, 5),
    ],
)
def test_plain_networks_cost_what_torch_counts(detector: Detector) -> None:
    assert forward_cost(detector) == pytest.approx(counted(detector), rel=0.02)


@pytest.mark.parametrize(
    "detector",
    [SSD300, SSD512, REFINEDET320, replace(REFINEDET512, refinement=None), shrunk(REFINEDET320, 1, 8)],
    ids=lambda detector: str(detector.input_size),
)
def test_single_shot_detectors_cost_exactly_what_torch_counts(detector: SingleShot) -> None:
    side = detector.input_size
    with FlopCounterMode(display=False) as counter, torch.device("meta"), torch.no_grad():
        build_detector(detector)(torch.zeros(1, 3, side, side))
    assert multiply_adds(detector) == counter.get_total_flops() / 2


def test_a_step_of_a_single_shot_detector_costs_three_passes() -> None:
    detector = shrunk(SSD300, 2, 16)
    once = Trial(detector, ONCE, SQUARE, 0)
    assert trial_cost(once, (), IMAGES) == pytest.approx(TRAINING * multiply_adds(detector) / 1e12)
    both = trial_cost(once, (Evaluation(), Evaluation(split="test")), IMAGES)
    assert both == pytest.approx((TRAINING + 1 + 3) * multiply_adds(detector) / 1e12)


def test_a_two_stage_detector_costs_what_torch_counts() -> None:
    detector = replace(shrunk_two_stage(FASTER_RCNN, 1, 16), anchor_sides=(16.0, 32.0, 64.0))
    model = build_detector(detector).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        outputs = model(torch.zeros(1, 3, 128, 128))
        model.candidates(outputs, Evaluation())
    regions = len(outputs.proposals[0])
    assert two_stage_multiply_adds(detector, 128**2, regions) == counter.get_total_flops() / 2
    fewer = trial_cost(Trial(detector, ONCE, SQUARE, 0), (), IMAGES)
    assert fewer == pytest.approx(TRAINING * two_stage_multiply_adds(detector, SIDE**2, 128) / 1e12)


def test_training_costs_three_passes_but_for_frozen_stages() -> None:
    detector = presets.atss()
    thawed = replace(detector, backbone=replace(detector.backbone, frozen_stages=0))
    assert cost(thawed) == pytest.approx(TRAINING * forward_cost(detector))
    assert 0.8 < cost(detector) / cost(thawed) < 1


def test_iterations_batch_and_pixels_multiply() -> None:
    detector = presets.atss()
    more = cost(
        detector, schedule=Schedule(iterations=10, total_batch=8), data=replace(SQUARE, max_long_side=999)
    )
    assert more == pytest.approx(cost(detector) * 80 * 4 / 3, rel=0.01)  # photographs are wider than high
    smaller = cost(detector, data=replace(SQUARE, min_short_side=SIDE // 2))
    assert smaller == pytest.approx(cost(detector) * 7 / 12)  # the mean square between a half and one


def test_evaluations_add_up_by_their_images_and_passes() -> None:
    detector = presets.atss()
    once = forward_cost(detector)
    assert cost(detector, Evaluation(split="test")) - cost(detector) == pytest.approx(3 * once)
    assert isinstance(Evaluation().scales, SingleScale)
    several = cost(detector, presets.MULTI_SCALE) - cost(detector)
    scales = [0.5, 0.625, 0.75, 0.8, 0.875, 1, 1.125, 1.25, 1.375, 1.5, 1.625, 1.75, 2.25]
    at_least = FLIPPED * sum(scale**2 for scale in scales) * once
    assert at_least <= several <= 4 / 3 * at_least


def test_the_rows_of_the_paper_stand_in_their_measured_order() -> None:
    """Steps of R-50 : R-50-DCN : X-101 take 1 : 1.7 : 2.5 (results/training_step_backbones.json)."""
    backbone = replace(presets.RESNET_50, deformable=(False, True, True, True))
    base = presets.atss()
    deformable = replace(base, backbone=backbone, head=replace(base.head, deformable=True))
    assert DEFORMABLE > 1
    assert cost(deformable) / cost(base) == pytest.approx(1.7, rel=0.25)
    for large in (presets.RESNEXT_101_32X8D, presets.RESNEXT_101_64X4D):
        assert cost(presets.large(large).detector) / cost(base) == pytest.approx(2.5, rel=0.25)


@pytest.mark.process
def test_counting_imports_no_torch() -> None:
    code = "import sys, experiments.detection.cost; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
