"""Losses against hand-computed scenes, numerical gradients and the paper authors' outputs."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from detector.config import Anchors, Detector, Focal, GIoU, Head, SmoothL1
from detector.geometry.anchors import AnchorGrid, anchor_grid
from detector.geometry.box_coders import BoxCoder, Coder, PointCoder
from detector.objectives.losses import DetectionLoss, centerness_target, focal_loss_sum, giou_loss, targets_of
from detector.outputs import Outputs

STRIDES = (8, 16, 32, 64, 128)
CODERS: dict[str, Coder] = {"BOX": BoxCoder(), "POINT": PointCoder()}


def small_grid() -> AnchorGrid:
    """One level of 2 x 2 anchors, 64 x 64 px, centred at 4 and 12 px."""
    return anchor_grid(Anchors(), (8,), ((2, 2),), "cpu")


def outputs_like(grid: AnchorGrid, num_images: int = 1, num_classes: int = 3, seed: int = 0) -> Outputs:
    generator = torch.Generator().manual_seed(seed)
    num_anchors = len(grid.boxes_A4)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).requires_grad_()

    reg = random(num_images, num_anchors, 4)
    ctr = random(num_images, num_anchors)
    return Outputs(random(num_images, num_anchors, num_classes), reg, ctr, grid)


def detection_loss(
    box_loss: GIoU | SmoothL1, centerness: bool, coder: BoxCoder | PointCoder
) -> DetectionLoss:
    config = Detector(num_classes=3, head=Head(centerness=centerness), box_loss=box_loss)
    return DetectionLoss(config, coder)


def losses_of(
    loss: DetectionLoss, outputs: Outputs, match: Tensor, boxes: Tensor, labels: Tensor
) -> dict[str, Tensor]:
    """The losses of a batch that is one part alone."""
    targets = targets_of(match, boxes, labels, outputs.grid)
    return loss(outputs, targets, targets.counts())


def gradients(loss: Tensor, outputs: Outputs) -> list[Tensor]:
    inputs = [t for t in (outputs.cls_NAK, outputs.reg_NA4, outputs.ctr_NA) if t is not None]
    return list(torch.autograd.grad(loss, inputs, retain_graph=True, materialize_grads=True))


# --- focal loss ------------------------------------------------------------------------------------


def test_focal_loss_of_one_logit_is_what_the_formula_gives() -> None:
    # p = 0.5: positive 0.25 * 0.5^2 * ln 2, negative 0.75 * 0.5^2 * ln 2.
    logits = torch.zeros(1, 2)
    assert focal_loss_sum(logits, torch.tensor([0]), 0.25, 2.0).item() == pytest.approx(0.25 * math.log(2))
    assert focal_loss_sum(logits, torch.tensor([-1]), 0.25, 2.0).item() == pytest.approx(0.375 * math.log(2))


@pytest.mark.parametrize("gamma", [0.0, 1.0, 1.5, 2.0])
def test_focal_gradients_equal_numerical_ones(gamma: float) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(7, 4, generator=generator, dtype=torch.float64)
    classes = torch.tensor([-1, 0, 3, -2, 1, -1, 2])
    assert torch.autograd.gradcheck(
        lambda x: 3.5 * focal_loss_sum(x, classes, 0.25, gamma), (logits.requires_grad_(),)
    )


def test_focal_loss_without_focusing_is_half_the_binary_cross_entropy() -> None:
    logits = torch.linspace(-90, 90, 24).view(8, 3)
    classes = torch.tensor([0, 1, 2, -1, -1, 2, 1, 0])
    onehot = F.one_hot(classes + 1, 4)[:, 1:].float()
    expected = 0.5 * F.binary_cross_entropy_with_logits(logits, onehot, reduction="sum")
    torch.testing.assert_close(focal_loss_sum(logits, classes, 0.5, 0.0), expected)


def test_a_confident_positive_keeps_its_small_loss_beside_the_dense_pass() -> None:
    # p = sigmoid(8): 0.25 (1 - p)^2 * -log p = 9.430e-12, where a negative would have 6.
    loss = focal_loss_sum(torch.tensor([[8.0]]), torch.tensor([0]), 0.25, 2.0)
    assert loss.item() == pytest.approx(9.430e-12, rel=1e-3)


@pytest.mark.parametrize("size", [30.0, 100.0, 1e4])
def test_huge_logits_give_a_linear_loss_and_bounded_gradients(size: float) -> None:
    logits = torch.tensor([[size, -size], [size, -size]], requires_grad=True)
    loss = focal_loss_sum(logits, torch.tensor([1, 0]), 0.25, 2.0)
    torch.autograd.backward(loss)
    # Row 0 is wrong twice: 0.75 * size for the false alarm, 0.25 * size for the miss. Row 1 is right.
    assert loss.item() == pytest.approx(size, rel=1e-6)
    torch.testing.assert_close(logits.grad, torch.tensor([[0.75, -0.25], [0.0, 0.0]]))


def test_a_nan_or_infinite_logit_shows_in_the_loss_unless_its_anchor_is_ignored() -> None:
    logits = torch.tensor([[math.nan, 0.0], [math.inf, 0.0]], requires_grad=True)
    assert focal_loss_sum(logits[:1], torch.tensor([-1]), 0.25, 2.0).isnan()
    assert not focal_loss_sum(logits[1:], torch.tensor([-1]), 0.25, 2.0).isfinite()
    ignored = focal_loss_sum(logits, torch.tensor([-2, -2]), 0.25, 2.0)
    torch.autograd.backward(ignored)
    assert ignored.item() == 0
    torch.testing.assert_close(logits.grad, torch.zeros(2, 2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_computed_in_float32(dtype: torch.dtype) -> None:
    half = torch.randn(50, 6, generator=torch.Generator().manual_seed(2)).to(dtype).requires_grad_()
    full = half.detach().float().requires_grad_()
    classes = torch.arange(50) % 8 - 2
    loss_half, loss_full = (focal_loss_sum(x, classes, 0.25, 2.0) for x in (half, full))
    torch.testing.assert_close(loss_half, loss_full, rtol=0, atol=0)
    torch.autograd.backward((loss_half, loss_full))
    assert half.grad is not None
    assert full.grad is not None
    torch.testing.assert_close(half.grad, full.grad.to(dtype), rtol=0, atol=0)


def test_focal_loss_of_no_anchor_is_zero() -> None:
    logits = torch.zeros(0, 3, requires_grad=True)
    loss = focal_loss_sum(logits, torch.zeros(0, dtype=torch.int64), 0.25, 2.0)
    torch.autograd.backward(loss)
    assert loss.item() == 0


# --- boxes and centerness --------------------------------------------------------------------------


def test_giou_of_equal_disjoint_and_nested_boxes() -> None:
    target = torch.tensor([[0.0, 0, 10, 10]]).expand(3, 4)
    pred = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10], [0, 0, 5, 10]])
    # Disjoint: IoU 0, enclosure 300, union 200, GIoU -1/3. Nested: IoU 1/2, enclosure = union.
    torch.testing.assert_close(giou_loss(pred, target), torch.tensor([0.0, 4 / 3, 0.5]))


def test_giou_gradients_equal_numerical_ones() -> None:
    generator = torch.Generator().manual_seed(3)
    corners = 20 * torch.rand(40, 2, 4, generator=generator, dtype=torch.float64)
    target = torch.cat((corners[:, 0, :2], corners[:, 0, :2] + 1 + corners[:, 0, 2:]), dim=1)
    # Predictions are any two corners: some boxes are inside out, some are disjoint from their target.
    assert torch.autograd.gradcheck(lambda p: giou_loss(p, target), (corners[:, 1].clone().requires_grad_(),))


def test_giou_is_finite_where_both_boxes_are_points() -> None:
    pred = torch.tensor([[3.0, 3, 3, 3], [5, 5, 1, 1]], requires_grad=True)
    loss = giou_loss(pred, torch.tensor([[3.0, 3, 3, 3], [5, 5, 5, 5]]))
    torch.autograd.backward(loss.sum())
    assert loss.isfinite().all()
    assert pred.grad is not None
    assert pred.grad.isfinite().all()


def test_centerness_is_one_in_the_middle_and_zero_on_the_border_and_outside() -> None:
    ltrb = torch.tensor([[5.0, 5, 5, 5], [1, 4, 4, 4], [0, 1, 8, 1], [-1, 1, 8, 1], [0, 0, 0, 0]])
    torch.testing.assert_close(centerness_target(ltrb), torch.tensor([1.0, 0.5, 0, 0, 0]))


# --- a batch ---------------------------------------------------------------------------------------


def test_losses_of_a_hand_made_scene() -> None:
    # Anchors of a 16 x 16 image: 64 px squares centred at (4, 4), (12, 4), (4, 12), (12, 12). The second
    # is positive on the box (8, 0, 24, 8), the third ignored.
    grid = small_grid()
    reg = torch.zeros(1, 4, 4)
    reg[0, 1] = torch.tensor([1.0, 0.0, 0.0, 0.0])
    outputs = Outputs(torch.zeros(1, 4, 3), reg, torch.zeros(1, 4), grid)
    match = torch.tensor([[-1, 0, -2, -1]])
    boxes, labels = torch.tensor([[[8.0, 0, 24, 8]]]), torch.tensor([[2]])

    losses = losses_of(detection_loss(GIoU(), True, PointCoder()), outputs, match, boxes, labels)
    # Focal: two negatives of 3 classes, one positive: 0.25 ln 2 * (8 * 0.75 + 1 * 0.25).
    assert losses["cls"].item() == pytest.approx(0.25 * math.log(2) * 6.25)
    # Decoded: from (12 - 8, 4) to (12, 4), a box without area; the enclosure is (4, 0, 24, 8).
    assert losses["box"].item() == pytest.approx(2 * (2 - 0 - 128 / 160))
    # l = 4, r = 12, t = b = 4: centerness sqrt(1/3); its cross-entropy at logit 0 is ln 2 whatever it is.
    assert losses["centerness"].item() == pytest.approx(math.log(2))

    smooth_l1 = detection_loss(SmoothL1(beta=0.5), False, PointCoder())
    losses = losses_of(smooth_l1, outputs, match, boxes, labels)
    # Wanted (0.5, 0.5, 1.5, 0.5), errors (0.5, 0.5, 1.5, 0.5): each |e| - 0.25, over 4 x 1.
    assert losses["box"].item() == pytest.approx((3.0 - 4 * 0.25) / 4)


@pytest.mark.parametrize("box_loss", [GIoU(), SmoothL1()])
@pytest.mark.parametrize("centerness", [False, True])
@pytest.mark.parametrize("num_boxes", [0, 2])
def test_a_batch_without_positives_has_zero_box_loss_and_finite_gradients(
    box_loss: GIoU | SmoothL1, centerness: bool, num_boxes: int
) -> None:
    outputs = outputs_like(small_grid(), num_images=2)
    if not centerness:
        outputs.ctr_NA = None
    boxes = torch.zeros(2, num_boxes, 4)
    loss = detection_loss(box_loss, centerness, BoxCoder())
    labels = torch.zeros(2, num_boxes, dtype=torch.int64)
    losses = losses_of(loss, outputs, torch.full((2, 4), -1), boxes, labels)
    assert set(losses) == ({"cls", "box", "centerness"} if centerness else {"cls", "box"})
    assert losses["box"].item() == 0
    assert losses["box"].requires_grad
    # Scaled, as by a number of ranks: a gradient of inf * 0 on the way would be NaN.
    for gradient in gradients(1e6 * (losses["box"] + losses.get("centerness", 0)), outputs):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient))
    # Nothing to divide by: the sum over negatives, not a NaN.
    assert losses["cls"].item() > 0


def test_the_parts_of_a_batch_sum_to_the_whole() -> None:
    grid = small_grid()
    whole = outputs_like(grid, num_images=3)
    match = torch.tensor([[0, -1, 1, -2], [-1, -1, -1, -1], [1, 0, -1, 0]])
    boxes = torch.tensor([[[1.0, 1, 9, 8], [0, 8, 12, 16]]]).expand(3, 2, 4)
    targets = targets_of(match, boxes, torch.tensor([[0, 2]]).expand(3, 2), grid)
    loss = detection_loss(GIoU(), True, BoxCoder())
    assert whole.ctr_NA is not None
    parts = []
    for n in range(3):  # the second has no positive
        own = slice(n, n + 1)
        part = Outputs(whole.cls_NAK[own], whole.reg_NA4[own], whole.ctr_NA[own], grid)
        parts.append(loss(part, targets[own], targets.counts()))
    for name, value in loss(whole, targets, targets.counts()).items():
        torch.testing.assert_close(torch.stack([p[name] for p in parts]).sum(), value)


def test_boxes_weigh_by_centerness_and_by_one_without_the_branch() -> None:
    outputs = outputs_like(small_grid())
    match = torch.tensor([[0, 1, -1, -1]])
    boxes, labels = torch.tensor([[[0.0, 0, 8, 8], [10, 0, 30, 8]]]), torch.tensor([[0, 0]])
    decoded = BoxCoder().decode(outputs.reg_NA4, outputs.grid.boxes_A4, outputs.grid.strides_A)[0, :2]
    each = giou_loss(decoded, boxes[0])
    weights = torch.tensor([1.0, 1 / 3])  # centre in the middle; l = 2, r = 18
    weighted = losses_of(detection_loss(GIoU(weight=3.0), True, BoxCoder()), outputs, match, boxes, labels)
    torch.testing.assert_close(weighted["box"], 3 * (each * weights).sum() / weights.sum())
    outputs.ctr_NA = None
    plain = losses_of(detection_loss(GIoU(weight=3.0), False, BoxCoder()), outputs, match, boxes, labels)
    torch.testing.assert_close(plain["box"], 3 * each.sum() / 2)


def test_padding_boxes_change_nothing() -> None:
    outputs = outputs_like(small_grid())
    match = torch.tensor([[0, -1, -2, -1]])
    boxes, labels = torch.tensor([[[0.0, 0, 8, 8]]]), torch.tensor([[1]])
    loss = detection_loss(GIoU(), True, BoxCoder())
    plain = losses_of(loss, outputs, match, boxes, labels)
    padded = losses_of(loss, outputs, match, F.pad(boxes, (0, 0, 0, 3)), F.pad(labels, (0, 3)))
    torch.testing.assert_close(padded, plain, rtol=0, atol=0)


def test_bfloat16_outputs_are_decoded_in_float32() -> None:
    grid = small_grid()
    half = outputs_like(grid)
    assert half.ctr_NA is not None
    half = Outputs(half.cls_NAK.bfloat16(), half.reg_NA4.bfloat16(), half.ctr_NA.bfloat16(), grid)
    assert half.ctr_NA is not None
    full = Outputs(half.cls_NAK.float(), half.reg_NA4.float(), half.ctr_NA.float(), grid)
    match = torch.tensor([[0, -1, -2, 0]])
    scene = (match, torch.tensor([[[0.0, 0, 8, 8]]]), torch.tensor([[1]]))
    for box_loss in (GIoU(), SmoothL1()):
        loss = detection_loss(box_loss, True, BoxCoder())
        torch.testing.assert_close(
            losses_of(loss, half, *scene), losses_of(loss, full, *scene), rtol=0, atol=0
        )


@pytest.mark.parametrize("box_loss", [GIoU(), SmoothL1()])
def test_no_step_of_the_losses_needs_a_value_from_the_device(box_loss: GIoU | SmoothL1) -> None:
    # Meta tensors have shapes only: anything that asked for a value would raise.
    grid = anchor_grid(Anchors(), (8,), ((2, 2),), "meta")
    cls, reg, ctr = (torch.zeros(2, 4, *tail, device="meta", requires_grad=True) for tail in ((3,), (4,), ()))
    match, labels = torch.zeros(2, 4, device="meta").long(), torch.zeros(2, 5, device="meta").long()
    loss = detection_loss(box_loss, True, BoxCoder())
    boxes = torch.zeros(2, 5, 4, device="meta")
    losses = losses_of(loss, Outputs(cls, reg, ctr, grid), match, boxes, labels)
    torch.autograd.backward(torch.stack(list(losses.values())).sum())
    assert all(x.grad is not None and x.grad.shape == x.shape for x in (cls, reg, ctr))


# --- the authors' outputs --------------------------------------------------------------------------


def test_giou_focal_centerness_and_smooth_l1_equal_the_authors(authors: Path) -> None:
    z = {k: torch.from_numpy(v) for k, v in np.load(authors / "elementwise.npz").items()}
    anchors = z["giou_anchor"]
    strides = (anchors[:, 2] - anchors[:, 0]) / 8
    for name, coder in CODERS.items():
        key = f"giou_{name.lower()}"
        pred, target = (coder.decode(z[f"{key}_{what}"], anchors, strides) for what in ("pred", "target"))
        torch.testing.assert_close(giou_loss(pred, target), z[f"{key}_loss"], rtol=1e-5, atol=1e-6)

    torch.testing.assert_close(centerness_target(z["ctr_ltrb"]), z["ctr_fcos"], rtol=1e-5, atol=1e-7)
    for beta, key in ((SmoothL1().beta, "sl1_sum_beta011"), (1 / 9, "sl1_sum_beta1_9")):
        smooth_l1 = F.smooth_l1_loss(z["sl1_in"], z["sl1_tgt"], beta=beta, reduction="sum")
        torch.testing.assert_close(smooth_l1.double(), z[key], rtol=1e-5, atol=0)

    targets = z["focal_targets"].long()
    classes = torch.where(targets > 0, targets - 1, -1 - (targets < 0).long())
    # Their formula for the CPU loses log(1 - p) in rounding where p is nearly 1: float64 stands in there.
    logits, expected = z["focal_logits"], z["focal_loss"].clone()
    saturated = (logits > 5) & (classes.unsqueeze(1) != torch.arange(8)) & (classes.unsqueeze(1) != -2)
    exact = 0.75 * logits.double().sigmoid() ** 2 * -F.logsigmoid(-logits.double())
    torch.testing.assert_close(expected[saturated].double(), exact[saturated], rtol=1e-3, atol=0)
    expected[saturated] = exact[saturated].float()
    config = Focal()
    rows = [
        focal_loss_sum(x[None], c[None], config.alpha, config.gamma)
        for x, c in zip(logits, classes, strict=True)
    ]
    torch.testing.assert_close(torch.stack(rows), expected.sum(dim=1), rtol=1e-5, atol=1e-7)


class Golden:
    """One of the two batches whose losses and gradients the authors' code gave."""

    def __init__(self, folder: Path, batch: str) -> None:
        self.inputs = np.load(folder / f"loss_{batch}.npz")
        self.results: dict[str, dict[str, Any]] = json.loads((folder / f"loss_{batch}.json").read_text())
        self.images = [np.load(folder / f"img_{i:02d}.npz") for i in self.inputs["image_indices"]]
        counts = [len(image["gt_boxes"]) for image in self.images]
        self.boxes_NG4, self.labels_NG = torch.zeros(2, max(counts), 4), torch.zeros(2, max(counts)).long()
        for n, (image, count) in enumerate(zip(self.images, counts, strict=True)):
            self.boxes_NG4[n, :count] = torch.from_numpy(image["gt_boxes"])
            self.labels_NG[n, :count] = torch.from_numpy(image["gt_labels"]) - 1

    def grid(self, anchors: Anchors) -> AnchorGrid:
        sizes = [(int(h), int(w)) for h, w in self.images[0]["feat_hw"]]
        return anchor_grid(anchors, STRIDES, sizes, "cpu")

    def match(self, key: str) -> Tensor:
        return torch.stack([torch.from_numpy(image[f"{key}__match"]).long() for image in self.images])

    def outputs(self, point: bool, grid: AnchorGrid, prefix: str = "") -> Outputs:
        z = self.inputs
        if f"{prefix}cls_q8" in z:
            cls = torch.from_numpy(z["cls_q8"]).float() / 8
        else:
            base, offset = (torch.from_numpy(z[f"{prefix}cls_{k}_q16"]).float() / 16 for k in ("base", "off"))
            cls = base[..., None] + offset
        reg = torch.from_numpy(z[f"{prefix}reg_q"]).float()
        reg = reg.abs() / 16 if point else reg / 32
        ctr = None if prefix else (torch.from_numpy(z["ctr_q32"]).float() / 32).requires_grad_()
        return Outputs(cls.requires_grad_(), reg.requires_grad_(), ctr, grid)


