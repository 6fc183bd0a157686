"""The detectors of the paper's rows beside those of `detector.presets`, and how each row trains.

Where the paper leaves a setting open, the decision stands beside the setting.
"""

from __future__ import annotations

from dataclasses import replace

from ablation.study import Variant
from detector.config import AnchorRefinement, AnyDetector, Evaluation, SingleShot
from detector.presets import REFINEDET320, REFINEDET_TEST
from experiments.detection.recipe import Recipe

# --- the ablation (Sec. 5.1, Table 2): from all parts to none, each row without one more ----------------


def without_filter(detector: SingleShot) -> SingleShot:
    """No negative anchor filtering: every anchor reaches the detection module, in training and in tests.

    The paper raises its threshold on P(background) to 1, and here the one on P(object) falls to 0.
    """
    return replace(detector, refinement=AnchorRefinement(objectness=0.0))


def without_cascade(detector: SingleShot) -> SingleShot:
    """No two-step cascaded regression either: the detection module starts from the regular anchors.

    The paper does not say whether the anchor refinement module is still trained. Here its loss stays, so
    that the row differs from the one before in what the second step starts from, and in nothing else.
    """
    return replace(detector, refinement=AnchorRefinement(objectness=0.0, cascade=False))


def without_transfer(detector: SingleShot) -> SingleShot:
    """No transfer connection block either, and so no second step: one classifier and regressor on each map.

    "The number of predicted classes in the ARM is changed", so this is an SSD head on the same four maps with
    the same three anchors, tested with RefineDet's thresholds.
    """
    return replace(detector, refinement=None, transfer=None)


ABLATION = {
    "RefineDet320": REFINEDET320,
    "without filtering": without_filter(REFINEDET320),
    "without filtering, cascade": without_cascade(REFINEDET320),
    "without filtering, cascade, TCB": without_transfer(REFINEDET320),
}
"""The columns of Table 2, by the label of the row."""


def variant(detector: AnyDetector, test: Evaluation = REFINEDET_TEST) -> Variant:
    """A row: one training by the paper's one schedule, and its test.

    Faster R-CNN is trained like the others, so that rows differ in the detector alone. Its paper has another
    schedule, and no augmentation but flips.
    """
    return Variant(Recipe(detector), test)
