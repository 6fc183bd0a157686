"""From candidates to detections: non-maximum suppression, and merging several test sizes.

Axes: N images; K classes; C candidates of one image; D detections. Boxes are xyxy float32, pixels of an input
image. Constants are those of the paper's Sec. 4.1, or of the authors' code where it has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import nms

from detector.config import Evaluation, MultiScale, ScalePass
from detector.geometry.boxes import area, clip, flip_horizontal, pairwise_iou
from detector.geometry.transforms import resized_size
from detector.outputs import Candidates


@dataclass(frozen=True)
class Detections:
    """Detections of one image, best first.

    Attributes:
        boxes: (D, 4) float32, xyxy, pixels of the input image, clipped to it.
        scores: (D,) float32 in (0, 1].
        labels: (D,) int64, 0..K-1.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, index: Tensor | slice) -> Detections:
        return Detections(self.boxes[index], self.scores[index], self.labels[index])

    def cpu(self) -> Detections:
        """The detections on the CPU."""
        return Detections(self.boxes.cpu(), self.scores.cpu(), self.labels.cpu())


# --- one size --------------------------------------------------------------------------------------


@torch.no_grad()
def detect(
    candidates: Candidates, image_sizes: Tensor | Sequence[tuple[int, int]], evaluation: Evaluation
) -> list[Detections]:
    """Detections of every image of a batch.

    Boxes are clipped to the image. A box is removed if it overlaps a better one of its class by more than
    `nms_iou`. At most `max_detections` remain; the code of ATSS's authors also keeps those that tie with the
    last. Candidates with NaN or infinite numbers are removed.

    Args:
        candidates: of a detector.
        image_sizes: (N, 2) int, height and width of each image without padding.
        evaluation: `nms_iou` and `max_detections` are used.

    Returns:
        N detections, on the device of the candidates.
    """
    usable_NC = (candidates.scores_NC >= 0) & candidates.boxes_NC4.isfinite().all(dim=-1)
    sizes = image_sizes.tolist() if isinstance(image_sizes, Tensor) else image_sizes
    found = []
    for n, (height, width) in enumerate(sizes):
        usable = usable_NC[n].nonzero().squeeze(1)
        boxes = clip(candidates.boxes_NC4[n, usable], height, width)
        image = Detections(boxes, candidates.scores_NC[n, usable], candidates.labels_NC[n, usable])
        found.append(suppress(image, evaluation.nms_iou, evaluation.max_detections))
    return found


def suppress(candidates: Detections, iou: float, limit: int) -> Detections:
    """Greedy non-maximum suppression per class; the best `limit` over all classes.

    Whether a box is kept depends on better ones only, so only as many of the best are processed as give
    `limit`; the result is the same.

    Args:
        candidates: in any order; of equal scores the earlier one ranks first.
        iou: IoU with a better box of its class above which a box is removed.
        limit: largest number of detections.

    Returns:
        The remaining detections, best first.
    """
    order = candidates.scores.argsort(descending=True, stable=True)
    candidates = candidates[order]
    # An offset per class separates the classes, for one call; in float64, so that it does not round boxes.
    span = candidates.boxes.max() + 1 if len(candidates) else 0
    apart = candidates.boxes.double() + (candidates.labels * span).unsqueeze(-1)
    looked_at = 4 * limit
    while True:
        kept = nms(apart[:looked_at], candidates.scores[:looked_at].double(), iou)
        if len(kept) >= limit or looked_at >= len(candidates):
            return candidates[kept[:limit]]
        looked_at *= 4


# --- several sizes ---------------------------------------------------------------------------------


class Model(Protocol):
    """The interface of a detector for multi-scale testing."""

    def __call__(self, images_N3HW: Tensor) -> Any:
        """Outputs for images of one size that fill the tensor."""

    def candidates(self, outputs: Any, evaluation: Evaluation) -> Candidates:
        """The candidates of these outputs."""


@torch.no_grad()
def multi_scale_detect(
    model: Model, image_CHW: Tensor, evaluation: Evaluation, scales: MultiScale, short_side: int
) -> Detections:
    """Detections of one image, tested at several sizes, each plain and flipped.

    Each pass is a single-scale test with `evaluation`'s thresholds and suppression; only boxes in the pass's
    range of areas count (sizes from Sec. 4.3, the rest from the authors' code).

    Args:
        model: in evaluation mode.
        image_CHW: (3, H, W) uint8 or float, RGB, 0-255, without padding. Best the original image: each pass
            resizes it, antialiased.
        evaluation: thresholds of each pass.
        scales: the passes and settings of their merging.
        short_side: short side in training, pixels; the unit of the sizes in `scales`.

    Returns:
        At most `scales.max_detections`, boxes in pixels of `image_CHW`.
    """
    passes = [
        found
        for scale_pass in scales.passes
        for found in _run_pass(model, image_CHW, evaluation, scale_pass, short_side)
    ]
    return merge_passes(passes, scales, evaluation.score_threshold)