def assert_gradients_like(loss: Tensor, outputs: Outputs, expected: list[float]) -> None:
    """Norms, then sums of the gradients; a sum cancels, so its tolerance is that of its terms."""
    found = gradients(loss, outputs)
    for gradient, norm, total in zip(found, expected[: len(found)], expected[len(found) :], strict=True):
        assert gradient.double().norm().item() == pytest.approx(norm, rel=1e-4, abs=1e-12)
        scale = gradient.double().abs().sum().item()
        assert gradient.double().sum().item() == pytest.approx(total, abs=1e-6 * scale, rel=1e-4)


@pytest.mark.parametrize("batch", ["A", "B"])
@pytest.mark.parametrize("regression", ["BOX", "POINT"])
@pytest.mark.parametrize("mode", ["ATSS", "SSC", "IoU", "TOPK"])
def test_losses_and_gradients_equal_the_authors_atss_head(
    authors: Path, batch: str, regression: str, mode: str
) -> None:
    golden = Golden(authors, batch)
    expected = golden.results[f"atsshead|{mode}|{regression}"]
    outputs = golden.outputs(regression == "POINT", golden.grid(Anchors()))
    match = golden.match(f"{mode.lower()}_box")
    assert (match >= 0).sum() == expected["num_pos"]
    loss = DetectionLoss(Detector(head=Head(centerness=True), box_loss=GIoU()), CODERS[regression])
    losses = losses_of(loss, outputs, match, golden.boxes_NG4, golden.labels_NG)
    all_gradients = expected["grad_norms_and_sums_cls_reg_ctr"]
    for (name, value), key, grads in zip(
        losses.items(), ("loss_cls", "loss_reg", "loss_centerness"), all_gradients, strict=True
    ):
        assert value.item() == pytest.approx(expected[key], rel=1e-5), name
        assert_gradients_like(value, outputs, grads)


