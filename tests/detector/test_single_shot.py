"""SSD and RefineDet as networks: sizes by hand, torchvision's SSD, parts and switches, detections."""

import math
from collections.abc import Iterable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection import ssd300_vgg16

from detector.config import AnchorRefinement, Evaluation, SingleShot
from detector.evaluation.postprocess import detect
from detector.model.build import build_detector
from detector.model.single_shot import SingleShotDetector
from detector.model.single_shot_parts import L2Norm
from detector.outputs import SingleShotOutputs
from detector.presets import REFINEDET320, REFINEDET512, SSD300, SSD512, shrunk

SMALL_SSD = replace(shrunk(SSD300, 2, 16), num_classes=3)
SMALL = replace(shrunk(REFINEDET320, 2, 16), num_classes=3)


def build(config: SingleShot, seed: int = 0) -> SingleShotDetector:
    torch.manual_seed(seed)
    return build_detector(config)


def images(config: SingleShot, count: int = 2) -> Tensor:
    side, generator = config.input_size, torch.Generator().manual_seed(1)
    return torch.randint(256, (count, 3, side, side), generator=generator, dtype=torch.uint8)


Truth = tuple[Tensor, Tensor, Tensor]


def truth(side: int) -> Truth:
    """Two objects in the first image, one in the second; boxes, labels, valid."""
    boxes = torch.tensor([[[0.1, 0.1, 0.5, 0.4], [0.5, 0.5, 0.9, 1.0]], [[0.2, 0.3, 0.9, 0.8], [0.0] * 4]])
    return side * boxes, torch.tensor([[0, 2], [1, 0]]), torch.tensor([[True, True], [True, False]])


def losses_of(model: SingleShotDetector, batch: Tensor) -> dict[str, Tensor]:
    side = model.config.input_size
    outputs = model(batch)
    targets = model.targets((side, side), *truth(side), outputs)
    return model.losses(outputs, targets, targets.counts())


# --- sizes -------------------------------------------------------------------------------------------

VGG16 = [(3, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 256), (256, 512)]
VGG16 += [(512, 512)] * 5


def parameters(kernel: int, *channels: tuple[int, int]) -> int:
    """Of convolutions with bias."""
    return sum((kernel**2 * c + 1) * out for c, out in channels)


REDUCED = parameters(3, *VGG16, (512, 1024)) + parameters(1, (1024, 1024))
CONV6 = parameters(1, (1024, 256)) + parameters(3, (256, 512))
SHRINKING = parameters(1, (256, 128)) + parameters(3, (128, 256))
"""An extra pair between levels of 256 channels."""


def heads(outputs: int, *levels: tuple[int, int]) -> int:
    """Of levels with these channels and anchors."""
    return parameters(3, *((c, anchors * (outputs + 4)) for c, anchors in levels))


def test_ssd_has_the_parameters_of_a_count_by_hand() -> None:
    extras = CONV6 + parameters(1, (512, 128)) + parameters(3, (128, 256))
    first = [(512, 4), (1024, 6), (512, 6), (256, 6)]
    ssd300 = 512 + REDUCED + extras + 2 * SHRINKING + heads(21, *first, (256, 4), (256, 4))
    assert ssd300 == 26_285_486
    assert sum(p.numel() for p in meta(SSD300).parameters()) == ssd300
    larger = parameters(1, (256, 128)) + parameters(4, (128, 256))
    last = [(256, 6), (256, 4), (256, 4)]
    ssd512 = 512 + REDUCED + extras + 2 * SHRINKING + larger + heads(21, *first, *last)
    assert sum(p.numel() for p in meta(SSD512).parameters()) == ssd512


def test_refinedet_has_the_parameters_of_a_count_by_hand() -> None:
    channels = [512, 512, 1024, 512]
    tcb = parameters(3, *((c, 256) for c in channels), *[(256, 256)] * 8) + parameters(2, *[(256, 256)] * 3)
    arm = heads(2, *((c, 3) for c in channels))
    whole = 2 * 512 + REDUCED + CONV6 + tcb + arm + heads(21, *[(256, 3)] * 4)
    assert sum(p.numel() for p in meta(REFINEDET320).parameters()) == whole
    assert sum(p.numel() for p in meta(REFINEDET512).parameters()) == whole


