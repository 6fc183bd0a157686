"""Pascal VOC's mean average precision, by 11 points (2007) and by area (since 2010).

Each detection is compared with the object of its class and image that it overlaps most; of equal overlaps
with the first in the file. Above `min_iou` the best detection of an object is true, and the others, its
duplicates, are false. One whose object is difficult (or a crowd) is neither. All others are false. Detections
are ranked by score; of equal scores the earlier image first, then the earlier detection. A class without an
object that counts has no AP and is left out of the mean.

Where the devkits differ, and what holds here:

- An IoU of exactly `min_iou` is false, as in the Python code of Fast R-CNN, SSD and RefineDet
  (`ovmax > ovthresh`); in VOC's Matlab code it is true.
- Boxes are continuous: width = x2 - x1. VOC counts pixels, those of both borders too: x2 - x1 + 1. The reader
  of VOC converts corners (xmin - 1 to xmax), so the two agree for boxes of whole pixels. A +1 on a detector's
  continuous box would make it a pixel larger than it is.
- A recall of exactly 3/10 reaches the point 0.3. In Python `np.arange(0, 1.1, 0.1)` holds
  0.30000000000000004, 0.6000000000000001 and 0.7000000000000001, which it does not reach.

Axes: D detections, by class and then by rank; J of them that are true; G objects; I images, in order of id;
K classes; R replicates; P pairs of a detection and an object of its class and image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from detector.data.coco import CheckedSplit
from detector.errors import DataError
from detector.evaluation.coco_eval import (
    Results,
    Scores,
    disambiguate,
    load_arrays,
    require_known,
    save_arrays,
)
from detector.geometry.transforms import xywh_to_xyxy

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.integer[Any]]
Bools = npt.NDArray[np.bool_]

VOC_NAMES = ("mAP", "mAP_area")
"""Mean over classes of the AP by 11 points, and by area."""

_POINTS = 10  # recalls 0/10 to 10/10
_BLOCK = 1 << 24  # numbers held at a time for the replicates of a class


@dataclass(frozen=True, slots=True, eq=False)
class VOCMatch:
    """What was matched, per image; enough to compute AP under any image weights.

    Attributes:
        image_ids: (I,) int64, rising.
        num_gt_KI: (K, I) int32, objects of the class that count.
        image_D: (D,) int32, place of the detection's image in `image_ids`.
        class_D: (D,) int32, its label, rising.
        score_D: (D,) float64, falling within a class.
        true_D: (D,) bool.
        ignored_D: (D,) bool, neither true nor false.
    """

    image_ids: Ints
    num_gt_KI: Ints
    image_D: Ints
    class_D: Ints
    score_D: Floats
    true_D: Bools
    ignored_D: Bools

    def save(self, path: Path) -> None:
        """Write a compressed .npz without pickle; equal data give equal bytes."""
        save_arrays(path, {field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def load(cls, path: Path) -> VOCMatch:
        """Read what `save` wrote.

        Raises:
            DataError: missing, truncated, or not such a file.
        """
        return cls(**load_arrays(path, [field.name for field in fields(cls)]))


# --- matching --------------------------------------------------------------------------------------


def match_voc(split: CheckedSplit, results: Results, min_iou: float = 0.5) -> VOCMatch:
    """Match the detections of a split.

    Args:
        split: the objects.
        results: detections on its images.
        min_iou: a match has a larger IoU.

    Raises:
        ValueError: a detection of an unknown image or category.
        DataError: no object counts.
    """
    image_ids = np.array([record.id for record in split.images], dtype=np.int64)
    require_known("image", results.image_ids, image_ids.tolist())
    require_known("category", results.category_ids, split.category_ids)
    objects = _objects(split)
    if objects.ignored_G.all():
        raise DataError("the split has no object that is not difficult: mAP is undefined")
    image_D = np.searchsorted(image_ids, results.image_ids).astype(np.int32)
    class_D = np.searchsorted(split.category_ids, results.category_ids).astype(np.int32)
    scores_D = results.scores.astype(np.float64)
    rank = np.lexsort((np.arange(len(results)), image_D, -scores_D, class_D))
    image_D, class_D = image_D[rank], class_D[rank]
    boxes_D4 = xywh_to_xyxy(results.boxes_xywh.astype(np.float64)).astype(np.float64)[rank]
    object_D = _matched(objects, boxes_D4, image_D, class_D, min_iou)
    ignored_D = (object_D >= 0) & objects.ignored_G[object_D]
    true_D = np.zeros(len(rank), dtype=np.bool_)
    counted = np.flatnonzero((object_D >= 0) & ~ignored_D)
    true_D[counted[np.unique(object_D[counted], return_index=True)[1]]] = True  # the first of each object
    return VOCMatch(
        image_ids,
        objects.numbers(len(split.category_ids), len(image_ids)),
        image_D,
        class_D,
        scores_D[rank],
        true_D,
        ignored_D,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Objects:
    """All objects of a split, by class and image, in the file's order in each.

    Attributes:
        boxes_G4: float64, xyxy.
        image_G, class_G: places.
        ignored_G: difficult or a crowd.
    """

    boxes_G4: Floats
    image_G: Ints
    class_G: Ints
    ignored_G: Bools

    def numbers(self, num_classes: int, num_images: int) -> Ints:
        """(K, I) int32, objects that count."""
        numbers = np.zeros((num_classes, num_images), dtype=np.int32)
        counted = ~self.ignored_G
        np.add.at(numbers, (self.class_G[counted], self.image_G[counted]), 1)
        return numbers


def _objects(split: CheckedSplit) -> _Objects:
    records = split.images
    image_G = np.repeat(np.arange(len(records)), [len(record.labels) for record in records])
    class_G = np.concatenate([record.labels for record in records])
    boxes_G4 = xywh_to_xyxy(np.concatenate([record.xywh for record in records])).astype(np.float64)
    ignored_G = np.concatenate([record.crowd | record.difficult for record in records])
    order = np.lexsort((image_G, class_G))
    return _Objects(boxes_G4[order], image_G[order], class_G[order], ignored_G[order])


def _matched(objects: _Objects, boxes_D4: Floats, image_D: Ints, class_D: Ints, min_iou: float) -> Ints:
    """(D,) int64, the object that each detection overlaps most, if by more than `min_iou`; -1 for none."""
    matched_D = np.full(len(boxes_D4), -1, dtype=np.int64)
    num_images = 1 + max(image_D.max(initial=0), objects.image_G.max(initial=0))
    group_G = objects.class_G.astype(np.int64) * num_images + objects.image_G
    group_D = class_D.astype(np.int64) * num_images + image_D
    first_D = np.searchsorted(group_G, group_D, side="left")
    count_D = np.searchsorted(group_G, group_D, side="right") - first_D
    detection_P = np.repeat(np.arange(len(boxes_D4)), count_D)
    if not len(detection_P):
        return matched_D
    start_D = np.cumsum(count_D) - count_D  # of the detection's pairs
    object_P = first_D[detection_P] + np.arange(len(detection_P)) - start_D[detection_P]
    iou_P = _iou(boxes_D4[detection_P], objects.boxes_G4[object_P])
    paired = count_D > 0
    best_D = np.zeros(len(boxes_D4))
    best_D[paired] = np.maximum.reduceat(iou_P, start_D[paired])
    attained = np.flatnonzero((iou_P == best_D[detection_P]) & (iou_P > min_iou))
    detections, first = np.unique(detection_P[attained], return_index=True)
    matched_D[detections] = object_P[attained[first]]
    return matched_D


def _iou(one_P4: Floats, two_P4: Floats) -> Floats:
    """(P,) IoU of pairs; 0 where neither has an area."""
    low, high = np.maximum(one_P4[:, :2], two_P4[:, :2]), np.minimum(one_P4[:, 2:], two_P4[:, 2:])
    inside = np.clip(high - low, 0, None).prod(axis=1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (one_P4, two_P4)]
    union = areas[0] + areas[1] - inside
    iou: Floats = np.divide(inside, union, out=np.zeros_like(inside), where=union > 0)
    return iou


# --- average precision -----------------------------------------------------------------------------


def voc_scores(split: CheckedSplit, match: VOCMatch) -> Scores:
    """mAP in percent, and AP by 11 points of each class, NaN where it has no object that counts."""
    by_class_2K = class_aps(match, np.ones((len(match.image_ids), 1)))[..., 0]
    means = _mean_over_classes(by_class_2K[..., None])[:, 0]
    names = disambiguate(dict(zip(split.category_ids, split.class_names, strict=True)))
    eleven = by_class_2K[0].tolist()
    return Scores(
        {name: float(mean) for name, mean in zip(VOC_NAMES, means, strict=True) if not math.isnan(mean)},
        {names[category]: ap for category, ap in zip(split.category_ids, eleven, strict=True)},
    )


def mean_aps(match: VOCMatch, weights: Ints) -> Floats:
    """mAP when image i counts `weights[..., i]` times, as if it were in the data set so often.

    Args:
        match: of one evaluation.
        weights: (I,) or (R, I) integers >= 0.

    Returns:
        (2,) or (R, 2) float64, percent, in the order of `VOC_NAMES`; NaN where no object has weight.
    """
    if weights.shape[-1:] != match.image_ids.shape:
        raise ValueError(f"need one weight for each of {len(match.image_ids)} images, got {weights.shape}")
    weights_IR = np.ascontiguousarray(weights.reshape(-1, weights.shape[-1]).T, dtype=np.float64)
    means_2R = _mean_over_classes(class_aps(match, weights_IR))
    return means_2R.T.reshape(*weights.shape[:-1], len(VOC_NAMES))


def class_aps(match: VOCMatch, weights_IR: Floats) -> Floats:
    """(2, K, R) float64, percent: AP by 11 points and by area; NaN for a class without weight."""
    num_classes, replicates = len(match.num_gt_KI), weights_IR.shape[1]
    bounds = np.searchsorted(match.class_D, np.arange(num_classes + 1))
    aps = np.empty((2, num_classes, replicates))
    for k in range(num_classes):
        part = slice(*bounds[k : k + 2])
        step = max(1, _BLOCK // max(1, part.stop - part.start))
        for start in range(0, replicates, step):
            aps[:, k, start : start + step] = _class_ap(match, k, part, weights_IR[:, start : start + step])
    return 100 * aps


def _class_ap(match: VOCMatch, k: int, part: slice, weights_IR: Floats) -> Floats:
    """(2, R) AP of a class, 0 to 1.

    Precision and recall are computed at true detections: recall rises nowhere else, and precision only falls
    between them. Weights are whole numbers, so that all sums and the comparison of a recall are exact.
    """
    image, true = match.image_D[part], match.true_D[part]
    num_gt_R = match.num_gt_KI[k] @ weights_IR
    places_J = np.flatnonzero(true)
    counted = ~match.ignored_D[part]
    totals = np.cumsum(weights_IR[image[counted]], axis=0)
    counted_JR = totals[np.cumsum(counted)[places_J] - 1]
    weights_JR = weights_IR[image[places_J]]
    true_JR = np.cumsum(weights_JR, axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision_JR = np.divide(true_JR, counted_JR, out=np.zeros_like(true_JR), where=counted_JR > 0)
        best_JR = np.maximum.accumulate(precision_JR[::-1], axis=0)[::-1]
        reached_JR = np.floor_divide(_POINTS * true_JR, num_gt_R) + 1  # points, that of recall 0 among them
        points_JR = np.diff(reached_JR, axis=0, prepend=0)
        aps = np.stack(
            [(best_JR * points_JR).sum(axis=0) / (_POINTS + 1), (best_JR * weights_JR).sum(axis=0) / num_gt_R]
        )
    ap: Floats = np.where(num_gt_R > 0, aps, np.nan)
    return ap


def _mean_over_classes(aps_2KR: Floats) -> Floats:
    """(2, R) means of what is not NaN; NaN where nothing is."""
    present = ~np.isnan(aps_2KR)
    with np.errstate(invalid="ignore"):
        means: Floats = np.where(present, aps_2KR, 0.0).sum(axis=1) / present.sum(axis=1)
    return means
