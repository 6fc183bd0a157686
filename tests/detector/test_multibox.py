"""Targets, mining, filter and losses of SSD and RefineDet by hand."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from detector.config import AnchorRefinement
from detector.geometry.box_coders import BoxCoder
from detector.objectives.multibox import (
    BoxTargets,
    SingleShotLoss,
    SingleShotTargets,
    box_targets,
    hard_negatives,
)
from detector.outputs import MultiBox, SingleShotOutputs
from detector.presets import REFINEDET320, SSD300

CODER = BoxCoder((10, 10, 5, 5))


def test_labels_become_classes_from_one_and_offsets_are_encoded_by_variances() -> None:
    boxes = torch.tensor([[[0.0, 0, 10, 10], [50.0, 50, 60, 60]]])
    truth = torch.tensor([[[1.0, 0, 11, 10]]])
    found = box_targets(boxes, truth, torch.tensor([[4]]), torch.tensor([[True]]), CODER, 0.5)
    assert found.classes_NA.tolist() == [[5, 0]]
    # The centre moves by a tenth of the width, over a variance of 0.1.
    torch.testing.assert_close(found.deltas_NA4, torch.tensor([[[1.0, 0, 0, 0], [0, 0, 0, 0]]]))


def test_an_image_without_objects_has_background_alone() -> None:
    boxes = torch.tensor([[[0.0, 0, 10, 10]]])
    labels = torch.zeros(1, 0, dtype=torch.int64)
    found = box_targets(boxes, torch.zeros(1, 0, 4), labels, labels.bool(), CODER, 0.5)
    assert found.classes_NA.tolist() == [[0]]
    assert not found.deltas_NA4.any()


def test_the_hardest_negatives_of_each_image_are_mined() -> None:
    loss = torch.tensor([[1.0, 5, 3, 2, 4], [1, 2, 3, 4, 5]])
    negative = torch.tensor([[True, False, True, True, True], [True] * 5])
    mined = hard_negatives(loss, negative, torch.tensor([2, 0]))
    assert mined.tolist() == [[False, False, True, False, True], [False] * 5]


def test_of_equally_hard_negatives_the_first_are_mined_and_never_more_than_there_are() -> None:
    loss, negative = torch.ones(2, 4), torch.tensor([[True] * 4, [False, True, False, False]])
    mined = hard_negatives(loss, negative, torch.tensor([2, 9]))
    assert mined.tolist() == [[True, True, False, False], [False, True, False, False]]


def targets_of(*classes: list[int]) -> BoxTargets:
    classes_NA = torch.tensor(classes)
    return BoxTargets(classes_NA, torch.zeros(*classes_NA.shape, 4))


def outputs_of(logits_NAK: Tensor, arm_logits_NA2: Tensor | None = None) -> SingleShotOutputs:
    """Outputs whose boxes are exact."""
    boxes = torch.zeros(*logits_NAK.shape[:2], 4)
    arm = None if arm_logits_NA2 is None else MultiBox(arm_logits_NA2, boxes, boxes)
    return SingleShotOutputs(MultiBox(logits_NAK, boxes, boxes), arm)


SSD_LOSS = SingleShotLoss(replace(SSD300, num_classes=1))


def test_three_negatives_are_mined_for_a_positive_and_the_loss_is_divided_by_the_positives() -> None:
    # P(class) of 1/2 for all anchors, but one negative has a loss of almost 0 and is not mined.
    logits = torch.zeros(1, 6, 2)
    logits[0, 5, 0] = 20.0
    losses = SSD_LOSS(
        outputs_of(logits), SingleShotTargets(targets_of([1, 0, 0, 0, 0, 0]), None), torch.ones(1)
    )
    assert losses["cls"].item() == pytest.approx(4 * math.log(2))
    assert losses["box"].item() == 0


def test_mining_counts_by_image_so_one_without_positives_has_no_loss() -> None:
    logits = torch.zeros(2, 5, 2, requires_grad=True)
    targets = SingleShotTargets(targets_of([1, 0, 0, 0, 0], [0, 0, 0, 0, 0]), None)
    losses = SSD_LOSS(outputs_of(logits), targets, targets.counts())
    assert losses["cls"].item() == pytest.approx(4 * math.log(2))
    (gradient,) = torch.autograd.grad(losses["cls"], logits)
    assert gradient[0].abs().sum(dim=-1).gt(0).tolist() == [True, True, True, True, False]
    assert not gradient[1].any()


def test_a_batch_without_objects_has_a_loss_of_zero_with_a_gradient_of_zero() -> None:
    logits = torch.randn(1, 5, 2, requires_grad=True)
    targets = SingleShotTargets(targets_of([0, 0, 0, 0, 0]), None)
    losses = SSD_LOSS(outputs_of(logits), targets, targets.counts())
    assert [loss.item() for loss in losses.values()] == [0, 0]
    losses["cls"].backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None and not logits.grad.any()


def test_the_box_loss_is_smooth_l1_of_positives_over_their_number() -> None:
    boxes = torch.zeros(1, 2, 4)
    reg = torch.tensor([[[0.5, 2.0, 0, 0], [9.0, 9, 9, 9]]])
    outputs = SingleShotOutputs(MultiBox(torch.zeros(1, 2, 2), reg, boxes), None)
    losses = SSD_LOSS(outputs, SingleShotTargets(targets_of([1, 0]), None), torch.tensor([2.0]))
    assert losses["box"].item() == pytest.approx((0.5 * 0.5**2 + 1.5) / 2)


# --- RefineDet ---------------------------------------------------------------------------------------

REFINEDET_LOSS = SingleShotLoss(replace(REFINEDET320, num_classes=1))
UNSURE, BACKGROUND = [0.0, 0.0], [20.0, 0.0]


def gradients(loss: SingleShotLoss, arm_logits: list[list[float]], classes: list[int]) -> list[bool]:
    """Which anchors the detection head learns from."""
    logits = torch.zeros(1, len(classes), 2, requires_grad=True)
    targets = SingleShotTargets(targets_of(classes), targets_of(classes))
    outputs = outputs_of(logits, torch.tensor([arm_logits]))
    losses = loss(outputs, targets, targets.counts())
    (gradient,) = torch.autograd.grad(losses["cls"], logits)
    return gradient[0].abs().sum(dim=-1).gt(0).tolist()  # type: ignore[no-any-return]


def test_a_negative_that_the_arm_is_sure_of_is_not_mined() -> None:
    learned = gradients(REFINEDET_LOSS, [UNSURE, BACKGROUND, UNSURE, BACKGROUND], [1, 0, 0, 0])
    assert learned == [True, False, True, False]


def test_a_positive_is_never_filtered() -> None:
    assert gradients(REFINEDET_LOSS, [BACKGROUND, UNSURE], [1, 0]) == [True, True]


def test_without_the_filter_every_negative_may_be_mined() -> None:
    config = replace(REFINEDET320, num_classes=1, refinement=AnchorRefinement(objectness=0.0))
    learned = gradients(SingleShotLoss(config), [UNSURE, BACKGROUND, UNSURE, BACKGROUND], [1, 0, 0, 0])
    assert learned == [True, True, True, True]


def test_both_modules_mine_for_themselves_and_are_divided_by_their_own_positives() -> None:
    arm = torch.zeros(1, 6, 2)
    targets = SingleShotTargets(targets_of([1, 1, 0, 0, 0, 0]), targets_of([1, 0, 0, 0, 0, 0]))
    assert targets.counts().tolist() == [2, 1]
    losses = REFINEDET_LOSS(outputs_of(torch.zeros(1, 6, 2), arm), targets, torch.tensor([8.0, 2.0]))
    assert losses["cls"].item() == pytest.approx(6 * math.log(2) / 8)
    assert losses["arm_cls"].item() == pytest.approx(4 * math.log(2) / 2)


def test_the_arm_learns_nothing_from_the_detection_heads_loss() -> None:
    arm = torch.zeros(1, 2, 2, requires_grad=True)
    targets = SingleShotTargets(targets_of([1, 0]), targets_of([1, 0]))
    losses = REFINEDET_LOSS(outputs_of(torch.zeros(1, 2, 2, requires_grad=True), arm), targets, torch.ones(2))
    assert torch.autograd.grad(losses["cls"], arm, allow_unused=True) == (None,)