@pytest.mark.parametrize(("batch", "shape"), [("A", "A=1|8S"), ("B", "A=1|8S"), ("A", "A=9|4S")])
def test_losses_and_gradients_equal_the_authors_retinanet_with_its_normalisers(
    authors: Path, batch: str, shape: str
) -> None:
    nine = shape.startswith("A=9")
    anchors = Anchors(scale=4, scales_per_octave=3, ratios=(0.5, 1.0, 2.0)) if nine else Anchors()
    golden = Golden(authors, batch)
    expected = golden.results[f"retinanet|{shape}"]
    outputs = golden.outputs(False, golden.grid(anchors), "a9_" if nine else "")
    outputs.ctr_NA = None
    match = golden.match("retina_a9" if nine else "retina_a1")
    loss = DetectionLoss(Detector(box_loss=SmoothL1()), BoxCoder())
    losses = losses_of(loss, outputs, match, golden.boxes_NG4, golden.labels_NG)
    # Theirs divides the classification loss by positives + images; ours, as the paper's, by positives.
    positives = expected["num_pos"]
    cls = losses["cls"] * positives / (positives + len(golden.images))
    for value, key, grads in zip(
        (cls, losses["box"]), ("loss_cls", "loss_reg"), expected["grad_norms_and_sums_cls_reg"], strict=True
    ):
        assert value.item() == pytest.approx(expected[key], rel=1e-5)
        assert_gradients_like(value, outputs, grads)
