"""Faster R-CNN of torchvision's parts: its losses, its draws, and what it detects."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import MultiScaleRoIAlign

from detector.config import Evaluation, FasterRCNN, Proposals
from detector.evaluation.postprocess import detect
from detector.model.build import build_detector
from detector.model.faster_rcnn import FasterRCNNDetector, RegionOutputs
from detector.objectives.sampling import RegionTargets, drawn
from detector.presets import FASTER_RCNN, shrunk_two_stage

SMALL = replace(
    shrunk_two_stage(FASTER_RCNN, 2, 16),
    num_classes=3,
    anchor_sides=(12.0, 24.0, 48.0),
    training=Proposals(200, 50),
    testing=Proposals(200, 30),
    rpn_samples=32,
    roi_samples=16,
)
SEEDS = [5, 9]
BOXES = torch.tensor([[[8.0, 8, 40, 32], [40, 40, 72, 80]], [[16.0, 24, 72, 64], [0, 0, 0, 0]]])
LABELS = torch.tensor([[0, 2], [1, 0]])
VALID = torch.tensor([[True, True], [True, False]])


def build(config: FasterRCNN = SMALL) -> FasterRCNNDetector:
    torch.manual_seed(0)
    return build_detector(config)


def images() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(256, (2, 3, 80, 80), generator=generator, dtype=torch.uint8)


def step(model: FasterRCNNDetector, seeds: list[int] = SEEDS) -> tuple[RegionOutputs, RegionTargets]:
    outputs = model(images())
    return outputs, model.targets((80, 80), BOXES, LABELS, VALID, outputs, seeds)


# --- draws -------------------------------------------------------------------------------------------


def test_positives_are_limited_and_background_fills_the_rest() -> None:
    labels = torch.tensor([1.0] * 10 + [0.0] * 20 + [-1.0] * 5)
    chosen = drawn(labels, 12, 4, seed=3)
    assert (int(chosen[:10].sum()), int(chosen[10:30].sum()), int(chosen[30:].sum())) == (4, 8, 0)
    few = drawn(labels[9:], 12, 4, seed=3)
    assert (int(few[0]), int(few.sum())) == (1, 12)


def test_a_draw_depends_on_its_seed_alone() -> None:
    labels = torch.zeros(100)
    torch.manual_seed(0)
    first = drawn(labels, 10, 5, seed=1)
    torch.manual_seed(1)
    assert torch.equal(first, drawn(labels, 10, 5, seed=1))
    assert not torch.equal(first, drawn(labels, 10, 5, seed=2))


def test_every_background_is_drawn_as_often() -> None:
    labels = torch.zeros(20)
    times = sum(drawn(labels, 5, 2, seed).int() for seed in range(2000))
    assert isinstance(times, Tensor)
    assert times.min() > 400 and times.max() < 600


# --- losses ------------------------------------------------------------------------------------------


class OurDraws:
    """torchvision's sampler, with the draws of this project."""

    def __init__(self, count: int, positives: int) -> None:
        self.count, self.positives = count, positives

    def __call__(self, labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        pairs = zip(labels, SEEDS, strict=True)
        chosen = [drawn(own, self.count, self.positives, seed) for own, seed in pairs]
        positive = [c & (own > 0) for c, own in zip(chosen, labels, strict=True)]
        return positive, [c & (own == 0) for c, own in zip(chosen, labels, strict=True)]


def test_the_losses_are_torchvisions_with_the_same_draws() -> None:
    model = build()
    outputs, targets = step(model)
    ours = model.losses(outputs, targets, targets.counts())
    model.rpn.fg_bg_sampler, model.roi.fg_bg_sampler = OurDraws(32, 16), OurDraws(16, 4)
    model.roi.box_roi_pool = MultiScaleRoIAlign(["0"], 7, sampling_ratio=2)
    truth = [
        {"boxes": boxes[valid], "labels": labels[valid] + 1}
        for boxes, labels, valid in zip(BOXES, LABELS, VALID, strict=True)
    ]
    sizes, features = [(80, 80), (80, 80)], {"0": outputs.features}
    proposals, first = model.rpn(ImageList(images(), sizes), features, truth)
    _, second = model.roi(features, proposals, sizes, truth)
    expected = [*first.values(), *second.values()]
    assert [ours[name].item() for name in ("rpn_cls", "rpn_box", "cls", "box")] == pytest.approx(
        [loss.item() for loss in expected], rel=1e-4
    )


def test_every_parameter_learns() -> None:
    model = build()
    outputs, targets = step(model)
    total = torch.stack(list(model.losses(outputs, targets, targets.counts()).values())).sum()
    gradients = torch.autograd.grad(total, list(model.parameters()))
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


def test_parts_of_a_batch_add_up_to_its_losses() -> None:
    model = build()
    outputs, targets = step(model)
    counts = targets.counts()
    whole = model.losses(outputs, targets, counts)
    parts = []
    for n in range(2):
        own = model(images()[n : n + 1])
        truth = BOXES[n : n + 1], LABELS[n : n + 1], VALID[n : n + 1]
        parts.append(model.losses(own, model.targets((80, 80), *truth, own, SEEDS[n : n + 1]), counts))
    for name, loss in whole.items():
        assert loss.item() == pytest.approx(sum(part[name].item() for part in parts), rel=1e-4), name


def test_a_batch_without_objects_learns_background_alone() -> None:
    model = build()
    outputs = model(images())
    targets = model.targets((80, 80), BOXES[:, :0], LABELS[:, :0], VALID[:, :0], outputs, SEEDS)
    losses = model.losses(outputs, targets, targets.counts())
    assert (losses["rpn_box"].item(), losses["box"].item()) == (0, 0)
    assert losses["rpn_cls"].isfinite() and losses["cls"] > 0


# --- the whole ---------------------------------------------------------------------------------------


def test_a_region_detects_each_class_above_the_threshold() -> None:
    model = build().eval()
    with torch.no_grad():
        outputs = model(images(), torch.tensor([[80, 80], [60, 72]]))
        test = Evaluation(score_threshold=0.2, nms_iou=1.0, max_detections=1000)
        candidates = model.candidates(outputs, test)
    found = detect(candidates, [(80, 80), (60, 72)], test)
    assert all(len(own) > 0 and (own.scores > 0.2).all() for own in found)
    assert (found[1].boxes[:, 2] <= 72).all() and (found[1].boxes[:, 3] <= 60).all()


def test_the_papers_network_has_the_parameters_of_a_count_by_hand() -> None:
    with torch.device("meta"):
        model = build_detector(FASTER_RCNN)
    convolutions = [(3, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 256), (256, 512)]
    vgg = sum((9 * c + 1) * out for c, out in convolutions) + 5 * (9 * 512 + 1) * 512
    rpn = (9 * 512 + 1) * 512 + 513 * 9 * 5
    head = (49 * 512 + 1) * 4096 + 4097 * 4096 + 4097 * 21 * 5
    assert sum(p.numel() for p in model.parameters()) == vgg + rpn + head


def test_anchors_are_nine_in_a_cell_of_sixteen_pixels() -> None:
    assert (FASTER_RCNN.stride, FASTER_RCNN.num_per_location) == (16, 9)
    assert (SMALL.stride, SMALL.num_per_location) == (4, 9)


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: FasterRCNN(backbone=replace(SMALL.backbone, fc_channels=8)), "fc_channels=0"),
    (lambda: Proposals(10, 20), "after <= before"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED)
def test_a_config_that_cannot_work_is_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
