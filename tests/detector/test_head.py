"""The head: its switches, its initial values, and the order of what it predicts."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from detector import config as cfg
from detector.model.dcn import DeformConv2d
from detector.model.head import Head

SIZES = ((6, 7), (3, 4), (2, 2), (1, 1), (1, 1))
CELLS = sum(h * w for h, w in SIZES)
PLAIN = cfg.Head(num_convs=2)


def head(config: cfg.Head = PLAIN, *, anchors: int = 1, classes: int = 3, bias: float = 0.0) -> Head:
    torch.manual_seed(0)
    return Head(config, channels=32, num_anchors=anchors, num_classes=classes, box_bias=bias, num_levels=5)


def pyramid(images: int = 2) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(images, 32, h, w) for h, w in SIZES]


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("anchors", [1, 9])
def test_every_anchor_gets_class_logits_and_four_box_values(anchors: int) -> None:
    cls, reg, ctr = head(anchors=anchors)(pyramid())
    assert cls.shape == (2, CELLS * anchors, 3)
    assert reg.shape == (2, CELLS * anchors, 4)
    assert ctr is None


def test_predictions_are_in_order_of_level_row_column_and_anchor() -> None:
    model, features = head(anchors=2), pyramid()
    cls, reg, _ = model(features)
    # Row 2, column 1, second anchor of the first level; then the second level's row 0, column 3, first.
    for level, y, x, anchor, index in ((0, 2, 1, 1, (2 * 7 + 1) * 2 + 1), (1, 0, 3, 0, 6 * 7 * 2 + 3 * 2)):
        logits = model.cls_output(model.cls_tower(features[level]))
        boxes = model.box_output(model.box_tower(features[level]))
        torch.testing.assert_close(cls[:, index], logits[:, 3 * anchor : 3 * anchor + 3, y, x])
        torch.testing.assert_close(reg[:, index], boxes[:, 4 * anchor : 4 * anchor + 4, y, x])


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_memory_format_does_not_change_what_is_predicted(memory_format: torch.memory_format) -> None:
    config = cfg.Head(num_convs=2, group_norm=True, centerness=True, level_scale=True)
    expected = head(config)(pyramid())
    model = head(config).to(memory_format=memory_format)
    for ours, theirs in zip(
        model([f.contiguous(memory_format=memory_format) for f in pyramid()]), expected, strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_classifiers_start_at_one_percent_and_boxes_at_the_coders_bias() -> None:
    model = head(cfg.Head(num_convs=2, centerness=True), anchors=1, bias=4.0)
    cls, reg, ctr = model([torch.zeros(1, 32, h, w) for h, w in SIZES])
    torch.testing.assert_close(cls.sigmoid(), torch.full_like(cls, 0.01))
    torch.testing.assert_close(cls, torch.full_like(cls, -math.log(99)))
    torch.testing.assert_close(reg, torch.full_like(reg, 4.0))
    assert ctr is not None
    torch.testing.assert_close(ctr, torch.zeros(1, CELLS))


def test_each_switch_adds_just_its_own_parameters() -> None:
    base = count(head())
    assert count(head(cfg.Head(num_convs=2, group_norm=True))) - base == 2 * 2 * 2 * 32
    assert count(head(cfg.Head(num_convs=2, centerness=True))) - base == 32 * 9 + 1
    assert count(head(cfg.Head(num_convs=2, level_scale=True))) - base == 5
    offsets = 2 * (27 * 32 * 9 + 27)
    assert count(head(cfg.Head(num_convs=2, deformable=True))) - base == offsets
    assert count(head(cfg.Head(num_convs=3))) - base == 2 * (32 * 32 * 9 + 32)


def test_centerness_has_one_logit_per_anchor_from_the_box_tower() -> None:
    model = head(cfg.Head(num_convs=2, centerness=True), anchors=3)
    ctr = model(pyramid()).ctr_NA
    assert ctr is not None
    assert ctr.shape == (2, CELLS * 3)
    ctr.square().sum().backward()
    assert all(p.grad is None for p in model.cls_tower.parameters())
    assert all(p.grad is not None for p in model.box_tower.parameters())


def test_level_scales_multiply_the_boxes_of_their_level_alone() -> None:
    config = cfg.Head(num_convs=2, centerness=True, level_scale=True)
    model = head(config)
    before = model(pyramid())
    assert model.scales is not None
    with torch.no_grad():
        model.scales[1] = 3.0
    after = model(pyramid())
    factor = torch.ones(CELLS, 1)
    factor[42:54] = 3.0
    torch.testing.assert_close(after.reg_NA4, before.reg_NA4 * factor)
    torch.testing.assert_close(after.ctr_NA, before.ctr_NA)
    torch.testing.assert_close(after.cls_NAK, before.cls_NAK)


def test_only_the_last_convolution_of_each_tower_is_deformable() -> None:
    model = head(cfg.Head(num_convs=3, deformable=True))
    for tower in (model.cls_tower, model.box_tower):
        convs = [m for m in tower if isinstance(m, nn.Conv2d)]
        assert [isinstance(conv, DeformConv2d) for conv in convs] == [False, False, True]


def test_a_head_without_tower_convolutions_predicts_from_the_pyramid() -> None:
    assert head(cfg.Head(num_convs=0))(pyramid()).cls_NAK.shape == (2, CELLS, 3)


def grads_by_level(model: Head, features: Sequence[Tensor]) -> list[bool]:
    leaves = [f.clone().requires_grad_() for f in features]
    cls, reg, _ = model(leaves)
    (cls.sum() + reg.sum()).backward()
    return [leaf.grad is not None for leaf in leaves]


def test_all_levels_share_the_head_and_get_gradients() -> None:
    assert grads_by_level(head(cfg.Head(num_convs=1, group_norm=True)), pyramid()) == [True] * 5


def test_outputs_are_float32_under_autocast() -> None:
    model = head(cfg.Head(num_convs=2, group_norm=True, centerness=True, deformable=True))
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(pyramid())
    assert all(o is not None and o.dtype == torch.float32 for o in outputs)
