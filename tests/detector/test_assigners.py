import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from detector.config import ATSS, Anchors, MaxIoU, SpatialScale
from detector.geometry.anchors import AnchorGrid, anchor_grid
from detector.geometry.box_coders import BoxCoder, PointCoder
from detector.geometry.boxes import pairwise_iou
from detector.objectives.assigners import (
    IGNORED,
    NEGATIVE,
    Assigner,
    ATSSAssigner,
    MaxIoUAssigner,
    SpatialScaleAssigner,
    iou_statistics,
    nearest_candidates,
)

PAPER_STRIDES = (8, 16, 32, 64, 128)
NINE = Anchors(scale=8, scales_per_octave=3, ratios=(0.5, 1.0, 2.0))

ATSS_MODES: dict[str, tuple[Anchors, int]] = {
    "atss_box": (Anchors(), 9),
    "atss_point": (Anchors(), 9),
    **{f"atss_k{k}": (Anchors(), k) for k in (3, 5, 7, 11, 13, 15, 17, 19)},
    **{f"atss_S{s}": (Anchors(scale=s), 9) for s in (5, 6, 7, 9)},
    "atss_r025": (Anchors(ratios=(0.25,)), 9),
    "atss_r05": (Anchors(ratios=(0.5,)), 9),
    "atss_r2": (Anchors(ratios=(2.0,)), 9),
    "atss_r4": (Anchors(ratios=(4.0,)), 9),
    "atss_a3ratio": (Anchors(ratios=(0.5, 1.0, 2.0)), 9),
    "atss_a3scale": (Anchors(scales_per_octave=3), 9),
    "atss_a9": (NINE, 9),
}
"""Of the reference's modes only `topk_box` is missing: a rule that neither the paper nor this project has."""

OTHER_MODES: dict[str, tuple[Anchors, Assigner]] = {
    "ssc_box": (Anchors(), SpatialScaleAssigner(SpatialScale())),
    "ssc_point": (Anchors(), SpatialScaleAssigner(SpatialScale())),
    "iou_box": (Anchors(), MaxIoUAssigner(MaxIoU(inside_gt=True))),
    "iou_point": (Anchors(), MaxIoUAssigner(MaxIoU(inside_gt=True))),
    "retina_a1": (Anchors(), MaxIoUAssigner(MaxIoU())),
    "retina_a9": (Anchors(scale=4, scales_per_octave=3, ratios=(0.5, 1.0, 2.0)), MaxIoUAssigner(MaxIoU())),
    # The reference's FCOS wants a centre more than 0, not 0.01, pixels inside; on these boxes it is the same.
    "fcos_nocs": (Anchors(), SpatialScaleAssigner(SpatialScale())),
    "fcos_cs15_norm": (Anchors(), SpatialScaleAssigner(SpatialScale(center_radius=1.5))),
}

RULES: dict[str, Assigner] = {
    "max_iou": MaxIoUAssigner(MaxIoU()),
    "max_iou_inside": MaxIoUAssigner(MaxIoU(inside_gt=True)),
    "spatial_scale": SpatialScaleAssigner(SpatialScale()),
    "center_sampling": SpatialScaleAssigner(SpatialScale(center_radius=1.5)),
    "atss": ATSSAssigner(ATSS()),
}


# --- the reference's outputs -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def golden(authors: Path) -> dict[str, dict[str, Tensor]]:
    images = {}
    for path in sorted(authors.glob("img_*.npz")):
        with np.load(path) as arrays:
            images[path.stem] = {name: torch.from_numpy(arrays[name]) for name in arrays}
    assert len(images) == 14
    return images


def images_with(golden: dict[str, dict[str, Tensor]], name: str) -> Iterator[tuple[str, dict[str, Tensor]]]:
    found = [(image, arrays) for image, arrays in golden.items() if name in arrays]
    assert len(found) >= 3, f"{name} is in {len(found)} files"
    yield from found


def golden_grid(arrays: dict[str, Tensor], config: Anchors) -> AnchorGrid:
    sizes = [(height, width) for height, width in arrays["feat_hw"].tolist()]
    return anchor_grid(config, PAPER_STRIDES, sizes, "cpu")


