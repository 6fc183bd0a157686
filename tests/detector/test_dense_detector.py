"""The whole detector: shapes, padding, losses and learning."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from detector.config import (
    ATSS,
    FPN,
    Anchors,
    BoxRegression,
    Detector,
    GIoU,
    Head,
    MaxIoU,
    PointRegression,
    ResNet,
    SmoothL1,
    SpatialScale,
)
from detector.model.build import build_detector
from detector.model.dense_detector import DenseDetector

TINY = Detector(
    num_classes=3,
    backbone=ResNet(
        block="basic",
        depths=(1, 1, 1, 1),
        widths=(16, 16, 32, 32),
        stem="patch",
        stem_channels=16,
        stem_stride=4,
        stage_strides=(1, 1, 2, 2),
        norm="group_norm",
        frozen_stages=0,
    ),
    fpn=FPN(channels=16),
    head=Head(num_convs=1, group_norm=True, centerness=True, level_scale=True),
    assigner=ATSS(),
    box_loss=GIoU(),
)
PLAIN = replace(TINY, head=Head(num_convs=1), assigner=MaxIoU(), box_loss=SmoothL1())
VARIANTS = {
    "RetinaNet": PLAIN,
    "RetinaNet #A=9": replace(PLAIN, anchors=Anchors(scales_per_octave=3, ratios=(0.5, 1.0, 2.0))),
    "RetinaNet in GT box": replace(PLAIN, assigner=MaxIoU(inside_gt=True), box_loss=GIoU()),
    "FCOS": replace(TINY, assigner=SpatialScale(center_radius=1.5), regression=PointRegression()),
    "ATSS": TINY,
    "ATSS deformable": replace(
        TINY,
        backbone=replace(TINY.backbone, deformable=(False, False, True, True)),
        head=replace(TINY.head, deformable=True),
    ),
}


def build(config: Detector = TINY) -> DenseDetector:
    torch.manual_seed(0)
    return build_detector(config)


def images(count: int = 2, height: int = 64, width: int = 64) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, height, width), generator=generator).to(torch.uint8)


Truth = tuple[Tensor, Tensor, Tensor]


def gts() -> Truth:
    """Boxes, labels and validity of two images, the second with one box and padding."""
    boxes_NG4 = torch.tensor([[[4.0, 6, 40, 44], [30, 20, 60, 62]], [[8, 8, 56, 56], [0, 0, 0, 0]]])
    return boxes_NG4, torch.tensor([[0, 2], [1, 0]]), torch.tensor([[True, True], [True, False]])


def losses_of(model: DenseDetector, batch: Tensor, truth: Truth) -> dict[str, Tensor]:
    targets = model.targets((batch.shape[2], batch.shape[3]), *truth)
    return model.losses(model(batch), targets, targets.counts())


def total(model: DenseDetector, batch: Tensor, truth: Truth) -> Tensor:
    return torch.stack(list(losses_of(model, batch, truth).values())).sum()


def backward(loss: Tensor) -> None:
    loss.backward()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(("height", "width"), [(64, 64), (50, 70), (1, 17), (96, 33)])
def test_images_of_any_size_are_padded_to_whole_c5_cells(height: int, width: int) -> None:
    outputs = build()(images(2, height, width))
    rows, columns = -(-height // 16) * 4, -(-width // 16) * 4
    assert [level.stride for level in outputs.grid.levels] == [4, 8, 16, 32, 64]
    assert (outputs.grid.levels[0].height, outputs.grid.levels[0].width) == (rows, columns)
    num_anchors = sum(level.height * level.width for level in outputs.grid.levels)
    assert outputs.cls_NAK.shape == (2, num_anchors, 3)
    assert outputs.reg_NA4.shape == (2, num_anchors, 4)
    assert outputs.ctr_NA is not None
    assert outputs.ctr_NA.shape == (2, num_anchors)
    assert outputs.grid.boxes_A4.shape == (num_anchors, 4)


def test_the_papers_input_has_20267_anchors() -> None:
    with torch.device("meta"):
        config = Detector(backbone=replace(TINY.backbone, stem_stride=8), fpn=FPN(channels=16))
        outputs = build_detector(config)(torch.empty(1, 3, 800, 1216))
    assert outputs.cls_NAK.shape == (1, 20267, 80)


def test_pixels_are_normalised_before_the_padding() -> None:
    model = build()
    prepared = model.prepare(images(1, 20, 30))
    mean, std = torch.tensor(TINY.pixel_mean), torch.tensor(TINY.pixel_std)
    expected = (images(1, 20, 30).permute(0, 2, 3, 1) - mean) / std
    torch.testing.assert_close(prepared[0, :, :20, :30], expected[0].permute(2, 0, 1))
    assert prepared.shape == (1, 3, 32, 32)
    assert not prepared[0, :, 20:].any()
    assert not prepared[0, :, :, 30:].any()


def test_float_and_uint8_pixels_are_the_same_image() -> None:
    model = build().eval()
    torch.testing.assert_close(model(images()).cls_NAK, model(images().float()).cls_NAK)


@torch.no_grad()
def test_an_image_in_a_batch_of_its_padded_size_is_predicted_as_alone() -> None:
    # 50 x 60 alone is padded to 64 x 64; so it is beside a 64 x 64 image. In a larger batch it would see
    # more padding, whose values the first bias changes: there nobody's detector is the same.
    model = build().eval()
    small = images(1, 50, 60)
    canvas = images(2, 64, 64)
    canvas[0, :, :50, :60] = small[0]
    alone = model(small)
    together = model(canvas, torch.tensor([[50, 60], [64, 64]]))
    torch.testing.assert_close(together.cls_NAK[:1], alone.cls_NAK, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together.reg_NA4[:1], alone.reg_NA4, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_images_of_a_batch_do_not_see_each_other() -> None:
    model = build().eval()
    batch, other = images(3), images(3)
    other[1:] = 255 - other[1:]
    torch.testing.assert_close(model(other).cls_NAK[0], model(batch).cls_NAK[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_trains_a_step_with_finite_losses_and_gradients(name: str) -> None:
    model = build(VARIANTS[name])
    losses = losses_of(model, images(), gts())
    assert set(losses) == {"cls", "box"} | ({"centerness"} if VARIANTS[name].head.centerness else set())
    backward(torch.stack(list(losses.values())).sum())
    assert all(loss.ndim == 0 and loss.isfinite() and loss > 0 for loss in losses.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("num_gts", [0, 2])
def test_images_without_ground_truth_give_finite_losses_and_gradients(name: str, num_gts: int) -> None:
    model = build(VARIANTS[name])
    truth = (
        torch.zeros(2, num_gts, 4),
        torch.zeros(2, num_gts, dtype=torch.int64),
        torch.zeros(2, num_gts, dtype=torch.bool),
    )
    losses = losses_of(model, images(), truth)
    backward(torch.stack(list(losses.values())).sum())
    assert losses["cls"] > 0
    assert losses["box"] == 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", ["RetinaNet", "FCOS", "ATSS"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_loss_falls_on_one_batch(name: str, precision: str) -> None:
    model = build(VARIANTS[name])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    history = []
    for _ in range(25):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = total(model, images(), gts())
        optimizer.zero_grad()
        backward(loss)
        optimizer.step()
        history.append(float(loss.detach()))
    assert history[-1] < 0.7 * history[0]


def test_losses_are_float32_under_autocast_and_near_those_without() -> None:
    model = build()
    exact = losses_of(model, images(), gts())
    with torch.autocast("cpu", torch.bfloat16):
        outputs, targets = model(images()), model.targets((64, 64), *gts())
        losses = model.losses(outputs, targets, targets.counts())
    assert outputs.cls_NAK.dtype == outputs.reg_NA4.dtype == torch.float32
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, exact[name], rtol=0.05, atol=0.01)


def test_losses_of_the_parts_of_a_batch_sum_to_the_loss_of_the_whole() -> None:
    model = build().eval()
    targets = model.targets((64, 64), *gts())
    parts = [
        model.losses(model(images()[half]), targets[half], targets.counts())
        for half in (slice(0, 1), slice(1, 2))
    ]
    for name, loss in losses_of(model, images(), gts()).items():
        torch.testing.assert_close(parts[0][name] + parts[1][name], loss, rtol=1e-4, atol=1e-6)


def test_point_regression_predicts_no_negative_distance() -> None:
    model = build(replace(TINY, regression=PointRegression()))
    with torch.no_grad():
        assert model.head.box_output.bias is not None
        model.head.box_output.bias.fill_(-1)
    assert (model(images()).reg_NA4 == 0).all()
    model = build(replace(TINY, regression=BoxRegression()))
    assert (model(images()).reg_NA4 < 0).any()


def test_frozen_stages_stay_as_they_are_in_training() -> None:
    model = build(replace(TINY, backbone=replace(TINY.backbone, frozen_stages=2)))
    backward(total(model, images(), gts()))
    frozen = {name for name, p in model.named_parameters() if p.grad is None}
    stem = {"conv1.weight", "bn1.weight", "bn1.bias", "conv2.weight", "bn2.weight", "bn2.bias"}
    c2 = {name for name, _ in model.named_parameters() if name.startswith("backbone.layer1.")}
    assert frozen == {f"backbone.{name}" for name in stem} | c2


def test_weights_survive_saving_and_loading() -> None:
    first, second = build().eval(), build_detector(TINY).eval()
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(images()).cls_NAK, second(images()).cls_NAK)


@pytest.mark.gpu
def test_a_gpu_predicts_and_trains_like_the_cpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    model = build()
    expected = total(model, images(), gts())
    model = model.cuda()
    boxes, labels, valid = gts()
    loss = total(model, images().cuda(), (boxes.cuda(), labels.cuda(), valid.cuda()))
    torch.testing.assert_close(loss.cpu(), expected, rtol=1e-3, atol=1e-4)
    backward(loss)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