def meta(config: SingleShot) -> SingleShotDetector:
    with torch.device("meta"):
        return build_detector(config)


# --- against torchvision -----------------------------------------------------------------------------


def convolutions(model: nn.Module) -> list[nn.Conv2d]:
    return [module for module in model.modules() if isinstance(module, nn.Conv2d)]


@pytest.mark.slow
@torch.no_grad()
def test_ssd300_computes_what_torchvisions_does_with_its_weights() -> None:
    theirs = ssd300_vgg16(weights=None, weights_backbone=None, num_classes=21).eval()
    model = build(SSD300).eval()
    for own, their in zip(convolutions(model), convolutions(theirs), strict=True):
        own.load_state_dict(their.state_dict())
        assert (own.stride, own.dilation, own.padding) == (their.stride, their.dilation, their.padding)
    batch = images(SSD300, 1)
    normalised = (batch - model.pixel_mean) * model.pixel_inverse_std / 100
    model.pixel_inverse_std = model.pixel_inverse_std / 100
    expected = theirs.head(list(theirs.backbone(normalised).values()))
    outputs = model(batch)
    torch.testing.assert_close(outputs.odm.cls_NAK, expected["cls_logits"], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(outputs.odm.reg_NA4, expected["bbox_regression"], rtol=1e-3, atol=1e-4)


# --- parts -------------------------------------------------------------------------------------------


def test_l2_norm_gives_each_pixel_the_length_of_its_scale() -> None:
    norm = L2Norm(2, 10.0)
    x = torch.tensor([[3.0, 0.0], [4.0, 0.0]]).view(1, 2, 1, 2)
    torch.testing.assert_close(norm(x)[0, :, 0, 0], torch.tensor([6.0, 8.0]))
    assert norm(x)[0, :, 0, 1].tolist() == [0, 0]
    assert norm(x.bfloat16()).dtype == torch.bfloat16


def test_the_normalised_levels_are_the_papers() -> None:
    def scales(config: SingleShot) -> list[float | None]:
        return [n.weight[0].item() if isinstance(n, L2Norm) else None for n in build(config).norms]

    assert scales(SMALL_SSD) == [20, None, None, None, None, None]
    assert scales(SMALL) == [10, 8, None, None]


def test_new_layers_have_variance_one_over_their_inputs_and_no_bias() -> None:
    model = build(shrunk(REFINEDET320, 2, 4))
    for conv in [*model.arm.cls, *model.odm.cls, *model.tcb.second, *model.tcb.up]:  # type: ignore[union-attr]
        bound = math.sqrt(3 / conv.weight[0].numel())
        assert 0.9 * bound < conv.weight.abs().max() <= bound
        assert not conv.bias.any()


def test_the_blocks_above_reach_the_finest_level_through_the_tcbs_alone() -> None:
    model = build(SMALL)
    assert model.tcb is not None
    maps = [torch.randn(1, c, s, s) for c, s in zip(SMALL.channels, SMALL.sides, strict=True)]
    before = model.tcb(maps)
    after = model.tcb([*maps[:3], maps[3] + 1])
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    finest = model.tcb([maps[0] + 1, *maps[1:]])
    assert [torch.equal(a, b) for a, b in zip(before, finest, strict=True)] == [False, True, True, True]


def test_an_image_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="must be 80 x 80 pixels, got 80 x 96"):
        build(SMALL)(torch.zeros(1, 3, 80, 96, dtype=torch.uint8))


# --- two steps ---------------------------------------------------------------------------------------


def names(gradients: Iterable[Tensor | None], model: nn.Module) -> set[str]:
    """Parts of the network that got a gradient."""
    pairs = zip(model.named_parameters(), gradients, strict=True)
    return {name.split(".")[0] for (name, _), g in pairs if g is not None and g.any()}


def learning(model: SingleShotDetector, *kinds: str) -> set[str]:
    losses = losses_of(model, images(model.config))
    total = torch.stack([losses[kind] for kind in kinds]).sum()
    return names(torch.autograd.grad(total, list(model.parameters()), allow_unused=True), model)


SHARED = {"backbone", "extra", "norms"}