def assign_one(assigner: Assigner, grid: AnchorGrid, boxes_G4: Tensor) -> Tensor:
    valid = torch.ones(1, len(boxes_G4), dtype=torch.bool)
    return assigner(grid, boxes_G4[None], valid)[0]


def undecided(arrays: dict[str, Tensor], mode: str, ours: Tensor, theirs: Tensor) -> Tensor:
    """Anchors whose match the reference leaves to the order of ties, (A,) bool."""
    flags = arrays.get(f"{mode}__amb", torch.zeros(len(arrays["gt_boxes"]), dtype=torch.uint8)) > 0
    flags = torch.cat((flags, torch.tensor([False])))  # so that NEGATIVE, -1, is never flagged
    skipped = flags[ours.clamp(min=NEGATIVE)] | flags[theirs.clamp(min=NEGATIVE)]
    ties = arrays.get(f"{mode}__tie_anchor")
    if ties is not None:
        skipped[ties.long()] = True
    return skipped


@pytest.mark.parametrize("mode", ATSS_MODES)
def test_atss_assigns_as_the_reference(golden: dict[str, dict[str, Tensor]], mode: str) -> None:
    config, topk = ATSS_MODES[mode]
    for image, arrays in images_with(golden, f"{mode}__match"):
        theirs = arrays[f"{mode}__match"].long()
        ours = assign_one(ATSSAssigner(ATSS(topk)), golden_grid(arrays, config), arrays["gt_boxes"])
        same = (ours == theirs) | undecided(arrays, mode, ours, theirs)
        assert same.all(), f"{image}: {(~same).sum()} anchors differ"