def _run_pass(
    model: Model, image_CHW: Tensor, evaluation: Evaluation, scale_pass: ScalePass, short_side: int
) -> list[Detections]:
    """Detections of the plain and the flipped image at one size, in pixels of the given image."""
    height, width = image_CHW.shape[-2:]
    size = resized_size(
        width, height, round(scale_pass.scale * short_side), round(scale_pass.max_scale * short_side)
    )
    plain = F.interpolate(image_CHW[None].float(), size=size, mode="bilinear", antialias=True)
    candidates = model.candidates(model(torch.cat((plain, plain.flip(-1)))), evaluation)
    straight, mirrored = detect(candidates, [size, size], evaluation)
    mirrored = replace(mirrored, boxes=flip_horizontal(mirrored.boxes, size[1]))
    back = plain.new_tensor([width / size[1], height / size[0]]).repeat(2)
    kept = (of_area(found, scale_pass, short_side) for found in (straight, mirrored))
    return [replace(found, boxes=found.boxes * back) for found in kept]


def of_area(detections: Detections, scale_pass: ScalePass, short_side: float) -> Detections:
    """The detections with an area in the pass's range, both ends excluded.

    Args:
        detections: in pixels of the pass's image.
        scale_pass: the range, in units of `short_side`.
        short_side: short side in training, pixels.

    Returns:
        The detections in the range, in their order.
    """
    area_D = area(detections.boxes)
    keep = torch.ones_like(area_D, dtype=torch.bool)
    if scale_pass.min_side is not None:
        keep &= area_D > (scale_pass.min_side * short_side) ** 2
    if scale_pass.max_side is not None:
        keep &= area_D < (scale_pass.max_side * short_side) ** 2
    return detections[keep]


def merge_passes(passes: Sequence[Detections], scales: MultiScale, score_threshold: float) -> Detections:
    """One image's detections of several passes, merged class by class by soft voting.

    Args:
        passes: at least one, all in pixels of the same image.
        scales: `vote_iou` and `max_detections`.
        score_threshold: lowest score of an averaged detection that is kept.

    Returns:
        At most `max_detections`, best first. There is no suppression after the vote.
    """
    everything = _joined(passes)
    voted = []
    for label in torch.unique(everything.labels).tolist():
        members = everything[everything.labels == label]
        boxes, scores = soft_vote(members.boxes, members.scores, scales.vote_iou, score_threshold)
        voted.append(Detections(boxes, scores, members.labels.new_full(scores.shape, label)))
    if not voted:
        return everything
    merged = _joined(voted)
    order = merged.scores.argsort(descending=True, stable=True)
    return merged[order[: scales.max_detections]]


def _joined(parts: Sequence[Detections]) -> Detections:
    return Detections(
        torch.cat([part.boxes for part in parts]),
        torch.cat([part.scores for part in parts]),
        torch.cat([part.labels for part in parts]),
    )


def soft_vote(
    boxes: Tensor, scores: Tensor, vote_iou: float, score_threshold: float
) -> tuple[Tensor, Tensor]:
    """Soft voting: averages overlapping boxes of one class, and keeps the averaged ones with lower scores.

    The best box and all that overlap it by `vote_iou` or more are averaged, weighted by score; the mean has
    the best score. Each of them but the best is also kept, with score x (1 - IoU with the best), if that is
    not below the threshold. This is repeated for the remaining boxes. A box without overlap is not changed.

    Args:
        boxes: (D, 4) float32, xyxy.
        scores: (D,) float32.
        vote_iou: IoU from which boxes are averaged.
        score_threshold: lowest score of an averaged box that is kept.

    Returns:
        (D', 4) boxes and (D',) scores: the means, best first, then the averaged boxes that are kept.
    """
    order = scores.argsort(descending=True, stable=True)
    boxes, scores = boxes[order], scores[order]
    iou_DD = pairwise_iou(boxes, boxes)
    leader_D = _leaders(iou_DD >= vote_iou).to(boxes.device)
    is_leader = leader_D == torch.arange(len(boxes), device=boxes.device)

    weights = torch.zeros_like(scores).index_add(0, leader_D, scores)
    means = torch.zeros_like(boxes).index_add(0, leader_D, boxes * scores.unsqueeze(1))
    alone = leader_D.bincount(minlength=len(boxes)) == 1
    means = boxes.where(alone.unsqueeze(1), means / weights.unsqueeze(1))

    softened = scores * (1 - iou_DD.gather(1, leader_D.unsqueeze(1)).squeeze(1))
    stays = ~is_leader & (softened >= score_threshold)
    return torch.cat((means[is_leader], boxes[stays])), torch.cat((scores[is_leader], softened[stays]))


def _leaders(overlaps_DD: Tensor) -> Tensor:
    """The index of each box's leader, with which it is averaged, (D,) int64; boxes are sorted, best first."""
    overlaps = overlaps_DD.cpu().numpy()
    leader = torch.full((len(overlaps),), -1).numpy()
    for index, row in enumerate(overlaps):
        if leader[index] < 0:
            leader[row & (leader < 0)] = index
            leader[index] = index  # a box without area overlaps no box, not even itself
    return torch.from_numpy(leader)
