"""From raw outputs to candidates for detections: probabilities, threshold, the best of each level or class.

Axes: N images; A anchors over all levels; K classes; C candidates, that is (anchor, class) pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from detector.config import Evaluation
from detector.geometry.box_coders import BoxCoder, Coder
from detector.objectives.multibox import objectness
from detector.outputs import Candidates, Outputs, SingleShotOutputs


def dense_candidates(outputs: Outputs, evaluation: Evaluation, coder: Coder) -> Candidates:
    """The best `pre_nms_topk` pairs of each level (Sec. 4.1 of ATSS).

    A candidate is a pair whose class probability exceeds `score_threshold`. With a centerness branch
    candidates are ranked by probability x centerness, and the score is the square root of that.
    """
    anchors_NC, labels_NC, ranks_NC = _best_pairs(outputs, evaluation)
    deltas_NC4 = outputs.reg_NA4.gather(1, anchors_NC.unsqueeze(-1).expand(-1, -1, 4)).float()
    grid = outputs.grid
    boxes_NC4 = coder.decode(deltas_NC4, grid.boxes_A4[anchors_NC], grid.strides_A[anchors_NC])
    # Pairs below the threshold have negative ranks, whose root is NaN.
    return Candidates(boxes_NC4, labels_NC, ranks_NC if outputs.ctr_NA is None else ranks_NC.sqrt())


def _best_pairs(outputs: Outputs, evaluation: Evaluation) -> tuple[Tensor, Tensor, Tensor]:
    """The best pairs of every level: anchor, label and rank, (N, C) each; rank -1 means none."""
    probability_NAK = outputs.cls_NAK.float().sigmoid()
    rank_NAK = probability_NAK
    if outputs.ctr_NA is not None:
        rank_NAK = probability_NAK * outputs.ctr_NA.float().sigmoid().unsqueeze(-1)
    rank_NAK = rank_NAK.where(probability_NAK > evaluation.score_threshold, -1)
    num_classes = rank_NAK.shape[-1]
    ranks, pairs = [], []
    for level in outputs.grid.levels:
        stop = level.start + level.num_anchors
        level_ranks = rank_NAK[:, level.start : stop].flatten(1)
        best = level_ranks.topk(min(evaluation.pre_nms_topk, level_ranks.shape[1]), dim=1)
        ranks.append(best.values)
        pairs.append(best.indices + level.start * num_classes)
    pairs_NC = torch.cat(pairs, dim=1)
    return pairs_NC // num_classes, pairs_NC % num_classes, torch.cat(ranks, dim=1)


def single_shot_candidates(
    outputs: SingleShotOutputs, evaluation: Evaluation, coder: BoxCoder, least_objectness: float
) -> Candidates:
    """The best `pre_nms_topk` anchors of each class whose softmax probability exceeds `score_threshold`.

    Args:
        outputs: of the detector.
        evaluation: threshold and number.
        coder: decodes the offsets.
        least_objectness: P(object) by the ARM below which an anchor has no class (RefineDet, Sec. 3).

    Returns:
        K * pre_nms_topk candidates per image (fewer of fewer anchors).
    """
    odm = outputs.odm
    score_NKA = odm.cls_NAK.float().softmax(dim=-1)[..., 1:].transpose(1, 2)
    score_NKA = score_NKA.where(score_NKA > evaluation.score_threshold, -1.0)
    if outputs.arm is not None:
        score_NKA = score_NKA.where((objectness(outputs.arm) >= least_objectness).unsqueeze(1), -1.0)
    best = score_NKA.topk(min(evaluation.pre_nms_topk, score_NKA.shape[2]), dim=2)
    anchors_NC, num_classes = best.indices.flatten(1), score_NKA.shape[1]
    labels_K = torch.arange(num_classes, device=anchors_NC.device)
    boxes_NA4 = coder.decode(odm.reg_NA4.float(), odm.boxes_NA4, odm.reg_NA4[..., 0])
    return Candidates(
        boxes_NC4=boxes_NA4.gather(1, anchors_NC.unsqueeze(-1).expand(-1, -1, 4)),
        labels_NC=labels_K.view(-1, 1).expand(best.indices.shape).flatten(1),
        scores_NC=best.values.flatten(1),
    )