@pytest.mark.parametrize("cascade", [True, False])
def test_no_gradient_of_the_second_step_reaches_the_first(cascade: bool) -> None:
    model = build(replace(SMALL, refinement=AnchorRefinement(cascade=cascade)))
    assert learning(model, "cls", "box") == SHARED | {"tcb", "odm"}
    assert learning(model, "arm_cls", "arm_box") == SHARED | {"arm"}


def test_an_ssd_head_learns_and_so_does_all_below() -> None:
    assert learning(build(SMALL_SSD), "cls", "box") == SHARED | {"odm"}


def moved(config: SingleShot, offset: float) -> SingleShotDetector:
    """A detector whose ARM moves every anchor right by `offset` of its width."""
    model = build(config)
    assert model.arm is not None
    with torch.no_grad():
        for conv in model.arm.box:
            conv.weight.zero_()
            conv.bias.copy_(torch.tensor([offset / 0.1, 0, 0, 0]).repeat(len(conv.bias) // 4))
    return model


def test_with_a_cascade_boxes_targets_and_detections_start_from_the_arms_boxes() -> None:
    model = moved(SMALL, 0.5)
    outputs = model(images(SMALL))
    anchors = model.anchors_A4
    shift = (anchors[:, 2] - anchors[:, 0]) / 2
    expected = anchors + torch.stack((shift, torch.zeros_like(shift)), 1).repeat(1, 2)
    torch.testing.assert_close(outputs.odm.boxes_NA4[0], expected, rtol=1e-4, atol=1e-3)
    # Objects that are some of the moved boxes match these, and without any offset.
    chosen = torch.tensor([100, 2000])
    boxes = expected[chosen][None].expand(2, -1, -1)
    labels, valid = torch.zeros(2, 2, dtype=torch.int64), torch.ones(2, 2, dtype=torch.bool)
    targets = model.targets((80, 80), boxes, labels, valid, outputs)
    assert targets.arm is not None
    assert targets.odm.classes_NA[0, chosen].tolist() == [1, 1]
    torch.testing.assert_close(targets.odm.deltas_NA4[0, chosen], torch.zeros(2, 4), rtol=0, atol=1e-3)
    assert targets.arm.classes_NA[0, chosen].tolist() != [1, 1]


def test_without_a_cascade_both_steps_start_from_the_anchors() -> None:
    model = moved(replace(SMALL, refinement=AnchorRefinement(cascade=False)), 0.5)
    outputs = model(images(SMALL))
    assert torch.equal(outputs.odm.boxes_NA4[0], model.anchors_A4)
    targets = model.targets((80, 80), *truth(80), outputs)
    assert targets.arm is not None
    assert torch.equal(targets.odm.positive_NA, targets.arm.positive_NA)
    assert targets.arm.classes_NA.max() == 1 and targets.odm.classes_NA.max() == 3


def test_only_a_cascade_needs_predictions_for_its_targets() -> None:
    assert build(SMALL).targets_need_outputs
    assert not build(replace(SMALL, refinement=AnchorRefinement(cascade=False))).targets_need_outputs
    assert not build(SMALL_SSD).targets_need_outputs


# --- switches ----------------------------------------------------------------------------------------


def shapes(config: SingleShot) -> dict[str, torch.Size]:
    return {name: p.shape for name, p in build(config).named_parameters()}


def without(prefix: str, named: dict[str, torch.Size]) -> dict[str, torch.Size]:
    return {name: shape for name, shape in named.items() if not name.startswith(prefix)}


def test_filter_and_cascade_change_no_parameter() -> None:
    whole = shapes(SMALL)
    assert shapes(replace(SMALL, refinement=AnchorRefinement(objectness=0.0))) == whole
    assert shapes(replace(SMALL, refinement=AnchorRefinement(objectness=0.0, cascade=False))) == whole


def test_without_the_arm_its_heads_are_gone_and_nothing_else() -> None:
    assert shapes(replace(SMALL, refinement=None)) == without("arm.", shapes(SMALL))


def test_without_the_tcbs_the_head_reads_the_levels_and_nothing_else_changes() -> None:
    whole, plain = shapes(SMALL), shapes(replace(SMALL, transfer=None))
    assert without("odm.", plain) == without("odm.", without("tcb.", whole))
    read = [shape[1] for name, shape in plain.items() if name.startswith("odm.cls") and len(shape) > 1]
    assert tuple(read) == SMALL.channels


def test_the_filter_changes_the_heads_classification_loss_alone() -> None:
    model = build(SMALL)
    unfiltered = build(replace(SMALL, refinement=AnchorRefinement(objectness=0.0)))
    for one in (model, unfiltered):
        with torch.no_grad():
            assert one.arm is not None
            for conv in one.arm.cls:
                conv.weight *= 30.0  # sure of many anchors
    ours, theirs = (losses_of(one, images(SMALL)) for one in (model, unfiltered))
    assert {name for name in ours if not torch.equal(ours[name], theirs[name])} == {"cls"}


# --- tests -------------------------------------------------------------------------------------------

EVERYTHING = Evaluation(score_threshold=0.01, pre_nms_topk=2, nms_iou=1.0, max_detections=500)


def certain(
    model: SingleShotDetector, anchors: dict[int, tuple[int, float]], cold: float = -9.0
) -> SingleShotOutputs:
    """Outputs without objects but for logits of a class (from 1) at some anchors; boxes are the anchors."""
    outputs: SingleShotOutputs = model(images(model.config, 1))
    outputs.odm.cls_NAK.data.fill_(cold)[..., 0] = 0.0
    outputs.odm.reg_NA4.data.zero_()
    for anchor, (label, logit) in anchors.items():
        outputs.odm.cls_NAK.data[0, anchor, label] = logit
    return outputs


def test_the_score_is_the_softmax_and_the_label_leaves_out_background() -> None:
    model = build(SMALL_SSD).eval()
    outputs = certain(model, {3000: (2, 1.0)})
    (found,) = detect(model.candidates(outputs, EVERYTHING), [(75, 75)], EVERYTHING)
    expected = F.softmax(torch.tensor([0.0, -9, 1, -9]), 0)[2].item()
    assert found.labels.tolist() == [1]
    assert found.scores.tolist() == pytest.approx([expected])
    torch.testing.assert_close(found.boxes[0], model.anchors_A4[3000].clamp(0, 75), rtol=0, atol=1e-4)


def test_each_class_gives_its_best_anchors() -> None:
    model = build(SMALL_SSD).eval()
    outputs = certain(model, {10: (1, 1.0), 500: (1, 2.0), 900: (1, 3.0), 1500: (3, 0.5)})
    (found,) = detect(model.candidates(outputs, EVERYTHING), [(75, 75)], EVERYTHING)
    assert found.labels.tolist() == [0, 0, 2]


def test_an_anchor_that_the_arm_is_sure_of_detects_nothing() -> None:
    model = build(SMALL).eval()
    outputs = certain(model, {10: (1, 3.0), 20: (1, 2.0)})
    assert outputs.arm is not None
    arm = outputs.arm.cls_NAK.data
    arm.zero_()
    arm[0, 10] = torch.tensor([math.log(0.992), math.log(0.008)])
    arm[0, 20] = torch.tensor([math.log(0.98), math.log(0.02)])
    (found,) = detect(model.candidates(outputs, EVERYTHING), [(80, 80)], EVERYTHING)
    assert found.scores.tolist() == pytest.approx([F.softmax(torch.tensor([0.0, 2, -9, -9]), 0)[1].item()])


def test_a_score_of_the_threshold_or_less_is_no_candidate() -> None:
    model = build(SMALL_SSD).eval()
    outputs = certain(model, {10: (1, math.log(0.25))}, cold=-99.0)  # a probability of 0.2
    for threshold, count in ((0.19, 1), (0.21, 0)):
        test = replace(EVERYTHING, score_threshold=threshold)
        (found,) = detect(model.candidates(outputs, test), [(75, 75)], test)
        assert len(found) == count


@pytest.mark.parametrize("config", [SMALL_SSD, SMALL], ids=["SSD", "RefineDet"])
def test_under_autocast_outputs_and_losses_are_float32(config: SingleShot) -> None:
    model = build(config)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(images(config))
    side = config.input_size
    targets = model.targets((side, side), *truth(side), outputs)
    losses = model.losses(outputs, targets, targets.counts())
    found = [*losses.values(), outputs.odm.cls_NAK, outputs.odm.reg_NA4]
    assert all(tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in found)
