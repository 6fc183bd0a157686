"""Configs as plain data and back."""

import json
from dataclasses import replace
from typing import Any

import pytest

from detector.config import (
    FPN,
    AdamW,
    Anchors,
    Data,
    Detector,
    Evaluation,
    MaxIoU,
    OneCycle,
    Schedule,
    SpatialScale,
    Trial,
    Weights,
)
from detector.serialization import from_dict, to_dict
from experiments.atss import presets

TRIAL = Trial(Detector(), Schedule(), Data("0" * 12), seed=1)

DETECTORS = {
    "RetinaNet": presets.retinanet(),
    "RetinaNet with nine anchors": presets.retinanet(presets.NINE_ANCHORS),
    **{name: improve(presets.retinanet()) for name, improve in presets.IMPROVEMENTS.items()},
    "FCOS": presets.fcos(),
    "FCOS with center sampling": presets.fcos(1.5),
    "ATSS": presets.atss(),
    "FCOS with ATSS": presets.fcos_atss(),
    "64x4d DCN": presets.large(presets.RESNEXT_101_64X4D_DCN).detector,
}


@pytest.mark.parametrize("detector", DETECTORS.values(), ids=DETECTORS.keys())
def test_every_preset_comes_back_equal_through_json(detector: Detector) -> None:
    trial = replace(TRIAL, detector=detector)
    assert from_dict(json.loads(json.dumps(to_dict(trial))), Trial) == trial


def test_a_small_training_with_weights_comes_back_equal() -> None:
    trial = Trial(
        Detector(num_classes=3, fpn=FPN(16, "C5")),
        Schedule(7, 2, AdamW(), OneCycle(), "fp16"),
        Data("a", 64, 96, min_short_side=32, skip_unannotated=True),
        seed=0,
        weights=Weights("detectron", "0" * 64),
    )
    assert from_dict(to_dict(trial), Trial) == trial


@pytest.mark.parametrize("evaluation", [presets.SINGLE_SCALE, presets.MULTI_SCALE])
def test_both_ways_of_testing_come_back_equal(evaluation: Evaluation) -> None:
    assert from_dict(to_dict(evaluation), Evaluation) == evaluation


def test_a_union_is_read_back_by_the_name_of_its_class() -> None:
    for assigner in (MaxIoU(), SpatialScale(1.5), SpatialScale()):
        plain = to_dict(Detector(assigner=assigner))
        assert plain["assigner"]["type"] == type(assigner).__name__
        assert from_dict(plain, Detector).assigner == assigner


def changed(**changes: Any) -> dict[str, Any]:
    plain: dict[str, Any] = to_dict(TRIAL)
    plain["data"] = {k: v for k, v in {**plain["data"], **changes}.items() if v is not ...}
    return plain


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        (changed(flip=...), r"^Trial\.data: Data needs flip; written by another version.* train again"),
        (changed(mixup=0.1), r"^Trial\.data: Data does not know mixup; written by another version"),
        (changed(type="Dataset"), r"^Trial\.data: no config class is called 'Dataset'; written by another"),
        (changed(type=...), r"^Trial\.data: no config class is called None"),
        (changed(flip="often"), r"^Trial\.data\.flip: cannot be 'often'"),
        (changed(min_short_side=0.5), r"^Trial\.data\.min_short_side: cannot be 0\.5"),
        (changed(flip=2.0), r"flip must be in 0\.\.1, got 2\.0"),
        (to_dict(TRIAL) | {"schedule": to_dict(FPN())}, r"^Trial\.schedule: cannot be a FPN"),
        (to_dict(Anchors()), r"^expected a Trial, got a Anchors"),
        ([1], r"^expected a Trial, got \(1,\)"),
    ],
)
def test_what_is_wrong_with_plain_data_is_named(plain: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_dict(plain, Trial)


def test_a_value_outside_a_choice_is_named() -> None:
    plain = to_dict(Schedule()) | {"precision": "fp8"}
    with pytest.raises(ValueError, match=r"^Schedule\.precision: cannot be 'fp8'"):
        from_dict(plain, Schedule)