@pytest.mark.parametrize("mode", ATSS_MODES)
def test_atss_thresholds_equal_the_reference(golden: dict[str, dict[str, Tensor]], mode: str) -> None:
    config, topk = ATSS_MODES[mode]
    for image, arrays in images_with(golden, f"{mode}__thr"):
        grid, boxes = golden_grid(arrays, config), arrays["gt_boxes"][None]
        index, present = nearest_candidates(grid, boxes, topk)
        iou = pairwise_iou(boxes.unsqueeze(2), grid.boxes_A4[index]).squeeze(2)
        mean, std = iou_statistics(iou, present)
        assert (present.sum(2) == arrays[f"{mode}__ncand"]).all(), image
        decided = (arrays[f"{mode}__amb"] & 1) == 0
        for ours, name in ((mean, "mean"), (std, "std"), (mean + std, "thr")):
            theirs = arrays[f"{mode}__{name}"].double()
            assert_close(ours[0][decided], theirs[decided], rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", OTHER_MODES)
def test_other_rules_assign_as_the_reference(golden: dict[str, dict[str, Tensor]], mode: str) -> None:
    config, assigner = OTHER_MODES[mode]
    name = "ssc_box" if mode == "ssc_point" else mode
    for image, arrays in images_with(golden, f"{name}__match"):
        theirs = arrays.get(f"{mode}__match", arrays[f"{name}__match"]).long()
        ours = assign_one(assigner, golden_grid(arrays, config), arrays["gt_boxes"])
        same = (ours == theirs) | undecided(arrays, mode, ours, theirs)
        assert same.all(), f"{image}: {(~same).sum()} anchors differ"


@pytest.mark.parametrize("mode", ["atss_box", "atss_point", *OTHER_MODES])
def test_regression_targets_equal_the_reference(golden: dict[str, dict[str, Tensor]], mode: str) -> None:
    config, assigner = OTHER_MODES.get(mode, (Anchors(), RULES["atss"]))
    points = mode.startswith("fcos") or mode.endswith("point")
    for image, arrays in images_with(golden, f"{mode}__reg"):
        grid = golden_grid(arrays, config)
        match = assign_one(assigner, grid, arrays["gt_boxes"])
        matched = arrays["gt_boxes"][match.clamp(min=0)]
        coder = PointCoder() if points else BoxCoder()
        targets = coder.encode(matched, grid.boxes_A4, grid.strides_A)
        if mode == "fcos_nocs":  # in pixels
            targets *= grid.strides_A[:, None]
        theirs = arrays.get(f"{mode}__match", arrays.get("ssc_box__match", match)).long()
        same = (match == theirs) & (match >= 0)
        # The absolute part is for offsets near 0, a difference of coordinates of hundreds of pixels.
        expected = arrays[f"{mode}__reg"][same[theirs >= 0]]
        assert_close(targets[same], expected, rtol=1e-5, atol=1e-5, msg=f"{image}: {{}}".format)


def test_center_sampled_distances_in_pixels_sum_to_the_reference(
    golden: dict[str, dict[str, Tensor]],
) -> None:
    for image, arrays in images_with(golden, "fcos_cs15_raw__reg_checksum_f64"):
        grid = golden_grid(arrays, Anchors())
        match = assign_one(RULES["center_sampling"], grid, arrays["gt_boxes"])
        matched = arrays["gt_boxes"][match.clamp(min=0)]
        pixels = PointCoder().encode(matched, grid.boxes_A4, grid.strides_A) * grid.strides_A[:, None]
        pixels = pixels[match >= 0].double()
        sums = torch.stack((pixels.sum(), pixels.abs().sum()))
        assert_close(sums, arrays["fcos_cs15_raw__reg_checksum_f64"], rtol=1e-6, atol=0, msg=image)


# --- an oracle written from the paper, one box at a time -------------------------------------------


def naive_iou(box: np.ndarray, anchor: np.ndarray) -> np.float32:
    width = max(min(box[2], anchor[2]) - max(box[0], anchor[0]), np.float32(0))
    height = max(min(box[3], anchor[3]) - max(box[1], anchor[1]), np.float32(0))
    inter = width * height
    union = (box[2] - box[0]) * (box[3] - box[1]) + (anchor[2] - anchor[0]) * (anchor[3] - anchor[1]) - inter
    return np.float32(inter / union) if union > 0 else np.float32(0)


def naive_inside(center: np.ndarray, low: np.ndarray, high: np.ndarray, margin: float) -> bool:
    return bool(min(*(center - low), *(high - center)) > np.float32(margin))


def naive_candidates(grid: AnchorGrid, box: np.ndarray, topk: int) -> list[int]:
    """Lines 3 to 6 of Algorithm 1, with k counting locations."""
    center = (box[:2].astype(np.float64) + box[2:]) / 2
    centers = grid.centers_A2.numpy().astype(np.float64)
    chosen: list[int] = []
    for level in grid.levels:
        squared = ((centers[level.start : level.start + level.num_anchors] - center) ** 2).sum(1)
        nearest = np.argsort(squared, kind="stable")[: topk * level.num_per_location]
        chosen += (level.start + nearest).tolist()
    return chosen


def naive_atss(grid: AnchorGrid, boxes: np.ndarray, topk: int) -> list[int]:
    anchors, centers = grid.boxes_A4.numpy(), grid.centers_A2.numpy()
    match, highest = [NEGATIVE] * len(anchors), [np.float32(0)] * len(anchors)
    for g, box in enumerate(boxes):
        candidates = naive_candidates(grid, box, topk)
        ious = np.array([naive_iou(box, anchors[i]) for i in candidates])
        threshold = ious.mean(dtype=np.float64) + ious.std(ddof=1, dtype=np.float64)
        assume(not ((ious != threshold) & (abs(ious - threshold) < 1e-12)).any())
        for i, iou in zip(candidates, ious, strict=True):
            inside = naive_inside(centers[i], box[:2], box[2:], 0.01)
            if iou >= threshold and inside and iou > highest[i]:
                match[i], highest[i] = g, iou
    return match


def naive_max_iou(grid: AnchorGrid, boxes: np.ndarray, inside_gt: bool) -> list[int]:
    anchors, centers = grid.boxes_A4.numpy(), grid.centers_A2.numpy()
    iou = np.array([[naive_iou(box, anchor) for anchor in anchors] for box in boxes]).reshape(
        -1, len(anchors)
    )
    if len(boxes) == 0:
        return [NEGATIVE] * len(anchors)
    match = []
    for i in range(len(anchors)):
        best = int(iou[:, i].argmax())
        attains = any(iou[g, i] == iou[g].max() > 0 for g in range(len(boxes)))
        if attains or iou[best, i] >= np.float32(0.5):
            outside = inside_gt and not naive_inside(centers[i], boxes[best][:2], boxes[best][2:], 0.01)
            match.append(IGNORED if outside else best)
        else:
            match.append(NEGATIVE if iou[best, i] < np.float32(0.4) else IGNORED)
    return match


def naive_spatial_scale(grid: AnchorGrid, boxes: np.ndarray, radius: float | None) -> list[int]:
    match = []
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    for depth, level in enumerate(grid.levels):
        low = -1 if depth == 0 else 8 * grid.levels[depth - 1].stride
        high = 1e8 if level is grid.levels[-1] else 8 * level.stride
        for center in grid.centers_A2.numpy()[level.start : level.start + level.num_anchors]:
            takers = []
            for g, box in enumerate(boxes):
                start, end, margin = box[:2], box[2:], 0.01
                if radius is not None:
                    middle, reach = (start + end) / 2, np.float32(radius * level.stride)
                    start, end = np.maximum(start, middle - reach), np.minimum(end, middle + reach)
                    margin = 0
                farthest = max(*(center - box[:2]), *(box[2:] - center))
                if naive_inside(center, start, end, margin) and low <= farthest <= high:
                    takers.append((areas[g], g))
            match.append(min(takers)[1] if takers else NEGATIVE)
    return match


NAIVE = {
    "max_iou": functools.partial(naive_max_iou, inside_gt=False),
    "max_iou_inside": functools.partial(naive_max_iou, inside_gt=True),
    "spatial_scale": functools.partial(naive_spatial_scale, radius=None),
    "center_sampling": functools.partial(naive_spatial_scale, radius=1.5),
    "atss": functools.partial(naive_atss, topk=9),
}


def feature_sizes(height: int, width: int, finest: int) -> list[tuple[int, int]]:
    sizes = [(-(-height // finest), -(-width // finest))]
    for _ in range(4):
        sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
    return sizes


@st.composite
def grids(draw: st.DrawFn) -> AnchorGrid:
    finest = draw(st.sampled_from([2, 4, 8]))
    height, width = draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    shapes = st.sampled_from(
        [
            Anchors(),
            Anchors(scale=5),
            Anchors(ratios=(4.0,)),
            Anchors(ratios=(0.5, 1.0, 2.0)),
            Anchors(scale=4, scales_per_octave=2),
        ]
    )
    strides = [finest * 2**level for level in range(5)]
    return anchor_grid(draw(shapes), strides, feature_sizes(height * finest, width * finest, finest), "cpu")


@st.composite
def boxes_near(draw: st.DrawFn, grid: AnchorGrid, max_gts: int = 4) -> Tensor:
    """Corners that are integers (often tied), halves or neither; inside, outside, huge, without area."""
    level = grid.levels[0]
    width, height = level.width * level.stride, level.height * level.stride
    unit = draw(st.sampled_from([1.0, 0.5, 0.37]))
    side = st.one_of(st.integers(0, 12), st.integers(0, 2 * max(width, height)))
    corner = st.tuples(st.integers(-width, 2 * width), st.integers(-height, 2 * height))
    inner = st.tuples(st.integers(0, width), st.integers(0, height))
    rows = draw(st.lists(st.tuples(st.one_of(inner, corner), side, side), max_size=max_gts))
    return torch.tensor([(x, y, x + w, y + h) for (x, y), w, h in rows]).reshape(-1, 4) * unit


@settings(max_examples=300, deadline=None)
@given(st.data(), grids(), st.integers(1, 20))
def test_candidates_are_the_nearest_of_every_level(data: st.DataObject, grid: AnchorGrid, topk: int) -> None:
    boxes = data.draw(boxes_near(grid))
    index, present = nearest_candidates(grid, boxes[None], topk)
    for box, chosen, exists in zip(boxes.numpy(), index[0], present[0], strict=True):
        assert sorted(chosen[exists].tolist()) == sorted(naive_candidates(grid, box, topk))


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=100, deadline=None)
@given(data=st.data(), grid=grids())
def test_each_rule_equals_its_naive_loop(rule: str, data: st.DataObject, grid: AnchorGrid) -> None:
    boxes = data.draw(boxes_near(grid))
    assert assign_one(RULES[rule], grid, boxes).tolist() == NAIVE[rule](grid, boxes.numpy())


@settings(max_examples=100, deadline=None)
@given(data=st.data(), grid=grids(), topk=st.integers(1, 20))
def test_atss_equals_algorithm_1_for_every_k(data: st.DataObject, grid: AnchorGrid, topk: int) -> None:
    boxes = data.draw(boxes_near(grid))
    assert assign_one(ATSSAssigner(ATSS(topk)), grid, boxes).tolist() == naive_atss(grid, boxes.numpy(), topk)


# --- batches ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=25, deadline=None)
@given(data=st.data(), grid=grids())
def test_a_batch_equals_its_images_one_by_one(rule: str, data: st.DataObject, grid: AnchorGrid) -> None:
    images = data.draw(st.lists(boxes_near(grid), min_size=1, max_size=4))
    num_gts = max(len(boxes) for boxes in images)
    padding = data.draw(st.sampled_from([0.0, torch.nan, 1e30]))
    boxes_NG4 = torch.full((len(images), num_gts, 4), padding)
    valid_NG = torch.zeros(len(images), num_gts, dtype=torch.bool)
    for n, boxes in enumerate(images):
        boxes_NG4[n, : len(boxes)], valid_NG[n, : len(boxes)] = boxes, True
    together = RULES[rule](grid, boxes_NG4, valid_NG)
    assert torch.equal(together, torch.stack([assign_one(RULES[rule], grid, boxes) for boxes in images]))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("num_gts", [0, 2])
def test_images_without_ground_truth_are_all_negative(rule: str, num_gts: int) -> None:
    grid = anchor_grid(Anchors(), PAPER_STRIDES, feature_sizes(64, 96, 8), "cpu")
    boxes, valid = torch.rand(3, num_gts, 4) * 60, torch.zeros(3, num_gts, dtype=torch.bool)
    match = RULES[rule](grid, boxes, valid)
    assert match.dtype == torch.int64
    assert match.shape == (3, len(grid.boxes_A4))
    assert (match == NEGATIVE).all()


# --- single properties, by hand --------------------------------------------------------------------


@pytest.fixture(scope="module")
def grid_128() -> AnchorGrid:
    return anchor_grid(Anchors(), PAPER_STRIDES, feature_sizes(128, 128, 8), "cpu")


def test_an_anchor_that_ties_between_two_equal_boxes_goes_to_the_first(grid_128: AnchorGrid) -> None:
    box = torch.tensor([[20.0, 20.0, 84.0, 84.0]])
    for rule, assigner in RULES.items():
        match = assign_one(assigner, grid_128, box.expand(2, 4))
        assert torch.equal(match, assign_one(assigner, grid_128, box)), rule
        assert (match == 0).any(), rule


def test_of_equally_distant_cells_the_lowest_index_is_a_candidate(grid_128: AnchorGrid) -> None:
    # The centre (32, 32) is a corner of four P3 cells, with rows and columns 3 and 4.
    index, _ = nearest_candidates(grid_128, torch.tensor([[[16.0, 16.0, 48.0, 48.0]]]), topk=3)
    assert sorted(index[0, 0, :3].tolist()) == [3 * 16 + 3, 3 * 16 + 4, 4 * 16 + 3]


def test_candidates_that_all_overlap_equally_are_all_positive(grid_128: AnchorGrid) -> None:
    """Their deviation is 0 and their mean is their IoU; rounding must not decide."""
    iou = torch.full((1, 1, 45), 0.1)
    mean, std = iou_statistics(iou, torch.ones(1, 1, 45, dtype=torch.bool))
    assert std.item() == 0
    assert (iou >= (mean + std)).all()


def test_every_anchor_that_ties_for_the_best_of_a_tiny_box_is_positive(grid_128: AnchorGrid) -> None:
    # 64 px anchors on P3 that contain a 4 px box all have IoU 16 / 4096 with it.
    box = torch.tensor([[62.0, 62.0, 66.0, 66.0]])
    match = assign_one(RULES["max_iou"], grid_128, box)
    contain = (grid_128.boxes_A4[:, :2] <= 62).all(1) & (grid_128.boxes_A4[:, 2:] >= 66).all(1)
    assert (match[:256] == 0).sum() == contain[:256].sum() == 64
    inside = assign_one(RULES["max_iou_inside"], grid_128, box)
    assert (inside == 0).sum() == 0
    assert (inside == IGNORED).sum() == 64


def test_a_restored_anchor_goes_to_its_own_best_box(grid_128: AnchorGrid) -> None:
    # The P4 anchor at (40, 40) is the tiny box's best of all, but overlaps the large one more.
    boxes = torch.tensor([[0.0, 0.0, 128.0, 128.0], [62.0, 62.0, 66.0, 66.0]])
    match = assign_one(RULES["max_iou"], grid_128, boxes)
    best_of_tiny = pairwise_iou(boxes[1:], grid_128.boxes_A4)[0]
    assert (match[best_of_tiny == best_of_tiny.max()] == 0).all()


def test_a_box_that_overlaps_no_anchor_makes_none_positive(grid_128: AnchorGrid) -> None:
    for rule, assigner in RULES.items():
        match = assign_one(assigner, grid_128, torch.tensor([[9000.0, 9000.0, 9100.0, 9100.0]]))
        assert (match == NEGATIVE).all(), rule


def test_scale_ranges_follow_the_strides() -> None:
    """At stride 2 the finest level takes farthest sides up to 16 pixels, the next 16 to 32."""
    grid = anchor_grid(Anchors(), (2, 4, 8, 16, 32), feature_sizes(96, 96, 2), "cpu")
    for side, stride in ((10, 2), (50, 4), (90, 8)):
        box = torch.tensor([[48.0 - side / 2, 48.0 - side / 2, 48.0 + side / 2, 48.0 + side / 2]])
        match = assign_one(RULES["spatial_scale"], grid, box)
        near = (grid.centers_A2 - 48).abs().amax(1) <= grid.strides_A / 2
        assert (match[near & (grid.strides_A == stride)] == 0).all()


class RefuseSynchronisation(TorchDispatchMode):
    """Raises at operations whose result a host has to wait for."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        masks = [a for a in args[1] if a is not None] if func is torch.ops.aten.index.Tensor else []
        waits = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        assert func not in waits, f"{func} waits for the device"
        assert all(mask.dtype != torch.bool for mask in masks), "a boolean index waits for the device"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("rule", RULES)
def test_no_rule_waits_for_the_device(rule: str, grid_128: AnchorGrid) -> None:
    boxes = torch.tensor([[[0.0, 0.0, 64.0, 64.0], [20.0, 20.0, 84.0, 84.0]]])
    present = torch.tensor([[True, False]])
    with RefuseSynchronisation():
        match = RULES[rule](grid_128, boxes, present)
    assert match.max() == 0, "the second box is padding"


@pytest.mark.gpu
@pytest.mark.parametrize("rule", RULES)
def test_a_gpu_gives_the_same_matches_without_synchronising(rule: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    generator = torch.Generator().manual_seed(0)
    low = torch.randint(0, 200, (4, 20, 2), generator=generator)
    boxes = torch.cat((low, low + torch.randint(0, 120, (4, 20, 2), generator=generator)), -1).float()
    valid = torch.rand(4, 20, generator=generator) < 0.7
    grids = [anchor_grid(Anchors(), PAPER_STRIDES, feature_sizes(256, 320, 8), d) for d in ("cpu", "cuda")]
    expected = RULES[rule](grids[0], boxes, valid)
    inputs = boxes.cuda(), valid.cuda()
    RULES[rule](grids[1], *inputs)  # makes the cached constants
    torch.cuda.set_sync_debug_mode("error")
    try:
        match = RULES[rule](grids[1], *inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(match.cpu(), expected)
