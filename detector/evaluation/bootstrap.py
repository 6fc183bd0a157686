"""How AP varies with the images tested: matched once, accumulated again under image weights.

pycocotools' matching of one image does not depend on the others, so resampling images with replacement
only changes how often each image counts. `match_data` keeps what the accumulation needs, and
`average_precision` repeats pycocotools' accumulation with weights: with all weights 1 it gives its six
APs, with integer weights those of a data set in which images are literally repeated.

A resampled data set tends to score a little above the original (repeating the same images repeats their
easy cases together: 0.406 against 0.403 in one measurement), so the replicates of one detector are no
confidence interval around its AP. Use differences between two detectors under the same weights, where
the bias cancels: `image_weights` depends on the seed and the number of images alone, so replicate r of
every detector scored on the same split saw the same images.

Axes: D detections, sorted by class and then by falling score; I images, in rising order of id;
R replicates; T IoU thresholds (0.50 to 0.95); K classes; A area ranges (all, small, medium, large).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from detector.evaluation.coco_eval import AP_NAMES, AREA_LABELS, load_arrays, save_arrays

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.integer[Any]]
Bools = npt.NDArray[np.bool_]

_EPSILON = np.spacing(1.0)  # pycocotools adds it to every denominator of a precision
_AP50, _AP75 = 0, 5  # places of IoU 0.50 and 0.75 among the thresholds


@dataclass(frozen=True, slots=True, eq=False)
class MatchData:
    """What pycocotools' matching found, per image; enough to compute AP under any image weights.

    Attributes:
        image_ids: (I,) int64, rising.
        recall_thresholds: (101,) float64, as pycocotools has them to the last bit.
        num_gt_AKI: (A, K, I) int32, objects of the class that count in the area range (no crowds).
        image_D: (D,) int32, place of the detection's image in `image_ids`.
        class_D: (D,) int32, place of its class, rising.
        score_D: (D,) float64, falling within a class; of equal scores the earlier image is first.
        true_ATD: (A, T, D) bool, matched to an object that counts.
        ignored_ATD: (A, T, D) bool, neither true nor false: matched to an object that does not count,
            or unmatched and itself outside the area range.
    """

    image_ids: Ints
    recall_thresholds: Floats
    num_gt_AKI: Ints
    image_D: Ints
    class_D: Ints
    score_D: Floats
    true_ATD: Bools
    ignored_ATD: Bools

    def save(self, path: Path) -> None:
        """Write a compressed .npz without pickle; equal data give equal bytes."""
        arrays = {field.name: getattr(self, field.name) for field in fields(self)}
        packed = {name: np.packbits(arrays[name], axis=-1) for name in ("true_ATD", "ignored_ATD")}
        save_arrays(path, arrays | packed)

    @classmethod
    def load(cls, path: Path) -> MatchData:
        """Read what `save` wrote.

        Raises:
            DataError: missing, truncated, or not such a file.
        """
        arrays = load_arrays(path, [field.name for field in fields(cls)])
        count = len(arrays["score_D"])
        for name in ("true_ATD", "ignored_ATD"):
            arrays[name] = np.unpackbits(arrays[name], axis=-1, count=count).astype(bool)
        return cls(**arrays)


def match_data(judged: Any) -> MatchData:
    """Take out of a finished `COCOeval` (of `coco_eval.run_cocoeval`) what its accumulation used."""
    params = judged.params
    num_classes, num_images = len(params.catIds), len(params.imgIds)
    # One entry per class, area range and image, in this order; None without objects and detections.
    num_gt = [0 if e is None else np.count_nonzero(e["gtIgnore"] == 0) for e in judged.evalImgs]
    num_gt_KAI = np.array(num_gt, dtype=np.int32).reshape(num_classes, len(AREA_LABELS), num_images)
    per_class = [_class_columns(judged, k) for k in range(num_classes)]
    image, score, true, ignored = (np.concatenate(parts, axis=-1) for parts in zip(*per_class, strict=True))
    class_sizes = [len(parts[0]) for parts in per_class]
    return MatchData(
        image_ids=np.array(params.imgIds, dtype=np.int64),
        recall_thresholds=np.array(params.recThrs, dtype=np.float64),
        num_gt_AKI=num_gt_KAI.transpose(1, 0, 2),
        image_D=image,
        class_D=np.repeat(np.arange(num_classes, dtype=np.int32), class_sizes),
        score_D=score,
        true_ATD=true,
        ignored_ATD=ignored,
    )


def _class_columns(judged: Any, k: int) -> tuple[Ints, Floats, Bools, Bools]:
    """Image (D,), score (D,), true (A, T, D) and ignored (A, T, D) of class k, in score order."""
    num_areas, num_images = len(AREA_LABELS), len(judged.params.imgIds)
    starts = [(k * num_areas + a) * num_images for a in range(num_areas)]
    per_area = [[e for e in judged.evalImgs[start : start + num_images] if e is not None] for start in starts]
    none = np.zeros((len(judged.params.iouThrs), 0), dtype=bool)

    def flags(name: str) -> Bools:
        return np.stack([np.concatenate([none, *(e[name] != 0 for e in area)], axis=1) for area in per_area])

    # The detections of an image are the same in every area range; only their matches differ.
    counts = [len(e["dtScores"]) for e in per_area[0]]
    images = np.searchsorted(judged.params.imgIds, [e["image_id"] for e in per_area[0]])
    image = np.repeat(images.astype(np.int32), counts)
    score = np.array([score for e in per_area[0] for score in e["dtScores"]], dtype=np.float64)
    order = np.argsort(-score, kind="stable")  # as pycocotools: of equal scores the earlier image first
    matched, ignored = flags("dtMatches")[..., order], flags("dtIgnore")[..., order]
    return image[order], score[order], matched & ~ignored, ignored


def image_weights(num_images: int, replicates: int, seed: int) -> Ints:
    """How often each image is drawn: `num_images` draws with replacement per replicate.

    Depends on its arguments alone, and the first replicates do not depend on how many follow.

    Returns:
        (R, I) int64; every row sums to I.
    """
    generator = np.random.default_rng((seed, num_images))
    draws = generator.integers(num_images, size=(replicates, num_images))
    return np.stack([np.bincount(row, minlength=num_images) for row in draws])


def bootstrap(match: MatchData, replicates: int = 200, seed: int = 0) -> Floats:
    """The six APs of resampled data sets; subtract two detectors' before taking quantiles.

    Returns:
        (R, 6) float64, percent, in the order of `AP_NAMES`; NaN where a replicate has no such object.
    """
    return average_precision(match, image_weights(len(match.image_ids), replicates, seed))


def average_precision(match: MatchData, weights: Ints) -> Floats:
    """The six APs when image i counts `weights[..., i]` times.

    Detections of equal score stand copy by copy: the copies of an image directly follow it.

    Args:
        match: of one evaluation.
        weights: (I,) or (R, I) integers >= 0.

    Returns:
        (6,) or (R, 6) float64, percent, in the order of `AP_NAMES`; NaN where no object of the area range
        has weight. A class without any is left out of the mean, as pycocotools does.

    Raises:
        ValueError: the last axis is not one weight per image.
    """
    if weights.shape[-1:] != match.image_ids.shape:
        raise ValueError(f"need one weight for each of {len(match.image_ids)} images, got {weights.shape}")
    weights_IR = np.ascontiguousarray(weights.reshape(-1, weights.shape[-1]).T, dtype=np.float64)
    num_classes = match.num_gt_AKI.shape[1]
    bounds = np.searchsorted(match.class_D, np.arange(num_classes + 1))
    parts = [slice(*bounds[k : k + 2]) for k in range(num_classes)]
    areas = range(len(AREA_LABELS))
    ap_AKTR = np.stack(
        [[_class_ap(match, k, part, a, weights_IR) for k, part in enumerate(parts)] for a in areas]
    )
    means = [_mean(ap_AKTR[0]), _mean(ap_AKTR[0, :, _AP50]), _mean(ap_AKTR[0, :, _AP75])]
    means += [_mean(ap_KTR) for ap_KTR in ap_AKTR[1:]]
    return 100 * np.stack(means, axis=-1).reshape(*weights.shape[:-1], len(AP_NAMES))


def _mean(ap: Floats) -> Floats:
    """Mean over all axes but the last of what is not NaN; NaN where nothing is."""
    flat = ap.reshape(-1, ap.shape[-1])
    present = ~np.isnan(flat)
    with np.errstate(invalid="ignore"):
        mean: Floats = np.where(present, flat, 0.0).sum(axis=0) / present.sum(axis=0)
    return mean


def _class_ap(match: MatchData, k: int, part: slice, a: int, weights_IR: Floats) -> Floats:
    """(T, R) AP of class k in area range a, 0 to 1; NaN where its objects have no weight.

    Precision and recall are computed at the J detections that are true at some threshold. No other can
    matter: recall rises only there, and precision only falls between them.
    """
    image = match.image_D[part]
    true_TD, ignored_TD = match.true_ATD[a, :, part], match.ignored_ATD[a, :, part]
    places_J = np.flatnonzero(true_TD.any(axis=0))
    weights_JR = weights_IR[image[places_J]]
    num_gt_R = match.num_gt_AKI[a, k] @ weights_IR
    # Whether a detection is ignored hardly varies with the threshold: those that always count are summed
    # once, and only the few others once per threshold.
    ever_D = np.logical_or.reduce(ignored_TD)  # at some threshold
    sure_JR = _weight_up_to(places_J, ~ever_D, image, weights_IR)
    ap_TR = np.empty((len(true_TD), weights_IR.shape[1]))
    for t, (true_D, ignored_D) in enumerate(zip(true_TD, ignored_TD, strict=True)):
        true_JR = np.cumsum(weights_JR * true_D[places_J, None], axis=0)
        counted_JR = sure_JR + _weight_up_to(places_J, ever_D & ~ignored_D, image, weights_IR)
        ap_TR[t] = _interpolated(true_JR, counted_JR, num_gt_R, match.recall_thresholds)
    return ap_TR


def _weight_up_to(places_J: Ints, selected_D: Bools, image_D: Ints, weights_IR: Floats) -> Floats:
    """(J, R) weight of the selected detections from the best up to and including each place."""
    weights = weights_IR[image_D[selected_D]]
    totals = np.concatenate([np.zeros((1, weights.shape[1])), np.cumsum(weights, axis=0)])
    sums: Floats = totals[np.cumsum(selected_D)[places_J]]
    return sums


def _interpolated(true_JR: Floats, counted_JR: Floats, num_gt_R: Floats, thresholds: Floats) -> Floats:
    """(R,) mean over the recall thresholds of the best precision at that recall or beyond.

    A threshold belongs to the first detection whose recall is >= it, in the same float comparison as
    pycocotools makes; so a detection counts once for every threshold that it is the first to reach.
    """
    with np.errstate(invalid="ignore"):
        recall_JR = true_JR / num_gt_R
    precision_JR = true_JR / (counted_JR + _EPSILON)
    best_JR = np.maximum.accumulate(precision_JR[::-1], axis=0)[::-1]
    reached_JR = np.searchsorted(thresholds, recall_JR, side="right")
    first_JR = np.diff(reached_JR, axis=0, prepend=0)
    ap: Floats = (best_JR * first_JR).sum(axis=0) / len(thresholds)
    return np.where(num_gt_R > 0, ap, np.nan)
